"""`m2rag search` and `m2rag info`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_models import saved

from m2rag import LongDocumentIndex, M2Embedder


def test_search_shows_the_documents_and_their_passages(run, built: Path) -> None:
    told = run("search", "old houses near rivers", "-i", built, "-k", "2")
    assert told.exit_code == 0
    assert [line.split()[0] for line in told.stdout.splitlines() if line[:3].strip()] == ["1", "2"]
    assert run("search", "rivers", "-i", built, "--no-passages").stdout.count("\n") == 3


def test_search_as_json_is_what_the_library_finds(run, data, built: Path, model: Path) -> None:
    told = data(run("search", "the cat sat", "-i", built, "--json", "--dtype", "float32"))
    with LongDocumentIndex(built, M2Embedder(model)) as index:
        hits = index.search("the cat sat")
    assert told["query"] == "the cat sat" and [hit["id"] for hit in told["hits"]] == [hit.id for hit in hits]
    for found, hit in zip(told["hits"], hits, strict=True):
        assert found["score"] == pytest.approx(hit.score, abs=1e-5)
        assert (found["title"], found["n_tokens"], found["n_windows"]) == (hit.title, hit.n_tokens, hit.n_windows)
        assert [passage["text"] for passage in found["passages"]] == [passage.text for passage in hit.passages]
    bare = data(run("search", "the cat sat", "-i", built, "--json", "--no-passages"))
    assert all(hit["passages"] == [] for hit in bare["hits"])


def test_modes(run, data, built: Path, model: Path) -> None:
    with LongDocumentIndex(built, M2Embedder(model, dtype="float32")) as index:
        expected = {
            (): ("hybrid", index.search("old houses")),
            ("--mode", "dense"): ("dense", index.search("old houses", mode="dense")),
            ("--mode", "lexical"): ("lexical", index.search("old houses", mode="lexical")),
            ("--weights", "1,0", "--rescore", "0"): (
                "hybrid",
                index.search("old houses", weights=(1, 0), rescore=0),
            ),
            ("--mode", "dense", "--rescore", "1"): ("dense", index.search("old houses", mode="dense", rescore=1)),
        }
    for options, (mode, hits) in expected.items():
        told = data(run("search", "old houses", "-i", built, "--json", "--dtype", "float32", *options))
        assert (told["mode"], len(hits) > 0) == (mode, True)
        assert [hit["id"] for hit in told["hits"]] == [hit.id for hit in hits]
        assert [hit["score"] for hit in told["hits"]] == pytest.approx([hit.score for hit in hits], abs=1e-5)
    for wrong in (["--mode", "sparse"], ["--weights", "1"], ["--weights", "1,a"], ["--rescore", "2"]):
        assert run("search", "cats", "-i", built, *wrong).exit_code == 2
    assert run("search", "cats", "-i", built, "--weights", "-1,1").exit_code == 1


def test_words_of_a_new_index(run, data, model: Path, tmp_path: Path) -> None:
    for options, lexical in ((["--no-lexical"], None), (["--language", "german"], "german"), ([], "english")):
        place = tmp_path / f"index-{lexical}"
        assert run("index", "-", "-i", place, "-m", model, *options, input="Die Katzen schlafen.").exit_code == 0
        assert data(run("info", "-i", place, "--json"))["lexical"] == lexical
    found = data(run("search", "Katze", "-i", tmp_path / "index-german", "--mode", "lexical", "--json"))
    assert len(found["hits"]) == 1
    without = run("search", "Katze", "-i", tmp_path / "index-None", "--mode", "lexical")
    assert without.exit_code == 1 and "no words" in without.stderr
    assert data(run("search", "Katze", "-i", tmp_path / "index-None", "--json"))["mode"] == "dense"
    unknown = run("index", "-", "-i", tmp_path / "other", "-m", model, "--language", "klingon", input="Text.")
    assert unknown.exit_code == 1 and "klingon" in unknown.stderr and not (tmp_path / "other").exists()


def test_sync_makes_an_index_as_index_does(run, data, documents: Path, model: Path, tmp_path: Path) -> None:
    place, chosen = tmp_path / "index", ["--language", "german", "--quantization", "scalar"]
    assert run("sync", documents, "-i", place, "-m", model, *chosen).exit_code == 0
    assert run("sync", documents, "-i", place, "--filterable", "suffix=keyword", "--dry-run").exit_code == 0
    facts = data(run("info", "-i", place, "--json"))
    assert (facts["lexical"], facts["quantization"], facts["filterable"]) == ("german", "scalar", {})
    assert run("sync", documents, "-i", place, "--filterable", "suffix=keyword").exit_code == 0
    assert data(run("info", "-i", place, "--json"))["filterable"] == {"suffix": "keyword"}
    assert run("sync", documents, "-i", tmp_path / "none", "-m", model, "--no-lexical").exit_code == 0
    assert data(run("info", "-i", tmp_path / "none", "--json"))["lexical"] is None


def test_choices_of_a_new_index(run, data, model: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    first = ["--quantization", "scalar", "--filterable", "size=integer"]
    assert run("index", "-", "-i", place, "-m", model, *first, input="Cats sleep.").exit_code == 0
    assert run("index", "-", "-i", place, "--filterable", "suffix=keyword", input="Cats sleep.").exit_code == 0
    facts = data(run("info", "-i", place, "--json"))
    assert facts["quantization"] == "scalar" and facts["filterable"] == {"size": "integer", "suffix": "keyword"}
    shown = run("info", "-i", place).stdout
    assert "size (integer)" in shown and "suffix (keyword)" in shown
    assert run("index", "-", "-i", place, "--filterable", "size", input="x").exit_code == 2
    assert run("index", "-", "-i", place, "--filterable", "size=number", input="x").exit_code == 1


def test_filter(run, data, built: Path) -> None:
    kinds = data(run("search", "cats", "-i", built, "--json", "-f", "suffix=.md"))["hits"]
    assert [hit["id"] for hit in kinds] == ["rivers.md"]
    size = kinds[0]["metadata"]["size"]  # a number, so size=123 must be read as one
    assert (
        len(data(run("search", "cats", "-i", built, "--json", "-f", f"size={size}", "-f", "suffix=.md"))["hits"]) == 1
    )
    none = run("search", "cats", "-i", built, "-f", f'size="{size}"')
    assert none.exit_code == 0 and "Nothing found among 3 documents with this filter" in none.stdout


def test_filters_by_range_and_list(run, data, built: Path) -> None:
    def found(*filters: str) -> list[str]:
        given = [part for one in filters for part in ("-f", one)]
        return sorted(hit["id"] for hit in data(run("search", "cats", "-i", built, "--json", *given))["hits"])

    every = found()
    sizes = {id: data(run("search", "cats", "-i", built, "--json", "-f", f"path={id}"))["hits"][0] for id in every}
    middle = sorted(hit["metadata"]["size"] for hit in sizes.values())[1]
    [id] = [id for id, hit in sizes.items() if hit["metadata"]["size"] == middle]
    assert found(f"size>={middle}", f"size<{middle + 1}") == [id]
    assert len(found(f"size>{middle}")) == len(found(f"size < {middle}")) == 1 and len(found(f"size<={middle}")) == 2
    assert found('suffix=[".md", ".txt"]') == every and found('suffix=[".md"]') == ["rivers.md"]
    assert found("mtime>1000000000") == every and found("mtime>2000-01-01") == [], "a number is no date"


def test_filters_that_are_none(run, built: Path) -> None:
    for filters, said in (
        (["size"], "not of the form"),
        (["suffix=.md", "suffix=.txt"], "several values are one list"),
        (["suffix!=.md"], "not of the form field=value"),
        (["size>1", "size=2"], "there is a filter by size already"),
    ):
        refused = run("search", "cats", "-i", built, *(part for one in filters for part in ("-f", one)))
        assert refused.exit_code == 2 and said in " ".join(refused.stderr.split()).replace("│ ", "")
    refused = run("search", "cats", "-i", built, "-f", "size>many")
    assert refused.exit_code == 1 and "neither a number nor a date" in refused.stderr


def test_search_errors(run, built: Path, other_model: Path, tmp_path: Path) -> None:
    missing = run("search", "cats", "-i", tmp_path / "nowhere", "-m", "nowhere")
    assert missing.exit_code == 1 and "there is no index" in missing.stderr and "m2rag index" in missing.stderr
    assert not (tmp_path / "nowhere").exists()
    other = run("search", "cats", "-i", built, "-m", other_model)
    assert other.exit_code == 1 and "was built with" in other.stderr and "Traceback" not in other.stderr
    assert run("search", " ", "-i", built).exit_code == 1
    assert run("search", "cats", "-i", built, "-f", "suffix").exit_code == 2
    assert run("search", "cats", "-i", built, "-k", "0").exit_code == 2
    assert run("search", "cats").exit_code == 2


def test_traceback_only_when_asked_for(run, tmp_path: Path) -> None:
    assert "Traceback" in run("-v", "search", "cats", "-i", tmp_path / "nowhere").stderr
    assert "Traceback" in run("search", "-v", "cats", "-i", tmp_path / "nowhere").stderr


def test_index_whose_model_has_moved(run, data, tmp_path: Path) -> None:
    here = saved(tmp_path / "here")
    run("index", "-", "-i", tmp_path / "index", "-m", here, input="About cats.")
    shutil.move(here, tmp_path / "there")
    told = run("search", "cats", "-i", tmp_path / "index")
    assert told.exit_code == 1 and str(here) in told.stderr and "--model" in told.stderr
    moved = run("search", "cats", "-i", tmp_path / "index", "-m", tmp_path / "there", "--json")
    assert len(data(moved)["hits"]) == 1


def test_index_in_use_is_told_before_a_model_is_loaded(run, built: Path, model: Path) -> None:
    with LongDocumentIndex(built, M2Embedder(model)):
        told = run("search", "cats", "-i", built, "-m", "nowhere")
    assert told.exit_code == 1 and "is open in" in told.stderr


def test_info_of_an_index(run, data, built: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    embedder = M2Embedder(model)
    monkeypatch.setattr("m2rag.embedder.M2Embedder.__init__", loads)
    facts = data(run("info", "-i", built, "--json"))
    assert (facts["documents"], facts["dimension"], facts["model"]) == (3, 32, str(model))
    assert facts["fingerprint"] == embedder.fingerprint
    shown = run("info", "-i", built).stdout
    assert embedder.fingerprint in shown and "documents" in shown


def test_info_of_a_model(run, data, model: Path) -> None:
    facts = data(run("info", "-m", model, "--json"))
    assert (facts["dimension"], facts["max_tokens"]) == (32, 256)


def test_info_errors(run, built: Path, model: Path, tmp_path: Path) -> None:
    assert run("info").exit_code == 2
    assert run("info", "-i", built, "-m", model).exit_code == 2
    assert run("info", "-i", tmp_path).exit_code == 1
    unknown = run("info", "-m", tmp_path / "nowhere", "--json")
    assert unknown.exit_code == 1 and "no checkpoint" in unknown.stderr and unknown.stdout == ""
    not_a_model = run("info", "-m", tmp_path)
    assert not_a_model.exit_code == 1 and "Traceback" not in not_a_model.stderr
    assert run("info", "-m", model, "--device", "toaster").exit_code == 2
