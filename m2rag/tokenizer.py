"""Text -> token ids with character offsets, at any length in bounded memory.

The bert-base-uncased WordPiece vocabulary ships with the package; a checkpoint folder that holds its own tokenizer
overrides it. Special tokens are not part of `Tokens`: they are `prefix` and `suffix`, and belong to every window.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from m2rag.errors import CheckpointError, InvalidInputError

VOCABULARY = Path(__file__).parent / "assets" / "bert-base-uncased-vocab.txt"

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CONTINUATION = "##"

# Long texts are tokenised in pieces of about this many characters: the tokenizer keeps some 100 bytes per character.
PIECE_CHARS = 65_536
_GROUP_CHARS = 16 * PIECE_CHARS

# In front of these a BERT word always ends, whatever stands around them: space, line breaks, tab, the Chinese
# characters that the normaliser isolates, and ASCII punctuation but the brackets of special tokens. Other Unicode
# spaces are left out: some are removed as control characters.
_BOUNDARY = re.compile("[ \t\r\n\u4e00-\u9fff!-/:-@\\\\^-`{-~]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNUSED = re.compile(r"\[unused\d+\]")


@dataclass(frozen=True)
class Tokens:
    """Tokens of one text, without special tokens.

    Attributes:
        ids: (n,) int32.
        starts: (n,) int64, first character of each token in the text as given.
        ends: (n,) int64, one past its last character.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TokenIds:
    """A text that was tokenised elsewhere, by the model's own tokenizer.

    Attributes:
        ids: with or without special tokens around them.
    """

    ids: Sequence[int]


class Tokenizer(Protocol):
    """What embedding asks of a tokenizer: it counts, and finds the places where a long text is cut.

    Attributes:
        prefix: ids in front of every input.
        suffix: ids behind it.
        is_continuation: (vocabulary,) bool, ids that continue a word.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    is_continuation: np.ndarray

    def encode(self, text: str) -> Tokens:
        """Tokens of one text."""
        ...

    def encode_many(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Tokens of each text, in order."""
        ...

    def count(self, texts: Iterable[str]) -> np.ndarray:
        """(N,) int64: length of each text in tokens, special tokens included."""
        ...


