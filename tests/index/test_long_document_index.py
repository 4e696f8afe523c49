"""What `LongDocumentIndex` promises, with a stand-in for the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid5

import numpy as np
import pytest
from fake_embedder import HashEmbedder

from m2rag.errors import (
    DocumentError,
    IndexLockedError,
    IndexMismatchError,
    IndexNotFoundError,
    InputTooLongError,
    InvalidInputError,
    InvalidInputTypeError,
    NonFiniteError,
    StoreError,
)
from m2rag.index import AddProgress, Document, LongDocumentIndex, read_info
from m2rag.index.documents import point_id
from m2rag.index.index import new_index
from m2rag.stores import open_store
from m2rag.stores.lexical import Bm25

ANIMALS = Document("animals", "Cats purr softly. Dogs bark at night. Whales sing under water.", "Animals")
COOKING = Document("cooking", "Bake the bread slowly. Salt the soup.\nWash the rice twice.", "Cooking")
SPACE = Document("space", "Rockets burn fuel. Planets circle stars. The moon is cold.", "Space", {"year": 1969})


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture(scope="module")
def shared_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongDocumentIndex]:
    """One index for many tests: creating one waits for the disk several times."""
    with LongDocumentIndex(tmp_path_factory.mktemp("shared") / "index", HashEmbedder()) as opened:
        yield opened


@pytest.fixture
def index(
    shared_index: LongDocumentIndex, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> LongDocumentIndex:
    """An empty index with the test's own embedder."""
    shared_index.delete(shared_index.ids())
    monkeypatch.setattr(shared_index, "_embedder", embedder)
    return shared_index


def test_the_right_document_comes_first_with_its_passage(index: LongDocumentIndex) -> None:
    report = index.add([ANIMALS, COOKING, SPACE])
    assert (report.added, report.replaced, report.unchanged, report.failed) == (3, 0, 0, [])
    hits = index.search("planets and stars", k=2)
    assert [hit.id for hit in hits][0] == "space" and len(hits) == 2
    best = hits[0]
    assert (best.title, best.metadata, best.truncated, best.n_windows) == ("Space", {"year": 1969}, False, 1)
    assert best.n_tokens == len(SPACE.text.split())
    assert best.passages[0].text == " Planets circle stars."
    for passage in best.passages:
        assert passage.text == SPACE.text[passage.start : passage.end]


def test_scores_are_cosines(index: LongDocumentIndex, embedder: HashEmbedder) -> None:
    index.add([ANIMALS, COOKING])
    query = embedder.embed_query("dogs bark")
    for hit in index.search("dogs bark", mode="dense", rescore=0.5):
        text = index.get(hit.id).text
        assert hit.document_score == pytest.approx(float(query @ embedder.vector(text)), abs=1e-5)
        for passage in hit.passages:
            assert passage.score == pytest.approx(float(query @ embedder.vector(passage.text)), abs=2e-3)
        assert hit.score == pytest.approx((hit.document_score + hit.passages[0].score) / 2, abs=1e-3)
    for hit in index.search("dogs bark", mode="dense"):
        assert hit.score == hit.document_score


def test_the_best_passage_tells_like_documents_apart(index: LongDocumentIndex) -> None:
    spread = Document("spread", "Dogs eat. Birds bark.")
    together = Document("together", "Dogs bark. Rain falls. Snow melts. Ice cracks. Wind blows.")
    index.add([spread, together])
    for mode in ("dense", "hybrid"):
        assert [hit.id for hit in index.search("dogs bark", mode=mode, rescore=0)] == ["spread", "together"]
        assert [hit.id for hit in index.search("dogs bark", mode=mode, rescore=1)] == ["together", "spread"]
        assert [hit.id for hit in index.search("dogs bark", k=1, mode=mode, rescore=1)] == ["together"]


@pytest.mark.parametrize("rescore", [-0.1, 1.5])
def test_rescore_out_of_range(index: LongDocumentIndex, rescore: float) -> None:
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        index.search("dogs", rescore=rescore)


