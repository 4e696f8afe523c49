"""`python -m m2rag_train`: cache, train in two pieces, export."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import Result
from tiny_training import TEACHER, recipe_data, write_lines
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from m2rag import M2Embedder
from m2rag.tokenizer import VOCABULARY
from m2rag_train.__main__ import app

WIDTH = 8


def in_a_new_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "m2rag_train", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def in_this_process(*arguments: str | Path) -> Result:
    """The same without the seconds that a process takes to import everything."""
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`teacher` with the real vocabulary (which an exported model needs), `data`, `recipe.yaml`."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    tokenizer = Tokenizer(WordPiece.from_file(str(VOCABULARY), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(teacher / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(teacher)

    sections = [
        {"level": 1, "heading": "Two words", "text": "The text of a document about rivers and old stones. " * 3}
    ]
    rows = [{"id": str(i), "title": f"Title number {i}", "sections": sections} for i in range(4)]
    write_lines(tmp_path / "data" / "documents.jsonl", rows)
    recipe = recipe_data(
        sources=[{"documents": "documents.jsonl", "tokens": 1000}],
        teacher=TEACHER,
        model={**recipe_data()["model"], "vocab_size": 30522, "hidden_size": WIDTH},
        stages=[{"steps": 4, "window_tokens": 32, "short_texts": 4}],
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return tmp_path


def test_from_documents_to_an_embedder(folder: Path) -> None:
    recipe, run, teacher = folder / "recipe.yaml", folder / "run", folder / "teacher"
    train = ("train", recipe, "--teacher", teacher, "--run", run)

    called = in_this_process("cache", recipe, "--data", folder / "data", "--teacher", teacher, "--run", run)
    assert called.exit_code == 0, called.exception
    assert [path.name for path in (run / "teacher").iterdir()] == ["shard-000.npz"]
    called = in_this_process(*train, "--stop-after", "3")
    assert called.exit_code == 0, called.exception

    done = in_a_new_process(*train)
    assert done.returncode == 0, done.stderr
    assert "tiny: steps 3 to 4, 4 documents" in done.stderr

    done = in_a_new_process("export", recipe, "--run", run, "--out", folder / "model")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "model")
    vectors = M2Embedder(folder / "model").embed_documents(["a document", "another"]).vectors
    assert vectors.shape == (2, WIDTH)


def test_a_wrong_recipe_is_an_error(folder: Path) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8") + "stepz: 3\n", encoding="utf-8")
    called = in_this_process("export", recipe, "--run", folder, "--out", folder / "model")
    assert called.exit_code == 1
    assert str(called.exception).startswith(f"{recipe}: unknown keys stepz")
