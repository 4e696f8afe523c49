"""The teacher's vectors of the training documents, computed once and kept in shards that training reads."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2rag.tokenizer import TextTokenizer
from m2rag_train.distillation.recipe import DistillRecipe, Source, TeacherSettings
from m2rag_train.distillation.teacher import Piece, Teacher
from m2rag_train.errors import RecipeError, TrainingDataError
from m2rag_train.files import replacing
from m2rag_train.progress import format_duration
from m2rag_train.sources import TrainingDocument, paired_documents, sectioned_documents

logger = logging.getLogger(__name__)

SHARD_PATTERN = "shard-*.npz"

# Words and projection, written last: they say that all shards are there, so that a run needs neither sources nor
# teacher any more, and can move to another machine.
STUDENT_FILE = "student.npz"


@dataclass(frozen=True)
class _Selected:
    """A document, and the stretch of it that is used."""

    document: TrainingDocument
    spans: list[Piece]

    @property
    def n_tokens(self) -> int:
        return sum(len(piece.ids) for piece in self.spans)


@dataclass
class Shard:
    """Documents and short texts with their teacher vectors, flat.

    Attributes:
        tokens: ids of all documents, without special tokens.
        document_starts: (N + 1,) where each document begins in `tokens`.
        span_starts: (N + 1,) where each document's spans begin in `span_vectors`.
        span_vectors: (S, D) float16.
        short_tokens, short_starts, short_vectors: the same for short texts.
        short_document: (T,) the document a short text belongs to.
        short_kind: (T,) its kind.
    """

    tokens: np.ndarray
    document_starts: np.ndarray
    span_starts: np.ndarray
    span_vectors: np.ndarray
    short_tokens: np.ndarray
    short_starts: np.ndarray
    short_vectors: np.ndarray
    short_document: np.ndarray
    short_kind: np.ndarray

    def tokens_of_short(self, number: int) -> np.ndarray:
        """Ids of one short text."""
        return self.short_tokens[self.short_starts[number] : self.short_starts[number + 1]]

    def save(self, path: Path) -> None:
        """Write one .npz file; a file of this name is whole or absent."""
        with replacing(path) as temporary:
            np.savez(temporary, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Shard:
        """Read what `save` wrote."""
        with np.load(path) as data:
            return cls(**{key: data[key] for key in data.files})


@dataclass
class Cache:
    """All that training reads.

    Attributes:
        shard: of all documents, vectors as wide as the student.
        words: (V, D) fp32, what the student's word embeddings start from.
    """

    shard: Shard
    words: np.ndarray


def load_cache(folder: Path) -> Cache:
    """What `build_cache` made.

    Raises:
        FileNotFoundError: it is not there, or not complete.
    """
    if not (folder / STUDENT_FILE).exists():
        raise FileNotFoundError(f"{folder}: no teacher vectors, or not all; make them first (build_cache)")
    shard = load_shards(folder)
    with np.load(folder / STUDENT_FILE) as data:
        words, projection = data["words"], data["projection"]
    if projection.size:
        shard.span_vectors = (shard.span_vectors.astype(np.float32) @ projection).astype(np.float16)
        shard.short_vectors = (shard.short_vectors.astype(np.float32) @ projection).astype(np.float16)
    return Cache(shard, words)


def load_shards(folder: Path) -> Shard:
    """All shards of a folder as one, with the teacher's vectors as it gave them."""
    shards = [Shard.load(path) for path in sorted(folder.glob(SHARD_PATTERN))]

    def starts(name: str) -> np.ndarray:
        parts = [np.diff(getattr(shard, name)) for shard in shards]
        return np.concatenate([[0], np.cumsum(np.concatenate(parts))]).astype(np.int64)

    counts = np.cumsum([0] + [len(shard.document_starts) - 1 for shard in shards])
    return Shard(
        tokens=np.concatenate([s.tokens for s in shards]),
        document_starts=starts("document_starts"),
        span_starts=starts("span_starts"),
        span_vectors=np.concatenate([s.span_vectors for s in shards]),
        short_tokens=np.concatenate([s.short_tokens for s in shards]),
        short_starts=starts("short_starts"),
        short_vectors=np.concatenate([s.short_vectors for s in shards]),
        short_document=np.concatenate([s.short_document + c for s, c in zip(shards, counts[:-1], strict=True)]),
        short_kind=np.concatenate([s.short_kind for s in shards]),
    )


