"""The teacher's vectors against the plainest way to get them, and the cache of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import SPAN, TEACHER, WIDTH, MakeRecipe, make_shard, words, write_lines
from tokenizers import Tokenizer

from m2rag_train.distillation.recipe import DistillRecipe
from m2rag_train.distillation.teacher import Shard, Teacher, build_cache, load_shards
from m2rag_train.errors import TrainingDataError
from m2rag_train.sources import TrainingDocument


def naive_encode(teacher: Teacher, sequence: np.ndarray) -> np.ndarray:
    """One text, padded to the longest, with the attention mask: the mean over real tokens, normalised."""
    ids = torch.zeros(1, 32, dtype=torch.long)
    ids[0, : len(sequence) + 2] = torch.tensor([teacher.cls_id, *sequence.tolist(), teacher.sep_id])
    mask = (torch.arange(32) < len(sequence) + 2).long()[None]
    with torch.no_grad():
        hidden = teacher.model(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=-1)[0].numpy()


def contents(shard: Shard) -> dict[str, np.ndarray]:
    return {field.name: getattr(shard, field.name) for field in dataclasses.fields(shard)}


def assert_same(one: Shard, other: Shard) -> None:
    for name, array in contents(one).items():
        np.testing.assert_array_equal(array, contents(other)[name], err_msg=name)


@pytest.mark.parametrize("batch_tokens", [1, 20, 8192])
def test_encode_equals_one_text_at_a_time(teacher: Teacher, batch_tokens: int) -> None:
    lengths = [5, 3, 5, 1, 9, 3, 5, 30]
    sequences = [teacher.token_ids(words(n, seed)) for seed, n in enumerate(lengths)]
    assert [len(s) for s in sequences] == lengths
    vectors = teacher.encode(sequences, batch_tokens=batch_tokens)
    assert vectors.dtype == np.float16 and vectors.shape == (8, WIDTH)
    expected = np.stack([naive_encode(teacher, s) for s in sequences])
    # Halves below 1 are 5e-4 apart at most.
    np.testing.assert_allclose(vectors.astype(np.float32), expected, atol=5e-4)
    similarity = expected @ expected.T - 2 * np.eye(8)
    assert similarity.max() < 0.99, "texts too alike to see a wrong order"


def test_encode_of_nothing(teacher: Teacher) -> None:
    assert teacher.encode([]).shape == (0, WIDTH)


def test_half_precision_is_close(teacher_folder: Path, teacher: Teacher) -> None:
    sequences = [teacher.token_ids(words(n, n)) for n in (3, 10, 25)]
    half = Teacher(teacher_folder).encode(sequences).astype(np.float32)
    assert (half * teacher.encode(sequences)).sum(1) == pytest.approx(1, abs=5e-3)


def test_token_ids_have_no_special_tokens(teacher: Teacher) -> None:
    assert teacher.token_ids("Alpha beta,").tolist() == [5, 6, 1]
    assert (teacher.cls_id, teacher.sep_id, teacher.max_tokens) == (2, 3, 30)


def test_word_embeddings(teacher: Teacher) -> None:
    assert teacher.word_embeddings.shape == (25, WIDTH)
    assert not teacher.word_embeddings.requires_grad


def test_a_tokenizer_without_special_tokens_is_refused(teacher_folder: Path, tmp_path: Path) -> None:
    for path in teacher_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8").replace("[SEP]", "[END]")
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"no \[SEP\]"):
        Teacher(tmp_path)


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
    assert names == ["complete", *(path.name for path in paths)]
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
    (folder / "complete").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build_cache(tiny_recipe, data, teacher, folder)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after.keys() - before.keys() == {"shard-001.npz", "complete"}
    assert {name: after[name] for name in before} == before
    assert_same(load_shards(folder), load_shards(cache_folder))


def test_a_complete_cache_needs_no_sources(
    tiny_recipe: DistillRecipe, data: Path, teacher: Teacher, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    build_cache(tiny_recipe, data, teacher, folder)
    build_cache(tiny_recipe, tmp_path / "absent", teacher, folder)
    (folder / "complete").unlink()
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

    def interrupted(sequences: list[np.ndarray]) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 4:  # the second shard's short texts
            raise KeyboardInterrupt
        return encode(sequences)

    monkeypatch.setattr(teacher, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_cache(tiny_recipe, data, teacher, folder)
    assert [path.name for path in folder.iterdir()] == ["shard-000.npz"], "and it is not complete"
    monkeypatch.undo()
    build_cache(tiny_recipe, data, teacher, folder)
    assert_same(load_shards(folder), load_shards(cache_folder))


def test_a_half_written_shard_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shard([10], [(0, "title", 2)]).save(tmp_path / "shard-000.npz")

    def half(path: Path, **arrays: np.ndarray) -> None:
        path.write_bytes(b"PK half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="no space"):
        make_shard([10], []).save(tmp_path / "shard-001.npz")
    assert len(list(tmp_path.iterdir())) == 2, "the rest of the write lies there"
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
    with pytest.raises(FileNotFoundError, match="no teacher vectors"):
        load_shards(tmp_path)


def test_spans_too_long_for_the_teacher(make_recipe: MakeRecipe, data: Path, teacher: Teacher, tmp_path: Path) -> None:
    recipe = make_recipe(teacher={**TEACHER, "span_tokens": 31})
    with pytest.raises(ValueError, match="span_tokens is 31, the teacher reads 30"):
        build_cache(recipe, data, teacher, tmp_path / "teacher")


def test_source_without_documents_is_named(
    make_recipe: MakeRecipe, data: Path, teacher: Teacher, tmp_path: Path
) -> None:
    recipe = make_recipe(teacher={**TEACHER, "min_document_tokens": 65, "max_document_tokens": 99})
    with pytest.raises(ValueError, match=r"sectioned\.jsonl: no document of at least 65 tokens"):
        build_cache(recipe, data, teacher, tmp_path / "teacher")


def test_documents_stay_beside_their_ids() -> None:
    document = TrainingDocument("a", "text")
    assert document.short_texts == [] and TrainingDocument("b", "x").short_texts is not document.short_texts