def test_passages_do_not_overlap_and_come_best_first(tmp_path: Path) -> None:
    class Overlapping(HashEmbedder):
        def passages(self, text: str):
            from m2rag.results import PassageVectors

            starts = np.arange(0, len(text) - 20, 5)
            vectors = np.stack([self.vector(text[s : s + 20]) for s in starts])
            return PassageVectors(vectors, starts, starts + 20)

    text = "rice and peas " * 10 + "salt in the soup " + "bread and butter " * 10
    with LongDocumentIndex(tmp_path / "index", Overlapping()) as index:
        index.add(Document("d", text))
        passages = index.search("salt soup", n_passages=5)[0].passages
    assert len(passages) == 5
    assert [p.score for p in passages] == sorted((p.score for p in passages), reverse=True)
    spans = sorted((p.start, p.end) for p in passages)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_passages_can_be_left_out(index: LongDocumentIndex) -> None:
    index.add(ANIMALS)
    assert index.search("cats", passages=False)[0].passages == []
    assert index.search("cats", n_passages=0)[0].passages == []
    assert len(index.search("cats", n_passages=1)[0].passages) == 1


def test_an_empty_index_finds_nothing(index: LongDocumentIndex) -> None:
    assert index.search("anything") == []
    assert (len(index), index.ids(), index.info()["tokens"]) == (0, [], 0)


def test_more_hits_asked_for_than_there_are_documents(index: LongDocumentIndex) -> None:
    index.add([ANIMALS, COOKING])
    assert len(index.search("cats", k=1000)) == 2


def test_wrong_search_arguments(index: LongDocumentIndex) -> None:
    with pytest.raises(InvalidInputError, match="k must be at least 1, not 0"):
        index.search("cats", k=0)
    with pytest.raises(InvalidInputError, match="n_passages"):
        index.search("cats", n_passages=-1)
    with pytest.raises(InvalidInputError, match="query is empty"):
        index.search("  ")
    with pytest.raises(InvalidInputError, match="filter 'year'"):
        index.search("cats", filter={"year": None})
    for wrong in ("year", [("year", 1)], {"\ud800": 1}, {"year": "\ud800"}, {"year": {"in": ["\ud800"]}}):
        with pytest.raises(InvalidInputError, match="filter"):
            index.search("cats", filter=wrong)  # type: ignore[arg-type]
    for mode in ("hybrid", "dense", "lexical"):
        with pytest.raises(InvalidInputError, match="lone surrogate"):
            index.search("cats \ud800", mode=mode)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="quote"):
        index.search("cats", filter={'a"b': 1})


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"lang": "en"}, {"a", "b"}),
        ({"lang": "en", "year": 2001}, {"b"}),
        ({"year": 2001.0}, {"b", "c"}),
        ({"share": 0.5}, {"a"}),
        ({"draft": True}, {"a"}),
        ({"draft": False}, {"b"}),
        ({"big": 2**60 + 1}, {"c"}),
        ({"tags": "x"}, {"a", "b"}),
        ({"a.b c": "dotted"}, {"c"}),
        ({"lang": "de"}, set()),
        ({"id": "a"}, set()),  # our own fields are no metadata
        ({}, {"a", "b", "c"}),
    ],
)
def test_filters_compare_metadata(index: LongDocumentIndex, filter: dict, expected: set[str]) -> None:
    index.add(
        [
            Document(
                "a", "one", metadata={"lang": "en", "year": 2000, "share": 0.5, "draft": True, "tags": ["x", "y"]}
            ),
            Document("b", "two", metadata={"lang": "en", "year": 2001, "draft": False, "tags": ["x"]}),
            Document("c", "three", metadata={"year": 2001, "draft": 1, "big": 2**60 + 1, "a.b c": "dotted"}),
        ]
    )
    assert {hit.id for hit in index.search("one", filter=filter)} == expected


def test_documents_come_back_as_they_were(index: LongDocumentIndex) -> None:
    metadata = {"id": "theirs", "text": 1, "nested": {"a": [1, None, 2.5, True]}, "f": 7.0, "": "empty key"}
    document = Document("ключ/1", "Text with \0 and\r\nlines and 🐋.", "Title", metadata)
    index.add(document)
    assert index.get("ключ/1") == document
    assert "ключ/1" in index and "other" not in index and 1 not in index
    assert index.get("other") is None


def test_unchanged_documents_are_not_embedded_again(index: LongDocumentIndex, embedder: HashEmbedder) -> None:
    index.add([ANIMALS, COOKING])
    embedder.embedded.clear()
    changed = Document("cooking", "Only soup.", "Cooking")
    report = index.add([ANIMALS, changed, SPACE])
    assert (report.added, report.replaced, report.unchanged) == (1, 1, 1)
    assert sorted(embedder.embedded) == sorted([changed.text, SPACE.text])
    assert index.get("cooking") == Document("cooking", "Only soup.", "Cooking", {})
    assert len(index) == 3
    assert index.add([ANIMALS, changed, SPACE]).unchanged == 3


