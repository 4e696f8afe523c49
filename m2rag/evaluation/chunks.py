"""The usual way with long documents, as baselines: cut them into chunks, embed each, and score by one or all of them.

```python
from m2rag.evaluation import ChunkRanker, SentenceTransformerEncoder

encoder = SentenceTransformerEncoder("BAAI/bge-small-en-v1.5")  # any sentence-transformers model
rankers = [ChunkRanker(encoder, mode) for mode in ("truncated", "chunk-mean", "chunk-max")]
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from m2rag._optional import require
from m2rag.embedder import M2Embedder
from m2rag.errors import M2RagError
from m2rag.evaluation.rankers import Scores, VectorMemory, best, unit
from m2rag.tokenizer import TextTokenizer

MODES = ("truncated", "chunk-mean", "chunk-max")


class ChunkEncoder(Protocol):
    """A model that embeds chunks, and cuts texts into chunks by its own tokens.

    Attributes:
        name: of the model, for tables.
        max_tokens: longest input, special tokens included.
        settings: what its vectors depend on, as plain data.
    """

    name: str
    max_tokens: int
    settings: dict[str, Any]

    def split(self, text: str, max_tokens: int) -> list[str]:
        """`text` in chunks of at most `max_tokens` tokens, special tokens included; none of a text without tokens."""
        ...

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) of N > 0 chunks."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) of N > 0 queries; longer ones are cut."""
        ...


class ChunkRanker:
    """Scores of documents by their chunks' cosines to the query; chunks do not overlap.

    Args:
        encoder: rankers that share it share the chunks' vectors.
        mode: "truncated" (the first chunk only), "chunk-mean" (normalised mean of the normalised vectors of all
            chunks: one vector per document) or "chunk-max" (the best chunk's cosine: a vector per chunk).
        chunk_tokens: tokens of a chunk, special tokens included; None: as many as the model takes.
        name: what tables call it.

    Raises:
        ValueError: no such mode, or longer chunks than the model takes.
    """

    def __init__(
        self, encoder: ChunkEncoder, mode: str, *, chunk_tokens: int | None = None, name: str | None = None
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}, must be one of {', '.join(map(repr, MODES))}")
        self._tokens = chunk_tokens or encoder.max_tokens
        if self._tokens > encoder.max_tokens:
            raise ValueError(f"chunk_tokens is {self._tokens:,}, {encoder.name} takes at most {encoder.max_tokens:,}")
        self.name = name or f"{encoder.name} {mode}"
        self.settings = {**encoder.settings, "mode": mode, "chunk_tokens": self._tokens, "chunk_overlap": 0}
        self._encoder = encoder
        self._mode = mode

    def rank(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int) -> Scores:
        """See `Ranker`.

        Raises:
            NonFiniteError: a vector holds NaN or infinity; the message names the document or query.
        """
        split = {document: self._encoder.split(text, self._tokens) for document, text in corpus.items() if text}
        chunks = {document: parts[:1] if self._mode == "truncated" else parts for document, parts in split.items()}
        ids = [document for document, parts in chunks.items() if parts]
        if not ids or not queries:
            return {query: {} for query in queries}
        owners = [document for document in ids for _ in chunks[document]]
        vectors = unit(self._encoder.embed_documents([part for i in ids for part in chunks[i]]), "document", owners)
        firsts = [0, *accumulate(len(chunks[document]) for document in ids)][:-1]
        if self._mode == "chunk-mean":
            vectors = unit(np.add.reduceat(vectors, firsts), "document", ids)
        asked = unit(self._encoder.embed_queries(list(queries.values())), "query", list(queries))
        result: Scores = {}
        for query, vector in zip(queries, asked, strict=True):
            scores = vectors @ vector
            if self._mode == "chunk-max":
                scores = np.maximum.reduceat(scores, firsts)
            result[query] = best(scores, ids, k)
        return result


