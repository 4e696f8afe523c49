"""`m2rag search`: the documents nearest to a question, with their best passages."""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from m2rag.cli.common import (
    API_KEY,
    AS_JSON,
    DEVICE,
    DTYPE,
    INDEX,
    MODEL,
    VERBOSE,
    Dtype,
    hit_as_json,
    open_index,
    plural,
    say,
    say_indented,
    say_json,
)
from m2rag.cli.snippets import snippet

if TYPE_CHECKING:
    from m2rag.index import Hit

_WIDTH = 320  # characters of a passage that are shown


class SearchMode(str, Enum):
    """By words and meaning, by meaning, by words."""

    HYBRID = "hybrid"
    DENSE = "dense"
    LEXICAL = "lexical"


FILTER = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        "-f",
        metavar="FIELD=VALUE",
        help='Only documents whose metadata has this value: suffix=.pdf; or one of several: \'suffix=[".pdf", '
        "\".md\"]'; or lies in a range: 'year>=2015', 'year<2020', 'date<2020-01-31'. May be repeated: all must hold. "
        "Numbers, true and false are read as such, unless quoted: year='\"2020\"'.",
        show_default=False,
    ),
]


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What you look for, in any words.", show_default=False)],
    index: INDEX,
    api_key: API_KEY = None,
    k: Annotated[int, typer.Option("-k", help="How many documents.", min=1)] = 10,
    mode: Annotated[
        SearchMode | None,
        typer.Option(
            "--mode",
            help="dense: by meaning; lexical: by words (BM25); hybrid: both. Default: hybrid if the index has words.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="DENSE,LEXICAL",
            help="What meaning and words count in hybrid mode. Default: 0.7,1.",
            show_default=False,
        ),
    ] = None,
    filter: FILTER = None,
    passages: Annotated[bool, typer.Option("--passages/--no-passages", help="Show the passages that fit best.")] = True,
    rescore: Annotated[
        float | None,
        typer.Option(
            help="Weight of the best passage in the order, 0 to 1. Default: 0.5 in hybrid mode, else 0.",
            min=0.0,
            max=1.0,
            show_default=False,
        ),
    ] = None,
    model: MODEL = None,
    device: DEVICE = None,
    dtype: DTYPE = Dtype.AUTO,
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Find documents by their meaning and their words, best first.

    The index is opened with the model it was built with, unless --model says otherwise.

    JSON: {query, index, mode, hits: [{id, score, document_score, title, passages: [{text, start, end, score,
    own_score}], metadata, n_tokens, n_windows, truncated}]}; score: what the mode orders by (a cosine, BM25's number,
    or a mean of both, 0 to about 1); document_score: the cosine; start and end: characters of the document's text;
    own_score: false where the model gives passages no vectors: words choose them, and the score is the document's.
    """
    pair = _weights(weights) if weights is not None else None
    conditions = filter_conditions(filter)
    with open_index(index, model, device=device, dtype=dtype, api_key=api_key) as opened:
        place = opened.location
        chosen = opened.modes[0] if mode is None else mode.value
        hits = opened.search(query, k, mode=chosen, weights=pair, rescore=rescore, filter=conditions, passages=passages)
        documents = len(opened)
    if as_json:
        say_json({"query": query, "index": place, "mode": chosen, "hits": [hit_as_json(hit) for hit in hits]})
        return
    for rank, hit in enumerate(hits, start=1):
        show_hit(rank, hit, query)
    if not hits:
        say(f"Nothing found among {plural(documents, 'document')}{' with this filter' if conditions else ''}.")


def _weights(given: str) -> tuple[float, float]:
    try:
        meaning, words = (float(part) for part in given.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{given!r} is not two numbers, as 0.7,1", param_hint="--weights") from error
    return meaning, words


def show_hit(rank: int, hit: Hit, query: str, *, mark: str = "", width: int = _WIDTH) -> None:
    """Rank, score, title and what was done to the document; below it the best passage."""
    line = Text(f"{rank:>3}  {hit.score:.3f}  ")
    line.append(hit.title or hit.id, style="bold")
    line.append(f"  {hit.id}  " if hit.title and hit.title != hit.id else "  ", style="cyan")
    detail = plural(hit.n_tokens, "token")
    if hit.n_windows > 1:
        detail += f", {hit.n_windows} windows"
    if hit.truncated:
        detail += ", cut"
    line.append(detail, style="dim")
    line.append(mark)
    say(line)
    if hit.passages:
        say_indented(snippet(hit.passages[0].text, query, width))


def filter_conditions(given: list[str] | None) -> dict[str, Any] | None:
    """What `--filter` says, as `search` of an index takes it."""
    found: dict[str, Any] = {}
    for item in given or []:
        field, wanted = _condition(item)
        there = found.get(field)
        if isinstance(there, dict) and isinstance(wanted, dict) and "in" not in {**there, **wanted}:
            wanted = {**there, **wanted}
        elif field in found:
            raise typer.BadParameter(
                f"{item!r}: there is a filter by {field} already; several values are one list, {field}='[1, 2]'",
                param_hint="--filter",
            )
        found[field] = wanted
    return found or None


_OPERATORS = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt"}


def _condition(item: str) -> tuple[str, Any]:
    field, operator, value = (part.strip() for part in [*re.split("(>=|<=|>|<|=)", item, maxsplit=1), "", ""][:3])
    if not operator or not field or field.endswith("!"):
        raise typer.BadParameter(
            f"{item!r} is not of the form field=value, field>=value or field<value", param_hint="--filter"
        )
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    if operator != "=":
        return field, {_OPERATORS[operator]: parsed}
    if isinstance(parsed, list):
        return field, {"in": parsed}
    return field, parsed if isinstance(parsed, (str, int, float, bool)) else value