@pytest.mark.parametrize(
    "other",
    [
        Document("space", SPACE.text, "Other title", {"year": 1969}),
        Document("space", SPACE.text, "Space", {"year": 1970}),
        Document("space", SPACE.text, "Space"),
        Document("space", SPACE.text + " ", "Space", {"year": 1969}),
    ],
)
def test_text_title_and_metadata_are_content(shared_index: LongDocumentIndex, other: Document) -> None:
    shared_index.delete("space")
    shared_index.add(SPACE)
    assert shared_index.add(other).replaced == 1
    assert shared_index.get("space") == replace(other, metadata=other.metadata or {})


def test_order_of_metadata_is_not_content(index: LongDocumentIndex) -> None:
    index.add(Document("d", "text", metadata={"a": 1, "b": 2}))
    assert index.add(Document("d", "text", metadata={"b": 2, "a": 1})).unchanged == 1


def test_length_policy_is_content_of_long_documents_only(index: LongDocumentIndex) -> None:
    short, long = Document("short", "few words"), Document("long", "word " * 2500)
    report = index.add([short, long])
    assert report.added == 2
    assert index.add([short, long]).unchanged == 2
    hit = {hit.id: hit for hit in index.search("word")}["long"]
    assert (hit.n_tokens, hit.n_windows, hit.truncated) == (2500, 3, False)
    assert index.info()["windowed"] == 1
    report = index.add([short, long], on_too_long="truncate")
    assert (report.unchanged, report.replaced) == (1, 1)
    hit = {hit.id: hit for hit in index.search("word")}["long"]
    assert (hit.n_windows, hit.truncated) == (1, True)
    report = index.add([short, long], on_too_long="error")
    assert report.unchanged == 1
    assert [(f.id, type(f.cause)) for f in report.failed] == [("long", InputTooLongError)]
    assert index.get("long") is not None  # the earlier version stays


def test_wrong_add_arguments(index: LongDocumentIndex) -> None:
    with pytest.raises(InvalidInputError, match="error, truncate, window"):
        index.add(ANIMALS, on_too_long="cut")
    with pytest.raises(InvalidInputError, match="batch_tokens"):
        index.add(ANIMALS, batch_tokens=0)
    for wrong in (b"bytes", 5, None, {"id": "x"}):
        with pytest.raises(InvalidInputTypeError, match=type(wrong).__name__):
            index.add(wrong)


@pytest.mark.parametrize(
    ("document", "kind", "words"),
    [
        (Document("d", ""), InvalidInputError, "empty"),
        (Document("d", " \n\t"), InvalidInputError, "empty"),
        (Document("d", None), InvalidInputTypeError, "NoneType"),
        (Document("d", b"bytes"), InvalidInputTypeError, "bytes"),
        (Document("d", "t", title=3), InvalidInputTypeError, "title"),
        (Document("", "t"), InvalidInputError, "empty id"),
        (Document(None, "t"), InvalidInputTypeError, "id"),
        (Document("d", "a\ud800b"), InvalidInputError, "surrogate"),
        (Document("d", "t", metadata={"x": object()}), InvalidInputError, "not JSON"),
        (Document("d", "t", metadata={"x": float("nan")}), InvalidInputError, "not JSON"),
        (Document("d", "t", metadata={"x": 2**64}), InvalidInputError, "64 bits"),
        (Document("d", "t", metadata=[1]), InvalidInputTypeError, "list"),
        (5, InvalidInputTypeError, "item 1 is int"),
    ],
)
def test_bad_documents_are_reported_and_the_others_indexed(
    shared_index: LongDocumentIndex, document: Document, kind: type[Exception], words: str
) -> None:
    shared_index.delete(["animals", "cooking"])
    report = shared_index.add([ANIMALS, document, COOKING])
    assert report.added == 2 and "animals" in shared_index and "cooking" in shared_index
    assert "d" not in shared_index
    (failure,) = report.failed
    assert type(failure.cause) is kind and words in str(failure.cause)


