"""What one step trains on: drawn from the teacher's shards by seed and step alone, so a run resumes exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from m2rag_train.distillation.cache import Shard
from m2rag_train.distillation.recipe import Stage


@dataclass(frozen=True)
class Window:
    """A stretch of whole spans of one document.

    Attributes:
        document: its number.
        input_ids: (1, L) with [CLS] and [SEP].
        span_starts: (S + 1,) token positions in `input_ids` where the spans begin, and the end of the last.
        targets: (S, D) teacher vectors of the spans.
    """

    document: int
    input_ids: torch.Tensor
    span_starts: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class ShortTexts:
    """A padded batch of short texts.

    Attributes:
        input_ids, attention_mask: (T, L).
        targets: (T, D) teacher vectors.
        windows: (T,) the step's window that the text belongs to, or -1.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor
    windows: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    windows: list[Window]
    short_texts: ShortTexts

    @property
    def n_tokens(self) -> int:
        """Tokens that the student reads, special tokens included, pads not."""
        return sum(w.input_ids.numel() for w in self.windows) + int(self.short_texts.attention_mask.sum())


class BatchSampler:
    """Draws the batch of any step.

    Args:
        shard: documents, short texts and their teacher vectors.
        span_tokens: tokens per span in the shard.
        cls_id, sep_id: special tokens of the student.
        seed: of the whole run.

    Raises:
        ValueError: the shard's spans are not `span_tokens` long.
    """

    # A text of one of these kinds asks for its document without quoting it.
    QUERY_KINDS = ("title", "description", "heading", "sentence", "answer", "question", "topic", "longtitle")

    def __init__(self, shard: Shard, *, span_tokens: int, cls_id: int, sep_id: int, seed: int) -> None:
        self.shard = shard
        self.span_tokens = span_tokens
        self.cls_id, self.sep_id = cls_id, sep_id
        self.seed = seed
        lengths = np.diff(shard.document_starts).astype(np.float64)
        if not np.array_equal(np.ceil(lengths / span_tokens), np.diff(shard.span_starts)):
            raise ValueError(
                f"the teacher's spans are not {span_tokens} tokens long: was the cache made with this recipe?"
            )
        # Long documents hold more to learn from, but must not crowd out the many short ones.
        self.document_probability = np.sqrt(lengths) / np.sqrt(lengths).sum()
        by_document = np.argsort(shard.short_document, kind="stable")
        bounds = np.searchsorted(shard.short_document[by_document], np.arange(len(lengths) + 1))
        queries = np.isin(shard.short_kind, self.QUERY_KINDS)
        self.queries_of = [
            [int(t) for t in by_document[a:b] if queries[t]] for a, b in zip(bounds[:-1], bounds[1:], strict=True)
        ]

    def batch(self, step: int, stage: Stage) -> Batch:
        """The batch of step `step`.

        Raises:
            ValueError: there are fewer documents or short texts than the stage asks for.
        """
        for what, wanted, available in (
            ("documents", stage.documents, len(self.queries_of)),
            ("short_texts", stage.short_texts, len(self.shard.short_kind)),
        ):
            if wanted > available:
                raise ValueError(f"a step takes {wanted} {what}, the teacher's shards hold {available}")
        rng = np.random.default_rng([self.seed, step])
        documents = rng.choice(len(self.queries_of), stage.documents, replace=False, p=self.document_probability)
        windows = [self._window(int(d), rng, stage) for d in documents]
        whole = [w.targets.shape[0] == np.diff(self.shard.span_starts[w.document : w.document + 2])[0] for w in windows]
        texts = rng.choice(len(self.shard.short_kind), stage.short_texts, replace=False).tolist()
        owners = [-1] * len(texts)
        for number, document in enumerate(documents):
            # A heading may stand outside a partial window: only a whole document answers for all of its queries.
            queries = self.queries_of[document] if whole[number] else []
            chosen = rng.choice(len(queries), min(stage.queries, len(queries)), replace=False)
            texts += [queries[i] for i in chosen]
            owners += [number] * len(chosen)
        return Batch(windows, self._short_texts(texts, owners))

    def expected_tokens(self, stage: Stage) -> float:
        """About how many tokens a step of this stage has."""
        lengths = np.minimum(np.diff(self.shard.document_starts), stage.window_tokens)
        window = float(self.document_probability @ lengths) * float(np.mean(stage.window_fractions))
        short = float(np.diff(self.shard.short_starts).mean()) if len(self.shard.short_kind) else 0.0
        return stage.documents * window + (stage.short_texts + stage.documents * stage.queries) * short

    def _window(self, document: int, rng: np.random.Generator, stage: Stage) -> Window:
        shard = self.shard
        first, last = shard.span_starts[document : document + 2]
        n_spans = int(last - first)
        longest = min(n_spans, max((stage.window_tokens - 2) // self.span_tokens, 1))
        size = max(round(longest * float(rng.choice(stage.window_fractions))), 1)
        offset = int(rng.integers(n_spans - size + 1))
        token_start = int(shard.document_starts[document]) + offset * self.span_tokens
        token_end = min(token_start + size * self.span_tokens, int(shard.document_starts[document + 1]))
        ids = shard.tokens[token_start:token_end].astype(np.int64)
        starts = np.append(np.arange(0, len(ids), self.span_tokens), len(ids)) + 1
        return Window(
            document,
            torch.from_numpy(np.concatenate([[self.cls_id], ids, [self.sep_id]]))[None],
            torch.from_numpy(starts),
            torch.from_numpy(shard.span_vectors[first + offset : first + offset + size].astype(np.float32)),
        )

    def _short_texts(self, texts: list[int], owners: list[int]) -> ShortTexts:
        shard = self.shard
        sequences = [shard.tokens_of_short(t) for t in texts]
        width = max(len(s) for s in sequences) + 2
        ids = np.zeros((len(texts), width), dtype=np.int64)
        mask = np.zeros((len(texts), width), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence) + 2] = [self.cls_id, *sequence, self.sep_id]
            mask[row, : len(sequence) + 2] = 1
        return ShortTexts(
            torch.from_numpy(ids),
            torch.from_numpy(mask),
            torch.from_numpy(shard.short_vectors[texts].astype(np.float32)),
            torch.tensor(owners),
        )
