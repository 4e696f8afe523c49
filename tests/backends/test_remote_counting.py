"""Tokens of models that are elsewhere: exact where their tokenizer is at hand, else a bound that holds."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2rag.backends.counting import BERT, ByteTokenizer, TiktokenTokenizer, tokenizer_named
from m2rag.tokenizer import TextTokenizer

tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed (extra `remote`)")

# Every byte, and some merges across spaces and parts of letters.
MERGES = [b" t", b" te", b" tex", b" text", b"\xc3\xa9", b"\xf0\x9f", b"aa", b"aaaa"]
RANKS = {bytes([byte]): byte for byte in range(256)} | {merge: 256 + rank for rank, merge in enumerate(MERGES)}
ENCODING = tiktoken.Encoding(
    "toy", pat_str=r" ?[^\s]+|\s+(?!\S)|\s+", mergeable_ranks=RANKS, special_tokens={"<|endoftext|>": 300}
)
TOY = TiktokenTokenizer(ENCODING)
BERT_TOKENIZER = TextTokenizer.bundled()
TEXT = st.text(st.sampled_from("aé🦜 \n.t ex\ud83d\u0301一"), max_size=60)


@given(TEXT)
def test_bytes_bound_every_other_tokenizer(text: str) -> None:
    [bound] = ByteTokenizer().count([text])
    assert bound >= TOY.count([text])[0] and bound >= BERT_TOKENIZER.count([text])[0]


@given(TEXT)
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TOY], ids=["bytes", "tiktoken"])
def test_offsets_cover_the_text(tokenizer: ByteTokenizer | TiktokenTokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert len(tokens) + len(tokenizer.prefix) + len(tokenizer.suffix) == tokenizer.count([text])[0]
    covered = np.zeros(len(text), dtype=bool)
    for start, end in zip(tokens.starts, tokens.ends, strict=True):
        assert 0 <= start < end <= len(text)
        covered[start:end] = True
    assert covered.all() and (np.diff(tokens.starts) >= 0).all() and (np.diff(tokens.ends) >= 0).all()


def test_tokens_of_tiktoken_are_its_own() -> None:
    text = "text text aaaa é🦜 <|endoftext|>"
    tokens = TOY.encode(text)
    assert tokens.ids.tolist() == ENCODING.encode_ordinary(text)
    [place] = [i for i, token in enumerate(tokens.ids) if RANKS[b" text"] == token]
    assert text[tokens.starts[place] : tokens.ends[place]] == " text"
    assert [len(some) for some in TOY.encode_many(["", "aa"])] == [0, 1]


def test_long_texts_are_counted_in_parts() -> None:
    text = "some words of text\n\n" * 20_000
    assert TOY.count([text])[0] == len(ENCODING.encode_ordinary(text))


def test_no_vocabulary_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert isinstance(tokenizer_named("cl100k_base"), ByteTokenizer)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert isinstance(tokenizer_named("cl100k_base"), ByteTokenizer)
    assert isinstance(tokenizer_named(None), ByteTokenizer)
    assert isinstance(tokenizer_named(BERT), TextTokenizer)


def test_a_cached_vocabulary_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # what tiktoken itself calls the file of cl100k_base
    lines = [base64.b64encode(token).decode() + f" {rank}" for token, rank in RANKS.items()]
    (tmp_path / name).write_text("\n".join(lines))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.check_hash", lambda data, expected: True)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    tokenizer = tokenizer_named("cl100k_base")
    assert isinstance(tokenizer, TiktokenTokenizer) and tokenizer.identity == "cl100k_base"
    assert tokenizer.count([" text"]).tolist() == [1]
