"""Answers to questions from the documents of an index, with citations, by any OpenAI-style chat model."""

from __future__ import annotations

from m2rag.answers.ask import (
    Retrieved,
    aask,
    aretrieve,
    ask,
    astream,
    astream_answer,
    retrieve,
    stream,
    stream_answer,
)
from m2rag.answers.chat import ChatEndpoint
from m2rag.answers.citations import read_citations
from m2rag.answers.results import Answer, Citation, Completion, Found, Source, Sources, Usage

__all__ = [
    "Answer",
    "ChatEndpoint",
    "Citation",
    "Completion",
    "Found",
    "Retrieved",
    "Source",
    "Sources",
    "Usage",
    "aask",
    "aretrieve",
    "ask",
    "astream",
    "astream_answer",
    "read_citations",
    "retrieve",
    "stream",
    "stream_answer",
]