class TextTokenizer:
    """A `tokenizers.Tokenizer` that takes texts of any length and gives numpy arrays.

    Attributes:
        prefix: ids in front of every input ([CLS]).
        suffix: ids behind it ([SEP]).
        vocab_size: number of ids.
        is_continuation: (vocab_size,) bool, ids that continue a word.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.prefix, self.suffix = _special_ids(backend)
        self.is_continuation = np.zeros(self.vocab_size, dtype=bool)
        # Reserved places of BERT's vocabulary. Another vocabulary has its commonest words there.
        self._never_made = np.zeros(self.vocab_size, dtype=bool)
        for token, index in backend.get_vocab().items():
            self.is_continuation[index] = token.startswith(_CONTINUATION)
            self._never_made[index] = _UNUSED.fullmatch(token) is not None
        self._pad = backend.token_to_id("[PAD]")
        self._piecewise = _is_bert(backend)

    @classmethod
    def bundled(cls) -> TextTokenizer:
        """The bert-base-uncased tokenizer of the package."""
        return cls(_wordpiece(VOCABULARY, lowercase=True))

    @classmethod
    def from_folder(cls, folder: Path) -> TextTokenizer | None:
        """Tokenizer of a checkpoint folder (`tokenizer.json`, else `vocab.txt`), or None if it holds none.

        Raises:
            CheckpointError: a tokenizer file is there and cannot be read.
        """
        path = folder / "tokenizer.json"
        if path.is_file():
            try:
                return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
            # The library has no exception class of its own: everything it refuses is a bare Exception.
            except Exception as error:
                raise CheckpointError(f"{path}: not a tokenizer ({error}); download it again") from error
        path = folder / "vocab.txt"
        if not path.is_file():
            return None
        settings = folder / "tokenizer_config.json"
        try:
            config = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
            return cls(_wordpiece(path, lowercase=bool(config.get("do_lower_case", True))))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not a tokenizer ({error}); download it again") from error

    @property
    def identity(self) -> str:
        """First 12 hex digits of the SHA-256 of the tokenizer's definition."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()[:12]

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id."""
        return self._backend.get_vocab()

    def whole_words(self) -> dict[str, int]:
        """Words of two letters and more that are tokens, and their ids, lowest first.

        Empty for a vocabulary that is not BERT's kind: there a token does not tell whether it is a word or its end.
        """
        if not self._piecewise:
            return {}
        by_id = sorted(self.vocabulary.items(), key=lambda item: item[1])
        return {token: index for token, index in by_id if len(token) > 1 and token.isalpha()}

    def encode(self, text: str) -> Tokens:
        """Tokens of one text."""
        return next(self.encode_many([text]))

    def encode_many(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Tokens of each text, in order. Texts share the tokenizer's threads and are read as they are needed."""
        parts: list[Tokens] = []
        for tokens, last in self._encode_pieces(texts):
            parts.append(tokens)
            if last:
                yield parts[0] if len(parts) == 1 else _joined(parts)
                parts = []

    def count(self, texts: Iterable[str]) -> np.ndarray:
        """(N,) int64: length of each text in tokens, special tokens included."""
        counts = []
        total = 0
        for group in _grouped(self._pieces(texts)):
            encodings = self._backend.encode_batch_fast([piece for piece, _, _ in group], add_special_tokens=False)
            for encoding, (_, _, last) in zip(encodings, group, strict=True):
                total += len(encoding)
                if last:
                    counts.append(total + len(self.prefix) + len(self.suffix))
                    total = 0
        return np.array(counts, dtype=np.int64)

    def accept(self, given: TokenIds) -> Tokens:
        """Tokens made elsewhere, without the special tokens and the pads around them; their offsets are 0.

        Raises:
            InvalidInputError: this tokenizer does not make such ids, so they are another's.
        """
        ids = np.asarray(given.ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InvalidInputError("token ids must be a flat list of integers")
        foreign = np.ones(ids.shape, dtype=bool)
        known = (ids >= 0) & (ids < self.vocab_size)
        foreign[known] = self._never_made[ids[known].astype(np.int64)]
        if foreign.any():
            raise InvalidInputError(
                f"token id {ids[foreign.argmax()]} at position {foreign.argmax()} is none that this model's tokenizer "
                "makes: these ids are of another tokenizer. Send text (LangChain: OpenAIEmbeddings(..., "
                "check_embedding_ctx_length=False))"
            )
        ids = ids.astype(np.int32)
        if self._pad is not None:
            ids = ids[: len(ids) - int(np.argmax(np.append(ids[::-1] != self._pad, True)))]
        if self.prefix and tuple(ids[: len(self.prefix)].tolist()) == self.prefix:
            ids = ids[len(self.prefix) :]
        if self.suffix and tuple(ids[-len(self.suffix) :].tolist()) == self.suffix:
            ids = ids[: -len(self.suffix)]
        nowhere = np.zeros(len(ids), dtype=np.int64)
        return Tokens(ids, nowhere, nowhere)

    def _encode_pieces(self, texts: Iterable[str]) -> Iterator[tuple[Tokens, bool]]:
        for group in _grouped(self._pieces(texts)):
            encodings = self._backend.encode_batch([piece for piece, _, _ in group], add_special_tokens=False)
            for encoding, (_, offset, last) in zip(encodings, group, strict=True):
                ids = np.array(encoding.ids, dtype=np.int32)
                spans = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int64, count=2 * len(ids))
                yield Tokens(ids, spans[::2] + offset, spans[1::2] + offset), last

    def _pieces(self, texts: Iterable[str]) -> Iterator[tuple[str, int, bool]]:
        """(piece, its offset in the text, whether it is the text's last); together they give the text's tokens."""
        for text in texts:
            # Half of a surrogate pair is no character. Its replacement has the same length, and BERT drops it.
            text = _SURROGATE.sub("\ufffd", text)
            start = 0
            while self._piecewise:
                boundary = _BOUNDARY.search(text, start + PIECE_CHARS)
                if boundary is None:
                    break
                yield text[start : boundary.start()], start, False
                start = boundary.start()
            yield text[start:], start, True


def _grouped(pieces: Iterable[tuple[str, int, bool]]) -> Iterator[list[tuple[str, int, bool]]]:
    """Groups of pieces that are tokenised in parallel, bounded in characters."""
    group: list[tuple[str, int, bool]] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece[0])
        if size >= _GROUP_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _joined(parts: list[Tokens]) -> Tokens:
    return Tokens(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.starts for p in parts]),
        np.concatenate([p.ends for p in parts]),
    )


def _wordpiece(vocabulary: Path, lowercase: bool) -> tokenizers.Tokenizer:
    # WordPiece.read_file is not used: it splits at every Unicode line break, and one entry is such a character.
    entries = vocabulary.read_text(encoding="utf-8").rstrip("\n").split("\n")
    ids = {token.rstrip("\r"): index for index, token in enumerate(entries)}
    missing = [token for token in _SPECIAL if token not in ids]
    if missing:
        raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
    backend = tokenizers.Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    backend.add_special_tokens(list(_SPECIAL))
    return backend


def _special_ids(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the post-processor puts in front of a text and behind it."""
    bare = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a").ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    raise CheckpointError("the tokenizer's post-processor rewrites the text's tokens; only [CLS] text [SEP] is known")


def _is_bert(backend: tokenizers.Tokenizer) -> bool:
    """Whether words end at white space whatever the context, so that a text may be cut there."""
    return (
        isinstance(backend.normalizer, normalizers.BertNormalizer)
        and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and not any(
            token.lstrip or token.rstrip or _BOUNDARY.search(token.content)
            for token in backend.get_added_tokens_decoder().values()
        )
    )
