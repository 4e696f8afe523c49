"""The whole model through the Triton path against the naive path in fp32: vectors and gradients.

On the GPU it is the bundled checkpoint on the demo's 40 documents, whole; interpreted, a toy with random weights.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from common import OK, Row, Rows, in_one_line
from gpu_kernels import stepped_aside

import m2rag
from m2rag.models import M2BertConfig, M2BertModel, load_checkpoint
from m2rag.models.checkpoints import BUNDLED

# Of vectors the relative difference in fp32 and the cosine distance in bf16; of batched against single ones the largest
# difference of a component; of gradients the relative difference. In bf16 that may be twice what the naive path itself
# has under autocast.
VECTOR = {torch.float32: 1e-4, torch.bfloat16: 1e-3}
BATCHED = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
GRADIENT = {torch.float32: 1e-3, torch.bfloat16: 1e-2}


def toy() -> tuple[M2BertModel, list[torch.Tensor]]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    limits = {"max_position_embeddings": 32, "long_conv_l_max": 32, "vocab_size": 100, "hyena_filter_order": 8}
    config = M2BertConfig(**sizes, **limits, filter="multiscale", pooling="mean", hidden_dropout_prob=0.0)
    return M2BertModel(config), [torch.randint(1, 100, (length,)) for length in (5, 32)]


def bundled(device: str) -> tuple[M2BertModel, list[torch.Tensor]]:
    """The checkpoint, and the demo's documents as ids, shortest first."""
    from m2rag.tokenizer import TextTokenizer

    model = load_checkpoint(BUNDLED / "m2rag-mini").to(device)
    packed = Path(m2rag.__file__).parent / "demo" / "peps.jsonl.gz"
    texts = [json.loads(line)["text"] for line in gzip.decompress(packed.read_bytes()).splitlines()]
    tokenizer = TextTokenizer.bundled()
    limit = model.config.max_tokens - len(tokenizer.prefix) - len(tokenizer.suffix)
    documents = [
        torch.tensor([*tokenizer.prefix, *tokenizer.encode(text).ids[:limit], *tokenizer.suffix], device=device)
        for text in texts
    ]
    return model, sorted(documents, key=len)


def padded(documents: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(list(documents), batch_first=True)
    lengths = torch.tensor([len(document) for document in documents], device=ids.device)
    return {"input_ids": ids, "attention_mask": torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]}


@torch.no_grad()
def vectors(model: M2BertModel, documents: Sequence[torch.Tensor], kernels: str, dtype: torch.dtype) -> torch.Tensor:
    """One vector per document, each alone: (N, D) fp64."""
    model.eval()
    model.kernels, model.compute_dtype = kernels, dtype
    return torch.cat([model(document[None]).pooler_output.double() for document in documents])


def gradients(model: M2BertModel, documents: Sequence[torch.Tensor], kernels: str, dtype: torch.dtype) -> torch.Tensor:
    """Those of all parameters in one line, fp64, for a random direction of the vectors; trained under autocast."""
    model.train()
    model.kernels = kernels
    model.zero_grad()
    batch = padded(documents)
    half = torch.autocast(batch["input_ids"].device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
    with half:
        result = model(**batch).pooler_output
    direction = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    (result * direction).sum().backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def distance(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative difference of a row, infinite if it is no number."""
    error = float(((result - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
    return error if error == error else float("inf")


def check_vectors(model: M2BertModel, documents: Sequence[torch.Tensor], dtype: torch.dtype) -> tuple[float, float]:
    expected = vectors(model, documents, "naive", torch.float32)
    result = vectors(model, documents, "triton", dtype)
    if dtype == torch.float32 or not result.isfinite().all():
        return distance(result, expected), VECTOR[dtype]
    return 1 - float(torch.cosine_similarity(result, expected).min()), VECTOR[dtype]


@torch.no_grad()
def check_batched(model: M2BertModel, documents: Sequence[torch.Tensor], dtype: torch.dtype) -> tuple[float, float]:
    """The vector of a document does not depend on what is beside it in the batch."""
    some = documents[:: max(1, len(documents) // 4)]
    alone = torch.nn.functional.normalize(vectors(model, some, "triton", dtype), dim=-1)
    batched = torch.nn.functional.normalize(model(**padded(some)).pooler_output.double(), dim=-1)
    error = float((alone - batched).abs().max())
    return (error if error == error else float("inf")), BATCHED[dtype]


def check_gradients(model: M2BertModel, documents: Sequence[torch.Tensor], dtype: torch.dtype) -> tuple[float, float]:
    two = [documents[0], documents[len(documents) // 2]]
    expected = gradients(model, two, "naive", torch.float32)
    usual = distance(gradients(model, two, "naive", dtype), expected)
    return distance(gradients(model, two, "triton", dtype), expected), max(GRADIENT[dtype], 2 * usual)


def check_model(dtype_name: str, interpret: bool, rows: Rows) -> None:
    """One row each for vectors, batches and gradients."""
    dtype = torch.float32 if dtype_name == "float32" else torch.bfloat16
    model, documents = toy() if interpret else bundled("cuda")
    checks: dict[str, Callable[..., tuple[float, float]]] = {
        "vectors": check_vectors,
        "batched": check_batched,
        "gradients": check_gradients,
    }
    for name, check in checks.items():
        what = "a toy" if interpret else "m2rag-mini"
        case = f"{what}, {len(documents)} documents of up to {len(documents[-1]):,} tokens"
        row: Row = {"kernel": "model", "dtype": dtype_name, "case": case, "worst": name}
        try:
            error, tolerance = check(model, documents, dtype)
            # A path that stepped aside for another would only be compared with itself.
            status = stepped_aside(inference=name != "gradients") or (OK if error <= tolerance else "wrong")
            rows.add(row | {"error": error, "tolerance": tolerance, "status": status})
        except Exception as error:  # whatever goes wrong is what the report is about
            rows.add(row | {"status": in_one_line(error)})
