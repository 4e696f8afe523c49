"""A baseline from what a user types: MODEL, MODEL:chunk-max, or NAME=MODEL:chunk-max."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from m2rag.embedder import M2Embedder
from m2rag.errors import CheckpointError
from m2rag.evaluation.chunks import MODES, ChunkEncoder, ChunkRanker, M2Encoder, SentenceTransformerEncoder
from m2rag.evaluation.rankers import DenseRanker, Ranker


class Baselines:
    """Makes rankers; those of one model share it, and the vectors of its chunks.

    Args:
        load: gives the embedder for one of our models.
        device: of sentence-transformers models.
        chunk_tokens: tokens of a chunk; None: as many as each model takes.
        show_progress: draw bars.
    """

    def __init__(
        self,
        load: Callable[[str], M2Embedder],
        *,
        device: str | None = None,
        chunk_tokens: int | None = None,
        show_progress: bool = False,
    ) -> None:
        self._load = load
        self._device = device
        self._chunk_tokens = chunk_tokens
        self._show_progress = show_progress
        self._encoders: dict[str, ChunkEncoder] = {}
        self._embedders: dict[str, M2Embedder] = {}

    def ranker(self, given: str) -> Ranker:
        """`MODEL:MODE` with a mode of `ChunkRanker`, or `MODEL` as it is used without chunks: one of ours reads all of
        a document, a sentence-transformers model what it takes of its beginning.

        With `NAME=` in front tables call it so, instead of by the last part of its path.

        Raises:
            CheckpointError: no such model of ours.
            M2RagError: sentence-transformers cannot load it.
            ValueError: chunks are longer than the model takes.
        """
        name, _, source = given.rpartition("=")
        model, _, mode = source.rpartition(":")
        if mode not in MODES:
            model, mode = source, ""
        if is_ours(model) and not mode:
            embedder = self._embedder(model)
            return DenseRanker(
                embedder, name=name or embedder.model_name, show_progress=self._show_progress, settings=embedder.info()
            )
        encoder, mode = self._encoder(model), mode or "truncated"
        return ChunkRanker(encoder, mode, chunk_tokens=self._chunk_tokens, name=f"{name or encoder.name} {mode}")

    def _encoder(self, model: str) -> ChunkEncoder:
        if model not in self._encoders:
            self._encoders[model] = (
                M2Encoder(self._embedder(model), show_progress=self._show_progress)
                if is_ours(model)
                else SentenceTransformerEncoder(model, device=self._device, show_progress=self._show_progress)
            )
        return self._encoders[model]

    def _embedder(self, model: str) -> M2Embedder:
        if model not in self._embedders:
            self._embedders[model] = self._load(model)
        return self._embedders[model]


def is_ours(model: str) -> bool:
    """Whether `M2Embedder` loads `model`; if not, sentence-transformers is to.

    A folder with `modules.json` is of sentence-transformers unless its model is an M2-BERT; repositories go by their
    name.
    """
    from m2rag.models.checkpoints import resolve_checkpoint

    path = Path(model).expanduser()
    if not path.exists() and "/" in model:
        return re.search("m2-bert", model, re.IGNORECASE) is not None
    try:
        path = resolve_checkpoint(model)
    except CheckpointError:
        return False
    if not (path / "modules.json").is_file():
        return True
    config = path / "config.json"
    return config.is_file() and '"m2_bert"' in config.read_text(encoding="utf-8")
