"""What the commands share: options, output, logging, opening a model and an index."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from m2rag.errors import CheckpointError, IndexNotFoundError, M2RagError

if TYPE_CHECKING:
    from m2rag.embedder import M2Embedder
    from m2rag.index import Hit, LongDocumentIndex
    from m2rag.stores import VectorStore

T = TypeVar("T")

ERROR = 1
SOME_FAILED = 3
INTERRUPTED = 130


KINDS = ".txt .md .rst .html .pdf .docx .epub .jsonl .csv, source code, and these as .gz or .zst"
"""What the index reads, for help texts; the readers are imported later."""


class TooLong(str, Enum):
    """What becomes of texts longer than the model takes."""

    WINDOW = "window"
    TRUNCATE = "truncate"
    ERROR = "error"


class Dtype(str, Enum):
    """Number format of the model's matrix products."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def set_up_logging(verbose: bool) -> None:
    """Warnings of this library, on standard error; with `verbose` its details and the warnings of others."""
    from rich.logging import RichHandler

    handler = RichHandler(console=stderr, show_time=verbose, show_path=False, markup=False)
    # On the handler too: some packages set the level of their own logger.
    handler.setLevel(logging.DEBUG if verbose else logging.WARNING)
    logging.basicConfig(
        level=logging.WARNING if verbose else logging.ERROR,
        format="%(name)s: %(message)s" if verbose else "%(message)s",  # the handler shows the level itself
        handlers=[handler],
        force=True,
    )
    for package in ("m2rag", "m2rag_kernels"):
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.WARNING)
    # Documents that fail are listed at the end, with their causes.
    logging.getLogger("m2rag.index.ingest").setLevel(logging.DEBUG if verbose else logging.ERROR)


def _on_verbose(verbose: bool) -> bool:
    if verbose:
        set_up_logging(True)
    return verbose


def _on_index(place: str | None) -> str | None:
    """A file where a folder belongs is a usage error, like every other wrong path."""
    if place is not None and "://" not in place and Path(place).is_file():
        raise typer.BadParameter(f"{place} is a file")
    return place


def path_given(text: str) -> Path:
    """A path as it was given; an empty one, as of a variable that is not set, would be the current folder."""
    if not text.strip():
        raise typer.BadParameter("the path is empty")
    return Path(text)


VERBOSE = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show log messages, and tracebacks of errors.", callback=_on_verbose)
]
MODEL = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Folder, weights file, bundled name or hub repository.",
        show_default=False,
    ),
]
DEVICE = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1. Default: the GPU if there is one.", show_default=False),
]
DTYPE = Annotated[Dtype, typer.Option("--dtype", help="Number format of matrix products; auto: bfloat16 if fast.")]
_INDEX: Any = typer.Option(
    "--index",
    "-i",
    metavar="PLACE",
    help="The index: a folder, or the URL of a collection on a Qdrant server, https://HOST:6333/COLLECTION.",
    callback=_on_index,
    show_default=False,
)
INDEX = Annotated[str, _INDEX]
SOME_INDEX = Annotated[str | None, _INDEX]
API_KEY = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="Key of the server. Better in the environment variable QDRANT_API_KEY: others can see command lines.",
        show_default=False,
    ),
]
LANGUAGE = Annotated[
    str,
    typer.Option(
        "--language", help="Of stemmer and stop words of a new index, for search by words: english, german, french, ..."
    ),
]
LEXICAL = Annotated[
    bool, typer.Option("--lexical/--no-lexical", help="Whether a new index can be searched by words too.")
]


class Quantized(str, Enum):
    """Bits of a number in the copy that large indexes are searched in."""

    NONE = "none"
    SCALAR = "scalar"
    BINARY = "binary"


QUANTIZATION = Annotated[
    Quantized,
    typer.Option(
        "--quantization",
        help="A new index also keeps vectors in 8 bits (scalar) or 1 bit (binary) a number: large ones are searched in "
        "these, and what is found is scored with the vectors themselves.",
    ),
]
FILTERABLE = Annotated[
    list[str] | None,
    typer.Option(
        "--filterable",
        metavar="FIELD=KIND",
        help="Make filters by this metadata field fast: keyword, integer, float, bool or datetime; may be repeated.",
        show_default=False,
    ),
]
AS_JSON = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


