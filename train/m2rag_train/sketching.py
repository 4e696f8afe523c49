"""Sketching: a model with mean pooling gets a lexical sketch beside its meaning, or new codes for the one it has.

How much a token tells is its inverse document frequency over pieces of text (Sparck Jones, 1972): the sketch weighs
tokens by it, the mean of hidden states by its square root. The meaning is cut to the directions that hold most of it
(principal components). Codes of tokens are random, and may learn from bags of words. At last the whole vector is turned
so that its first channels hold most of what queries ask for.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError

from m2rag.models import M2BertConfig, M2BertModel, load_checkpoint
from m2rag.tokenizer import TextTokenizer
from m2rag_train.averaging import resolve_in, tokenizer_beside
from m2rag_train.errors import RecipeError
from m2rag_train.export import save_embedder
from m2rag_train.files import replacing
from m2rag_train.finetuning.data import load_pairs
from m2rag_train.finetuning.recipe import PairSource
from m2rag_train.finetuning.schedule import TokenTable
from m2rag_train.recipe import Recipe, RunOptions, check_positive, check_same_recipe, is_first_process
from m2rag_train.word_codes import CodeLearning, learn_codes, random_codes

logger = logging.getLogger(__name__)

# Tokens of a piece of text, as a passage has them.
PIECE = 256

# Where a token is in every piece: it still counts a little.
LEAST_WEIGHT = 0.1

# exp of it is nothing beside any word's weight: special tokens are in every text.
_NOTHING = -12.0


@dataclass(frozen=True)
class SketchRecipe(Recipe):
    """A lexical sketch for a model, with codes that are made anew; see `m2rag.models.lexical_sketch`.

    Attributes:
        base: folder, weights file, bundled name or repository id of a model with masked padding and mean pooling. One
            that has a sketch of this size keeps its meaning, and its weights of words to start from.
        size: channels of the sketch; the meaning keeps the others.
        sources: queries and documents like those the model is for, as in fine-tuning.
        codes: how codes learn; default: they stay random.
        balance: length of the sketch where that of the meaning is 1; default: as the base, and 1 for one without a
            sketch.
        documents: as many documents are embedded for the directions of meaning, and ten times as many queries for them
            and for the turn.
        dimensions: lengths to which vectors may be cut, the full one among them; default: as the base.
        seed: which documents and queries, and the random codes.
        dtype: of the weights written.
    """

    name: str
    base: str
    size: int
    sources: list[PairSource]
    codes: CodeLearning | None = None
    balance: float | None = None
    documents: int = 200
    dimensions: list[int] | None = None
    seed: int = 0
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        check_positive(self, "size", "documents", *(["balance"] if self.balance is not None else []))
        if not self.sources:
            raise ValueError("sources is empty")

    def run(self, options: RunOptions) -> Path | None:
        """Count, learn, turn and write; see `Recipe.run`. It takes minutes, and starts again if it is interrupted.

        Raises:
            RecipeError: the base has a sketch of another size, or another pooling or padding, or fewer channels.
        """
        if not is_first_process() or options.model.exists():
            return options.model
        check_same_recipe(self, options.run)
        path = resolve_in(options.data, self.base)
        base = load_checkpoint(path)
        config = self._config(base.config)
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        pairs = load_pairs(self.sources, options.data)
        tokenizer = TextTokenizer.from_folder(path if path.is_dir() else path.parent) or TextTokenizer.bundled()
        special = [token for token in (*tokenizer.prefix, *tokenizer.suffix, config.pad_token_id) if token is not None]
        documents, queries = (_ids(texts, tokenizer, config.max_tokens) for texts in (pairs.documents, pairs.queries))
        rng = random.Random(self.seed)
        some_queries = [queries[i] for i in rng.sample(range(len(queries)), min(10 * self.documents, len(queries)))]
        some_documents = [documents[i] for i in rng.sample(range(len(documents)), min(self.documents, len(documents)))]
        model = M2BertModel(config)
        model.load_state_dict(base.state_dict(), strict=False)
        sketch = model.sketch
        assert sketch is not None
        codes = random_codes(tokenizer.vocabulary, config.vocab_size, self.size, self.seed)
        with torch.no_grad():
            sketch.codes.weight.copy_(codes)
            sketch.turn.weight.copy_(torch.eye(config.hidden_size))
            if self.balance is not None:
                sketch.log_balance.fill_(math.log(self.balance))
            if base.sketch is None:
                log_weights = torch.from_numpy(np.log(inverse_document_frequencies(documents, config.vocab_size)))
                sketch.log_mean_weights.copy_(log_weights / 2)
                sketch.log_sketch_weights.copy_(log_weights)
                sketch.log_sketch_weights[torch.tensor(special)] = _NOTHING
                vectors = _weighted_means(base.to(device), some_documents + some_queries, log_weights.float() / 2)
                sketch.projection.weight.copy_(principal_directions(vectors, config.hidden_size - self.size))
        if self.codes is not None:
            learn_codes(sketch.to(device), pairs, documents, queries, special, self.codes, self.seed)
        vectors = _vectors(model.to(device).eval(), some_queries)
        with torch.no_grad():
            sketch.turn.weight.copy_(principal_directions(vectors, config.hidden_size))
        with replacing(options.model) as out:
            save_embedder(model.cpu(), out, dtype=getattr(torch, self.dtype), tokenizer=tokenizer_beside(path, model))
        return options.model

    def _config(self, base: M2BertConfig) -> M2BertConfig:
        if base.sketch_size not in (0, self.size):
            raise RecipeError(f"{self.name}: {self.base} has a sketch of {base.sketch_size} channels, not {self.size}")
        settings = base.to_dict() | {"sketch_size": self.size}
        if self.dimensions is not None:
            settings["matryoshka_dimensions"] = sorted({*self.dimensions, base.hidden_size})
        try:
            return M2BertConfig(**settings)
        except StrictDataclassError as error:
            raise RecipeError(f"{self.name}: {self.base}: {error.__cause__}") from error


def inverse_document_frequencies(documents: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
    """Of each token over pieces of documents, given as ids: ln((N + 1) / (n + 0.5)) + 0.1, at least 0.1: (V,)."""
    found = np.zeros(vocabulary)
    pieces = 0
    for ids in documents:
        for start in range(0, len(ids), PIECE):
            found[np.unique(ids[start : start + PIECE])] += 1
            pieces += 1
    return np.maximum(np.log((pieces + 1) / (found + 0.5)), 0) + LEAST_WEIGHT


def principal_directions(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` orthonormal directions that hold most of unit vectors (N, D), most first: (count, D)."""
    _, directions = torch.linalg.eigh(vectors.T.double() @ vectors.double())
    return directions.flip(1)[:, :count].T.float().contiguous()


