"""The teacher: any sentence-transformers model, read in stretches of text that the student's tokens cut."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m2rag._optional import require
from m2rag.tokenizer import TextTokenizer
from m2rag_train.errors import RecipeError

logger = logging.getLogger(__name__)

_CONTINUATION = "##"


@dataclass(frozen=True)
class Piece:
    """A stretch of text: the student's ids, without special tokens, and the characters they stand for."""

    ids: np.ndarray
    text: str


class Teacher(ABC):
    """What distillation asks of a teacher.

    Attributes:
        tokenizer: of the student.
        dimension: of the teacher's vectors.
        max_tokens: tokens that it reads at once, without special tokens; None if there is no limit.
        word_embeddings: (V, D) fp32 of the student's tokens; None if the teacher has other tokens.
    """

    tokenizer: TextTokenizer
    dimension: int
    max_tokens: int | None
    word_embeddings: np.ndarray | None = None

    @abstractmethod
    def encode(self, pieces: Sequence[Piece], *, queries: bool = False) -> np.ndarray:
        """Normalised vectors (N, D) float16; not finite where the teacher's are not.

        Args:
            queries: whether the pieces are short texts that look for documents: some teachers have a prompt for each.
        """

    def vectors_of_words(self) -> np.ndarray:
        """(V, D) fp32, for each of the student's tokens what the teacher makes of it alone."""
        words = sorted(self.tokenizer.vocabulary.items(), key=lambda item: item[1])
        pieces = [Piece(np.array([index]), word.removeprefix(_CONTINUATION)) for word, index in words]
        return self.encode(pieces).astype(np.float32)


class WordPieceTeacher(Teacher):
    """A BERT with mean pooling whose vocabulary is the student's (all-MiniLM-L6-v2 and its relatives).

    It reads the student's ids as they are, in batches without padding, and the student starts from its word embeddings.

    Args:
        model: the `BertModel`.
        tokenizer: of both.
        device: that it runs on.
        dtype: of the weights; bf16 changes a vector by less than one part in a thousand (cosine).
    """

    def __init__(
        self, model: Any, tokenizer: TextTokenizer, *, device: str = "cpu", dtype: torch.dtype = torch.bfloat16
    ) -> None:
        # The start of the student is worth more than two bytes for each weight.
        self.word_embeddings = model.get_input_embeddings().weight.detach().float().cpu().numpy()
        self.model = model.to(device, dtype).eval()
        self.tokenizer = tokenizer
        self.device = device
        self.dimension = model.config.hidden_size
        self.max_tokens = model.config.max_position_embeddings - len(tokenizer.prefix) - len(tokenizer.suffix)

    @torch.inference_mode()
    def encode(self, pieces: Sequence[Piece], *, queries: bool = False, batch_tokens: int = 8192) -> np.ndarray:
        by_length: dict[int, list[int]] = {}
        for row, piece in enumerate(pieces):
            by_length.setdefault(len(piece.ids), []).append(row)
        result = np.zeros((len(pieces), self.dimension), dtype=np.float16)
        prefix, suffix = self.tokenizer.prefix, self.tokenizer.suffix
        # Only equal lengths share a batch: without a mask attention is two to three times as fast on a CPU.
        for length, rows in by_length.items():
            size = max(batch_tokens // (length + len(prefix) + len(suffix)), 1)
            for start in range(0, len(rows), size):
                chunk = rows[start : start + size]
                ids = torch.tensor([[*prefix, *pieces[row].ids.tolist(), *suffix] for row in chunk])
                hidden = self.model(input_ids=ids.to(self.device)).last_hidden_state
                pooled = torch.nn.functional.normalize(hidden.float().mean(1), dim=-1)
                result[chunk] = pooled.cpu().numpy()
        return result


class TextTeacher(Teacher):
    """Any other sentence-transformers model: it reads the text, cut where the student's tokens end.

    A stretch that has more tokens for the teacher than it reads is read in halves (or quarters, ...), and their mean is
    its vector: nothing is dropped.

    Args:
        model: a `SentenceTransformer`.
        tokenizer: of the student.
    """

    def __init__(self, model: Any, tokenizer: TextTokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        limit = model.max_seq_length
        self._limit = None if limit is None or math.isinf(limit) else int(limit)
        self.max_tokens = None if self._limit is None else self._limit - self._n_tokens("")
        self.dimension = int(self._vectors(["a"], queries=False).shape[1])

    def encode(self, pieces: Sequence[Piece], *, queries: bool = False) -> np.ndarray:
        if not pieces:
            return np.zeros((0, self.dimension), dtype=np.float16)
        parts = [self._parts(piece.text) for piece in pieces]
        if cut := sum(len(texts) > 1 for texts in parts):
            logger.info("%d of %d stretches are longer than the teacher reads: mean of their parts", cut, len(parts))
        vectors = self._vectors([text for texts in parts for text in texts], queries)
        first = np.cumsum([0] + [len(texts) for texts in parts[:-1]])
        means = torch.from_numpy(np.add.reduceat(vectors, first, axis=0))
        return torch.nn.functional.normalize(means, dim=-1).numpy().astype(np.float16)

    def _vectors(self, texts: list[str], queries: bool) -> np.ndarray:
        encode = self.model.encode_query if queries else self.model.encode_document
        return encode(texts, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False).astype(
            np.float32
        )

    def _parts(self, text: str) -> list[str]:
        # No tokenizer makes more tokens than bytes.
        if self._limit is None or len(text) < 2 or self._n_tokens(text) <= self._limit:
            return [text]
        middle = len(text) // 2
        halves = [half for half in (text[:middle], text[middle:]) if half.strip()]
        return [part for half in halves for part in self._parts(half)]

    def _n_tokens(self, text: str) -> int:
        """Tokens of the teacher, special tokens and its longest prompt included."""
        prompt = max(self.model.prompts.values(), key=len, default="")
        return len(self.model.tokenizer(prompt + text, truncation=False, verbose=False)["input_ids"])


def load_teacher(name: str, tokenizer: TextTokenizer, *, device: str = "cpu") -> Teacher:
    """Load a sentence-transformers model as a teacher.

    Args:
        name: its folder, or its name on the model hub.
        tokenizer: of the student.

    Raises:
        RecipeError: there is no such model.
    """
    transformers = require("sentence_transformers", extra="train")
    try:
        model = transformers.SentenceTransformer(name, device=device)
    except (OSError, ValueError) as error:
        what = "its folder is" if Path(name).is_dir() else "no such folder, and from the hub it is"
        raise RecipeError(f"teacher.model is {name!r}: {what} not loaded: {error}") from error
    if reads_ids_of(model, tokenizer):
        return WordPieceTeacher(model[0].auto_model, tokenizer, device=device)
    teacher = TextTeacher(model, tokenizer)
    logger.info("teacher %s: %d dimensions, reads text; its vocabulary is not the student's", name, teacher.dimension)
    return teacher


def reads_ids_of(model: Any, tokenizer: TextTokenizer) -> bool:
    """Whether a `SentenceTransformer` is a BERT with plain mean pooling and the vocabulary of `tokenizer`."""
    kinds = [type(module).__name__ for module in model]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or any(
        model.prompts.values()
    ):
        return False
    pooling = model[1].get_config_dict()
    mean = pooling.get("pooling_mode") == "mean" or pooling.get("pooling_mode_mean_tokens", False)
    return (
        mean and model[0].auto_model.config.model_type == "bert" and model.tokenizer.get_vocab() == tokenizer.vocabulary
    )
