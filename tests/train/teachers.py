"""Two tiny teachers of other kinds than the student, and the plainest way to a vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from m2rag_train.distillation.teacher import WordPieceTeacher


def naive_encode(teacher: WordPieceTeacher, sequence: np.ndarray) -> np.ndarray:
    """One text, padded to the longest, with the attention mask: the mean over real tokens, normalised."""
    ids = torch.zeros(1, 32, dtype=torch.long)
    ids[0, : len(sequence) + 2] = torch.tensor([2, *sequence.tolist(), 3])
    mask = (torch.arange(32) < len(sequence) + 2).long()[None]
    with torch.no_grad():
        hidden = teacher.model(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=-1)[0].numpy()


def character_teacher(folder: Path, dimension: int, *, limit: int = 60, prompt: str = "q ") -> Path:
    """A sentence-transformers folder: a token for each letter, first token's vector, a dense layer, prompts.

    Args:
        dimension: of its vectors.
        limit: tokens that it reads, special tokens included.
        prompt: in front of queries.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "<s>", "</s>", *letters])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>"
    )
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    source = folder / "transformer"
    BertModel(config).save_pretrained(source)
    tokenizer.save_pretrained(source)
    modules: list[Any] = [Transformer(str(source), max_seq_length=limit), Pooling(16, "mean"), Dense(16, dimension)]
    model = SentenceTransformer(modules=modules, prompts={"query": prompt, "document": ""}, device="cpu")
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"
