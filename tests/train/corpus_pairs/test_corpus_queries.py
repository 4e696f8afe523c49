"""Queries from a document: what they quote is gone from it where the test tasks do so, and nothing else is."""

from __future__ import annotations

import random
from collections import defaultdict

from m2rag_train.corpus_pairs.queries import AskedDocument, Common, Section, ask, is_prose, pieces, spans_of, tokens_of

PROSE = "The {0} valve lets steam number {1} out of the boiler when its pressure has grown too high for the tank."
NAMES = "amber bronze copper diesel ember flint granite helium iron jade kelvin lime".split()


def paragraph(section: int, number: int) -> str:
    first = PROSE.format(NAMES[section], number)
    return f"{first} Nobody should open it by hand, as part {section} of rule {number} says."


def sections(count: int = 8, paragraphs: int = 6) -> list[Section]:
    return [
        Section(f"{NAMES[i].title()} parts", "\n\n".join(paragraph(i, n) for n in range(paragraphs)))
        for i in range(count)
    ]


def asked(title: str = "Steam valves of the north", **options: str) -> AskedDocument:
    parts = [
        Section("", "This report tells which valves are built into the boilers of the north and why."),
        *sections(),
    ]
    return ask("doc", title, parts, Common([(title, parts)]), **options)


def by_kind(document: AskedDocument) -> dict[str, list[str]]:
    found = defaultdict(list)
    for query in document.queries:
        found[query.kind].append(query.text)
    return found


def test_queries_are_gone_from_the_text_but_spans_stay() -> None:
    seen = set()
    for seed in map(str, range(8)):
        document = asked(seed=seed)
        found = by_kind(document)
        assert found["title"] == ["Steam valves of the north"]
        for kind in ("heading", "opening", "paragraph"):
            seen |= {kind for _ in found[kind]}
            assert not any(text in document.text for text in found[kind]), kind
        text = " ".join(document.text.split())
        assert len(found["span"]) >= 3 and all(span in text for span in found["span"])
    assert seen == {"heading", "opening", "paragraph"}


def test_most_of_the_text_is_left() -> None:
    whole = sum(tokens_of(section.text) for section in sections())
    assert 0.8 * whole < tokens_of(asked().text) < whole + 100


def test_the_same_seed_asks_the_same() -> None:
    assert asked(seed="1") == asked(seed="1")
    assert asked(seed="1") != asked(seed="2")


def test_a_title_that_opens_the_text_is_taken_out_of_it() -> None:
    title = "RFC 12: Steam valves"
    document = ask("doc", title, [Section(title, paragraph(0, 0)), *sections()], Common([]))
    assert by_kind(document)["title"] == ["Steam valves"]
    assert "Steam valves" not in document.text


def test_what_many_documents_have_is_not_asked() -> None:
    """A heading of every document, or a title of two, would be asked of one of many right documents."""
    parts = sections(4)
    common = Common([("Notes", parts)] * 5)
    document = ask("doc", "Notes", parts, common, seed="0")
    assert not document.queries, "every title, heading and paragraph is in five documents"
    assert all(section.heading in document.text for section in parts)


def test_a_description_is_no_paragraph() -> None:
    description = "It lists all valves that were built in the year."
    parts = [Section("", description), *sections()]
    document = ask("doc", "", parts, Common([]), description=description)
    assert by_kind(document)["description"] == [description]
    assert description not in document.text


def test_code_and_tables_are_no_prose() -> None:
    assert is_prose(paragraph(0, 0))
    for text in (
        "| valve | steam | boiler | " * 5,
        "x = f(a[1], b[2]); " * 8,
        "```\nthe valve lets steam out\n```",
        "Too few",
    ):
        assert not is_prose(text)


def test_spans_have_no_tags_and_no_end() -> None:
    spoken = "Well {disfmarker} we thought {pause} that the remote should be made of rubber and wood this time"
    (span,) = spans_of([spoken], 1, random.Random(0))
    assert span.text == "Well we thought that the remote should be made of rubber and wood this time"
    long = spans_of(["word " * 500], 1, random.Random(0))
    assert [len(span.text.split()) for span in long] == [80]


def test_pieces_hold_the_whole_book_in_order() -> None:
    book = [Section("", "Front"), *sections(10, 30)]
    found = pieces(book, (500, 900), random.Random(0))
    assert len(found) > 5
    text = "\n\n".join(section.text for piece in found for section in piece)
    assert text == "\n\n".join(section.text for section in book)
    headings = [section.heading for piece in found for section in piece if section.heading]
    assert headings == [section.heading for section in book if section.heading]
    sizes = [sum(tokens_of(section.text) for section in piece) for piece in found]
    assert max(sizes) < 1000 and min(sizes[:-1]) >= 500
