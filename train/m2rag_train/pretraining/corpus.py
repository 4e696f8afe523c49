"""Sources -> tokens on disk, once: afterwards any row is one read, in memory that does not grow with the corpus."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from m2rag._optional import require
from m2rag.tokenizer import TextTokenizer
from m2rag_train.errors import CheckpointWriteError, TrainingDataError
from m2rag_train.pretraining.recipe import TextSource
from m2rag_train.sources import numbered_rows, text_of

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".jsonl", ".jsonl.zst")

# Characters whose tokens are in memory at a time.
_GROUP_CHARS = 4_000_000

# Text of which a row takes the beginning is not tokenised to its end. A token of prose has four or five characters.
_CHARS_PER_TOKEN = 16

_ABOUT = "source.json"


@dataclass(frozen=True)
class TokenFile:
    """Documents in a row on disk, a separator behind each.

    Attributes:
        tokens: (T,) ids, mapped from the file.
        starts: (N + 1,) where each document begins in `tokens`, and the end of the last.
    """

    tokens: np.ndarray
    starts: np.ndarray

    @classmethod
    def open(cls, folder: Path, part: str) -> TokenFile:
        """The part "train" or "held_out" of a folder that `tokenised` made."""
        arrays = []
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        for suffix, dtype in (("tokens", np.dtype(about["dtype"])), ("starts", np.dtype(np.int64))):
            path = folder / f"{part}.{suffix}"
            # An empty file cannot be mapped.
            arrays.append(np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype))
        return cls(*arrays)

    @property
    def n_documents(self) -> int:
        return len(self.starts) - 1

    def document(self, number: int) -> np.ndarray:
        """Ids of a document, without the separator."""
        return self.tokens[self.starts[number] : self.starts[number + 1] - 1]


def tokenised(
    source: TextSource, tokenizer: TextTokenizer, max_row: int, *, data: Path, cache: Path, held_out: float
) -> Path:
    """Folder of the source's tokens; made if it is not there yet.

    Every 1/held_out-th document goes to the held-out part. Sources that differ in weight and name only share a folder.

    Args:
        max_row: longest row; of natural documents no more than that is kept.
        data: folder that the source's files are in.
        cache: folder for such folders.

    Raises:
        TrainingDataError: a file is missing or damaged, a row has no text, or there is no document at all.
        CheckpointWriteError: the disk is full.
    """
    files = source_files(source, data)
    cut = max_row - len(tokenizer.prefix) - len(tokenizer.suffix) if source.mode == "natural" else None
    identity: dict[str, Any] = {
        "files": [(str(path.relative_to(data)), path.stat().st_size, path.stat().st_mtime_ns) for path in files],
        "dataset": [source.dataset, source.subset, source.split],
        "text_key": source.text_key,
        "max_tokens": source.max_tokens,
        "cut": cut,
        "held_out": held_out,
        "tokenizer": tokenizer.identity,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
    }
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    folder = cache / key
    if folder.is_dir():
        return folder
    # Renamed when it is complete: what a killed process leaves is made anew.
    unfinished = cache / f"{key}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    texts = _texts_of_dataset(source) if source.dataset else _texts_of_files(files, source.text_key)
    try:
        unfinished.mkdir(parents=True)
        counts = _write(texts, tokenizer, unfinished, np.dtype(identity["dtype"]), cut, source.max_tokens, held_out)
        (unfinished / _ABOUT).write_text(json.dumps({**identity, **counts}, indent=2), encoding="utf-8")
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointWriteError(f"{unfinished}: cannot write the tokens of {source.name!r}: {error}") from error
    if not counts["documents"]:
        raise TrainingDataError(f"source {source.name!r} has no document with text")
    unfinished.replace(folder)
    logger.info(
        "%s: %d tokens in %d documents, %d of them held out; %d without text",
        source.name, counts["tokens"], counts["documents"], counts["held_out"], counts["empty"],
    )  # fmt: skip
    return folder


def source_files(source: TextSource, data: Path) -> list[Path]:
    """The source's files, sorted within each pattern.

    Raises:
        TrainingDataError: a pattern matches nothing, or a file is of an unknown kind.
    """
    files = []
    for pattern in source.files:
        found = sorted(path for path in data.glob(pattern) if path.is_file())
        if not found:
            raise TrainingDataError(f"source {source.name!r}: no file matches {pattern!r} in {data}")
        files += found
    for path in files:
        if not path.name.endswith(SUFFIXES):
            raise TrainingDataError(f"{path}: must be one of {', '.join(SUFFIXES)}")
    return files


def _texts_of_files(files: list[Path], text_key: str) -> Iterator[str]:
    for path in files:
        if path.suffix == ".txt":
            try:
                yield path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TrainingDataError(f"{path}: {error}") from error
            continue
        for where, row in numbered_rows(path):
            yield (
                _text_of_sections(row["sections"], where)
                if "sections" in row
                else text_of(row, text_key, where, empty=True)
            )


def _text_of_sections(sections: object, where: str) -> str:
    if not isinstance(sections, list) or not all(isinstance(section, dict) for section in sections):
        raise TrainingDataError(f"{where}: 'sections' must be a list of objects")
    parts = []
    for number, section in enumerate(sections):
        place = f"{where}, section {number}"
        parts += [text_of(section, key, place, empty=True).strip() for key in ("heading", "text")]
    return "\n".join(part for part in parts if part)


def _texts_of_dataset(source: TextSource) -> Iterator[str]:
    datasets = require("datasets", extra="train")
    try:
        rows = datasets.load_dataset(source.dataset, source.subset, split=source.split, streaming=True)
        for number, row in enumerate(rows):
            yield text_of(row, source.text_key, f"{source.dataset}, row {number}", empty=True)
    except TrainingDataError:
        raise
    except (OSError, ValueError) as error:
        where = f"the data set {source.dataset!r}, subset {source.subset!r}, split {source.split!r}"
        raise TrainingDataError(f"source {source.name!r}: {where} cannot be read: {error}") from error


def _write(
    texts: Iterable[str],
    tokenizer: TextTokenizer,
    folder: Path,
    dtype: np.dtype,
    cut: int | None,
    max_tokens: int | None,
    held_out: float,
) -> dict[str, int]:
    counts = {"tokens": 0, "documents": 0, "held_out": 0, "empty": 0}
    separator = np.array(tokenizer.suffix, dtype=dtype)
    parts = ("train", "held_out")
    ends = dict.fromkeys(parts, 0)
    with (
        (folder / "train.tokens").open("wb") as train,
        (folder / "held_out.tokens").open("wb") as held,
        (folder / "train.starts").open("wb") as train_starts,
        (folder / "held_out.starts").open("wb") as held_starts,
    ):
        tokens: dict[str, BinaryIO] = {"train": train, "held_out": held}
        starts: dict[str, BinaryIO] = {"train": train_starts, "held_out": held_starts}
        for part in parts:
            starts[part].write(np.int64(0).tobytes())
        chars = None if cut is None else cut * _CHARS_PER_TOKEN
        for group in _groups(text[:chars] for text in texts):
            for encoded in tokenizer.encode_many(group):
                if not len(encoded):
                    counts["empty"] += 1
                    continue
                kept = encoded.ids[:cut]
                number = counts["documents"]
                part = parts[int((number + 1) * held_out) > int(number * held_out)]
                ids = np.concatenate([kept.astype(dtype), separator])
                ends[part] += len(ids)
                tokens[part].write(ids.tobytes())
                starts[part].write(np.int64(ends[part]).tobytes())
                counts["documents"] += 1
                counts["held_out"] += part == "held_out"
                counts["tokens"] += len(kept)
                if max_tokens is not None and counts["tokens"] >= max_tokens:
                    return counts
    return counts


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts that are tokenised together, bounded in characters: the tokenizer's threads share a group."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= _GROUP_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group
