"""`import m2rag` is fast, and the Auto classes know M2-BERT whatever is imported in what order."""

from __future__ import annotations

import subprocess
import sys

import pytest

import m2rag


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_neither_torch_nor_transformers() -> None:
    code = "import m2rag, sys; print([m for m in ('torch', 'transformers', 'tokenizers', 'numpy') if m in sys.modules])"
    assert run(code) == "[]"


@pytest.mark.parametrize(
    "first",
    [
        "import m2rag; from transformers import AutoConfig, AutoModel",
        "import m2rag; import transformers.integrations.finegrained_fp8",
        "from transformers import AutoModel; import m2rag",
        "import m2rag; m2rag.M2BertModel",
    ],
)
def test_auto_classes_know_the_model(first: str) -> None:
    code = (
        f"{first}\n"
        "from transformers import AutoConfig, AutoModel\n"
        "config = AutoConfig.for_model('m2_bert', hidden_size=8, num_hidden_layers=1, intermediate_size=8, "
        "vocab_size=9, long_conv_l_max=4, max_position_embeddings=4)\n"
        "print(type(AutoModel.from_config(config)).__module__)\n"
        "import sys; print(any('m2rag' in type(f).__module__ for f in sys.meta_path))"
    )
    assert run(code).split() == ["m2rag.models.modeling_m2_bert", "False"]


def test_names_are_there() -> None:
    for name in ("M2Embedder", "EmbeddingResult", "PassageVectors", "M2BertConfig", "M2BertModel", "errors"):
        assert name in dir(m2rag) and getattr(m2rag, name) is not None
    assert m2rag.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'M3Embedder'"):
        m2rag.M3Embedder  # noqa: B018
