"""The teacher: a sentence encoder, its vectors computed once and kept in shards that training reads."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

from m2rag_train.distillation.recipe import DistillRecipe, Source, TeacherSettings
from m2rag_train.progress import format_duration
from m2rag_train.sources import TrainingDocument, paired_documents, sectioned_documents

logger = logging.getLogger(__name__)

SHARD_PATTERN = "shard-*.npz"

# Says that all shards are there, so that a run needs the sources no more and can move to another machine.
COMPLETE = "complete"

# Documents of one shard with the ids of the part that is used.
_Group = list[tuple[TrainingDocument, np.ndarray]]


class Teacher:
    """A BERT-like sentence encoder with mean pooling (all-MiniLM-L6-v2 and its relatives).

    Args:
        folder: Hugging Face folder with `tokenizer.json`; its vocabulary must be the student's.
        device: that it runs on.
        dtype: of the weights; bf16 changes a vector by less than one part in a thousand (cosine).

    Raises:
        ValueError: the tokenizer has no [CLS] or [SEP], or more ids than the shards' 16 bits can hold.
    """

    def __init__(self, folder: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> None:
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.model = AutoModel.from_pretrained(str(folder)).to(device, dtype).eval()
        self.device = device
        self.cls_id, self.sep_id = self._special_id("[CLS]"), self._special_id("[SEP]")
        if (size := self.tokenizer.get_vocab_size()) > 2**16:
            raise ValueError(f"{folder}: the vocabulary has {size} ids, shards hold up to {2**16}")

    def _special_id(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"the teacher's tokenizer has no {token}")
        return number

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, without special tokens."""
        return self.model.config.max_position_embeddings - 2

    @property
    def word_embeddings(self) -> torch.Tensor:
        """(V, D) fp32."""
        return self.model.get_input_embeddings().weight.detach().float()

    def token_ids(self, text: str) -> np.ndarray:
        """Ids without special tokens, (L,) uint16."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint16)

    @torch.inference_mode()
    def encode(self, sequences: list[np.ndarray], *, batch_tokens: int = 8192) -> np.ndarray:
        """Normalised vectors (N, D) float16 of id sequences without special tokens."""
        by_length: dict[int, list[int]] = {}
        for row, ids in enumerate(sequences):
            by_length.setdefault(len(ids), []).append(row)
        result = np.zeros((len(sequences), self.model.config.hidden_size), dtype=np.float16)
        # Only equal lengths share a batch: without a mask attention is two to three times as fast on a CPU.
        for length, rows in by_length.items():
            size = max(batch_tokens // (length + 2), 1)
            for start in range(0, len(rows), size):
                chunk = rows[start : start + size]
                ids = np.full((len(chunk), length + 2), self.sep_id, dtype=np.int64)
                ids[:, 0] = self.cls_id
                ids[:, 1:-1] = np.stack([sequences[row] for row in chunk])
                hidden = self.model(input_ids=torch.from_numpy(ids).to(self.device)).last_hidden_state
                pooled = torch.nn.functional.normalize(hidden.float().mean(1), dim=-1)
                result[chunk] = pooled.cpu().numpy()
        return result


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
        # A name that SHARD_PATTERN does not match, so that what an interrupted call leaves is never read.
        temporary = path.with_name(f"unfinished-{path.name}")
        np.savez(temporary, **vars(self))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Shard:
        """Read what `save` wrote."""
        with np.load(path) as data:
            return cls(**{key: data[key] for key in data.files})


def load_shards(folder: Path) -> Shard:
    """All shards of a folder as one.

    Raises:
        FileNotFoundError: the folder has none.
    """
    shards = [Shard.load(path) for path in sorted(folder.glob(SHARD_PATTERN))]
    if not shards:
        raise FileNotFoundError(f"{folder}: no teacher vectors; make them first (build_cache)")

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

    Training reads what is there: let the cache be complete before a run begins, since more shards mean other batches.

    Args:
        data: folder that the recipe's sources are relative to.
        folder: where the shards go.

    Raises:
        ValueError: spans or short texts are longer than the teacher reads, a source is broken or gives no documents.
    """
    settings = recipe.teacher
    complete = folder / COMPLETE
    if complete.exists():
        return
    for name in ("span_tokens", "max_short_tokens"):
        if (value := getattr(settings, name)) > teacher.max_tokens:
            raise ValueError(f"{recipe.name}: teacher: {name} is {value}, the teacher reads {teacher.max_tokens}")
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
    complete.touch()


def _shard_name(number: int) -> str:
    return f"shard-{number:03d}.npz"


def _n_tokens(group: _Group) -> int:
    return sum(len(ids) for _, ids in group)


def _selected_documents(sources: list[Source], data: Path, teacher: Teacher, settings: TeacherSettings) -> _Group:
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
            ids = teacher.token_ids(document.text[offset : offset + limit])[: settings.max_document_tokens]
            if len(ids) < settings.min_document_tokens:
                continue
            chosen.append((document, ids))
            used += len(ids)
        logger.info("%s: %d tokens", source.documents, used)
        if not used:
            raise ValueError(f"{path}: no document of at least {settings.min_document_tokens} tokens")
    random.Random(settings.seed).shuffle(chosen)
    return chosen


def _groups(documents: _Group, n_tokens: int) -> Iterator[_Group]:
    """The documents in order, in groups that end with the document that fills `n_tokens`."""
    group: _Group = []
    size = 0
    for item in documents:
        group.append(item)
        size += len(item[1])
        if size >= n_tokens:
            yield group
            group, size = [], 0
    if group:
        yield group


def _shard(group: _Group, teacher: Teacher, settings: TeacherSettings) -> Shard:
    """Spans and short texts of a group, encoded."""
    width = settings.span_tokens
    spans, span_counts = [], []
    short, short_document, short_kind = [], [], []
    for number, (document, ids) in enumerate(group):
        cut = [ids[i : i + width] for i in range(0, len(ids), width)]
        spans += cut
        span_counts.append(len(cut))
        for text in document.short_texts:
            tokens = teacher.token_ids(text.text)[: settings.max_short_tokens]
            if len(tokens):
                short.append(tokens)
                short_document.append(number)
                short_kind.append(text.kind)

    def starts(lengths: list[int]) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    return Shard(
        tokens=np.concatenate([ids for _, ids in group]),
        document_starts=starts([len(ids) for _, ids in group]),
        span_starts=starts(span_counts),
        span_vectors=teacher.encode(spans),
        short_tokens=np.concatenate(short) if short else np.zeros(0, np.uint16),
        short_starts=starts([len(ids) for ids in short]),
        short_vectors=teacher.encode(short),
        short_document=np.array(short_document, dtype=np.int64),
        short_kind=np.array(short_kind, dtype="U16"),
    )
