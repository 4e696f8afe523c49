"""`m2rag embed`: texts into vectors, as JSON lines or a numpy file."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2rag.cli.common import DEVICE, DTYPE, MODEL, VERBOSE, Dtype, TooLong, load_embedder, note, plural, say_json
from m2rag.errors import InvalidInputError, M2RagError

if TYPE_CHECKING:
    import numpy as np


class Precision(str, Enum):
    """Number format of the vectors."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"


def embed(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT...]", help="Texts; - or nothing: the lines of standard input.", show_default=False
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            help="A whole file as one text (.txt .md .rst .html .pdf .docx .epub, source code); may be repeated.",
            exists=True,
            dir_okay=False,
            readable=False,
            show_default=False,
        ),
    ] = None,
    query: Annotated[bool, typer.Option("--query", help="The texts are queries, not documents.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE.npy", help="Write the vectors there.", dir_okay=False),
    ] = None,
    precision: Annotated[Precision, typer.Option("--precision", help="Number format.")] = Precision.FLOAT32,
    on_too_long: Annotated[
        TooLong, typer.Option("--on-too-long", help="Texts longer than the model takes: windows, a cut, or an error.")
    ] = TooLong.ERROR,
    model: MODEL = None,
    device: DEVICE = None,
    dtype: DTYPE = Dtype.FLOAT32,
    verbose: VERBOSE = False,
) -> None:
    """Embed texts; each vector is made from all of its text.

    Prints a JSON line for each: {index, n_tokens, n_used, n_windows, truncated, vector}. With --out the vectors go
    into a numpy file instead: (N, D) in the order of the texts, files last.
    """
    if out is not None and not out.parent.is_dir():
        raise typer.BadParameter(f"the folder {out.parent} does not exist", param_hint="--out")
    items = _texts(texts or [], file or [])
    embedder = load_embedder(model, device=device, dtype=dtype, precision=precision.value)
    if query:
        result = embedder.embed_queries(items, on_too_long=on_too_long.value)
    else:
        result = embedder.embed_documents(items, on_too_long=on_too_long.value, show_progress=sys.stderr.isatty())
    if out is not None:
        _write(out, result.vectors)
        n, d = result.shape
        note(f"{out}: {plural(n, 'vector')} of {d:,} numbers ({result.dtype}), {result.n_tokens.sum():,} tokens")
        return
    for i, vector in enumerate(result.vectors):
        facts = {
            "index": i,
            "n_tokens": int(result.n_tokens[i]),
            "n_used": int(result.n_used[i]),
            "n_windows": int(result.n_windows[i]),
            "truncated": bool(result.truncated[i]),
        }
        say_json({**facts, "vector": _numbers(vector)}, indent=None)


def _texts(given: list[str], files: list[Path]) -> list[str]:
    from m2rag.index.readers import decode_text, read_document

    items = [text for text in given if text != "-"]
    if "-" in given or not (given or files):
        data = sys.stdin.buffer.read()
        lines = decode_text(data, Path("standard input")).split("\n") if data else []
        items += lines[:-1] if lines and not lines[-1] else lines
        if not items:
            raise InvalidInputError("standard input is empty: there is no text to embed")
    return items + [read_document(path).text for path in files]


def _numbers(vector: np.ndarray) -> list[int] | list[float]:
    if vector.dtype.kind != "f":
        return vector.tolist()
    return [float(str(number)) for number in vector]  # the fewest digits that give this number back


def _write(out: Path, vectors: np.ndarray) -> None:
    import numpy as np

    try:
        with out.open("wb") as file:
            np.save(file, vectors)
    except OSError as error:
        raise M2RagError(f"{out} cannot be written: {error.strerror}") from error