def build_cache(recipe: DistillRecipe, data: Path, teacher: Teacher, folder: Path) -> None:
    """Teacher vectors of a recipe's sources, in shards; shards that exist are kept, so it resumes.

    Args:
        data: folder that the recipe's sources are relative to.
        folder: where the shards go.

    Raises:
        RecipeError: spans or short texts are longer than the teacher reads, or the vocabulary does not fit 16 bits.
        TrainingDataError: a source is broken or gives no documents, or the teacher makes NaN of a document.
        CheckpointWriteError: a shard could not be written; those before it are intact.
    """
    settings = recipe.teacher
    if (folder / STUDENT_FILE).exists():
        return
    for name in ("span_tokens", "max_short_tokens"):
        value = getattr(settings, name)
        if teacher.max_tokens is not None and value > teacher.max_tokens:
            raise RecipeError(f"{recipe.name}: teacher: {name} is {value}, the teacher reads {teacher.max_tokens}")
    if (size := teacher.tokenizer.vocab_size) > 2**16:
        raise RecipeError(f"{recipe.name}: the student's vocabulary has {size} ids, shards hold up to {2**16}")
    folder.mkdir(parents=True, exist_ok=True)
    documents = _selected_documents(recipe.sources, data, teacher, settings)
    groups = list(_groups(documents, settings.shard_tokens))
    todo = [number for number in range(len(groups)) if not (folder / _shard_name(number)).exists()]
    left = sum(_n_tokens(groups[number]) for number in todo)
    logger.info("%d shards, %d to make (%d tokens)", len(groups), len(todo), left)
    began, done = time.monotonic(), 0
    for number in todo:
        _shard(groups[number], teacher, settings).save(folder / _shard_name(number))
        done += _n_tokens(groups[number])
        rate = done / (time.monotonic() - began)
        logger.info(
            "%s: %d documents, %.0f tokens/s, %s left",
            _shard_name(number),
            len(groups[number]),
            rate,
            format_duration((left - done) / rate),
        )
    _save_student(recipe, teacher, folder)


def _save_student(recipe: DistillRecipe, teacher: Teacher, folder: Path) -> None:
    """What ties the student to the teacher: the map to its width, and the vectors that its words start from."""
    width = recipe.model_config().hidden_size
    projection = np.zeros((0, 0), dtype=np.float32)
    if teacher.dimension == width:
        words = teacher.vectors_of_words() if teacher.word_embeddings is None else teacher.word_embeddings
    else:
        shard = load_shards(folder)
        projection = projection_to(np.concatenate([shard.span_vectors, shard.short_vectors]), width, recipe.seed)
        words = teacher.vectors_of_words() @ projection
    if not np.isfinite(words).all():
        raise TrainingDataError(f"{recipe.name}: the teacher's vectors of single words are not all finite")
    with replacing(folder / STUDENT_FILE) as temporary:
        np.savez(temporary, words=words, projection=projection)


def projection_to(vectors: np.ndarray, width: int, seed: int) -> np.ndarray:
    """A linear map (D, W) that keeps the dot products of vectors (N, D) as well as any map to W dimensions does.

    To more dimensions all are kept. To fewer, the directions in which the vectors are largest; they are then rotated at
    random, since a student whose last layer is a LayerNorm should not have to make some dimensions larger than others.
    """
    dimension = vectors.shape[1]
    kept = min(dimension, width)
    wide = vectors.astype(np.float64)
    energy, directions = np.linalg.eigh(wide.T @ wide)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, kept)))
    share = energy[-kept:].sum() / energy.sum()
    logger.info("the teacher's %d dimensions become %d: %.1f %% of its vectors is kept", dimension, width, 100 * share)
    return (directions[:, -kept:] @ rotation.T).astype(np.float32)


def _shard_name(number: int) -> str:
    return f"shard-{number:03d}.npz"


def _n_tokens(group: list[_Selected]) -> int:
    return sum(selected.n_tokens for selected in group)


