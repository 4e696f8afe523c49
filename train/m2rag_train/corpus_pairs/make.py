"""Pairs and development tasks for fine-tuning, written where a recipe can name them."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2rag._optional import require
from m2rag_train.corpus_pairs.queries import (
    CHARACTERS_PER_TOKEN,
    AskedDocument,
    Common,
    Section,
    ask,
    paragraphs_of,
    pieces,
    spans_of,
    tokens_of,
)
from m2rag_train.errors import TrainingDataError
from m2rag_train.files import replacing
from m2rag_train.sources import ShortText, numbered_rows, text_of

zstandard = require("zstandard", extra="train")

logger = logging.getLogger(__name__)

# Ids only: documents held out for development, and those that share text with a test.
DEVELOPMENT = Path(__file__).with_name("development.json")
OVERLAPPING = Path(__file__).with_name("overlapping.txt")

# Questions that a large language model wrote for passages of the documents, two each: one in other words than the
# passage's, one as it comes. {"source", "document", "start", "end", "crc32", "questions"}; the text is not in there.
QUESTIONS = Path(__file__).with_name("questions.jsonl.zst")

# Shorter documents teach nothing about long ones, and longer ones cost as much as ten that can be told apart.
TOKENS = (1_300, 26_000)
BOOK_TOKENS = (4_000, 16_000)

# Kinds of queries in each development task.
TASKS = {
    "title": ("title", "description"),
    "summary": ("opening", "paragraph"),
    "heading": ("heading", "question"),
    "span": ("span",),
}


@dataclass(frozen=True)
class Corpus:
    """A file of sectioned documents.

    Attributes:
        tokens: about so many are taken, drawn by document.
        development: documents that are held out.
        books: they are cut to pieces, which have no title of their own.
    """

    name: str
    tokens: int
    development: int = 0
    books: bool = False


CORPORA = (
    Corpus("design_proposals", 5_500_000, 60),
    Corpus("specs_and_manuals", 3_500_000, 20),
    Corpus("classic_books", 3_500_000, 10, books=True),
    Corpus("debian_doc_packages", 3_000_000, 20),
    Corpus("dc_code", 800_000, 10),
    Corpus("docs_misc2", 1_200_000, 5),
    Corpus("cockroachdb_docs", 800_000, 5),
    Corpus("ms_cpp_docs", 1_000_000, 5),
    Corpus("ms_misc_docs", 1_000_000, 5),
    Corpus("ms_win32", 1_000_000, 5),
    Corpus("ms_windows_driver_docs", 800_000, 5),
)
DCLAW_TOKENS = 2_500_000


def make(
    data: Path,
    out: Path,
    *,
    corpora: Sequence[Corpus] = CORPORA,
    dropped: frozenset[str] = frozenset(),
    seed: str = "0",
    ids: Path = DEVELOPMENT,
    questions: Path = QUESTIONS,
) -> None:
    """Write `NAME.documents.jsonl.zst` and `NAME.pairs.jsonl.zst` of every source, and `development/TASK`.

    Documents that `questions` are about are in `NAME.asked.documents.jsonl.zst` once more, and the questions with the
    passages that answer them in `NAME.asked.pairs.jsonl.zst`.

    Args:
        data: folder with `corpus` and `pairs`.
        corpora: files of `corpus` that are read.
        dropped: ids of documents that are left out, see `overlap.py`.
        ids: file with the ids of the documents that are held out, by source.
        questions: written for passages of the documents.

    Raises:
        TrainingDataError: a source is not there, or a line of it is broken, or a passage that was asked about is no
            longer where it was.
    """
    held_out = {name: frozenset(found) for name, found in json.loads(ids.read_text(encoding="utf-8")).items()}
    development: list[AskedDocument] = []
    asked: dict[str, list[dict[str, Any]]] = {}
    for _, row in numbered_rows(questions):
        asked.setdefault(row["source"], []).append(row)
    for corpus in corpora:
        documents = list(_sectioned(data / "corpus" / f"{corpus.name}.jsonl.zst"))
        found = list(_ask_all(corpus, documents, seed))
        held = held_out.get(corpus.name, frozenset())
        development += _first_of_each(document for document in found if _root(document.id) in held)
        _write_source(out, corpus.name, _up_to(found, held, corpus.tokens, seed), dropped, asked)
    for name, most in (("qmsum_train", None), ("dclaw_train", DCLAW_TOKENS)):
        given = list(_paired(data / "pairs", name, seed))
        _write_source(out, name, given if most is None else _up_to(given, frozenset(), most, seed), dropped, asked)
    write_tasks(out / "development", development)


def choose_development(data: Path, corpora: Sequence[Corpus] = CORPORA) -> dict[str, list[str]]:
    """Ids of the documents to hold out, by source: those whose ids have the lowest hashes."""
    chosen = {}
    for corpus in corpora:
        usable = [d.id for d in _sectioned(data / "corpus" / f"{corpus.name}.jsonl.zst") if corpus.books or d.fits()]
        usable.sort(key=lambda identifier: hashlib.sha256(f"development {identifier}".encode()).hexdigest())
        chosen[corpus.name] = sorted(usable[: corpus.development])
    return chosen


def write_tasks(out: Path, documents: Sequence[AskedDocument]) -> None:
    """A task in BEIR's layout for each of `TASKS`, and one with all of their queries."""
    every_kind = tuple(kind for kinds in TASKS.values() for kind in kinds)
    for task, kinds in {**TASKS, "all": every_kind}.items():
        asked: dict[str, set[str]] = {}
        for document in documents:
            # More spans than titles would make a task of spans.
            for kind in kinds:
                for query in [q for q in document.queries if q.kind == kind][:2]:
                    asked.setdefault(query.text, set()).add(document.id)
        numbers = {text: f"{task}-{number}" for number, text in enumerate(sorted(asked))}
        _write(out / task / "corpus.jsonl", ({"_id": d.id, "title": "", "text": d.text} for d in documents))
        _write(out / task / "queries.jsonl", ({"_id": n, "text": text} for text, n in numbers.items()))
        lines = [f"{numbers[text]}\t{identifier}\t1" for text in sorted(asked) for identifier in sorted(asked[text])]
        with replacing(out / task / "qrels.tsv") as path:
            path.write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Document:
    id: str
    title: str
    sections: list[Section]
    description: str

    def fits(self) -> bool:
        size = sum(len(s.text) + len(s.heading) for s in self.sections) / CHARACTERS_PER_TOKEN
        return TOKENS[0] <= size <= TOKENS[1]