def test_embedder_failures_and_non_finite_vectors_are_reported_and_not_stored(tmp_path: Path) -> None:
    embedder = HashEmbedder(poison={"Bake": "nan", "Rockets": "error"})
    with LongDocumentIndex(tmp_path / "index", embedder) as index:
        report = index.add([ANIMALS, COOKING, SPACE])
        assert report.added == 1 and index.ids() == ["animals"]
        causes = {failure.id: type(failure.cause) for failure in report.failed}
        assert causes == {"cooking": NonFiniteError, "space": InvalidInputError}
        assert report.n_tokens == len(ANIMALS.text.split())


def test_non_finite_passages_and_queries_are_refused(tmp_path: Path) -> None:
    class Broken(HashEmbedder):
        def passages(self, text: str):
            found = super().passages(text)
            found.vectors[-1, 3] = np.inf
            return found

        def embed_query(self, text: str) -> np.ndarray:
            return np.full(self.dimension, np.nan, dtype=np.float32)

    with LongDocumentIndex(tmp_path / "index", Broken()) as index:
        assert isinstance(index.add(ANIMALS).failed[0].cause, NonFiniteError)
        assert len(index) == 0
        with pytest.raises(NonFiniteError, match="query"):
            index.search("cats")


def test_vectors_of_a_wrong_dimension_are_never_stored(tmp_path: Path) -> None:
    class Lying(HashEmbedder):
        def vector(self, text: str) -> np.ndarray:
            return super().vector(text)[:32]

        def embed_documents(self, texts, **options):
            self.dimension = 32
            result = super().embed_documents(texts, **options)
            self.dimension = 64
            return result

    with LongDocumentIndex(tmp_path / "index", Lying()) as index:
        with pytest.raises(IndexMismatchError, match="64 dimensions"):
            index.add(ANIMALS)
        assert len(index) == 0
        with pytest.raises(IndexMismatchError, match="shape"):
            index.search("cats")


def test_another_embedder_is_refused_with_both_names(tmp_path: Path) -> None:
    with LongDocumentIndex(tmp_path / "index", HashEmbedder()) as index:
        index.add(ANIMALS)
    for other in (HashEmbedder(fingerprint="other:64"), HashEmbedder(dimension=32)):
        with pytest.raises(IndexMismatchError) as caught:
            LongDocumentIndex(tmp_path / "index", other)
        assert "fake:64 (64 dimensions)" in str(caught.value)
        assert f"{other.fingerprint} ({other.dimension} dimensions)" in str(caught.value)
    with LongDocumentIndex(tmp_path / "index", HashEmbedder()) as index:  # the refusal let go of the folder
        assert index.ids() == ["animals"]


def test_an_embedder_that_changes_later_is_refused_too(index: LongDocumentIndex, embedder: HashEmbedder) -> None:
    index.add(ANIMALS)
    embedder.fingerprint = "other:64"
    with pytest.raises(IndexMismatchError):
        index.add(COOKING)
    with pytest.raises(IndexMismatchError):
        index.search("cats")
    assert index.ids() == ["animals"]


def test_opening_what_is_not_there(tmp_path: Path, embedder: HashEmbedder) -> None:
    with pytest.raises(IndexNotFoundError, match="nowhere"):
        LongDocumentIndex(tmp_path / "nowhere", embedder, create=False)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(IndexNotFoundError):
        LongDocumentIndex(tmp_path, embedder, create=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IndexNotFoundError):
        read_info(tmp_path / "nowhere")
    with pytest.raises(InvalidInputError, match="nothing installed opens ftp://host/docs"):
        LongDocumentIndex("ftp://host/docs", embedder)
    with pytest.raises(InvalidInputError, match="empty"):
        LongDocumentIndex("", embedder)


def test_a_closed_index_says_so(tmp_path: Path, embedder: HashEmbedder) -> None:
    index = LongDocumentIndex(tmp_path / "index", embedder)
    index.close()
    index.close()
    with pytest.raises(StoreError, match="closed"):
        index.search("cats")
    with pytest.raises(StoreError, match="closed"):
        index.add(ANIMALS)


def test_one_opener_in_this_process(tmp_path: Path, embedder: HashEmbedder) -> None:
    with LongDocumentIndex(tmp_path / "index", embedder):
        with pytest.raises(IndexLockedError, match="this process"):
            LongDocumentIndex(tmp_path / "index", embedder)


def test_delete(index: LongDocumentIndex) -> None:
    index.add([ANIMALS, COOKING, SPACE])
    assert index.delete(["animals", "unknown"]) == 1
    assert index.delete("space") == 1
    assert index.delete([]) == 0
    assert index.ids() == ["cooking"] and len(index) == 1
    assert [hit.id for hit in index.search("cats planets")] == ["cooking"]
    assert index.add([ANIMALS]).added == 1


