"""Writes twelve made-up contracts of 12 to 33 pages as PDFs, and `metadata.csv` beside them.

    python examples/contract_search/make_contracts.py contracts

The same files each time: what is varied is drawn from a seed. Parties, places and terms are invented; `contracts.json`
holds the words.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

DATA = json.loads(Path(__file__).with_name("contracts.json").read_text(encoding="utf-8"))
KINDS: dict[str, dict[str, Any]] = DATA["kinds"]
MONTHS = "January February March April May June July August September October November December".split()
PLACES = {"England and Wales": "London", "Scotland": "Glasgow", "New York": "Albany", "Germany": "Hamburg",
          "Singapore": "Singapore", "Spain": "Valladolid"}  # fmt: skip


@dataclass(frozen=True)
class Contract:
    """One contract.

    Attributes:
        name: of its file, without the ending.
        kind: one of `KINDS`.
        party, other: who makes it.
        year, law: when, and under which.
        subject: what it is about.
        entries: of its schedules, which make up most of its pages.
        special: heading and text of the clauses that no other contract has.
    """

    name: str
    kind: str
    party: str
    other: str
    year: int
    law: str
    subject: str
    entries: int
    special: list[list[str]]

    @property
    def title(self) -> str:
        return f"{KINDS[self.kind]['title']}: {self.party} and {self.other}"


CONTRACTS = tuple(Contract(**one) for one in DATA["contracts"])


def text_of(contract: Contract, scale: float = 1.0) -> list[tuple[str, str]]:
    """The contract as ("title" | "heading" | "text", words).

    Args:
        scale: of the number of entries in its schedules.
    """
    chance = random.Random(contract.name)
    kind = KINDS[contract.kind]
    blocks = [("title", contract.title), ("text", f"made on {_date(chance, contract.year)}")]
    blocks += [("heading", "Background"), ("text", _filled(kind["background"], contract, chance))]
    clauses = [(heading, chance.choice(wordings)) for heading, wordings in DATA["general"]]
    own = [*kind["clauses"], *contract.special]
    chance.shuffle(own)
    # The law and the forms stand at the end, as they do.
    ordered = [clauses[0], *own, *clauses[1:]]
    for number, (heading, words) in enumerate(ordered, start=1):
        blocks.append(("heading", f"{number}. {heading}"))
        for part, sentence in enumerate(_parts(_filled(words, contract, chance)), start=1):
            blocks.append(("text", f"{number}.{part} {sentence}"))
    entries = max(1, round(contract.entries * scale))
    for schedule, start in enumerate(range(0, entries, 24), start=1):
        blocks.append(("heading", f"Schedule {schedule}"))
        for i in range(start, min(start + 24, entries)):
            name = chance.choice(kind["names"])
            blocks.append(("heading", f"{kind['unit']} {schedule}.{i - start + 1}: {name}"))
            chosen = chance.sample(kind["sentences"], 6)
            blocks.append(("text", " ".join(_filled(sentence, contract, chance, name) for sentence in chosen)))
    blocks += [("heading", "Signatures"), ("text", f"For {contract.party}:"), ("text", f"For {contract.other}:")]
    return blocks


def _parts(words: str) -> list[str]:
    """Sentences of a clause by twos: what lawyers number."""
    sentences = words.replace(". ", ".\n").split("\n")
    return [" ".join(sentences[i : i + 2]) for i in range(0, len(sentences), 2)]


def _date(chance: random.Random, year: int) -> str:
    return f"{chance.randint(1, 28)} {chance.choice(MONTHS)} {year}"


def _filled(words: str, contract: Contract, chance: random.Random, name: str = "") -> str:
    letters = chance.sample("ABCDEFGHKLMNPRSTUVW", 2)
    return words.format(
        party=contract.party, other=contract.other, subject=contract.subject, law=contract.law, name=name,
        place=PLACES[contract.law], date=_date(chance, contract.year), month=chance.choice(MONTHS),
        month2=chance.choice(MONTHS), material=chance.choice(DATA["materials"]), letter=letters[0], letter2=letters[1],
        years=chance.randint(2, 9), months=chance.randint(3, 36), weeks=chance.randint(2, 12),
        days=chance.choice([10, 14, 21, 30, 45]), notice=chance.choice([60, 90, 120, 180]),
        hours=chance.choice([12, 24, 36, 48, 72]), rate=f"{chance.randint(12, 89) / 10:.1f}", cap=chance.randint(2, 9),
        percent=chance.choice([20, 25, 30, 80, 90, 95]), avail=f"{chance.randint(990, 999) / 10:.1f}",
        sum=f"{chance.randint(2, 90) * 100_000:,} euros", number=chance.randint(11, 990), small=chance.randint(2, 9),
        small2=chance.randint(3, 12), price=f"{chance.randint(120, 9900) / 10:,.2f}",
        price2=f"{chance.randint(60, 4900) / 10:,.2f}", year=contract.year - chance.randint(1, 30),
    )  # fmt: skip


# The PDF: A4, one column, the fonts that every reader has.

WIDTH, HEIGHT, MARGIN = 595, 842, 72
LEADING = 15
LETTERS = 84  # of 11-point Times that fit between the margins, with room


def write_pdf(path: Path, contract: Contract, blocks: Sequence[tuple[str, str]]) -> int:
    """Write the contract; returns its number of pages."""
    writer = PdfWriter()
    fonts = {
        name: writer._add_object(
            DictionaryObject({
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject(font),
                NameObject("/Encoding"): NameObject("/WinAnsiEncoding"),
            })
        )
        for name, font in (("/R", "/Times-Roman"), ("/B", "/Times-Bold"))
    }  # fmt: skip
    for number, lines in enumerate(_pages(blocks), start=1):
        page = writer.add_blank_page(WIDTH, HEIGHT)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject(name): font for name, font in fonts.items()})}
        )
        stream = DecodedStreamObject()
        stream.set_data(_drawn([*lines, (MARGIN // 2, "/R", 9, f"{number}")]))
        page[NameObject("/Contents")] = writer._add_object(stream.flate_encode())
    writer.add_metadata(
        {"/Title": contract.title, "/Author": contract.party, "/CreationDate": f"D:{contract.year}0101000000Z"}
    )
    writer.write(path)
    return len(writer.pages)


def _pages(blocks: Sequence[tuple[str, str]]) -> Iterator[list[tuple[int, str, int, str]]]:
    """Lines (height, font, size, text) page by page; a heading stays with what follows it."""
    page: list[tuple[int, str, int, str]] = []
    y = HEIGHT - MARGIN
    for kind, words in blocks:
        size = {"title": 17, "heading": 12, "text": 11}[kind]
        lines = textwrap.wrap(words, round(LETTERS * (1 if kind == "text" else 0.6)))
        y -= 0 if not page else 16 if kind == "heading" else 5
        if page and y - LEADING * (len(lines) + 4 * (kind == "heading")) < MARGIN:
            yield page
            page, y = [], HEIGHT - MARGIN
        for line in lines:
            y -= LEADING + (size - 11)
            page.append((y, "/R" if kind == "text" else "/B", size, line))
    yield page


def _drawn(lines: Sequence[tuple[int, str, int, str]]) -> bytes:
    parts = []
    for y, font, size, line in lines:
        shown = line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        parts.append(f"BT {font} {size} Tf 1 0 0 1 {MARGIN} {y} Tm ({shown}) Tj ET")
    return "\n".join(parts).encode("cp1252")


def write_contracts(folder: Path, contracts: Sequence[Contract] = CONTRACTS, scale: float = 1.0) -> dict[str, int]:
    """Write all of them and `metadata.csv`; returns the pages of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {}
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file", "kind", "parties", "year", "law"])
        for one in contracts:
            name = f"{one.name}.pdf"
            pages[name] = write_pdf(folder / name, one, text_of(one, scale))
            rows.writerow([name, one.kind, f"{one.party}; {one.other}", one.year, one.law])
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("contracts"))
    args = parser.parse_args()
    pages = write_contracts(args.folder)
    print(f"{len(pages)} contracts, {min(pages.values())} to {max(pages.values())} pages, in {args.folder}")


if __name__ == "__main__":
    main()
