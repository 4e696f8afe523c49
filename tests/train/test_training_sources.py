"""Sources: both layouts, both packings, what goes wrong, and the same draw for the same seed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import zstandard
from tiny_training import words, write_lines

from m2rag_train.errors import TrainingDataError
from m2rag_train.sources import ShortText, paired_documents, read_jsonl, sectioned_documents, text_of

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
    with pytest.raises(TrainingDataError, match=r"a\.jsonl.*, line 3: "):
        next(rows)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"absent\.jsonl: No such file or directory"):
        list(read_jsonl(tmp_path / "absent.jsonl"))
    whole = packed(tmp_path / "a.jsonl.zst", b"".join(b'{"a": %d}\n' % i for i in range(1000)))
    whole.write_bytes(whole.read_bytes()[:20] + b"broken" + whole.read_bytes()[26:])
    with pytest.raises(TrainingDataError, match=r"a\.jsonl\.zst, after line \d+: "):
        list(read_jsonl(whole))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "file, line 1: 'text' is missing; there are no keys"),
        ({"txt": "a", "id": 1}, "file, line 1: 'text' is missing; there are 'txt', 'id'"),
        ({"text": 1}, "file, line 1: 'text' is int, must be text"),
        ({"text": None}, "file, line 1: 'text' is NoneType, must be text"),
        ({"text": " \n"}, "file, line 1: 'text' is empty"),
    ],
)
def test_a_text_that_is_not_there(row: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingDataError) as caught:
        text_of(row, "text", "file, line 1")
    assert str(caught.value) == message
    assert text_of({"text": " "}, "text", "file, line 1", empty=True) == " "


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


SECTIONS = [{"heading": "One heading", "text": "And its text."}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sections": SECTIONS}, "'id' is missing"),
        ({"id": "x", "text": "a"}, "'sections' must be a list of objects with 'heading' and 'text'"),
        ({"id": "x", "sections": ["text"]}, "'sections' must be a list"),
        ({"id": "x", "sections": [{"text": "a"}]}, "'heading' is missing; there are 'text'"),
        ({"id": "x", "title": 7, "sections": SECTIONS}, "'title' is int, must be text"),
        ({"id": "x", "sections": [{"heading": "", "text": " "}]}, "document 'x' is empty"),
        ({"id": "x", "sections": []}, "document 'x' is empty"),
        ({"id": "first", "sections": SECTIONS}, r"id 'first' is that of .*s\.jsonl, line 1, too"),
    ],
)
def test_broken_sectioned_documents(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = write_lines(tmp_path / "s.jsonl", [{"id": "first", "sections": SECTIONS}, row])
    with pytest.raises(TrainingDataError, match=rf"s\.jsonl, line 2: {message}"):
        list(sectioned_documents(path, random.Random(0), headings=1, sentences=1))


@pytest.mark.parametrize(
    ("document", "pair", "message"),
    [
        ({"text": "a"}, {}, r"d\.jsonl, line 2: '_id' is missing"),
        ({"_id": "two"}, {}, r"d\.jsonl, line 2: 'text' is missing"),
        ({"_id": "two", "text": ""}, {}, r"d\.jsonl, line 2: 'text' is empty"),
        ({"_id": "one", "text": "a"}, {}, r"d\.jsonl, line 2: _id 'one' is that of .*line 1, too"),
        ({}, {"query": " "}, r"p\.jsonl, line 1: 'query' is empty"),
        ({}, {"document_id": 1}, r"p\.jsonl, line 1: 'document_id' is int"),
        ({}, {"document_id": "three"}, r"p\.jsonl: none of its document_ids is an _id in .*d\.jsonl"),
    ],
)
def test_broken_pairs(tmp_path: Path, document: dict[str, object], pair: dict[str, object], message: str) -> None:
    documents = [{"_id": "one", "text": "a"}, document or {"_id": "two", "text": "b"}]
    pairs = [{"query": "q", "document_id": "one", "kind": "question", **pair}]
    paths = write_lines(tmp_path / "d.jsonl", documents), write_lines(tmp_path / "p.jsonl", pairs)
    with pytest.raises(TrainingDataError, match=message):
        list(paired_documents(*paths, random.Random(0), sentences=1))


def test_documents_know_where_they_stand(sectioned: Path) -> None:
    found = [document.where for document in sectioned_documents(sectioned, random.Random(0), headings=0, sentences=0)]
    assert found == [f"{sectioned}, line 1", f"{sectioned}, line 2"]