def test_info_with_and_without_the_embedder(tmp_path: Path, embedder: HashEmbedder) -> None:
    with LongDocumentIndex(tmp_path / "index", embedder) as index:
        index.add([ANIMALS, COOKING])
        info = index.info()
    assert info == {**read_info(tmp_path / "index"), "size_bytes": info["size_bytes"]}
    assert info["documents"] == 2 and info["fingerprint"] == "fake:64" and info["dimension"] == 64
    assert info["tokens"] == len(ANIMALS.text.split()) + len(COOKING.text.split())
    assert info["size_bytes"] > 1000 and info["path"] == str(tmp_path / "index")
    json.dumps(info)


def test_point_ids_never_change() -> None:
    """Existing indexes depend on it: another id for the same document would add it a second time."""
    assert str(point_id("animals")) == "93627cd7-f432-537e-b378-0f89fa123bba"
    for id in ("a", "ä/文.txt", "x" * 10_000):
        assert point_id(id) == uuid5(UUID("6a0c1c8e-6d0f-5f0b-9a6e-0d3f6c0b7a52"), id)


def test_ids_that_no_document_can_have(index: LongDocumentIndex) -> None:
    """As from the name of a file that is not valid UTF-8, given to `m2rag delete`."""
    index.add([Document("?", "Some text."), Document("\\udcff", "Some text.")])
    assert index.delete("\udcff") == 0 and index.get("\udcff") is None and index.describe(["\udcff"]) == []
    assert "\udcff" not in index and len(index) == 2


def test_one_id_twice_in_one_call(index: LongDocumentIndex) -> None:
    report = index.add([ANIMALS, Document("animals", "Other text."), ANIMALS])
    assert (report.added, report.unchanged) == (1, 1)
    assert "taken" in str(report.failed[0].cause) and "index the folder that holds both" in str(report.failed[0].cause)
    assert index.get("animals").text == ANIMALS.text
    rows = [Document("t.csv#1", text, origin="/t.csv") for text in ("Dogs bark.", "Dogs sleep.")]
    assert "give each row of the file an id of its own" in str(index.add(rows).failed[0].cause)


def test_documents_stream(index: LongDocumentIndex, embedder: HashEmbedder) -> None:
    """At most six groups of documents (and one looked at beyond each) are taken before the first is stored."""
    taken = 0
    ahead: list[int] = []

    def source() -> Iterator[Document]:
        nonlocal taken
        for i in range(200):
            taken += 1
            yield Document(f"d{i:03}", f"word{i} " * 100)  # about 180 estimated tokens

    report = index.add(
        source(), batch_tokens=1000, progress=lambda at: ahead.append(taken - at.done) if at.total is None else None
    )
    assert report.added == 200
    assert max(embedder.groups) <= 6
    assert max(ahead) <= 6 * (6 + 1)


def test_progress_counts_up_to_the_total(index: LongDocumentIndex) -> None:
    index.add(ANIMALS)
    seen: list[AddProgress] = []
    report = index.add([ANIMALS, COOKING, Document("bad", ""), SPACE], batch_tokens=1, progress=seen.append)
    assert [at.done for at in seen] == sorted(at.done for at in seen)
    assert [at.tokens for at in seen] == sorted(at.tokens for at in seen)
    last = seen[-1]
    assert (last.done, last.total, last.tokens) == (4, 4, report.n_tokens)
    assert last.current == "space" and report.seconds >= last.seconds > 0


def test_progress_never_goes_back_where_windows_overlap(index: LongDocumentIndex) -> None:
    seen: list[AddProgress] = []
    report = index.add([Document("long", "word " * 2500), ANIMALS], batch_tokens=1, progress=seen.append)
    assert [at.tokens for at in seen] == sorted(at.tokens for at in seen)
    assert seen[-1].tokens == report.n_tokens + 2 * 10


def test_what_is_stored_survives_an_exception(tmp_path: Path) -> None:
    embedder = HashEmbedder(poison={"Rockets": "crash"})
    with LongDocumentIndex(tmp_path / "index", embedder) as index:
        with pytest.raises(RuntimeError):
            index.add([ANIMALS, COOKING, SPACE], batch_tokens=1)
        assert index.ids() == ["animals", "cooking"]
        embedder.poison = {"Rockets": "interrupt"}
        with pytest.raises(KeyboardInterrupt):
            index.add([ANIMALS, COOKING, SPACE], batch_tokens=1)
        embedder.poison = {}
        report = index.add([ANIMALS, COOKING, SPACE])
        assert (report.added, report.unchanged) == (1, 2)


