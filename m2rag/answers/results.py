"""What an answer is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from m2rag.index import Hit


@dataclass(frozen=True)
class Found:
    """A document found and all of its text.

    Attributes:
        hit: with all of its passages, if it has any.
        text: what the offsets of the passages are of.
    """

    hit: Hit
    text: str


@dataclass(frozen=True)
class Source:
    """A part of a document that the model was given: `text == document.text[start:end]`.

    Attributes:
        number: by which the answer cites it, from 1.
        id: of the document.
        title: of the document, if it has one.
        start: its first character in the document's text.
        end: one past its last character.
        text: what was given.
    """

    number: int
    id: str
    title: str | None
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Citation(Source):
    """A source that the answer cites.

    Attributes:
        at: (start, end) of each mark in the answer's text that names it.
    """

    at: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Sources:
    """What the model is about to be given.

    Attributes:
        sources: in the order of their numbers.
        left_out: ids of the documents found of which nothing is among them.
        tokens: of the whole prompt, counted or bounded.
    """

    sources: tuple[Source, ...]
    left_out: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class Usage:
    """Tokens as the server counted them."""

    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Answer:
    """What a model made of the sources.

    Attributes:
        text: the answer; that nothing was found, if so.
        citations: the sources it cites, in the order of their first mention.
        sources: all sources the model was given, cited or not; none if it was not asked.
        unknown: numbers it cites that no source has: made up, or no citations.
        left_out: ids of the documents found of which nothing fitted in.
        finish: why it ended, in the server's words: "stop"; "length" if it was cut at the limit of the answer's tokens;
            "content_filter" if the provider cut it. None if the model was not asked.
        model: as the server names it; None if it was not asked.
        usage: None if the server does not say.
    """

    text: str
    citations: tuple[Citation, ...] = ()
    sources: tuple[Source, ...] = ()
    unknown: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()
    finish: str | None = None
    model: str | None = None
    usage: Usage | None = None

    @property
    def cut(self) -> bool:
        """Whether the answer ended before the model was done."""
        return self.finish in ("length", "content_filter")


@dataclass(frozen=True)
class Completion:
    """What a chat model said.

    Attributes:
        text: not empty.
        finish: why it ended, see `Answer.finish`.
        model: as the server names it.
        usage: None if the server does not say.
    """

    text: str
    finish: str
    model: str
    usage: Usage | None = None


Message = dict[str, Any]
"""A message of a chat: {"role": ..., "content": ...}."""
