"""Write a trained encoder as a folder that `M2Embedder`, `AutoModel` and `SentenceTransformer` all load."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertTokenizer

from m2rag.errors import NonFiniteError
from m2rag.models import M2BertConfig, M2BertModel
from m2rag.tokenizer import VOCABULARY

_MODULES = [
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ("2_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
]


def save_embedder(model: M2BertModel, out: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write weights (stored as `dtype`, computed in fp32), configuration, tokenizer and the module list.

    Raises:
        ValueError: the model's pooling is not the plain mean, which is all a stock module list can express, or its
            vocabulary is smaller than the tokenizer's.
        NonFiniteError: a weight is not finite, or is out of the range of `dtype`.
    """
    if model.config.pooling != "mean":
        raise ValueError(f"pooling is {model.config.pooling!r}; only 'mean' can be written as stock modules")
    tokenizer = BertTokenizer(str(VOCABULARY), do_lower_case=True, model_max_length=model.config.max_tokens)
    if model.config.vocab_size < len(tokenizer):
        raise ValueError(f"the model has {model.config.vocab_size} word embeddings, the tokenizer {len(tokenizer)} ids")
    tensors = {name: value.detach().to(dtype).contiguous() for name, value in model.state_dict().items()}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise NonFiniteError(f"{name}: not finite as {dtype}")
    out.mkdir(parents=True, exist_ok=True)
    # fp32 in the configuration, so that loaders widen the stored halves: filters need fp32 positions.
    model.config.dtype = torch.float32
    model.config.architectures = ["M2BertModel"]
    model.config.save_pretrained(out)
    weights = out / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    # safetensors makes files that only their owner can read.
    weights.chmod(0o644)
    tokenizer.save_pretrained(out)
    _write_modules(out, model.config)
    return out


def _write_modules(out: Path, config: M2BertConfig) -> None:
    """The files that `SentenceTransformer` reads: transformer, mean pooling, normalisation."""
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(_MODULES)]
    pooling = {"embedding_dimension": config.hidden_size, "pooling_mode": "mean", "include_prompt": True}
    for name, content in {
        "modules.json": modules,
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {"max_seq_length": config.max_tokens, "do_lower_case": False},
        "1_Pooling/config.json": pooling,
        "2_Normalize/config.json": {},
    }.items():
        path = out / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
