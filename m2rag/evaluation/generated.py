"""One fact in a long document, at lengths from 256 to 32,768 tokens: the needle and passkey tasks of LongEmbed.

After arXiv:2404.12096, with texts of our own: at each length 50 queries over 100 documents, each of which holds one
fact of its own, at depths spread evenly from the beginning to the end.

- `passkey`: a person's pass key between the same few sentences over and over. All documents are alike but for the
  person and the number, so it shows what a model still sees of a fact at a length.
- `needle`: a fact of general knowledge between the paragraphs of public-domain Python Enhancement Proposals, each
  document another stretch of them, so the fact has a hundred other subjects against it.

The same name and length give the same texts on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from m2rag.errors import TaskError
from m2rag.evaluation.facts import ASKED, NOT_ASKED
from m2rag.evaluation.tasks import Task
from m2rag.tokenizer import TextTokenizer

T = TypeVar("T")

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
N_QUERIES = 50
N_DOCUMENTS = 100
SHORTEST = 128  # below it there is hardly room for anything but the fact

_SENTENCES = (
    "The kettle is on the stove.",
    "A tram turns the corner.",
    "Somebody has left the gate open.",
    "The afternoon is quiet.",
    "Rain is expected on Friday.",
    "The clock in the hall is slow.",
    "Two gulls sit on the roof.",
)
_FIRST = (
    "Agnes Boris Clara Dmitri Edith Farid Greta Hugo Ingrid Jonas Keiko Lorenzo Mabel Nadia Oskar Paula Quentin Rosa "
    "Stefan Tamar"
).split()
_LAST = (
    "Abbott Baxter Calloway Dunmore Ellery Fairfax Granger Holloway Irvine Jessop Kendrick Lockwood Merriman Norwood "
    "Oakley Prescott Radcliffe Stanhope Thornton Whitlock"
).split()


def passkey_task(length: int) -> Task:
    """ "passkey-LENGTH": which document holds this person's pass key?

    Args:
        length: tokens of a document in the bundled vocabulary, special tokens included; documents end at a word, so
            they may be a few tokens shorter.

    Raises:
        TaskError: `length` is below 128.
    """
    dice = _dice("passkey", length)
    people = _shuffled(dice, [f"{first} {last}" for first in _FIRST for last in _LAST])[:N_DOCUMENTS]
    keys = _shuffled(dice, range(10_000, 100_000))[:N_DOCUMENTS]
    facts = [
        f"The pass key of {person} is {key}. Do not forget it: {key} is the pass key of {person}."
        for person, key in zip(people, keys, strict=True)
    ]
    questions = [f"What is the pass key of {person}?" for person in people[:N_QUERIES]]
    return _task("passkey", length, dice, _sentences(), facts, questions)


def needle_task(length: int) -> Task:
    """ "needle-LENGTH": which document holds the answer to this question? Arguments and errors as `passkey_task`."""
    facts = [fact for fact, _ in ASKED] + NOT_ASKED
    return _task("needle", length, _dice("needle", length), _essays(), facts, [question for _, question in ASKED])


class Filler:
    """Paragraphs in a circle, to hide a fact between them.

    Args:
        paragraphs: texts; blank ones are left out.
        separator: white space between two of them.
    """

    def __init__(self, paragraphs: Sequence[str], separator: str) -> None:
        self._tokenizer = TextTokenizer.bundled()
        self._n_special = len(self._tokenizer.prefix) + len(self._tokenizer.suffix)
        stripped = [paragraph.strip() for paragraph in paragraphs]
        counts = self._tokenizer.count(stripped) - self._n_special
        self._paragraphs = [(text, int(n)) for text, n in zip(stripped, counts, strict=True) if n]
        self._separator = separator

    def __len__(self) -> int:
        return len(self._paragraphs)

    def around(self, fact: str, length: int, *, start: int, depth: float) -> str:
        """`fact` as a paragraph of its own in a text of `length` tokens, special tokens included, or a few fewer.

        Args:
            start: number of the first paragraph.
            depth: share of the filler in front of the fact, 0 to 1, as near as the paragraphs allow.
        """
        room = length - int(self._tokenizer.count([fact])[0])
        parts: list[str] = []
        ends = [0]  # tokens of filler in front of the place before part i
        while ends[-1] < room:
            text, n = self._paragraphs[(start + len(parts)) % len(self)]
            if ends[-1] + n > room:
                text, n = self._first(text, room - ends[-1])
                if not n:
                    break
            parts.append(text)
            ends.append(ends[-1] + n)
        place = int(np.argmin(np.abs(np.array(ends) - depth * ends[-1])))
        return self._separator.join([*parts[:place], fact, *parts[place:]])

    def _first(self, text: str, n: int) -> tuple[str, int]:
        """The first `n` tokens of `text`, or fewer so that no word is cut, and how many they are."""
        tokens = self._tokenizer.encode(text)
        while n and self._tokenizer.is_continuation[tokens.ids[n]]:
            n -= 1
        return text[: int(tokens.ends[n - 1])] if n else "", n


def _task(
    name: str, length: int, dice: random.Random, filler: Filler, facts: Sequence[str], questions: Sequence[str]
) -> Task:
    if length < SHORTEST:
        raise TaskError(f"{name}: {length} tokens leave no room around the fact; the shortest length is {SHORTEST}")
    # Asked and not asked facts are spread over all depths each.
    spread = [place / (N_QUERIES - 1) for place in range(N_QUERIES)]
    depths = _shuffled(dice, spread) + _shuffled(dice, spread)
    starts = [int(dice.random() * len(filler)) for _ in facts]
    ids = [f"document-{number:03}" for number in _shuffled(dice, range(N_DOCUMENTS))]
    corpus = {
        document: filler.around(fact, length, start=start, depth=depth)
        for document, fact, start, depth in zip(ids, facts, starts, depths, strict=True)
    }
    queries = {f"query-{number:02}": question for number, question in enumerate(questions)}
    qrels = {query: {document: 1} for query, document in zip(queries, ids, strict=False)}
    return Task(f"{name}-{length}", dict(sorted(corpus.items())), queries, qrels, length)


@lru_cache(maxsize=1)
def _essays() -> Filler:
    from m2rag.demo import load_documents

    return Filler([part for document in load_documents() for part in document.text.split("\n\n")], "\n\n")


@lru_cache(maxsize=1)
def _sentences() -> Filler:
    return Filler(_SENTENCES, " ")


def _dice(name: str, length: int) -> random.Random:
    # Only `random()` is drawn from it: its numbers are the same in every version of Python.
    return random.Random(f"{name}-{length}")


def _shuffled(dice: random.Random, items: Sequence[T]) -> list[T]:
    return [items[number] for _, number in sorted((dice.random(), number) for number in range(len(items)))]
