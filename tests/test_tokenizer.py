from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TOKENIZER
from transformers import BertTokenizer

import m2rag.tokenizer
from m2rag.errors import CheckpointError, InvalidInputError
from m2rag.tokenizer import VOCABULARY, TextTokenizer, TokenIds

ODD = [
    "Hello, World! It's 3.14 o'clock.",
    "汉字和 kana かな カナ 漢字",
    "한국어 문장입니다",
    "🙂🙃 emoji 👩‍👩‍👧‍👦 flags 🇫🇷",
    "con\x00trol\x07 chars\x85 and\ufffd\u200bzero\u00adwidth",
    "naïve façade Ångström İstanbul ẞ ﬁ",
    "e\u0301 combining a\u0327\u0301 marks",
    "x" * 101 + " " + "y" * 100,
    "tabs\tand\r\nlines\u2028sep\u3000wide\u00a0nbsp",
    "[CLS] in the text [SEP] [MASK] [PAD] [unk]",
    "مرحبا بالعالم שלום עולם हिन्दी",
    "a" * 5000,
    "!!!???...---///",
]

# Everything at which the normaliser, the splitting into words or the cutting of long texts does something.
ALPHABET = "ab Z.é\u0301\u0327\n\t\r\x85\u200b\u3000\u00a0中国かİß🙂[]!'한\x00\ufffd\u2028"
TEXTS = st.lists(
    st.one_of(st.text(ALPHABET, max_size=6), st.sampled_from(["[SEP]", "[CLS]", "[MASK]", "unbelievably", "x" * 120])),
    max_size=30,
).map("".join)


REFERENCE = BertTokenizer(vocab=str(VOCABULARY), do_lower_case=True)


def with_special(ids: np.ndarray) -> list[int]:
    return [*TOKENIZER.prefix, *ids.tolist(), *TOKENIZER.suffix]


def test_vocabulary_is_bert_base_uncased() -> None:
    assert TOKENIZER.vocab_size == 30522 == len(REFERENCE)
    assert TOKENIZER.prefix == (101,) and TOKENIZER.suffix == (102,)
    assert with_special(TOKENIZER.encode("the quick brown fox").ids) == [101, 1996, 4248, 2829, 4419, 102]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_ids_are_those_of_transformers(text: str) -> None:
    assert with_special(TOKENIZER.encode(text).ids) == REFERENCE(text)["input_ids"]


@settings(deadline=None, max_examples=200)
@given(text=st.one_of(TEXTS, st.text(max_size=80)))
def test_ids_are_those_of_transformers_for_any_text(text: str) -> None:
    assert with_special(TOKENIZER.encode(text).ids) == REFERENCE(text)["input_ids"]


@settings(deadline=None, max_examples=500)
@given(text=TEXTS, size=st.integers(1, 12))
def test_in_pieces_as_at_once(text: str, size: int) -> None:
    """Cutting a long text changes neither ids nor offsets, wherever the cuts fall."""
    whole = TOKENIZER._backend.encode(text, add_special_tokens=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m2rag.tokenizer, "PIECE_CHARS", size)
        patch.setattr(m2rag.tokenizer, "_GROUP_CHARS", 3 * size)
        tokens = TOKENIZER.encode(text)
        counts = TOKENIZER.count([text, "one more", text])
    assert tokens.ids.tolist() == whole.ids
    assert list(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True)) == whole.offsets
    assert counts.tolist() == [len(whole.ids) + 2, 4, len(whole.ids) + 2]