def _selected_documents(
    sources: list[Source], data: Path, teacher: Teacher, settings: TeacherSettings
) -> list[_Selected]:
    """Documents drawn from each source up to its budget, cut to the longest length, shuffled over sources."""
    chosen = []
    for number, source in enumerate(sources):
        rng = random.Random(f"{settings.seed}/{number}")
        path = data / source.documents
        if source.pairs is None:
            stream = sectioned_documents(path, rng, headings=source.headings, sentences=source.sentences)
        else:
            stream = paired_documents(path, data / source.pairs, rng, sentences=source.sentences)
        documents = list(stream)
        rng.shuffle(documents)
        used = 0
        for document in documents:
            if used >= source.tokens:
                break
            # A book of a million characters is cut to a random stretch before it is tokenised.
            limit = 8 * settings.max_document_tokens
            offset = rng.randrange(max(len(document.text) - limit, 0) + 1)
            text = document.text[offset : offset + limit]
            spans = _pieces(text, teacher.tokenizer, settings.span_tokens, settings.max_document_tokens)
            selected = _Selected(document, spans)
            if selected.n_tokens < settings.min_document_tokens:
                continue
            chosen.append(selected)
            used += selected.n_tokens
        logger.info("%s: %d tokens", source.documents, used)
        if not used:
            raise TrainingDataError(f"{path}: no document of at least {settings.min_document_tokens} tokens")
    random.Random(settings.seed).shuffle(chosen)
    return chosen


def _groups(documents: list[_Selected], n_tokens: int) -> Iterator[list[_Selected]]:
    """The documents in order, in groups that end with the document that fills `n_tokens`."""
    group: list[_Selected] = []
    size = 0
    for item in documents:
        group.append(item)
        size += item.n_tokens
        if size >= n_tokens:
            yield group
            group, size = [], 0
    if group:
        yield group


def _pieces(text: str, tokenizer: TextTokenizer, width: int, longest: int) -> list[Piece]:
    """The first `longest` tokens of a text, in pieces of `width`."""
    tokens = tokenizer.encode(text)
    pieces = []
    for start in range(0, min(len(tokens), longest), width):
        end = min(start + width, longest, len(tokens))
        stretch = text[tokens.starts[start] : tokens.ends[end - 1]]
        pieces.append(Piece(tokens.ids[start:end].astype(np.uint16), stretch))
    return pieces


def _shard(group: list[_Selected], teacher: Teacher, settings: TeacherSettings) -> Shard:
    """Spans and short texts of a group, encoded."""
    spans, span_document = [], []
    short, short_document, short_kind = [], [], []
    for number, selected in enumerate(group):
        spans += selected.spans
        span_document += [number] * len(selected.spans)
        for text in selected.document.short_texts:
            # The beginning of a longer one; none of one without tokens.
            longest = settings.max_short_tokens
            pieces = _pieces(text.text, teacher.tokenizer, longest, longest)
            short += pieces
            short_document += [number] * len(pieces)
            short_kind += [text.kind] * len(pieces)

    def starts(lengths: list[int]) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def flat(pieces: list[Piece]) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.uint16), *(piece.ids for piece in pieces)])

    return Shard(
        tokens=flat(spans),
        document_starts=starts([selected.n_tokens for selected in group]),
        span_starts=starts(np.bincount(span_document, minlength=len(group)).tolist()),
        span_vectors=_encoded(teacher, spans, span_document, group),
        short_tokens=flat(short),
        short_starts=starts([len(piece.ids) for piece in short]),
        short_vectors=_encoded(teacher, short, short_document, group, queries=True),
        short_document=np.array(short_document, dtype=np.int64),
        short_kind=np.array(short_kind, dtype="U16"),
    )


def _encoded(
    teacher: Teacher, pieces: list[Piece], documents: list[int], group: list[_Selected], *, queries: bool = False
) -> np.ndarray:
    """Vectors (N, D) of pieces of these documents of the group."""
    vectors = teacher.encode(pieces, queries=queries)
    broken = np.flatnonzero(~np.isfinite(vectors).all(1) | ~vectors.any(1))
    if len(broken):
        document = group[documents[broken[0]]].document
        raise TrainingDataError(
            f"{document.where}: document {document.id!r}: the teacher's vector of {pieces[broken[0]].text[:60]!r} is "
            "not finite or all zeros"
        )
    return vectors
