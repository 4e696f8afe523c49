"""Write a trained encoder as a folder that `M2Embedder`, `AutoModel` and `SentenceTransformer` all load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import BertTokenizer, PreTrainedTokenizerBase

from m2rag.errors import NonFiniteError
from m2rag.models import M2BertConfig, M2BertModel
from m2rag.tokenizer import VOCABULARY

# Stored in one byte a number where the others have two: sums over a text's words hardly feel the rounding.
_COARSE = frozenset({"sketch.codes.weight"})

_PACKAGE = "sentence_transformers."
_TRANSFORMER = ("", _PACKAGE + "base.modules.transformer.Transformer")
_POOLING = ("1_Pooling", _PACKAGE + "sentence_transformer.modules.pooling.Pooling")
_DENSE = ("2_Dense", _PACKAGE + "base.modules.dense.Dense")
_NORMALIZE = _PACKAGE + "base.modules.normalize.Normalize"


def save_embedder(
    model: M2BertModel,
    out: Path,
    *,
    dtype: torch.dtype = torch.float16,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write weights (stored as `dtype`, computed in fp32), configuration, tokenizer and the module list.

    With fp16 the codes of a lexical sketch are stored as float8_e4m3fn, which loaders widen in the same way.

    Pooling `mean` is a stock module; the dense layer with tanh of the two others is one too, so its weights are there
    twice: in the model, for `M2Embedder` and `AutoModel`, and in a folder of their own, for `SentenceTransformer`.

    Args:
        tokenizer: of the model; default: the bundled bert-base-uncased.

    Raises:
        ValueError: the model has no pooler for its pooling, or its vocabulary is smaller than the tokenizer's.
        NonFiniteError: a weight is not finite, or is out of the range of `dtype`.
    """
    config = model.config
    if config.pooling != "mean" and model.pooler is None:
        raise ValueError(f"pooling is {config.pooling!r}, and the model has no pooler")
    if tokenizer is None:
        tokenizer = BertTokenizer(str(VOCABULARY), do_lower_case=True, model_max_length=config.max_tokens)
    if config.vocab_size < len(tokenizer):
        raise ValueError(f"the model has {config.vocab_size} word embeddings, the tokenizer {len(tokenizer)} ids")
    tensors = {}
    for name, value in model.state_dict().items():
        stored = torch.float8_e4m3fn if name in _COARSE and dtype == torch.float16 else dtype
        tensors[name] = value.detach().to(stored).contiguous()
        if not tensors[name].float().isfinite().all():
            raise NonFiniteError(f"{name}: not finite as {stored}")
    out.mkdir(parents=True, exist_ok=True)
    # fp32 in the configuration, so that loaders widen the stored halves: filters need fp32 positions.
    config.dtype = torch.float32
    config.architectures = ["M2BertModel"]
    config.save_pretrained(out)
    _write_weights(tensors, out)
    tokenizer.save_pretrained(out)
    _write_modules(out, config, {key: tensors[f"pooler.{key}"] for key in ("weight", "bias") if model.pooler})
    return out


def _write_weights(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    weights = folder / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    # safetensors makes files that only their owner can read.
    weights.chmod(0o644)


def _write_modules(out: Path, config: M2BertConfig, pooler: dict[str, torch.Tensor]) -> None:
    """The files that `SentenceTransformer` reads: transformer, pooling, perhaps a dense layer, normalisation."""
    size = config.hidden_size
    modules = [_TRANSFORMER, _POOLING, *([_DENSE] if pooler else [])]
    modules.append((f"{len(modules)}_Normalize", _NORMALIZE))
    mode = "cls" if config.pooling == "cls_tanh" else "mean"
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)
        ],
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {"max_seq_length": config.max_tokens, "do_lower_case": False},
        "1_Pooling/config.json": {"embedding_dimension": size, "pooling_mode": mode, "include_prompt": True},
        f"{modules[-1][0]}/config.json": {},
    }
    if pooler:
        _write_weights({f"linear.{key}": value for key, value in pooler.items()}, out / _DENSE[0])
        tanh = "torch.nn.modules.activation.Tanh"
        files["2_Dense/config.json"] = {
            "in_features": size, "out_features": size, "bias": True, "activation_function": tanh,
        }  # fmt: skip
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