class _Output(Console):
    """A console that does not fold lines where nobody looks at a terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False)
        if not self.is_terminal:
            self.width = 200


stdout = _Output()
stderr = _Output(stderr=True)


def say(text: str | Text = "", style: str | None = None) -> None:
    """A line of the result."""
    stdout.print(text, style=style, markup=False, soft_wrap=True)


def say_indented(text: Text) -> None:
    """Running text below a line of the result."""
    if stdout.is_terminal:
        stdout.print(Padding(text, (0, 0, 0, 12)))
    else:
        say(Text(" " * 12) + text)


def note(text: str | Text = "", style: str | None = None) -> None:
    """A line beside the result."""
    stderr.print(text, style=style, markup=False, soft_wrap=True)


def say_json(data: Any, *, indent: int | None = 2) -> None:
    """JSON on standard output; letters beyond its encoding as escapes."""
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(data, indent=indent)
    typer.echo(text)


def new_index_options(words: str | None, quantization: Quantized, filterable: list[str] | None) -> dict[str, Any]:
    """What a new index is made with, as `LongDocumentIndex` takes it."""
    fields = dict(item.rpartition("=")[::2] for item in filterable or [])
    if "" in fields:
        raise typer.BadParameter("the form is field=kind, as year=integer", param_hint="--filterable")
    chosen = None if quantization is Quantized.NONE else quantization.value
    return {"lexical": words, "quantization": chosen, "filterable": fields}


def plural(n: int, what: str) -> str:
    """1 document, 2 documents."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


@contextmanager
def loading_a_model(device: str | None) -> Iterator[None]:
    """While a model is loaded: says so, and a wrong option is a usage error."""
    with stderr.status("Loading the model"):
        _check_device(device)
        try:
            yield
        except M2RagError:
            raise
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error


def load_embedder(
    model: str | None, *, device: str | None = None, dtype: Dtype = Dtype.AUTO, **options: Any
) -> M2Embedder:
    """The embedder the options ask for; a wrong option is a usage error."""
    with loading_a_model(device):
        from m2rag.embedder import M2Embedder

        return M2Embedder(model, device=device, dtype=dtype.value, **options)


def _check_device(device: str | None) -> None:
    if device is None:
        return
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise typer.BadParameter(f"{device!r} is no device: give cpu, cuda or cuda:1") from error
    there = torch.cuda.device_count()
    if wanted.type == "cuda" and (wanted.index or 0) >= there:
        raise typer.BadParameter(f"{device!r} is not there: torch sees {plural(there, 'CUDA device')}")


def open_index(
    place: str | Path,
    model: str | None,
    *,
    device: str | None,
    dtype: Dtype,
    create: bool = False,
    api_key: str | None = None,
    **new: Any,
) -> LongDocumentIndex:
    """Open an index with the model given, else the one it was built with, else the bundled one.

    A missing index, or one in use, is told before a model is loaded. `new`: choices for a new one.
    """
    from m2rag.index import LongDocumentIndex

    def build(model: str | None, store: str | Path | VectorStore) -> LongDocumentIndex:
        embedder = load_embedder(model, device=device, dtype=dtype)
        return LongDocumentIndex(store, embedder, api_key=api_key, **new)

    return with_index_model(place, model, build, create=create, api_key=api_key)


def with_index_model(
    place: str | Path,
    model: str | None,
    build: Callable[[str | None, str | Path | VectorStore], T],
    *,
    create: bool,
    api_key: str | None,
) -> T:
    """What `build` makes of an index's model and store.

    Args:
        place: of the index.
        model: instead of the one the index was built with; None for both: the bundled one.
        build: given the model, and the open store, or `place` where there is no index yet.
        create: whether there may be none.
    """
    from m2rag.stores import open_store, without_secrets

    shown = shlex.quote(without_secrets(str(place)))
    store: VectorStore | None = None
    try:
        store = open_store(place, api_key=api_key)
    except IndexNotFoundError as error:
        if not create:
            raise IndexNotFoundError(f"{error}: make one with m2rag index PATHS --index {shown}") from error
    remembered = store.manifest.model if store is not None else None
    try:
        return build(model or remembered, place if store is None else store)
    except BaseException as error:
        if store is not None:
            store.close()
        if isinstance(error, CheckpointError) and remembered and not model:
            raise CheckpointError(
                f"the index at {shown} was built with the model {remembered}, which cannot be loaded: {error}. "
                "If it was moved, say where to with --model"
            ) from error
        raise


def hit_as_json(hit: Hit) -> dict[str, Any]:
    """All of a hit, ready for JSON."""
    from dataclasses import asdict

    return asdict(hit)
