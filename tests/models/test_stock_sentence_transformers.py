"""A folder with a model of ours is a sentence-transformers model: stock modules, no remote code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from m2rag.models import M2BertConfig, M2BertModel

sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the extra 'train'")

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the long document gets one vector from all of its text ##s ##ing . ,".split()
TEXTS = [
    "The long document gets one vector, from all of its text.",
    "Text.",
    "one vector " * 40,
    "documents unknown words",
]
L_MAX = 128


def write_folder(folder: Path, sketch_size: int) -> M2BertModel:
    """Transformer + Pooling(mean) + Normalize around a random model with the mini's structure."""
    torch.manual_seed(0)
    config = M2BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        max_position_embeddings=L_MAX,
        long_conv_l_max=L_MAX,
        hyena_filter_order=8,
        use_positional_encodings=False,
        filter="multiscale",
        pooling="mean",
        padding="masked",
        sketch_size=sketch_size,
    )
    model = M2BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=L_MAX, **special).save_pretrained(folder)

    package = "sentence_transformers."
    stack = [
        ("", package + "base.modules.transformer.Transformer"),
        ("1_Pooling", package + "sentence_transformer.modules.pooling.Pooling"),
        ("2_Normalize", package + "base.modules.normalize.Normalize"),
    ]
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(stack)]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": L_MAX}))
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    for name, content in (("1_Pooling", pooling), ("2_Normalize", {})):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(content))
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("sketch_size", [0, 20])
def test_stock_stack_gives_the_models_own_vectors(tmp_path, sketch_size):
    model = write_folder(tmp_path, sketch_size)
    stack = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert [type(module).__name__ for module in stack] == ["Transformer", "Pooling", "Normalize"]
    assert stack.get_embedding_dimension() == 32
    assert stack.max_seq_length == L_MAX
    got = stack.encode(TEXTS, batch_size=3)

    batch = stack.tokenizer(TEXTS, padding=True, truncation=True, max_length=L_MAX, return_tensors="pt")
    with torch.no_grad():
        pooled = model(batch["input_ids"], batch["attention_mask"]).pooler_output
    expected = F.normalize(pooled, dim=-1).numpy()
    assert np.abs(expected[:, None] - expected[None]).max() > 0.1, "different texts must have different vectors"
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    for text, vector in zip(TEXTS, got, strict=True):
        np.testing.assert_allclose(stack.encode(text), vector, rtol=0, atol=1e-5)
    # What a user saves there loads again.
    stack.save(str(tmp_path / "again"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "again"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), got, rtol=0, atol=1e-5)
