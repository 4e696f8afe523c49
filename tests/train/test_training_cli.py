"""`m2rag train`: a run in two pieces, in this process and as `python -m m2rag_train`; one message for every error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.logs import logging_as_before
from teachers import character_teacher
from tiny_training import TEACHER, recipe_data, write_lines
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import BertConfig, BertModel
from typer.testing import CliRunner, Result

from m2rag import M2Embedder
from m2rag.cli.app import app
from m2rag.tokenizer import VOCABULARY
from m2rag_train.distillation.teacher import TextTeacher

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
    with logging_as_before():
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
    train = (folder / "recipe.yaml", "--run", folder / "run", "--data", folder / "data")
    train += ("--set", f"teacher.model={folder / 'teacher'}")

    first = in_this_process("train", *train, "--stop-after", "3")
    assert (first.exit_code, first.stdout) == (0, "")
    assert "Stopped after 3 steps; the same command goes on." in first.stderr
    assert not (folder / "run" / "model").exists()

    # The sources are needed no more once the teacher's vectors are there.
    (folder / "data" / "documents.jsonl").unlink()
    done = in_a_new_process(*train)
    assert done.returncode == 0, done.stderr
    assert "tiny: steps 3 to 4, 4 documents" in done.stderr, "a run that says nothing looks like one that hangs"
    assert done.stdout.strip() == str(folder / "run" / "model")
    vectors = M2Embedder(folder / "run" / "model").embed_documents(["a document", "another"]).vectors
    assert vectors.shape == (2, WIDTH)


def test_a_teacher_of_another_kind_and_width(folder: Path) -> None:
    teacher = character_teacher(folder / "other", 2 * WIDTH, limit=48)
    train = ("train", folder / "recipe.yaml", "--data", folder / "data", "--set", f"teacher.model={teacher}")
    # The vectors of 30,522 words by a teacher that learnt nothing would be all that this test waits for.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextTeacher, "vectors_of_words", lambda self: np.ones((30522, self.dimension), np.float32))
        first = in_this_process(*train, "--run", folder / "run", "--stop-after", "3")
    assert first.exit_code == 0, first.stderr
    assert "16 dimensions, reads text" in first.stderr
    assert "the teacher's 16 dimensions become 8: " in first.stderr
    done = in_this_process(*train, "--run", folder / "run")
    assert done.exit_code == 0, done.stderr
    assert M2Embedder(folder / "run" / "model").embed_documents(["a document"]).vectors.shape == (1, WIDTH)


def recipe_with(folder: Path, text: str) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8") + text, encoding="utf-8")
    return recipe


def test_an_error_is_one_message(folder: Path) -> None:
    told = in_this_process("train", recipe_with(folder, "stepz: 3\n"), "--run", folder / "run")
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr.startswith(f"Error: {folder / 'recipe.yaml'}: unknown keys stepz; known: name,")
    assert told.stderr.count("\n") == 1
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr=fast", "lr: expected float, found 'fast'"),
        ("stages.0.steps=0", "steps is 0, must be at least 1"),
        ("lr", "'lr': expected key=value"),
        ("sources.0.documents=absent.jsonl", "absent.jsonl: No such file or directory"),
    ],
)
def test_changes_that_cannot_be(folder: Path, change: str, message: str) -> None:
    told = in_this_process(
        "train",
        folder / "recipe.yaml",
        "--run",
        folder / "run",
        "--data",
        folder,
        "--set",
        f"teacher.model={folder / 'teacher'}",
        "--set",
        change,
    )
    assert told.exit_code == 1
    assert told.stderr.splitlines()[-1].startswith("Error: ") and message in told.stderr


def test_a_run_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").touch()
    told = in_this_process("train", folder / "recipe.yaml", "--run", folder / "file" / "run")
    assert told.exit_code == 1
    assert told.stderr == f"Error: {folder / 'file' / 'run'}: Not a directory\n"


def test_wrong_usage(folder: Path) -> None:
    assert in_this_process("train").exit_code == 2
    assert in_this_process("train", folder / "absent.yaml", "--run", folder / "run").exit_code == 2
    assert in_this_process("train", folder / "recipe.yaml", "--run", folder / "run", "--stop-after", "0").exit_code == 2


def test_help_of_the_command() -> None:
    told = in_this_process("train", "-h")
    assert told.exit_code == 0 and "Example: m2rag train train/recipes/" in told.stdout
