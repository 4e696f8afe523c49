"""`m2rag info`: what an index or a model is."""

from __future__ import annotations

from typing import Any

import typer

from m2rag.cli.common import (
    API_KEY,
    AS_JSON,
    DEVICE,
    DTYPE,
    MODEL,
    SOME_INDEX,
    VERBOSE,
    Dtype,
    load_embedder,
    say,
    say_json,
)


def info(
    index: SOME_INDEX = None,
    api_key: API_KEY = None,
    model: MODEL = None,
    device: DEVICE = None,
    dtype: DTYPE = Dtype.AUTO,
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Describe an index (no model is loaded for it) or a model.

    JSON of an index: {path, documents, tokens, windowed, size_bytes, fingerprint, dimension, created, m2rag_version,
    format, model, lexical, quantization, filterable}; windowed: documents longer than the model takes at once; lexical:
    language of its words, null where it has none; filterable: metadata fields that filters are fast on, and their
    kind. JSON of a model: {model, backend, device, dtype, parameters, dimension, max_tokens, fingerprint, ...}.
    """
    if (index is None) == (model is None):
        raise typer.BadParameter("give either --index or --model")
    if index is not None:
        from m2rag.index import read_info

        facts = read_info(index, api_key=api_key)
    else:
        facts = load_embedder(model, device=device, dtype=dtype).info()
    if as_json:
        say_json(facts)
        return
    for name, value in facts.items():
        say(f"{name:<14} {_shown(name, value)}")


def _shown(name: str, value: Any) -> str:
    if name == "size_bytes" and value is not None:
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, dict):
        return ", ".join(f"{field} ({kind})" for field, kind in value.items()) or "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)