def test_ten_million_characters(index: LongDocumentIndex) -> None:
    text = "The whale sings under the water of the sea, " * 230_000
    assert len(text) > 10_000_000
    report = index.add([ANIMALS, Document("long", text)])
    assert report.added == 2
    hit = {hit.id: hit for hit in index.search("whale water")}["long"]
    assert hit.n_windows > 2000 and not hit.truncated


def test_folders_and_files(index: LongDocumentIndex, tmp_path: Path, embedder: HashEmbedder) -> None:
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "a.txt").write_text("Cats purr.")
    (docs / "sub" / "b.md").write_text("# Dogs\n\nDogs bark.")
    (docs / "c.bin").write_bytes(b"\0\1")
    (docs / "d.txt").write_bytes(b"\x7fELF\0\0\0")
    (docs / "e.txt").write_text("")
    report = index.add(docs)
    assert index.ids() == ["a.txt", "sub/b.md"]
    assert [f.id for f in report.failed] == ["d.txt", "e.txt"]
    assert report.skipped == [(docs / "c.bin").as_posix()]
    assert {hit.id: hit.title for hit in index.search("dogs")} == {"sub/b.md": "Dogs", "a.txt": "a"}
    assert [hit.id for hit in index.search("dogs", filter={"suffix": ".md"})] == ["sub/b.md"]
    embedder.embedded.clear()
    (docs / "a.txt").touch()
    assert index.add([str(docs)]).unchanged == 2
    moved = docs.rename(tmp_path / "moved")
    assert index.add(moved).unchanged == 2
    assert embedder.embedded == []


def test_two_files_with_one_name_are_never_mixed_up(index: LongDocumentIndex, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"This is folder {name}.")
    assert index.add(tmp_path / "one").added == 1
    report = index.add(tmp_path / "two")
    assert report.added == report.replaced == 0
    assert str(tmp_path / "one" / "README.md") in str(report.failed[0].cause)
    assert index.get("README.md").text == "This is folder one."
    assert len(index.add([tmp_path / "one", tmp_path / "two"]).failed) == 1
    (tmp_path / "one" / "README.md").unlink()
    assert index.add(tmp_path / "two").replaced == 1


def test_a_folder_without_documents_is_told_before_any_work(
    index: LongDocumentIndex, tmp_path: Path, embedder: HashEmbedder
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DocumentError, match=r"empty holds no document: the index reads \.txt, \.md"):
        index.add(empty)
    (empty / "x.zip").write_bytes(b"PK")
    with pytest.raises(DocumentError, match="1 files of other kinds"):
        index.add([ANIMALS, empty])
    assert embedder.embedded == []
    report = index.add(item for item in [ANIMALS, empty])
    assert report.added == 1 and isinstance(report.failed[0].cause, DocumentError)


def test_a_missing_path_is_a_failure(index: LongDocumentIndex, tmp_path: Path) -> None:
    (tmp_path / "x.exe").touch()
    report = index.add([tmp_path / "nothing.txt", ANIMALS, tmp_path / "nowhere", tmp_path / "x.exe", ""])
    assert report.added == 1
    missing, folder, unknown, empty = (str(failure.cause) for failure in report.failed)
    assert "does not exist" in missing and "does not exist" in folder
    assert ".rst" in unknown and empty == "item 4 is an empty path"


def test_the_index_does_not_index_itself(tmp_path: Path, embedder: HashEmbedder) -> None:
    (tmp_path / "a.txt").write_text("Cats purr.")
    with LongDocumentIndex(tmp_path / "index", embedder) as index:
        report = index.add(tmp_path)
        assert index.ids() == ["a.txt"] and report.skipped == []


def test_documents_get_bm25_vectors(tmp_path: Path) -> None:
    embedder = HashEmbedder()
    store = open_store(tmp_path / "index", create=new_index(embedder))
    with LongDocumentIndex(store, embedder) as index:
        index.add([ANIMALS, COOKING, SPACE])
        found = store.query("lexical", Bm25().query("planets"), limit=9, payload=("id",))
        assert [point.payload["id"] for point in found] == ["space"]
    assert read_info(tmp_path / "index")["lexical"] == "english"
