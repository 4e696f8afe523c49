"""The model in this process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m2rag.backends import BUNDLED_MODEL, BatchTooLargeError, PieceOutput
from m2rag.batching import BatchRule, Piece
from m2rag.errors import CheckpointError
from m2rag.models import M2BertModel, checkpoints, load_checkpoint
from m2rag.tokenizer import TextTokenizer
from m2rag.words import WordVectors
from m2rag_kernels import HeapTrimmer, choose

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Padded tokens per batch: on a CPU more gain nothing, on a GPU fewer leave it idle.
_BATCH_TOKENS = {"cpu": 16_384, "cuda": 131_072}

# What one more call costs on a GPU, in tokens: some hundred launches. An estimate.
_GPU_CALL_TOKENS = 2_048

# Padded tokens of a batch that may run beside another one.
SMALL_BATCH_TOKENS = 2_048

# Configuration that changes the vectors without changing a tensor.
_BEHAVIOUR = (
    "num_hidden_layers", "layer_norm_eps", "pad_token_id", "max_position_embeddings", "long_conv_l_max",
    "bidirectional", "residual_long_conv", "use_monarch_mlp", "monarch_mlp_nblocks", "use_positional_encodings",
    "hyena_w", "hyena_w_mod", "hyena_training_additions", "padding", "pooling", "filter",
)  # fmt: skip


class LocalBackend:
    """An M2-BERT on this machine's CPU or GPU.

    Args:
        model: the encoder with its pooling, weights in fp32.
        tokenizer: default: the bundled bert-base-uncased.
        name: for people.
        source: what loads this model again, see `Backend.source`.
        device: default: the GPU if there is one.
        dtype: number format of the matrix products: "float32", "bfloat16", or "auto" (bfloat16 where the hardware
            has it). Weights, sums and vectors are fp32 in any case.
        kernels: which implementation runs, see `M2BertModel.kernels`.

    Raises:
        CheckpointError: the tokenizer has ids that the model has no embedding for.
        ValueError: an unknown `dtype` or `kernels`, or a GPU that is not there.
    """

    def __init__(
        self,
        model: M2BertModel,
        *,
        tokenizer: TextTokenizer | None = None,
        name: str = "m2_bert",
        source: str | None = None,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        kernels: str = "auto",
    ) -> None:
        self.tokenizer = tokenizer or TextTokenizer.bundled()
        config = model.config
        if self.tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                f"{name}: the tokenizer has {self.tokenizer.vocab_size:,} tokens, the model embeds "
                f"{config.vocab_size:,}: they do not belong together"
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {str(device)!r}, and this torch sees no GPU: use device='cpu'")
        self.dtype = _compute_dtype(dtype, self.device)
        self.model_name = name
        self.source = source
        self.dimension = int(config.hidden_size)
        self.max_tokens = int(config.max_tokens)
        self.matryoshka_dimensions = tuple(getattr(config, "matryoshka_dimensions", None) or ())
        self.batch_rule = BatchRule(
            pad_to=self.max_tokens if config.padding == "max_length" else None,
            equal_lengths=config.padding == "as_given",
            **({"call_tokens": _GPU_CALL_TOKENS} if self.device.type == "cuda" else {}),
        )
        self.batch_tokens = _BATCH_TOKENS.get(self.device.type, _BATCH_TOKENS["cpu"])
        self.has_spans = True
        self.sends_text = False
        # A second long forward pass at once would need twice the memory and finish no sooner.
        self.concurrency = 1
        self._model = model.to(self.device).eval()
        self._model.kernels = kernels
        self._model.compute_dtype = self.dtype
        self._path = choose("m2_bert", kernels, self.device, inference=True)
        # Short ones do not wait for a long one: they need little memory.
        self._large_lock = threading.Lock()
        self._small_lock = threading.Lock()
        self._trim_heap = HeapTrimmer()

    @classmethod
    def load(cls, model: str | Path | None, **options: Any) -> LocalBackend:
        """Load a checkpoint by path, bundled name or repository id, with the tokenizer beside its weights.

        None is the bundled checkpoint, whatever folders of its name there are elsewhere.

        Raises:
            CheckpointError: no checkpoint there, or not a sound one.
        """
        if model is None:
            path = checkpoints.BUNDLED / BUNDLED_MODEL
            if not path.is_dir():
                raise CheckpointError(
                    f"the bundled checkpoint {BUNDLED_MODEL} is not in this installation ({path}): "
                    "install the package again, or name a model"
                )
        else:
            path = checkpoints.resolve_checkpoint(model)
        folder = path if path.is_dir() else path.parent
        encoder = load_checkpoint(path)
        name = str(model) if isinstance(model, str) and not Path(model).exists() else path.resolve().name
        # A path is kept whole: what is stored beside vectors is read from other folders too.
        given = None if model is None else Path(model).expanduser()
        source = str(given.resolve()) if given and given.exists() else str(model or BUNDLED_MODEL)
        return cls(encoder, tokenizer=TextTokenizer.from_folder(folder), name=name, source=source, **options)

    @cached_property
    def _digest(self) -> str:
        """First 16 hex digits of the SHA-256 of every tensor, with its name, and of the configuration that counts."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
        config = self._model.config
        behaviour = {key: getattr(config, key) for key in _BEHAVIOUR}
        if config.multiscale_l_max is not None:
            behaviour["multiscale_l_max"] = config.multiscale_l_max
        if config.sketch_size:
            behaviour["sketch_size"] = config.sketch_size
        digest.update(json.dumps(behaviour).encode())
        return digest.hexdigest()[:16]

    def identity(self) -> dict[str, str]:
        config = self._model.config
        return {
            "model": f"m2_bert-{config.num_hidden_layers}x{config.hidden_size}",
            "weights": f"sha256:{self._digest}",
            "tokenizer": f"sha256:{self.tokenizer.identity}",
            "padding": config.padding,
            "pooling": config.pooling,
        }

    def words(self) -> WordVectors | None:
        vocabulary = self.tokenizer.whole_words()
        if not vocabulary:
            return None
        table = self._model.get_input_embeddings().weight.detach().float().cpu().numpy()
        vectors = table[list(vocabulary.values())] - table.mean(axis=0)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return WordVectors(tuple(vocabulary), vectors / np.maximum(lengths, np.finfo(np.float32).tiny))

    def info(self) -> dict[str, Any]:
        config = self._model.config
        return {
            "backend": "local",
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "kernels": self._path,
            "parameters": sum(parameter.numel() for parameter in self._model.parameters()),
            "layers": config.num_hidden_layers,
            "padding": config.padding,
            "pooling": config.pooling,
        }

    def run(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        small = self.batch_rule.total(batch) <= SMALL_BATCH_TOKENS
        try:
            with self._small_lock if small else self._large_lock:
                outputs = self._forward(batch)
            if not small and self.device.type == "cpu":
                self._trim_heap()
            return outputs
        except torch.OutOfMemoryError as error:
            reason = str(error)
        except RuntimeError as error:
            # The CPU allocator has no class of its own.
            if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
                raise
            reason = str(error)
        # Outside of the handlers, where the failed call's tensors are no longer referenced by its traceback.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise BatchTooLargeError(reason)

    async def arun(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        return await asyncio.to_thread(self.run, batch)

    def close(self) -> None:
        """Nothing to let go of."""

    async def aclose(self) -> None:
        """Nothing to let go of."""

    @torch.inference_mode()
    def _forward(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        longest = max(len(piece) for piece in batch)
        ids = np.full((len(batch), longest), self._model.config.pad_token_id or 0, dtype=np.int64)
        mask = np.zeros((len(batch), longest), dtype=np.int64)
        for row, piece in enumerate(batch):
            ids[row, : len(piece)] = piece.ids
            mask[row, : len(piece)] = 1
        # The naive kernels know nothing of `compute_dtype`.
        autocast = self._path == "naive" and self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=autocast):
            output = self._model(torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device))
        vectors = output.pooler_output.float().cpu().numpy()
        return [
            PieceOutput(vectors[row], self._span_vectors(output.last_hidden_state[row], piece.spans))
            for row, piece in enumerate(batch)
        ]

    def _span_vectors(self, hidden: torch.Tensor, spans: np.ndarray | None) -> np.ndarray | None:
        if spans is None:
            return None
        return self._model.span_vectors(hidden, spans.tolist()).cpu().numpy()


def _compute_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and cpu_multiplies_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, must be one of {', '.join(map(repr, [*DTYPES, 'auto']))}")
    return DTYPES[dtype]


def cpu_multiplies_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here."""
    # Young in torch: older versions answer "no", which costs speed and nothing else.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