def _ids(texts: Sequence[str], tokenizer: TextTokenizer, max_tokens: int) -> list[np.ndarray]:
    table = TokenTable(texts, tokenizer, max_tokens)
    table.report("texts")
    return [table[i] for i in range(len(table))]


def _weighted_means(base: M2BertModel, texts: Sequence[np.ndarray], log_weights: torch.Tensor) -> torch.Tensor:
    """Weighted means of hidden states, scaled to length 1: (N, D)."""
    means = [log_weights[ids.astype(np.int64)].exp() @ hidden for ids, (hidden, _) in _outputs(base, texts)]
    return F.normalize(torch.stack(means), dim=1)


def _vectors(model: M2BertModel, texts: Sequence[np.ndarray]) -> torch.Tensor:
    """The model's vectors, scaled to length 1: (N, D)."""
    return F.normalize(torch.stack([vector for _, (_, vector) in _outputs(model, texts)]), dim=1)


def _outputs(
    model: M2BertModel, texts: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, tuple[torch.Tensor, torch.Tensor]]]:
    """Each text with its token outputs (L, D) and its vector (D,), on the CPU in fp32."""
    for number, ids in enumerate(texts, 1):
        with torch.inference_mode():
            output = model(torch.from_numpy(ids.astype(np.int64))[None].to(model.device))
        yield ids, (output.last_hidden_state[0].float().cpu(), output.pooler_output[0].float().cpu())
        if number % 500 == 0:
            logger.info("%d of %d texts embedded", number, len(texts))
