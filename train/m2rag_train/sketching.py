"""Sketching: a model with mean pooling gets a lexical sketch beside its meaning, from counts alone; then fine-tune it.

How much a token tells is its inverse document frequency over pieces of text (Sparck Jones, 1972): the sketch weighs
tokens by it, the mean of hidden states by its square root. The meaning is turned so that its first channels hold most
of it (principal components), and cut to the channels that are left.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
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

logger = logging.getLogger(__name__)

# Tokens of a piece of text, as a passage has them.
PIECE = 256

# Where a token is in every piece: it still counts a little.
LEAST_WEIGHT = 0.1

# exp of it is nothing beside any word's weight: special tokens are in every text.
_NOTHING = -12.0


@dataclass(frozen=True)
class SketchRecipe(Recipe):
    """A lexical sketch for a model that has none; see `m2rag.models.lexical_sketch`.

    Attributes:
        base: folder, weights file, bundled name or repository id of a model with masked padding and mean pooling.
        size: channels of the sketch; the meaning keeps the others.
        sources: queries and documents like those the model is for, as in fine-tuning.
        documents: as many documents are embedded for the turn, and ten times as many queries.
        dimensions: lengths to which vectors may be cut, the full one among them; default: as the base.
        seed: which documents and queries.
        dtype: of the weights written.
    """

    name: str
    base: str
    size: int
    sources: list[PairSource]
    documents: int = 200
    dimensions: list[int] | None = None
    seed: int = 0
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        check_positive(self, "size", "documents")
        if not self.sources:
            raise ValueError("sources is empty")

    def run(self, options: RunOptions) -> Path | None:
        """Count, turn and write; see `Recipe.run`.

        Raises:
            RecipeError: the base has a sketch already, or another pooling or padding, or fewer channels.
        """
        if not is_first_process() or options.model.exists():
            return options.model
        check_same_recipe(self, options.run)
        path = resolve_in(options.data, self.base)
        base = load_checkpoint(path)
        config = self._config(base.config)
        pairs = load_pairs(self.sources, options.data)
        tokenizer = TextTokenizer.from_folder(path if path.is_dir() else path.parent) or TextTokenizer.bundled()
        documents = TokenTable(pairs.documents, tokenizer, config.max_tokens)
        documents.report("documents")
        weights = inverse_document_frequencies([documents[i] for i in range(len(documents))], config.vocab_size)
        special = [token for token in (*tokenizer.prefix, *tokenizer.suffix, config.pad_token_id) if token is not None]
        rng = random.Random(self.seed)
        queries = rng.sample(pairs.queries, min(10 * self.documents, len(pairs.queries)))
        table = TokenTable(queries, tokenizer, config.max_tokens)
        texts = [documents[i] for i in rng.sample(range(len(documents)), min(self.documents, len(documents)))]
        texts += [table[i] for i in range(len(table))]
        log_weights = torch.from_numpy(np.log(weights)).float()
        base.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        vectors = _vectors(base, texts, log_weights / 2)
        projection = principal_directions(vectors, config.hidden_size - self.size)
        model = M2BertModel(config)
        model.load_state_dict(base.state_dict(), strict=False)
        assert model.sketch is not None
        with torch.no_grad():
            model.sketch.projection.weight.copy_(projection)
            model.sketch.log_mean_weights.copy_(log_weights / 2)
            model.sketch.log_sketch_weights.copy_(log_weights)
            model.sketch.log_sketch_weights[torch.tensor(special)] = _NOTHING
        with replacing(options.model) as out:
            save_embedder(model, out, dtype=getattr(torch, self.dtype), tokenizer=tokenizer_beside(path, model))
        return options.model

    def _config(self, base: M2BertConfig) -> M2BertConfig:
        if base.sketch_size:
            raise RecipeError(f"{self.name}: {self.base} has a sketch of {base.sketch_size} channels already")
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
    return directions.flip(1)[:, :count].T.float()


@torch.inference_mode()
def _vectors(model: M2BertModel, texts: Sequence[np.ndarray], log_weights: torch.Tensor) -> torch.Tensor:
    """Weighted means of hidden states, scaled to length 1: (N, D)."""
    vectors = []
    for number, ids in enumerate(texts, 1):
        row = torch.from_numpy(ids.astype(np.int64))
        hidden = model(row[None].to(model.device)).last_hidden_state[0].float().cpu()
        vectors.append(F.normalize(log_weights[row].exp() @ hidden, dim=0))
        if number % 100 == 0:
            logger.info("%d of %d texts embedded", number, len(texts))
    return torch.stack(vectors)
