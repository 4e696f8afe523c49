"""The exported folder: three loaders that know nothing of each other, one vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_models import sentence, tiny_model

from m2rag import M2Embedder
from m2rag.errors import NonFiniteError
from m2rag.models import M2BertModel
from m2rag_train.export import save_embedder

TEXTS = ["one short text", sentence(200), "Ünïcode, punctuation; and (brackets)!", "a"]


def wide_model(**changes: Any) -> M2BertModel:
    """Vectors of the tiny model's usual weights are nearly equal; these differ from text to text."""
    model = tiny_model(**{"pooling": "mean", **changes})
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(50)
    return model


@pytest.fixture(scope="module", params=[0, 20], ids=["mean", "sketch"])
def model(request: pytest.FixtureRequest) -> M2BertModel:
    return wide_model(sketch_size=request.param)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model: M2BertModel) -> Path:
    return save_embedder(model, tmp_path_factory.mktemp("export") / "model")


@pytest.fixture(scope="module")
def vectors(exported: Path) -> np.ndarray:
    return M2Embedder(exported).embed_documents(TEXTS).vectors


def test_embedder_loads_it(vectors: np.ndarray, model: M2BertModel, exported: Path) -> None:
    embedder = M2Embedder(exported)
    assert (embedder.dimension, embedder.max_tokens) == (32, 256)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    similarity = vectors @ vectors.T - 2 * np.eye(len(TEXTS))
    assert similarity.max() < 0.98, "texts too alike to tell vectors apart"


def test_stored_halves_stay_near_the_model(vectors: np.ndarray, model: M2BertModel, tmp_path: Path) -> None:
    whole = save_embedder(model, tmp_path, dtype=torch.float32)
    expected = M2Embedder(whole).embed_documents(TEXTS).vectors
    difference = np.abs(vectors - expected).max()
    # One byte a code is coarse, and 20 channels of them hardly even it out.
    assert 0 < difference < (2e-2 if model.sketch else 5e-3)


def test_codes_of_words_are_stored_in_one_byte(tmp_path: Path) -> None:
    model = wide_model(sketch_size=20)
    with torch.no_grad():
        model.sketch.codes.weight.normal_()
    half, whole = (save_embedder(model, tmp_path / str(dtype), dtype=dtype) for dtype in (torch.float16, torch.float32))
    with safe_open(half / "model.safetensors", "pt") as tensors:
        kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}
    assert kinds.pop("sketch.codes.weight") == "F8_E4M3" and set(kinds.values()) == {"F16"}
    found, expected = (M2Embedder(folder).embed_documents(TEXTS).vectors for folder in (half, whole))
    assert (found * expected).sum(1).min() > 0.999


def test_auto_model_gives_the_same_vectors(exported: Path, vectors: np.ndarray) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(exported).eval(), AutoTokenizer.from_pretrained(exported)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        output = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(torch.nn.functional.normalize(output, dim=-1).numpy(), vectors, atol=1e-5)


def test_sentence_transformer_gives_the_same_vectors(exported: Path, vectors: np.ndarray) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(exported), device="cpu")  # without trust_remote_code
    np.testing.assert_allclose(model.encode(TEXTS), vectors, atol=1e-5)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.max_seq_length == 256
    assert model.get_embedding_dimension() == 32


def test_nothing_in_it_is_code(exported: Path) -> None:
    files = sorted(str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file())
    assert {Path(name).suffix for name in files} == {".json", ".safetensors"}, files
    assert "auto_map" not in json.loads((exported / "config.json").read_text(encoding="utf-8"))


def test_weights_take_two_bytes_each_and_codes_one(exported: Path, model: M2BertModel) -> None:
    codes = model.sketch.codes.weight.numel() if model.sketch else 0
    expected = 2 * sum(value.numel() for value in model.state_dict().values()) - codes
    names = 12_000 if model.sketch else 10_000
    assert expected < (exported / "model.safetensors").stat().st_size < expected + names


def test_others_can_read_it(exported: Path) -> None:
    assert (exported / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_export_twice_gives_the_same_bytes(exported: Path, tmp_path: Path, model: M2BertModel) -> None:
    again = save_embedder(model, tmp_path)
    save_embedder(model, tmp_path)  # over what is there
    for path in exported.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(exported)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("pooling", ["cls_tanh", "mean_tanh"])
@pytest.mark.parametrize("padding", ["masked", "max_length"])
def test_poolers_are_stock_modules_too(pooling: str, padding: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    out = save_embedder(wide_model(pooling=pooling, padding=padding), tmp_path)
    expected = M2Embedder(out).embed_documents(TEXTS).vectors
    stack = SentenceTransformer(str(out), device="cpu")
    assert [type(module).__name__ for module in stack] == ["Transformer", "Pooling", "Dense", "Normalize"]
    np.testing.assert_allclose(stack.encode(TEXTS), expected, atol=1e-5)
    model, tokenizer = AutoModel.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        output = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(torch.nn.functional.normalize(output, dim=-1).numpy(), expected, atol=1e-5)
    assert np.abs(expected[:, None] - expected[None]).max() > 1e-3, "texts too alike to tell vectors apart"


def test_a_model_without_its_pooler_is_refused(tmp_path: Path) -> None:
    model = tiny_model(pooling="cls_tanh")
    model.pooler = None
    with pytest.raises(ValueError, match="pooling is 'cls_tanh', and the model has no pooler"):
        save_embedder(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_smaller_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="100 word embeddings, the tokenizer 30522 ids"):
        save_embedder(tiny_model(vocab_size=100), tmp_path / "out")


def test_weights_out_of_range_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.layers[0].mixer.out_proj.bias[3] = 1e5  # halves end at 65,504
    with pytest.raises(NonFiniteError, match=r"layers\.0\.mixer\.out_proj\.bias: not finite as torch\.float16"):
        save_embedder(model, tmp_path / "out")
    assert save_embedder(model, tmp_path / "out", dtype=torch.bfloat16).exists()