class SentenceTransformerEncoder:
    """Any model that sentence-transformers loads, with its own prompts for queries and documents.

    Args:
        model: folder or repository id, or a `SentenceTransformer`.
        name: what tables call it; default: last part of `model`.
        device: as for `SentenceTransformer`.
        show_progress: draw its bar.

    Raises:
        M2RagError: it cannot be loaded, has no tokenizer that tells where tokens stand, or says no longest input.
        MissingDependencyError: sentence-transformers is not installed.
    """

    def __init__(
        self, model: Any, *, name: str | None = None, device: str | None = None, show_progress: bool = False
    ) -> None:
        package = require("sentence_transformers", extra="train")
        source = "a SentenceTransformer"
        if isinstance(model, (str, Path)):
            source = str(model)
            try:
                model = package.SentenceTransformer(source, device=device)
            # A wrong name, no connection, a folder that holds something else: OSError or ValueError, as it comes.
            except (OSError, ValueError) as error:
                raise M2RagError(f"sentence-transformers cannot load {source}: {error}") from error
        self.name = name or (Path(source).name if source != "a SentenceTransformer" else "sentence-transformers")
        tokenizer = model.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise M2RagError(f"{self.name}: its tokenizer does not tell where tokens stand in a text")
        if not model.max_seq_length:
            raise M2RagError(f"{self.name}: it does not say how long its inputs may be; set max_seq_length")
        prompts = [model.prompts[key] for key in ("document", "passage", "corpus") if model.prompts.get(key)]
        prompt = tokenizer(prompts[0], add_special_tokens=False)["input_ids"] if prompts else []
        self._n_fixed = tokenizer.num_special_tokens_to_add() + len(prompt)
        self.max_tokens = int(model.max_seq_length)
        self.settings = {
            "model": self.name,
            "sentence_transformers": package.__version__,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "max_tokens": self.max_tokens,
        }
        self._model = model
        self.embed_documents = VectorMemory(
            lambda texts: model.encode_document(texts, convert_to_numpy=True, show_progress_bar=show_progress)
        )

    def split(self, text: str, max_tokens: int) -> list[str]:
        encoded = self._model.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
        spans = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        words = np.array([-1 if word is None else word for word in encoded.word_ids()], dtype=np.int64)
        begins_word = np.diff(words, prepend=-2) != 0
        return _chunks(text, spans[:, 0], spans[:, 1], begins_word, max_tokens - self._n_fixed)

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode_query(list(texts), convert_to_numpy=True, show_progress_bar=False)


class M2Encoder:
    """Our own embedder, for its documents in chunks, which the bundled vocabulary counts.

    Args:
        embedder: the model.
        name: what tables call it; default: `embedder.model_name`.
        show_progress: draw a bar.
    """

    def __init__(self, embedder: M2Embedder, *, name: str | None = None, show_progress: bool = False) -> None:
        self.name = name or embedder.model_name
        self.max_tokens = embedder.max_tokens
        self.settings = embedder.info()
        self._embedder = embedder
        self._tokenizer = TextTokenizer.bundled()
        # Should the model count a chunk otherwise, none of it is lost.
        self.embed_documents = VectorMemory(
            lambda texts: embedder.embed_documents(texts, on_too_long="window", show_progress=show_progress).vectors
        )

    def split(self, text: str, max_tokens: int) -> list[str]:
        tokens = self._tokenizer.encode(text)
        begins_word = ~self._tokenizer.is_continuation[tokens.ids]
        n_special = len(self._tokenizer.prefix) + len(self._tokenizer.suffix)
        return _chunks(text, tokens.starts, tokens.ends, begins_word, max_tokens - n_special)

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._embedder.embed_queries(texts, on_too_long="truncate").vectors


def _chunks(text: str, starts: np.ndarray, ends: np.ndarray, begins_word: np.ndarray, size: int) -> list[str]:
    """Pieces of `text` of at most `size` tokens; a word is cut only where it is longer than that.

    Args:
        starts: (n,) first character of each token.
        ends: (n,) one past its last.
        begins_word: (n,) bool.
    """
    if size < 1:
        raise ValueError(f"a chunk has room for {size} tokens of text: make chunks longer")
    pieces, first = [], 0
    while first < len(starts):
        last = min(first + size, len(starts))
        if last < len(starts):
            whole = np.flatnonzero(begins_word[first + 1 : last + 1])
            last = first + 1 + int(whole[-1]) if len(whole) else last
        pieces.append(text[int(starts[first]) : int(ends[last - 1])])
        first = last
    return pieces