def _sectioned(path: Path) -> Iterator[_Document]:
    for where, row in numbered_rows(path):
        sections = [
            Section(text_of(part, "heading", where, empty=True), text_of(part, "text", where, empty=True))
            for part in row.get("sections", ())
        ]
        description = row.get("description") or ""
        yield _Document(text_of(row, "id", where), text_of(row, "title", where, empty=True), sections, description)


def _ask_all(corpus: Corpus, documents: Sequence[_Document], seed: str) -> Iterator[AskedDocument]:
    common = Common((document.title, document.sections) for document in documents)
    for document in documents:
        if corpus.books:
            rng = random.Random(f"{seed} {document.id}")
            for number, sections in enumerate(pieces(document.sections, BOOK_TOKENS, rng)):
                yield ask(f"{document.id}#{number}", "", sections, common, seed=seed)
        elif document.fits():
            yield ask(
                document.id, document.title, document.sections, common, description=document.description, seed=seed
            )


def _paired(folder: Path, name: str, seed: str) -> Iterator[AskedDocument]:
    """Documents with the queries that the data gives them, and spans of their text."""
    queries: dict[str, list[ShortText]] = {}
    for where, row in numbered_rows(folder / f"{name}.jsonl.zst"):
        query = ShortText(text_of(row, "query", where), text_of(row, "kind", where))
        queries.setdefault(text_of(row, "document_id", where), []).append(query)
    for where, row in numbered_rows(folder / f"{name}_docs.jsonl.zst"):
        identifier, text = text_of(row, "_id", where), text_of(row, "text", where)
        spoken = name.startswith("qmsum")
        if not spoken and not TOKENS[0] <= tokens_of(text) <= TOKENS[1]:
            continue
        # A line of a transcript is "speaker: utterance".
        parts = [line.partition(": ")[2] for line in text.split("\n")] if spoken else paragraphs_of(text)
        rng = random.Random(f"{seed} {identifier}")
        spans = spans_of(parts, min(max(tokens_of(text) // 1_000, 4), 12), rng)
        yield AskedDocument(identifier, text, queries.get(identifier, []) + spans)


def _root(identifier: str) -> str:
    return identifier.rpartition("#")[0] or identifier


def _first_of_each(documents: Iterable[AskedDocument]) -> list[AskedDocument]:
    """Of a book's pieces only the first."""
    return list({_root(document.id): document for document in reversed(list(documents))}.values())[::-1]


def _up_to(documents: Iterable[AskedDocument], held_out: frozenset[str], tokens: int, seed: str) -> list[AskedDocument]:
    usable = [d for d in documents if _root(d.id) not in held_out and d.text and d.queries]
    random.Random(seed).shuffle(usable)
    found, room = [], tokens
    for document in usable:
        if room <= 0:
            break
        found.append(document)
        room -= tokens_of(document.text)
    return found


def _write_source(
    out: Path,
    name: str,
    drawn: Iterable[AskedDocument],
    dropped: frozenset[str],
    asked: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    # After the draw: what is dropped does not change what else is drawn.
    documents = [document for document in drawn if document.id not in dropped]
    rows = ({"_id": d.id, "title": "", "text": d.text} for d in documents)
    pairs = ({"query": q.text, "document_id": d.id, "kind": q.kind} for d in documents for q in d.queries)
    _write(out / f"{name}.documents.jsonl.zst", rows)
    _write(out / f"{name}.pairs.jsonl.zst", pairs)
    _write_asked(out, name, documents, asked.get(name, ()))
    kinds = Counter(q.kind for d in documents for q in d.queries)
    logger.info(
        "%s: %s documents, about %.1f M tokens, %s",
        *(name, f"{len(documents):,}", sum(tokens_of(d.text) for d in documents) / 1e6),
        ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()),
    )


def _write_asked(out: Path, name: str, documents: Sequence[AskedDocument], rows: Sequence[Mapping[str, Any]]) -> None:
    texts = {document.id: document.text for document in documents}
    pairs = []
    # A document that is dropped, or not drawn, is not asked about.
    for row in [row for row in rows if row["document"] in texts]:
        passage = texts[row["document"]][row["start"] : row["end"]]
        if zlib.crc32(passage.encode()) != row["crc32"]:
            raise TrainingDataError(
                f"{name}: document {row['document']!r} has another text than was asked about: not the same passage at "
                f"{row['start']:,} to {row['end']:,}"
            )
        place = {"document_id": row["document"], "kind": "asked", "passage": [row["start"], row["end"]]}
        pairs += [{"query": question, **place} for question in row["questions"]]
    if pairs:
        about = {pair["document_id"] for pair in pairs}
        found = ({"_id": d.id, "title": "", "text": d.text} for d in documents if d.id in about)
        _write(out / f"{name}.asked.documents.jsonl.zst", found)
        _write(out / f"{name}.asked.pairs.jsonl.zst", pairs)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with replacing(path) as temporary:
        temporary.write_bytes(zstandard.ZstdCompressor().compress(content) if path.suffix == ".zst" else content)
