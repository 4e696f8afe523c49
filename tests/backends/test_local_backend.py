"""The model in this process: padding, pooling, identity, memory, threads."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TOKENIZER, saved, sentence, tiny_model

from m2rag import M2Embedder, M2RagError
from m2rag.backends import BatchTooLargeError
from m2rag.backends.local import LocalBackend
from m2rag.batching import Piece
from m2rag.errors import CheckpointError, NonFiniteError, OutOfMemoryError
from m2rag.models import M2BertModel

TEXTS = [sentence(n, seed=n) for n in (3, 40, 1, 170, 12, 41, 2)]


def embedder(model: M2BertModel | None = None, **options: Any) -> M2Embedder:
    return M2Embedder(backend=LocalBackend(model or tiny_model()), **options)


def ids_of(text: str) -> torch.Tensor:
    return torch.tensor([[101, *TOKENIZER.encode(text).ids.tolist(), 102]])


def by_hand(model: M2BertModel, text: str) -> np.ndarray:
    """The model alone, one text, no padding by the embedder."""
    with torch.no_grad():
        vector = model(ids_of(text)).pooler_output[0].numpy()
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("pooling", ["mean", "cls_tanh", "mean_tanh"])
@pytest.mark.parametrize("padding", ["masked", "max_length", "as_given"])
def test_a_vector_does_not_depend_on_its_batch(padding: str, pooling: str) -> None:
    """Alone, batched with others, shuffled, and as the model gives it by hand: the same to 1e-5."""
    model = tiny_model(padding=padding, pooling=pooling)
    expected = np.stack([by_hand(model, text) for text in TEXTS])
    spread = np.abs(expected[0] - expected[1]).max()
    assert spread > 1e-3, "texts must differ for this to show anything"
    ours = embedder(model)
    np.testing.assert_allclose(ours.embed_documents(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(ours.embed_documents(TEXTS[::-1])[::-1], expected, atol=1e-5)
    for budget in (1, 64, 100_000):
        batched = embedder(model, batch_tokens=budget).embed_documents(TEXTS)
        np.testing.assert_allclose(batched, expected, atol=1e-5)
    np.testing.assert_allclose([ours.embed_query(text) for text in TEXTS], expected, atol=1e-5)


def test_max_length_padding_is_padding_to_the_limit() -> None:
    """The faithful mode equals the raw encoder on ids padded by hand to the last position."""
    model = tiny_model(padding="max_length", pooling="mean_tanh")
    raw = tiny_model(padding="as_given", pooling="mean_tanh")
    raw.load_state_dict(model.state_dict())
    result = embedder(model).embed_documents(TEXTS)
    for text, vector in zip(TEXTS, result, strict=True):
        ids = ids_of(text)
        n = ids.shape[1]
        padded = torch.nn.functional.pad(ids, (0, 256 - n))
        mask = (torch.arange(256) < n)[None].long()
        with torch.no_grad():
            expected = raw(padded, mask).pooler_output[0].numpy()
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_max_length_padding_costs_its_tokens() -> None:
    backend = LocalBackend(tiny_model(padding="max_length"))
    assert backend.batch_rule.cost(longest=3, count=2) == 512


@pytest.mark.parametrize("pooling", ["mean", "cls_tanh", "mean_tanh"])
def test_passages_are_means_of_hidden_states(pooling: str) -> None:
    model = tiny_model(pooling=pooling)
    text = sentence(150)
    passages = embedder(model, normalize=False).embed_passages(text, passage_tokens=40)
    with torch.no_grad():
        hidden = model(ids_of(text)).last_hidden_state[0].numpy()
    tokens = TOKENIZER.encode(text)
    for vector, start, end in zip(passages.vectors, passages.starts, passages.ends, strict=True):
        inside = np.flatnonzero((tokens.starts >= start) & (tokens.ends <= end)) + 1
        np.testing.assert_allclose(vector, hidden[inside].mean(0), atol=1e-5)


def test_passages_do_not_change_the_document() -> None:
    ours = embedder()
    plain = ours.embed_documents(TEXTS)
    both = ours.embed_documents(TEXTS, passages=True, passage_tokens=32)
    np.testing.assert_array_equal(plain.vectors, both.vectors)


def test_passages_see_the_rest_of_the_document() -> None:
    """Contextual: the same passage in another document has another vector."""
    ours = embedder()
    first = ours.embed_passages("same words here.\n\n" + sentence(20, seed=1), passage_tokens=20)
    second = ours.embed_passages("same words here.\n\n" + sentence(20, seed=2), passage_tokens=20)
    assert first.ends[0] == second.ends[0]
    assert np.abs(first.vectors[0] - second.vectors[0]).max() > 1e-4


def test_matryoshka_dimensions_come_from_the_configuration(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", matryoshka_dimensions=[8, 16])
    short = M2Embedder(folder, dimensions=8)
    full = M2Embedder(folder)
    assert short.dimension == 8
    cut = full.embed_query("cat")[:8]
    np.testing.assert_allclose(short.embed_query("cat"), cut / np.linalg.norm(cut), atol=1e-6)
    assert short.fingerprint != full.fingerprint


# Checkpoints and identity


def test_save_load_same_vector_same_fingerprint(tmp_path: Path) -> None:
    before = embedder(tiny_model())
    after = M2Embedder(saved(tmp_path / "somewhere"))
    np.testing.assert_array_equal(before.embed_documents(TEXTS), after.embed_documents(TEXTS))
    assert before.fingerprint == after.fingerprint


def test_a_copied_folder_has_the_same_fingerprint(tmp_path: Path) -> None:
    folder = saved(tmp_path / "one")
    shutil.copytree(folder, tmp_path / "deeper" / "two")
    one, two = M2Embedder(folder), M2Embedder(tmp_path / "deeper" / "two")
    assert one.fingerprint == two.fingerprint
    assert (one.model_name, two.model_name) == ("one", "two")


def test_a_folder_in_half_precision_is_what_it_was_rounded_to(tmp_path: Path) -> None:
    """The digest is of the values used, not of the file: bf16 storage of bf16 values changes nothing."""
    folder = saved(tmp_path / "m")
    rounded = {k: v.bfloat16() for k, v in load_file(folder / "model.safetensors").items()}
    save_file({k: v.float() for k, v in rounded.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    as_float = M2Embedder(folder).fingerprint
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    assert M2Embedder(folder).fingerprint == as_float


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"padding": "as_given"},
        {"padding": "max_length"},
        {"layer_norm_eps": 1e-5},
        {"hyena_w_mod": 2},
        {"long_conv_l_max": 512},
    ],
    ids=str,
)
def test_whatever_changes_vectors_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert embedder(tiny_model(**changes)).fingerprint != embedder().fingerprint


def test_one_changed_weight_changes_the_fingerprint() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.layers[1].mixer.filter.skip[0] += 1e-6
    assert embedder(model).fingerprint != embedder().fingerprint


def test_number_format_and_kernels_do_not_change_the_fingerprint() -> None:
    other = LocalBackend(tiny_model(), dtype="bfloat16", kernels="naive")
    assert M2Embedder(backend=other).fingerprint == embedder().fingerprint


def test_the_folders_own_tokenizer_is_used(tmp_path: Path) -> None:
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]
    folder = saved(tmp_path / "m", vocab_size=6)
    (folder / "vocab.txt").write_text("\n".join(entries), encoding="utf-8")
    ours = M2Embedder(folder)
    assert ours.count_tokens(["cat dog cat"]).tolist() == [5]
    assert ours.embed_query("cat").shape == (32,)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"30,522 tokens, the model embeds 100"):
        M2Embedder(saved(tmp_path / "m", vocab_size=100))


@pytest.mark.parametrize("broken", ["missing", "empty", "no weights", "truncated"])
def test_errors_of_a_checkpoint_pass_through(tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "m"
    if broken == "empty":
        folder.mkdir()
    elif broken != "missing":
        saved(folder)
    weights = folder / "model.safetensors"
    if broken == "no weights":
        weights.unlink()
    if broken == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="m"):
        M2Embedder(folder)


def test_the_bundled_name_never_needs_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is the bundled folder; nothing asks the model hub, whether the folder is there or not."""
    import huggingface_hub

    import m2rag.models.checkpoints as checkpoints

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the model hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(checkpoints, "BUNDLED", tmp_path)
    with pytest.raises(CheckpointError, match="m2rag-mini"):
        M2Embedder()
    saved(tmp_path / "m2rag-mini")
    (tmp_path / "elsewhere" / "m2rag-mini").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    ours = M2Embedder()
    assert ours.model_name == ours.model_source == "m2rag-mini"
    assert ours.dimension == 32 and ours.max_tokens == 256