def test_long_texts_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would pass if nothing were ever cut."""
    monkeypatch.setattr(m2rag.tokenizer, "PIECE_CHARS", 4)
    pieces = list(TOKENIZER._pieces(["some words, and 中文 more"]))
    assert len(pieces) == 4
    assert "".join(piece for piece, _, _ in pieces) == "some words, and 中文 more"


@pytest.mark.parametrize("text", ["Crème  BRÛLÉE,\n\tserved", "  leading", "Ünïcödé wörds 中文"])
def test_offsets_are_characters_of_the_original(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    spans = [text[a:b] for a, b in zip(tokens.starts, tokens.ends, strict=True)]
    assert "".join(spans) == "".join(text.split())


def test_many_texts_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m2rag.tokenizer, "PIECE_CHARS", 10)
    texts = ["", "a", "word " * 50, " ", "end"]
    encoded = list(TOKENIZER.encode_many(texts))
    assert [len(tokens) for tokens in encoded] == [0, 1, 50, 0, 1]
    assert TOKENIZER.count(texts).tolist() == [2, 3, 52, 2, 3]
    assert TOKENIZER.count([]).shape == (0,)


def test_half_a_surrogate_pair_is_dropped() -> None:
    tokens = TOKENIZER.encode("ab\ud800 cd\udfff")
    assert tokens.ids.tolist() == TOKENIZER.encode("ab cd").ids.tolist()
    assert tokens.starts.tolist() == [0, 4]


def test_ten_million_characters() -> None:
    assert TOKENIZER.count(["word " * 2_000_000]).tolist() == [2_000_002]


def test_a_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    assert TextTokenizer.from_folder(tmp_path) is None


@pytest.mark.parametrize("lowercase", [True, False])
def test_vocab_txt_of_a_folder(tmp_path: Path, lowercase: bool) -> None:
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Cat", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    if not lowercase:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}), encoding="utf-8")
    tokenizer = TextTokenizer.from_folder(tmp_path)
    assert tokenizer is not None and tokenizer.prefix == (2,) and tokenizer.suffix == (3,)
    assert tokenizer.encode("Cats dog").ids.tolist() == [6 if lowercase else 5, 7, 1]
    assert tokenizer.identity != TOKENIZER.identity


def test_tokenizer_json_wins_and_its_truncation_is_off(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(TOKENIZER._backend.to_str())
    backend.enable_truncation(8)
    backend.enable_padding(length=16)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("never read", encoding="utf-8")
    tokenizer = TextTokenizer.from_folder(tmp_path)
    assert tokenizer is not None
    assert tokenizer.count(["word " * 50]).tolist() == [52]
    assert tokenizer.identity == TOKENIZER.identity


def test_another_kind_of_tokenizer(tmp_path: Path) -> None:
    """Not BERT: never cut, whatever its length, because a space may belong to a token."""
    words = {"<unk>": 0, "▁cat": 1, "▁": 2}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.from_folder(tmp_path)
    assert tokenizer is not None and tokenizer.prefix == () and tokenizer.suffix == ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m2rag.tokenizer, "PIECE_CHARS", 3)
        assert tokenizer.encode("cat cat cat").ids.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{}"), ("tokenizer.json", "not json"), ("vocab.txt", "cat\ndog\n"), ("vocab.txt", b"\xff\xfe")],
)
def test_a_broken_tokenizer_is_a_checkpoint_error(tmp_path: Path, name: str, content: str | bytes) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=name):
        TextTokenizer.from_folder(tmp_path)


def test_identity_does_not_depend_on_the_place(tmp_path: Path) -> None:
    shutil.copy(VOCABULARY, tmp_path / "vocab.txt")
    tokenizer = TextTokenizer.from_folder(tmp_path)
    assert tokenizer is not None and tokenizer.identity == TOKENIZER.identity


@pytest.mark.parametrize("form", ["bare", "special", "padded"])
def test_tokens_made_elsewhere_are_taken_as_they_are(form: str) -> None:
    ids = TOKENIZER.encode("Wheels are named by their tags.").ids.tolist()
    given = {"bare": ids, "special": [101, *ids, 102], "padded": [101, *ids, 102, 0, 0, 0]}[form]
    assert TOKENIZER.accept(TokenIds(given)).ids.tolist() == ids


@pytest.mark.parametrize(
    "ids",
    [[279, 4062, 3776, 13], [-1], [30_522], [2**40], [2**70], [True], [1.5], [[1, 2]], ["a"], [None]],
    ids=str,
)
def test_tokens_of_another_tokenizer_are_refused(ids: list) -> None:
    """The first are "the cat ran." in an encoding of OpenAI's: in range here, and other words."""
    with pytest.raises(InvalidInputError, match="token id"):
        TOKENIZER.accept(TokenIds(ids))
