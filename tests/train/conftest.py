"""A tiny teacher, tiny documents and a tiny recipe: everything the training code reads, in kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_training import WIDTH, WORDS, MakeRecipe, recipe_data, words, write_lines
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import BertConfig, BertModel

from m2rag.tokenizer import TextTokenizer
from m2rag_train.distillation.cache import build_cache
from m2rag_train.distillation.recipe import DistillRecipe
from m2rag_train.distillation.teacher import Teacher, WordPieceTeacher
from m2rag_train.recipe import load_recipe

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BertModel with a WordPiece tokenizer of 25 ids, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("teacher")
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,  # the usual 0.02 would make all vectors alike
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(teacher_folder: Path) -> TextTokenizer:
    """The student's: that of the teacher."""
    tokenizer = TextTokenizer.from_folder(teacher_folder)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def teacher(teacher_folder: Path, tokenizer: TextTokenizer) -> WordPieceTeacher:
    return WordPieceTeacher(BertModel.from_pretrained(teacher_folder), tokenizer, dtype=torch.float32)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sectioned.jsonl`, 12 documents of 20 to 64 tokens; `paired_docs.jsonl` and `pairs.jsonl`, 6 of 30."""
    folder = tmp_path_factory.mktemp("data")
    sectioned = [
        {
            "id": f"s{i}",
            "title": words(3, 100 + i),
            "sections": [{"level": 1, "heading": words(2, 200 + i), "text": words(18 + 4 * i, i)}],
        }
        for i in range(12)
    ]
    write_lines(folder / "sectioned.jsonl", sectioned)
    paired = [{"_id": f"p{i}", "title": "", "text": words(30, 300 + i)} for i in range(6)]
    write_lines(folder / "paired_docs.jsonl", paired)
    pairs = [{"query": words(4, 400 + i), "document_id": f"p{i}", "kind": "question"} for i in range(6)]
    write_lines(folder / "pairs.jsonl", pairs)
    return folder


@pytest.fixture
def make_recipe(tmp_path: Path) -> MakeRecipe:
    """`make_recipe(key=value)`: the tiny recipe with some keys changed, through a YAML file."""

    def make(**changes: Any) -> DistillRecipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe_data(**changes)), encoding="utf-8")
        return load_recipe(path)

    return make


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory, data: Path, teacher: Teacher) -> Path:
    """Shards of the tiny recipe; tests must not write here."""
    folder = tmp_path_factory.mktemp("run") / "teacher"
    path = folder.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_data()), encoding="utf-8")
    build_cache(load_recipe(path), data, teacher, folder)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path, cache_folder: Path) -> Path:
    """A fresh run that has its teacher vectors."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "teacher").symlink_to(cache_folder, target_is_directory=True)
    return run
