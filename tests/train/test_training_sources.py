"""Sources: both layouts, both packings, what goes wrong, and the same draw for the same seed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import zstandard
from tiny_training import words, write_lines

from m2rag_train.sources import ShortText, paired_documents, read_jsonl, sectioned_documents

ROWS = [{"a": 1}, {"a": "two\u2028three", "b": [3]}]


def packed(path: Path, *frames: bytes) -> Path:
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(frame) for frame in frames))
    return path


def test_plain_and_packed_files_read_the_same(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "a.jsonl", ROWS)
    zst = packed(tmp_path / "a.jsonl.zst", plain.read_bytes())
    assert list(read_jsonl(plain)) == list(read_jsonl(zst)) == ROWS


def test_all_frames_of_a_packed_file_are_read(tmp_path: Path) -> None:
    lines = [json.dumps(row).encode() + b"\n" for row in ROWS]
    # The border lies inside a line.
    zst = packed(tmp_path / "a.jsonl.zst", lines[0] + lines[1][:5], lines[1][5:])
    assert list(read_jsonl(zst)) == ROWS


@pytest.mark.parametrize("suffix", ["", ".zst"])
@pytest.mark.parametrize(
    "line", [b'{"a": ', b"[1]", b"\xff\xfe{}"], ids=["half an object", "not an object", "not UTF-8"]
)
def test_broken_line_names_file_and_line(tmp_path: Path, line: bytes, suffix: str) -> None:
    content = b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n'
    path = tmp_path / f"a.jsonl{suffix}"
    if suffix:
        packed(path, content)
    else:
        path.write_bytes(content)
    rows = read_jsonl(path)
    assert next(rows) == {"a": 1}
    with pytest.raises(ValueError, match=r"a\.jsonl.*, line 3: "):
        next(rows)


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": 2}\r\n \n')
    assert [row["a"] for row in read_jsonl(path)] == [1, 2]


SENTENCES = [f"Sentence number {word} has more than forty characters in it." for word in ("one", "two", "three")]


@pytest.fixture
def sectioned(tmp_path: Path) -> Path:
    rows = [
        {
            "id": "full",
            "title": "A title",
            "description": "What it is about",
            "sections": [
                {"level": 1, "heading": " First part ", "text": " ".join(SENTENCES) + " Short one."},
                {"level": 2, "heading": "Word", "text": ""},
                {"level": 2, "heading": "First part", "text": "Too short."},
                {"level": 2, "heading": "Second part", "text": "\n"},
            ],
        },
        {"id": "bare", "title": "", "sections": [{"level": 1, "heading": "", "text": words(5, 0)}]},
    ]
    return write_lines(tmp_path / "s.jsonl", rows)


def test_sectioned_document(sectioned: Path) -> None:
    full, bare = sectioned_documents(sectioned, random.Random(0), headings=9, sentences=9)
    body = " ".join(SENTENCES) + " Short one."
    assert full.id == "full"
    assert full.text == f"First part\n{body}\n\nWord\n\nFirst part\nToo short.\n\nSecond part"
    assert full.short_texts[:2] == [ShortText("A title", "title"), ShortText("What it is about", "description")]
    headings = [s.text for s in full.short_texts if s.kind == "heading"]
    assert sorted(headings) == ["First part", "Second part"], "once each, and not those of one word"
    sentences = [s.text for s in full.short_texts if s.kind == "sentence"]
    assert len(sentences) == 1 and sentences[0] in SENTENCES, "one of a section, of 40 to 400 characters"
    assert bare.text == words(5, 0)
    assert bare.short_texts == []


@pytest.mark.parametrize(("headings", "sentences"), [(0, 0), (1, 0), (1, 1)])
def test_short_texts_are_limited(sectioned: Path, headings: int, sentences: int) -> None:
    full, _ = sectioned_documents(sectioned, random.Random(0), headings=headings, sentences=sentences)
    kinds = [s.kind for s in full.short_texts]
    assert (kinds.count("heading"), kinds.count("sentence")) == (headings, sentences)


def test_paired_document(tmp_path: Path) -> None:
    good = "A line of this meeting that is long enough to be drawn as a sentence, of eighty characters or more."
    documents = [
        {"_id": "one", "title": "", "text": f"short\n  {good}\n{good}\n" + "x" * 401},
        {"_id": "two", "title": "", "text": "nothing"},
    ]
    pairs = [
        {"query": "Who spoke?", "document_id": "one", "kind": "question"},
        {"query": "budget", "document_id": "one", "kind": "topic"},
        {"query": "of none", "document_id": "absent", "kind": "topic"},
    ]
    one, two = paired_documents(
        write_lines(tmp_path / "d.jsonl", documents),
        write_lines(tmp_path / "p.jsonl", pairs),
        random.Random(0),
        sentences=5,
    )
    assert one.text == documents[0]["text"]
    assert one.short_texts == [
        ShortText("Who spoke?", "question"),
        ShortText("budget", "topic"),
        ShortText(good, "sentence"),
    ]
    assert (two.id, two.short_texts) == ("two", [])


def test_the_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    sections = [
        {"level": 1, "heading": words(3, i), "text": f"{words(12, i)}. A{words(12, 50 + i)}."} for i in range(20)
    ]
    path = write_lines(tmp_path / "s.jsonl", [{"id": "x", "title": "t", "sections": sections}])

    def draw(seed: int) -> list[ShortText]:
        return next(sectioned_documents(path, random.Random(seed), headings=4, sentences=4)).short_texts

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
