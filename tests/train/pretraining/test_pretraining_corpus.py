"""Sources on disk: what is read of which file, what is held out, what is told of broken files."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from tiny_models import TOKENIZER, sentence
from tiny_pretraining import CYCLE, cycle_text

from m2rag_train.errors import CheckpointWriteError, TrainingDataError
from m2rag_train.pretraining import corpus
from m2rag_train.pretraining.corpus import TokenFile, source_files, tokenised
from m2rag_train.pretraining.recipe import TextSource

SEP = TOKENIZER.suffix[0]


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".zst":
        path.write_bytes(zstandard.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    return path


def read(folder: Path, data: Path, held_out: float = 0.0, **source: Any) -> tuple[TokenFile, TokenFile]:
    source = {"name": "texts", "files": ["*.jsonl"], **source}
    made = tokenised(TextSource(**source), TOKENIZER, 64, data=data, cache=folder, held_out=held_out)
    return TokenFile.open(made, "train"), TokenFile.open(made, "held_out")


def documents(file: TokenFile) -> list[list[int]]:
    return [file.document(i).tolist() for i in range(file.n_documents)]


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids.tolist()


def test_every_layout_is_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "a.jsonl", {"text": "first text"}, {"text": "  \n"}, {"text": "second"})
    sections = [{"level": 1, "heading": "Heading", "text": "its text"}, {"level": 1, "heading": "", "text": "more"}]
    write(data / "deep" / "b.jsonl.zst", {"id": "1", "title": "t", "sections": sections})
    (data / "c.txt").write_text("a whole file\nof two lines", encoding="utf-8")
    train, held_out = read(tmp_path / "cache", data, files=["a.jsonl", "deep/*.zst", "*.txt"])
    texts = ["first text", "second", "Heading\nits text\nmore", "a whole file\nof two lines"]
    assert documents(train) == [ids(text) for text in texts]
    assert (train.tokens[train.starts[1:] - 1] == SEP).all()
    assert held_out.n_documents == 0


def test_held_out_documents_are_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *({"text": f"number {i}"} for i in range(50)))
    train, held_out = read(tmp_path / "cache", tmp_path, held_out=0.1)
    assert documents(held_out) == [ids(f"number {i}") for i in (9, 19, 29, 39, 49)]
    assert train.n_documents == 45
    assert not {tuple(d) for d in documents(train)} & {tuple(d) for d in documents(held_out)}


def test_reading_stops_at_the_number_of_tokens(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *({"text": cycle_text(10, i)} for i in range(20)))
    train, _ = read(tmp_path / "cache", tmp_path, max_tokens=35)
    assert [len(d) for d in documents(train)] == [10] * 4


def test_of_natural_documents_no_more_is_kept_than_a_row_takes(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"text": cycle_text(5000, 0)}, {"text": cycle_text(30, 0)})
    natural, _ = read(tmp_path / "cache", tmp_path)
    whole, _ = read(tmp_path / "cache", tmp_path, mode="concatenated")
    assert documents(natural) == [ids(cycle_text(62, 0)), ids(cycle_text(30, 0))]
    assert documents(whole) == [ids(cycle_text(5000, 0)), ids(cycle_text(30, 0))]


def test_sources_of_the_same_text_share_their_tokens(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"text": cycle_text(10, 0)})
    cache = tmp_path / "cache"
    read(cache, tmp_path)
    read(cache, tmp_path, name="again", weight=3.0)
    assert len(list(cache.iterdir())) == 1
    # Other text at the same place is another source.
    write(tmp_path / "a.jsonl", {"text": "changed"})
    train, _ = read(cache, tmp_path)
    assert documents(train) == [ids("changed")]
    assert len(list(cache.iterdir())) == 2


def test_what_a_killed_process_leaves_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", {"text": "some text"})

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_write", fail)
        with pytest.raises(KeyboardInterrupt):
            read(tmp_path / "cache", tmp_path)
    left = list((tmp_path / "cache").iterdir())
    assert [path.suffix for path in left] == [".unfinished"]
    train, _ = read(tmp_path / "cache", tmp_path)
    assert documents(train) == [ids("some text")]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [""]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", {"text": "some text"})

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus, "_write", full)
    with pytest.raises(CheckpointWriteError, match="No space left"):
        read(tmp_path / "cache", tmp_path)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "a"}\nnot json\n', "a.jsonl, line 2"),
        ('{"text": "a"}\n{"body": "b"}\n', "a.jsonl, line 2: 'text' is missing"),
        ('{"text": 5}\n', "a.jsonl, line 1: 'text' is int"),
        ('{"sections": [{"heading": "h"}]}\n', "a.jsonl, line 1, section 0: 'text' is missing"),
        ('{"sections": "no list"}\n', "a.jsonl, line 1: 'sections' must be a list"),
        ('{"text": ""}\n', "'texts' has no document with text"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(TrainingDataError, match=told):
        read(tmp_path / "cache", tmp_path)


def test_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"'texts': no file matches 'x/\*.jsonl'"):
        source_files(TextSource("texts", ["x/*.jsonl"]), tmp_path)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(TrainingDataError, match=r"a\.parquet: must be one of \.txt"):
        source_files(TextSource("texts", ["a.parquet"]), tmp_path)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TrainingDataError, match=r"b\.txt: .*utf-8"):
        read(tmp_path / "cache", tmp_path, files=["b.txt"])


def test_a_source_of_datasets_is_a_stream(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", *({"body": cycle_text(8, i)} for i in range(4)))
    train, _ = read(tmp_path / "cache", tmp_path, files=[], dataset=str(tmp_path / "set"), text_key="body")
    assert documents(train) == [ids(cycle_text(8, i)) for i in range(4)]


def test_a_source_of_datasets_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", {"body": "a"})
    with pytest.raises(TrainingDataError, match="set, row 0: 'text' is missing"):
        read(tmp_path / "cache", tmp_path, files=[], dataset=str(tmp_path / "set"))
    with pytest.raises(TrainingDataError, match="'texts': the data set 'no/such'.* cannot be read"):
        read(tmp_path / "cache", tmp_path, files=[], dataset="no/such")
    with pytest.raises(TrainingDataError, match="split 'test' cannot be read"):
        read(tmp_path / "cache", tmp_path, files=[], dataset=str(tmp_path / "set"), split="test")


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_GROUP_CHARS", 10_000)

    def peak(n_documents: int) -> int:
        write(tmp_path / f"{n_documents}.jsonl", *({"text": sentence(100, seed=i % 7)} for i in range(n_documents)))
        tracemalloc.start()
        train, _ = read(tmp_path / "cache", tmp_path, files=[f"{n_documents}.jsonl"])
        assert train.tokens[-1] == SEP and len(np.unique(np.diff(train.starts))) >= 1
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(20)
    small, large = peak(300), peak(1500)
    assert large < 1.3 * small, (small, large)


def test_cycle_words_are_one_token_each() -> None:
    assert len(ids(" ".join(CYCLE))) == len(CYCLE)
