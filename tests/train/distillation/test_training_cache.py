"""The cache of teacher vectors: what is in it, how it is resumed, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.full_disk import writes_end_after
from teachers import character_teacher, naive_encode
from tiny_training import SPAN, TEACHER, WIDTH, MakeRecipe, make_shard, words, write_lines

from m2rag.tokenizer import TextTokenizer
from m2rag_train.distillation.cache import Shard, build_cache, load_cache, load_shards, projection_to
from m2rag_train.distillation.recipe import DistillRecipe
from m2rag_train.distillation.teacher import Piece, Teacher, WordPieceTeacher, load_teacher
from m2rag_train.errors import CheckpointWriteError, RecipeError, TrainingDataError
from m2rag_train.sources import TrainingDocument


def contents(shard: Shard) -> dict[str, np.ndarray]:
    return {field.name: getattr(shard, field.name) for field in dataclasses.fields(shard)}


def assert_same(one: Shard, other: Shard) -> None:
    for name, array in contents(one).items():
        np.testing.assert_array_equal(array, contents(other)[name], err_msg=name)


def test_spans_are_cut_and_counted(cache_folder: Path, teacher: Teacher) -> None:
    shard = load_shards(cache_folder)
    lengths = np.diff(shard.document_starts)
    assert (lengths % SPAN > 0).any() and (lengths % SPAN == 0).any(), "both kinds of last span are wanted"
    for document, length in enumerate(lengths):
        tokens = shard.tokens[shard.document_starts[document] : shard.document_starts[document + 1]]
        first, last = shard.span_starts[document : document + 2]
        assert last - first == -(-length // SPAN)
        for number in range(last - first):
            expected = naive_encode(teacher, tokens[number * SPAN : (number + 1) * SPAN])
            np.testing.assert_allclose(shard.span_vectors[first + number], expected, atol=1e-3)
    assert shard.span_starts[-1] == len(shard.span_vectors)
    assert shard.document_starts[-1] == len(shard.tokens)


def test_short_texts_belong_to_their_documents(cache_folder: Path, teacher: Teacher) -> None:
    shard = load_shards(cache_folder)
    assert set(shard.short_kind) == {"title", "heading", "question", "sentence"}
    for number, (document, kind) in enumerate(zip(shard.short_document, shard.short_kind, strict=True)):
        ids = shard.tokens_of_short(number)
        assert len(ids) == {"title": 3, "heading": 2, "question": 4, "sentence": 8}[kind]
        np.testing.assert_allclose(shard.short_vectors[number], naive_encode(teacher, ids), atol=1e-3)
        if kind == "heading":
            # A sectioned document begins with its heading.
            start = shard.document_starts[document]
            assert shard.tokens[start : start + 2].tolist() == ids.tolist()


def test_document_lengths(make_recipe: MakeRecipe, data: Path, teacher: Teacher, tmp_path: Path) -> None:
    settings = {**TEACHER, "max_short_tokens": 2, "min_document_tokens": 30, "max_document_tokens": 40}
    recipe = make_recipe(teacher=settings, sources=[{"documents": "sectioned.jsonl", "tokens": 10_000}])
    build_cache(recipe, data, teacher, tmp_path / "teacher")
    shard = load_shards(tmp_path / "teacher")
    # The documents have 20, 24, ... 64 tokens.
    assert sorted(np.diff(shard.document_starts)) == [32, 36, *[40] * 7]
    assert np.diff(shard.short_starts).max() == 2


def test_long_texts_are_cut_before_tokenising(make_recipe: MakeRecipe, teacher: Teacher, tmp_path: Path) -> None:
    text = " ".join(f"{word} " * 50 for word in ("alpha", "beta", "gamma", "delta") * 5)
    documents = [
        {"id": f"d{i}", "title": "", "sections": [{"level": 1, "heading": "", "text": text}]} for i in range(8)
    ]
    write_lines(tmp_path / "long.jsonl", documents)
    settings = {**TEACHER, "min_document_tokens": 1, "max_document_tokens": 10}
    recipe = make_recipe(teacher=settings, sources=[{"documents": "long.jsonl", "tokens": 10_000}])
    build_cache(recipe, tmp_path, teacher, tmp_path / "teacher")
    shard = load_shards(tmp_path / "teacher")
    assert np.diff(shard.document_starts).tolist() == [10] * 8
    assert len(set(shard.tokens.tolist()) - {1}) > 1, "the stretches do not all begin at the beginning"


@pytest.mark.parametrize("budget", [1, 100, 200])
def test_token_budget(make_recipe: MakeRecipe, data: Path, teacher: Teacher, tmp_path: Path, budget: int) -> None:
    recipe = make_recipe(sources=[{"documents": "sectioned.jsonl", "tokens": budget}])
    build_cache(recipe, data, teacher, tmp_path / "teacher")
    shard = load_shards(tmp_path / "teacher")
    total, longest = len(shard.tokens), int(np.diff(shard.document_starts).max())
    assert budget <= total < budget + longest, "drawing ends with the document that reaches the budget"


def test_shards_hold_about_what_they_should(cache_folder: Path) -> None:
    names = sorted(path.name for path in cache_folder.iterdir())
    paths = [cache_folder / f"shard-{i:03d}.npz" for i in range(len(names) - 1)]
    assert names == [*(path.name for path in paths), "student.npz"]
    assert len(paths) > 2
    sizes = [len(Shard.load(path).tokens) for path in paths]
    assert all(200 <= size < 260 for size in sizes[:-1])
    assert sizes[-1] < 260


@pytest.fixture
def tiny_recipe(make_recipe: MakeRecipe) -> DistillRecipe:
    return make_recipe()


def test_the_cache_is_the_same_every_time(
    tiny_recipe: DistillRecipe, data: Path, teacher: Teacher, cache_folder: Path, tmp_path: Path
) -> None:
    build_cache(tiny_recipe, data, teacher, tmp_path / "again")
    assert_same(load_shards(tmp_path / "again"), load_shards(cache_folder))


def test_another_seed_another_order(make_recipe: MakeRecipe, data: Path, teacher: Teacher, tmp_path: Path) -> None:
    for seed in (0, 1):
        recipe = make_recipe(teacher={**TEACHER, "seed": seed})
        build_cache(recipe, data, teacher, tmp_path / str(seed))
    one, other = load_shards(tmp_path / "0"), load_shards(tmp_path / "1")
    assert len(one.tokens) == len(other.tokens)
    assert one.tokens.tolist() != other.tokens.tolist()


def test_a_missing_shard_is_made_again_and_others_are_kept(
    tiny_recipe: DistillRecipe, data: Path, teacher: Teacher, cache_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    build_cache(tiny_recipe, data, teacher, folder)
    (folder / "shard-001.npz").unlink()
    (folder / "student.npz").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build_cache(tiny_recipe, data, teacher, folder)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after.keys() - before.keys() == {"shard-001.npz", "student.npz"}
    assert {name: after[name] for name in before} == before
    assert_same(load_shards(folder), load_shards(cache_folder))


def test_a_complete_cache_needs_no_sources(
    tiny_recipe: DistillRecipe, data: Path, teacher: Teacher, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    build_cache(tiny_recipe, data, teacher, folder)
    build_cache(tiny_recipe, tmp_path / "absent", teacher, folder)
    (folder / "student.npz").unlink()
    with pytest.raises(TrainingDataError, match="absent/sectioned.jsonl: No such file"):
        build_cache(tiny_recipe, tmp_path / "absent", teacher, folder)


def test_an_interrupted_cache_is_resumed(
    tiny_recipe: DistillRecipe,
    data: Path,
    teacher: Teacher,
    cache_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "teacher"
    encode = teacher.encode
    calls = 0

    def interrupted(pieces: list[Piece], **options: bool) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 4:  # the second shard's short texts
            raise KeyboardInterrupt
        return encode(pieces, **options)

    monkeypatch.setattr(teacher, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_cache(tiny_recipe, data, teacher, folder)
    assert [path.name for path in folder.iterdir()] == ["shard-000.npz"], "and it is not complete"
    monkeypatch.undo()
    build_cache(tiny_recipe, data, teacher, folder)
    assert_same(load_shards(folder), load_shards(cache_folder))


def test_a_half_written_shard_is_never_read(tmp_path: Path) -> None:
    make_shard([10], [(0, "title", 2)]).save(tmp_path / "shard-000.npz")
    # A disk that is full after half of the file, for real: the system refuses the write.
    message = r"shard-001\.npz could not be written: File too large"
    with writes_end_after(500), pytest.raises(CheckpointWriteError, match=message):
        make_shard([10], []).save(tmp_path / "shard-001.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000.npz"], "room is given back"
    (tmp_path / "unfinished-shard-001.npz").write_bytes(b"PK what a killed process leaves")
    assert len(load_shards(tmp_path).tokens) == 10


def test_shards_become_one(tmp_path: Path) -> None:
    # The second has no short texts, the third's belong to documents 3 and 4 of the whole.
    parts = [
        make_shard([7, 13], [(0, "title", 2), (1, "heading", 3)], seed=0),
        make_shard([6], [], seed=1),
        make_shard([4, 12], [(1, "answer", 1), (0, "title", 2)], seed=2),
    ]
    for number, part in enumerate(parts):
        part.save(tmp_path / f"shard-{number:03d}.npz")
    whole = load_shards(tmp_path)
    assert whole.document_starts.tolist() == [0, 7, 20, 26, 30, 42]
    assert whole.span_starts.tolist() == [0, 2, 5, 6, 7, 9]
    assert whole.short_starts.tolist() == [0, 2, 5, 6, 8]
    assert whole.short_document.tolist() == [0, 1, 4, 3]
    assert whole.short_kind.tolist() == ["title", "heading", "answer", "title"]
    np.testing.assert_array_equal(whole.tokens[26:30], parts[2].tokens[:4])
    np.testing.assert_array_equal(whole.span_vectors[6:], parts[2].span_vectors)
    np.testing.assert_array_equal(whole.tokens_of_short(2), parts[2].tokens_of_short(0))
    np.testing.assert_array_equal(whole.short_vectors[2], parts[2].short_vectors[0])


def test_no_shards_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no teacher vectors, or not all; make them first"):
        load_cache(tmp_path)


# What ties the student to the teacher


def test_equal_widths_change_nothing(cache_folder: Path, teacher: WordPieceTeacher) -> None:
    cache = load_cache(cache_folder)
    np.testing.assert_array_equal(cache.shard.span_vectors, load_shards(cache_folder).span_vectors)
    np.testing.assert_array_equal(cache.words, teacher.word_embeddings)


@pytest.mark.parametrize("width", [5, 24, 40])
def test_projection_keeps_dot_products(width: int) -> None:
    rng = np.random.default_rng(0)
    # Of rank 5 out of 24: nothing is lost in 5 dimensions either.
    vectors = rng.standard_normal((50, 5)) @ rng.standard_normal((5, 24))
    projection = projection_to(vectors, width, seed=0)
    assert projection.shape == (24, width)
    projected = vectors @ projection
    np.testing.assert_allclose(projected @ projected.T, vectors @ vectors.T, atol=1e-3)
    largest = (projected**2).sum(0).max() / (projected**2).sum()
    assert largest < 0.6, "no dimension holds nearly all"
    np.testing.assert_array_equal(projection, projection_to(vectors, width, seed=0))


def test_projection_to_fewer_dimensions_loses_the_least() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((200, 8)) * [9, 8, 7, 6, 0.1, 0.1, 0.1, 0.1]
    projected = vectors @ projection_to(vectors, 4, seed=0)
    assert (projected**2).sum() > 0.999 * (vectors**2).sum()


@pytest.mark.parametrize("dimension", [8, WIDTH, 24])
def test_a_teacher_of_any_width(
    make_recipe: MakeRecipe, data: Path, tokenizer: TextTokenizer, tmp_path: Path, dimension: int
) -> None:
    other = load_teacher(str(character_teacher(tmp_path / "other", dimension)), tokenizer)
    build_cache(make_recipe(), data, other, tmp_path / "cache")
    cache, raw = load_cache(tmp_path / "cache"), load_shards(tmp_path / "cache")
    assert cache.words.shape == (25, WIDTH) and cache.words.dtype == np.float32
    assert cache.shard.span_vectors.shape[1] == cache.shard.short_vectors.shape[1] == WIDTH
    given = raw.span_vectors.astype(np.float32)
    seen = cache.shard.span_vectors.astype(np.float32)
    # 24 dimensions become 16: nearly all of 24 that a dense layer made of 16.
    np.testing.assert_allclose(seen @ seen.T, given @ given.T, atol=0.05 if dimension > WIDTH else 5e-3)
    # A span's vector is that of the text that its tokens stand for.
    span = Piece(raw.tokens[:SPAN], " ".join(tokenizer_words(tokenizer, raw.tokens[:SPAN])))
    np.testing.assert_allclose(given[0], other.encode([span])[0], atol=2e-3)


def tokenizer_words(tokenizer: TextTokenizer, ids: np.ndarray) -> list[str]:
    spelling = {number: token for token, number in tokenizer.vocabulary.items()}
    return [spelling[int(number)] for number in ids]


# What is refused


def test_spans_too_long_for_the_teacher(make_recipe: MakeRecipe, data: Path, teacher: Teacher, tmp_path: Path) -> None:
    recipe = make_recipe(teacher={**TEACHER, "span_tokens": 31})
    with pytest.raises(RecipeError, match="span_tokens is 31, the teacher reads 30"):
        build_cache(recipe, data, teacher, tmp_path / "teacher")


def test_source_without_documents_is_named(
    make_recipe: MakeRecipe, data: Path, teacher: Teacher, tmp_path: Path
) -> None:
    recipe = make_recipe(teacher={**TEACHER, "min_document_tokens": 65, "max_document_tokens": 99})
    with pytest.raises(TrainingDataError, match=r"sectioned\.jsonl: no document of at least 65 tokens"):
        build_cache(recipe, data, teacher, tmp_path / "teacher")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0])
def test_a_teacher_that_fails_on_a_document(
    make_recipe: MakeRecipe, data: Path, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    encode = teacher.encode

    def failing(pieces: list[Piece], **options: bool) -> np.ndarray:
        vectors = encode(pieces, **options)
        vectors[[i for i, piece in enumerate(pieces) if piece.text.startswith("Once")]] = wrong
        return vectors

    rows = [
        {"id": f"d{i}", "sections": [{"heading": "", "text": ("Once " if i == 3 else "") + words(20, i)}]}
        for i in range(5)
    ]
    write_lines(tmp_path / "docs.jsonl", rows)
    monkeypatch.setattr(teacher, "encode", failing)
    recipe = make_recipe(sources=[{"documents": "docs.jsonl", "tokens": 1000}])
    message = r"docs\.jsonl, line 4: document 'd3': the teacher's vector of 'Once .*' is not finite or all zeros"
    with pytest.raises(TrainingDataError, match=message):
        build_cache(recipe, tmp_path, teacher, tmp_path / "cache")
    assert not (tmp_path / "cache" / "student.npz").exists()


def test_documents_stay_beside_their_ids() -> None:
    document = TrainingDocument("a", "text")
    assert document.short_texts == [] and TrainingDocument("b", "x").short_texts is not document.short_texts
