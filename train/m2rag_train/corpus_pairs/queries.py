"""What a document could be asked for: its title, headings, opening, paragraphs and sentences.

Where the test tasks take the query's own text out of the document, so is it done here: a title, a heading, an opening
and some paragraphs become queries and are gone from the text. Spans of sentences stay in it, as words of a question do.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from m2rag_train.sources import ShortText

# About what a bert-base-uncased token takes of English text.
CHARACTERS_PER_TOKEN = 4.2

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
_BLANK_LINE = re.compile(r"\n\s*\n")
_NUMBERED = re.compile(r"^(?:[A-Z]{2,4}[- ]?\d+\s*[:.-]|[\d.]+|Proposal:)\s+")
_COUNTED = re.compile(r"^(?:chapter|part|book|section|scene|act|volume|article)\b.{0,12}$", re.IGNORECASE)
_TAG = re.compile(r"\{\w+\}|<\w+>")
_OPENINGS = {"abstract", "summary", "overview", "introduction", "tl;dr", "synopsis", "executive summary"}
_QUESTIONS = (
    "What is {}?",
    "How does {} work?",
    "What does it say about {}?",
    "Explain {}",
    "What are the rules on {}?",
    "Where is {} described?",
)


@dataclass(frozen=True)
class Section:
    """A heading, or "", and the text below it."""

    heading: str
    text: str


@dataclass(frozen=True)
class AskedDocument:
    """A document without its title, and its queries."""

    id: str
    text: str
    queries: list[ShortText] = field(default_factory=list)


def tokens_of(text: str) -> int:
    """About how many tokens a text has."""
    return round(len(text) / CHARACTERS_PER_TOKEN)


class Common:
    """Headings, titles and paragraphs that several documents have: they ask for none of them.

    Args:
        documents: titles and sections of all documents of a file.
        headings: a heading of more documents than this is common.
    """

    def __init__(self, documents: Iterable[tuple[str, Sequence[Section]]], *, headings: int = 3) -> None:
        self._most_headings = headings
        self._headings: Counter[str] = Counter()
        self._paragraphs: Counter[int] = Counter()
        self._titles: Counter[str] = Counter()
        for title, sections in documents:
            self._titles[title.strip().lower()] += 1
            self._headings.update({section.heading.strip().lower() for section in sections})
            self._paragraphs.update({hash(p) for section in sections for p in paragraphs_of(section.text)})

    def heading(self, heading: str) -> bool:
        return self._headings[heading.strip().lower()] > self._most_headings

    def title(self, title: str) -> bool:
        return self._titles[title.strip().lower()] > 1

    def paragraph(self, paragraph: str) -> bool:
        return self._paragraphs[hash(paragraph)] > 1


def paragraphs_of(text: str) -> list[str]:
    return [part.strip() for part in _BLANK_LINE.split(text) if part.strip()]


def is_prose(paragraph: str, least_words: int = 12) -> bool:
    """Whether a paragraph is sentences, and not code, a table or a list of names."""
    if paragraph.startswith(("|", "..", "+-", "```", "$ ", "#", "- ", "* ")) or "```" in paragraph:
        return False
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    return letters >= 0.8 * len(paragraph) and len(paragraph.split()) >= least_words


def ask(
    identifier: str,
    title: str,
    sections: Sequence[Section],
    common: Common,
    *,
    description: str = "",
    seed: str = "",
) -> AskedDocument:
    """A document and what it could be asked for; the same for the same seed.

    Args:
        title: "": it has none that tells it apart from others.
    """
    rng = random.Random(f"{seed} {identifier}")
    title = _NUMBERED.sub("", title.strip())
    parts = [
        _Part(section.heading.strip(), [p for p in paragraphs_of(section.text) if p != description.strip()])
        for section in sections
        if _NUMBERED.sub("", section.heading.strip()).lower() != title.lower() or section.text.strip()
    ]
    for part in parts:
        if _NUMBERED.sub("", part.heading).lower() == title.lower():
            part.heading = ""
    length = sum(tokens_of(p) for part in parts for p in part.paragraphs)
    queries = []
    if title and not common.title(title):
        queries.append(ShortText(title, "title"))
        if rng.random() < 0.4 and not title.endswith("?"):
            queries.append(ShortText(_as_question(title, rng), "question"))
    if len(description.split()) >= 5:
        queries.append(ShortText(description.strip(), "description"))
    if rng.random() < 0.8 and (opening := _take_opening(parts, common)):
        queries.append(ShortText(opening, "opening"))
    queries += _take_headings(parts, common, _between(length // 800, 2, 8), rng)
    queries += _take_paragraphs(parts, common, _between(length // 1500, 1, 5), rng)
    queries += spans_of(
        [p for part in parts for p in part.paragraphs if not common.paragraph(p)], _between(length // 600, 3, 10), rng
    )
    text = "\n\n".join("\n".join(filter(None, [part.heading, *_spaced(part.paragraphs)])) for part in parts)
    return AskedDocument(identifier, text.strip(), queries)


def spans_of(paragraphs: Sequence[str], count: int, rng: random.Random) -> list[ShortText]:
    """Up to `count` spans of 1 to 3 sentences, 8 to 80 words, each from another paragraph if there are enough."""
    prose = [p for p in paragraphs if is_prose(p, 8)]
    found: dict[str, None] = {}
    # A long paragraph is asked more often.
    for paragraph in rng.choices(prose, weights=[len(p) for p in prose], k=2 * count) if prose else []:
        sentences = _SENTENCE_END.split(_TAG.sub(" ", paragraph))
        start = rng.randrange(len(sentences))
        words = " ".join(sentences[start : start + rng.choice((1, 1, 2, 3))]).split()
        if len(words) >= 8 and len(found) < count:
            found[" ".join(words[:80])] = None
    return [ShortText(text, "span") for text in found]


def pieces(sections: Sequence[Section], tokens: tuple[int, int], rng: random.Random) -> list[list[Section]]:
    """A book as documents of whole sections, or of whole paragraphs where a section is longer than a document."""
    found: list[list[Section]] = [[]]
    room = rng.randint(*tokens)
    for section in sections:
        heading = section.heading
        for paragraph in paragraphs_of(section.text):
            if room <= 0:
                found.append([])
                room = rng.randint(*tokens)
            if found[-1] and not heading:
                last = found[-1][-1]
                found[-1][-1] = Section(last.heading, f"{last.text}\n\n{paragraph}")
            else:
                found[-1].append(Section(heading, paragraph))
            heading, room = "", room - tokens_of(paragraph)
    return [piece for piece in found if piece]


@dataclass
class _Part:
    heading: str
    paragraphs: list[str]


def _as_question(text: str, rng: random.Random) -> str:
    return rng.choice(_QUESTIONS).format(text[:1].lower() + text[1:])


def _between(value: int, least: int, most: int) -> int:
    return min(max(value, least), most)


def _spaced(paragraphs: Sequence[str]) -> list[str]:
    return ["\n\n".join(paragraphs)] if paragraphs else []


def _take_opening(parts: list[_Part], common: Common) -> str:
    """The abstract, or else the first paragraph of the document; it is removed from its part."""
    for part in parts:
        if part.heading.lower() in _OPENINGS and any(is_prose(p) for p in part.paragraphs):
            taken = [p for p in part.paragraphs if is_prose(p)]
            part.paragraphs = [p for p in part.paragraphs if not is_prose(p)]
            return " ".join(" ".join(taken).split()[:200])
    for part in parts[:2]:
        for paragraph in part.paragraphs[:2]:
            if is_prose(paragraph) and not common.paragraph(paragraph):
                part.paragraphs.remove(paragraph)
                return " ".join(paragraph.split()[:200])
    return ""


def _take_headings(parts: list[_Part], common: Common, count: int, rng: random.Random) -> list[ShortText]:
    usable = [
        part
        for part in parts
        if len(part.heading.split()) >= 2 and not common.heading(part.heading) and not _COUNTED.match(part.heading)
    ]
    found = []
    for part in rng.sample(usable, min(count, len(usable))):
        heading, part.heading = _NUMBERED.sub("", part.heading).rstrip(".:"), ""
        if rng.random() < 0.35 and not heading.endswith("?"):
            found.append(ShortText(_as_question(heading, rng), "question"))
        else:
            found.append(ShortText(heading, "heading"))
    return found


def _take_paragraphs(parts: list[_Part], common: Common, count: int, rng: random.Random) -> list[ShortText]:
    usable = [
        (part, p)
        for part in parts
        for p in part.paragraphs
        if 20 <= len(p.split()) <= 250 and is_prose(p) and not common.paragraph(p)
    ]
    found = []
    # Something must be left to find the document by.
    for part, paragraph in rng.sample(usable, min(count, len(usable) // 4)):
        part.paragraphs.remove(paragraph)
        sentences = _SENTENCE_END.split(paragraph)
        asked = sentences[: rng.randint(2, 3)] if rng.random() < 0.5 else sentences
        found.append(ShortText(" ".join(" ".join(asked).split()[:150]), "paragraph"))
    return found
