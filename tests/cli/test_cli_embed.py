"""`m2rag embed`: the vectors are the library's, in whatever form they leave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import sentence

from m2rag import M2Embedder


def test_json_lines_give_the_vectors_back_exactly(run, model: Path) -> None:
    texts = ["the cat sat", sentence(50)]
    lines = [json.loads(line) for line in run("embed", *texts, "-m", model).stdout.splitlines()]
    expected = M2Embedder(model).embed_documents(texts)
    assert [line["index"] for line in lines] == [0, 1]
    assert np.array_equal(np.array([line["vector"] for line in lines], dtype=np.float32), expected.vectors)
    assert [line["n_tokens"] for line in lines] == expected.n_tokens.tolist()
    assert not any(line["truncated"] for line in lines)


@pytest.mark.parametrize("args", [(), ("-",)], ids=["nothing", "dash"])
def test_lines_of_standard_input(run, model: Path, args: tuple[str, ...]) -> None:
    told = run("embed", *args, "-m", model, input="the cat\nold stone houses\n")
    assert len(told.stdout.splitlines()) == 2


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_numpy_file_with_texts_and_files(run, model: Path, documents: Path, tmp_path: Path, precision: str) -> None:
    out = tmp_path / "vectors.npy"
    options = ("--precision", precision, "--on-too-long", "window", "-m", model, "--out", out)
    told = run("embed", "the cat", "--file", documents / "cats.txt", "--file", documents / "sub" / "long.txt", *options)
    assert told.exit_code == 0 and told.stdout == "" and "3 vectors" in told.stderr
    texts = ["the cat", *(path.read_text() for path in (documents / "cats.txt", documents / "sub" / "long.txt"))]
    expected = M2Embedder(model, precision=precision).embed_documents(texts, on_too_long="window").vectors
    stored = np.load(out)
    assert stored.dtype == expected.dtype and np.array_equal(stored, expected)


def test_integers_stay_integers(run, model: Path) -> None:
    vector = json.loads(run("embed", "cats", "--precision", "int8", "-m", model).stdout)["vector"]
    assert len(vector) == 32 and all(type(number) is int for number in vector)


def test_queries(run, model: Path) -> None:
    vector = json.loads(run("embed", "--query", "cats", "-m", model).stdout)["vector"]
    assert np.array_equal(np.array(vector, dtype=np.float32), M2Embedder(model).embed_query("cats"))


def test_too_long(run, model: Path) -> None:
    refused = run("embed", sentence(400), "-m", model)
    assert refused.exit_code == 1 and refused.stdout == "" and "256" in refused.stderr
    cut = json.loads(run("embed", sentence(400), "-m", model, "--on-too-long", "truncate").stdout)
    assert cut["truncated"] and cut["n_used"] == 256


def test_errors(run, model: Path, documents: Path, tmp_path: Path) -> None:
    blank = run("embed", "fine", " ", "-m", model)
    assert blank.exit_code == 1 and "input 1" in blank.stderr and blank.stdout == ""
    assert run("embed", "-m", model, input="").exit_code == 1
    (documents / "binary.txt").write_bytes(bytes(range(256)) * 40)
    binary = run("embed", "--file", documents / "binary.txt", "-m", model)
    assert binary.exit_code == 1 and "binary" in binary.stderr
    assert run("embed", "--file", tmp_path / "nowhere.txt", "-m", model).exit_code == 2
    assert run("embed", "cats", "--out", tmp_path / "nowhere" / "v.npy", "-m", "nowhere").exit_code == 2
    assert run("embed", "cats", "--precision", "int3", "-m", model).exit_code == 2