# Number formats, devices, limits


def test_info_says_what_runs() -> None:
    info = embedder().info()
    assert info["device"] == "cpu" and info["dtype"] == "float32" and info["kernels"] == "cpu"
    assert info["parameters"] == sum(p.numel() for p in tiny_model().parameters())
    assert info["dimension"] == 32 and info["max_tokens"] == 256
    assert info["fingerprint"] == embedder().fingerprint


@pytest.mark.parametrize("kernels", ["naive", "cpu", "auto"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_every_path_gives_the_same_vectors(dtype: str, kernels: str) -> None:
    expected = embedder().embed_documents(TEXTS)
    other = M2Embedder(backend=LocalBackend(tiny_model(), dtype=dtype, kernels=kernels))
    result = other.embed_documents(TEXTS)
    assert result.vectors.dtype == np.float32
    cosines = (result.vectors * expected.vectors).sum(1)
    assert cosines.min() > (1 - 1e-6 if dtype == "float32" else 0.999)


def test_bfloat16_is_really_used() -> None:
    expected = embedder().embed_documents(TEXTS)
    for kernels in ("naive", "cpu"):
        other = M2Embedder(backend=LocalBackend(tiny_model(), dtype="bfloat16", kernels=kernels))
        assert np.abs(other.embed_documents(TEXTS).vectors - expected.vectors).max() > 1e-5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(ValueError, match="device is 'cuda', and this torch sees no GPU"):
        LocalBackend(tiny_model(), device="cuda")


@pytest.mark.parametrize("options", [{"dtype": "float64"}, {"kernels": "fast"}])
def test_unknown_number_formats_and_kernels_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        M2Embedder(saved(tmp_path / "m"), **options)  # type: ignore[arg-type]


def test_the_limit_may_be_lowered_not_raised() -> None:
    assert embedder(max_tokens=100).max_tokens == 100
    with pytest.raises(ValueError, match="max_tokens is 257, m2_bert takes at most 256"):
        embedder(max_tokens=257)


def test_ten_million_characters_are_too_long() -> None:
    with pytest.raises(M2RagError, match="2,000,002 tokens, the limit is 256"):
        embedder().embed_documents(["word " * 2_000_000])


def test_weights_that_turned_to_nan_are_noticed() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.layers[0].mlp.out_bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match="inputs 0, 1"):
        embedder(model).embed_documents(["cat", "dog"])


# Memory and threads


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    ],
    ids=["cuda", "linux", "windows"],
)
def test_out_of_memory_halves_the_batch_down_to_one_document(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    expected = embedder(model).embed_documents(TEXTS)
    forward = model.forward

    def limited(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        if input_ids.numel() > 256:
            raise error
        return forward(input_ids, attention_mask)

    monkeypatch.setattr(model, "forward", limited)
    result = embedder(model, batch_tokens=4096).embed_documents(TEXTS * 3)
    np.testing.assert_allclose(result.vectors[:7], expected, atol=1e-5)

    def never(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        raise error

    monkeypatch.setattr(model, "forward", never)
    with pytest.raises(OutOfMemoryError, match="input 1 "):
        embedder(model).embed_documents(["a", sentence(100)])


def test_the_real_allocator_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this version of torch says when memory is gone is recognised."""
    model = tiny_model()
    monkeypatch.setattr(model, "forward", lambda *args: torch.empty(10**16))
    with pytest.raises(BatchTooLargeError):
        LocalBackend(model).run([Piece(0, 0, np.array([101, 102], dtype=np.int32), "")])


def test_other_runtime_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()

    def broken(*args: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        embedder(model).embed_documents(["a"])


def test_threads_at_once() -> None:
    """Different lengths in four threads on one embedder: everybody gets their own vectors."""
    ours = embedder()
    groups = [[sentence(n, seed=n + shift) for n in (5, 60, 130)] for shift in range(4)]
    expected = [ours.embed_documents(group).vectors for group in groups]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            got = ours.embed_documents(groups[number], passages=True).vectors
            if not np.allclose(got, expected[number], atol=1e-6):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_forward_passes_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once would need twice the memory."""
    model = tiny_model()
    forward, inside, most = model.forward, [0], [0]

    def watched(*args: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return forward(*args)

    monkeypatch.setattr(model, "forward", watched)
    ours = embedder(model)
    threads = [threading.Thread(target=ours.embed_query, args=("cat",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_async_calls_at_once_leave_the_loop_free() -> None:
    ours = embedder()
    expected = ours.embed_documents(TEXTS).vectors
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def main() -> Sequence[Any]:
        ticking = asyncio.create_task(tick())
        results = await asyncio.gather(*(ours.aembed_documents(TEXTS) for _ in range(3)))
        ticking.cancel()
        return results

    for result in asyncio.run(main()):
        np.testing.assert_array_equal(result.vectors, expected)
    assert ticks > 10
