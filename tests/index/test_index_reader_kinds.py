"""Word, books, JSON lines, tables, code and compressed files: whole, broken, and made to exhaust the machine."""

from __future__ import annotations

import gzip
import io
import json
import random
import time
import tracemalloc
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import docx
import pytest
import zstandard
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from m2rag.errors import DocumentError
from m2rag.index import Document, Failure, parse_document, parse_documents, read_documents
from m2rag.index.readers import CODE, PACKED, READERS, ROW_READERS, list_folder, packed, supported_suffixes

PACK = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def word(*paragraphs: str, title: str | None = None, change: Any = None) -> bytes:
    document = docx.Document()
    for text in paragraphs:
        document.add_paragraph(text)
    if title is not None:
        document.core_properties.title = title
    if change is not None:
        change(document)
    data = io.BytesIO()
    document.save(data)
    return data.getvalue()


CHAPTERS = {
    "text/one.xhtml": "<html><head><title/></head><body><h1>One</h1><p>First <a id='x'/>words.</p></body></html>",
    "text/two words.xhtml": "<html><head><title>T</title></head><body><p>Second &amp; last.</p></body></html>",
    "nav.xhtml": "<html><body>Contents of the book</body></html>",
}


def book(title: str | None = "The Book", leave_out: str = "", **others: str) -> bytes:
    """An .epub whose pages are read in another order than they are listed in."""
    files = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<?xml version="1.0"?><container><rootfiles>'
        '<rootfile full-path="OEBPS/content.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        "OEBPS/content.opf": f"""<?xml version="1.0"?><package><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
        {f"<dc:title>{title}</dc:title>" if title else ""}</metadata><manifest>
        <item id="b" href="text/two%20words.xhtml" media-type="application/xhtml+xml"/>
        <item id="a" href="text/one.xhtml" media-type="application/xhtml+xml"/>
        <item id="picture" href="p.png" media-type="image/png"/>
        <item id="nav" href="nav.xhtml" media-type="application/xhtml+xml"/></manifest>
        <spine><itemref idref="a"/><itemref idref="picture"/><itemref idref="b"/><itemref idref="gone"/></spine>
        </package>""",
        **{f"OEBPS/{name}": text for name, text in CHAPTERS.items()},
        **others,
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            if not leave_out or leave_out not in name:
                archive.writestr(name, text)
    return data.getvalue()


def parts(found: Iterable[Document | Failure]) -> tuple[list[Document], list[Failure]]:
    everything = list(found)
    documents = [one for one in everything if isinstance(one, Document)]
    return documents, [one for one in everything if isinstance(one, Failure)]


# Word


def test_word_text_and_title() -> None:
    def add(document: Any) -> None:
        table = document.add_table(rows=2, cols=2)
        for cell, text in zip([*table.rows[0].cells, *table.rows[1].cells], "abcd", strict=True):
            cell.text = text
        document.add_paragraph("After the table")

    document = parse_document(word("Grüße – first", "Second\tline", change=add), "sub/a.docx")
    assert document.text == "Grüße – first\n\nSecond\tline\n\na\tb\nc\td\n\nAfter the table"
    assert document.title == "a" and document.metadata["suffix"] == ".docx"
    assert parse_document(word("x", title="From  its\nproperties"), "a.docx").title == "From its properties"
    headed = word(change=lambda document: (document.add_paragraph("x"), document.add_heading("Head", 1)))
    assert parse_document(headed, "a.docx").title == "Head"


def test_word_text_in_wrappers() -> None:
    """Content controls, tracked changes and text boxes, which paragraphs of python-docx leave out or double."""

    def add(document: Any) -> None:
        for xml in (
            "<w:sdt {0}><w:sdtContent><w:p><w:r><w:t>controlled</w:t></w:r></w:p></w:sdtContent></w:sdt>",
            "<w:p {0}><w:ins><w:r><w:t>inserted</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del>"
            "</w:p>",
            "<w:p {0} xmlns:mc='http://schemas.openxmlformats.org/markup-compatibility/2006'><w:r><mc:AlternateContent>"
            "<mc:Choice><w:txbxContent><w:p><w:r><w:t>boxed</w:t></w:r></w:p></w:txbxContent></mc:Choice>"
            "<mc:Fallback><w:txbxContent><w:p><w:r><w:t>boxed</w:t></w:r></w:p></w:txbxContent></mc:Fallback>"
            "</mc:AlternateContent></w:r></w:p>",
        ):
            document.element.body.insert(0, parse_xml(xml.format(nsdecls("w"))))

    assert parse_document(word("last", change=add), "a.docx").text.split() == [
        "boxed",
        "inserted",
        "controlled",
        "last",
    ]


# Books


def test_book_text_in_reading_order() -> None:
    document = parse_document(book(), "a.epub")
    assert document.text.split() == "One First words. Second & last.".split()
    assert document.title == "The Book"
    assert parse_document(book(title=None), "stem.epub").title == "stem"


@pytest.mark.parametrize("page", ["<" + "a" * 300_000, "<a " * 100_000, "<a '" * 100_000, "<a" + " x='/'" * 50_000])
def test_pages_with_endless_tags_take_no_time(page: str) -> None:
    started = time.process_time()
    assert parse_document(book(**{"OEBPS/text/one.xhtml": f"<p>words</p>{page}"}), "a.epub").text
    assert time.process_time() - started < 5  # seconds; minutes where a regular expression tries every split


# Broken files of each kind


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.docx", b"PK", "damaged or no .docx"),
        ("a.docx", b"words", "damaged or no .docx"),
        ("a.docx", book(), "damaged or no .docx"),
        ("a.docx", word("text")[:2000], "damaged or no .docx"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "protected by a password"),
        ("a.docx", word(), "holds no text"),
        ("a.epub", b"PK", "damaged or no .epub"),
        ("a.epub", word("text"), "damaged or no .epub"),
        ("a.epub", book(leave_out="one.xhtml"), "damaged or no .epub"),
        ("a.epub", book(leave_out=".opf"), "damaged or no .epub"),
        ("a.epub", book(**{"META-INF/container.xml": "<container/>"}), "names no book"),
        ("a.epub", book(**{"META-INF/encryption.xml": "<x URI='OEBPS/text/two%20words.xhtml'/>"}), "DRM"),
        ("a.py", bytes(range(256)), "is binary"),
        ("a.txt.gz", b"words", "damaged or no gzip"),
        ("a.txt.gz", gzip.compress(b"words" * 999)[:-9], "damaged or no gzip"),
        ("a.txt.gz", gzip.compress(b"words" * 999)[:-4] + b"0000", "damaged or no gzip"),
        ("a.txt.zst", b"words", "damaged or no zstd"),
        ("a.txt.zst", PACK[".zst"](b"words" * 999)[:-3], "damaged or no zstd"),
        ("a.txt.gz", b"", "is empty"),
        ("a.txt.gz", gzip.compress(b" \n"), "is empty"),
        ("a.tar.gz", gzip.compress(b"x"), "no supported kind"),
        ("a.gz", gzip.compress(b"x"), "no supported kind"),
        ("a.jsonl", b'{"text": "x"}', "holds many documents"),
        ("a.csv.gz", b"", "holds many documents"),
    ],
)
def test_broken_files(name: str, content: bytes, message: str) -> None:
    with pytest.raises(DocumentError, match=message) as caught:
        parse_document(content, name)
    assert name in str(caught.value)


@pytest.mark.parametrize("kind", ["docx", "epub", "txt.gz", "txt.zst"])
@pytest.mark.parametrize("seed", range(15))
def test_damaged_files_end_as_text_or_document_error(kind: str, seed: int) -> None:
    """Whatever bytes are hit, nothing but `DocumentError` comes out."""
    rng = random.Random(seed)
    sound = {"docx": word("Some text", title="T"), "epub": book(), "txt.gz": gzip.compress(b"words " * 99)}
    data = bytearray(sound.get(kind) or PACK[".zst"](b"words " * 99))
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        assert parse_document(bytes(data), f"a.{kind}").text
    except DocumentError:
        pass


# Code


def test_code_is_text_with_the_name_of_its_file() -> None:
    document = parse_document("def f():\r\n    return 'ü'\r\n".encode(), "src/Tool.PY")
    assert (document.id, document.title, document.metadata["suffix"]) == ("src/Tool.PY", "Tool.PY", ".py")
    assert document.text == "def f():\n    return 'ü'\n"
    for suffix in ".py .js .ts .java .go .rs .c .h .cpp .cs .rb .php .sh .sql .yaml .toml .json".split():
        assert suffix in CODE and parse_document(b"x = 1", f"a{suffix}").text == "x = 1"


# Compressed files


@pytest.mark.parametrize("packing", PACKED)
def test_compressed_files_of_every_kind(packing: str, tmp_path: Path) -> None:
    contents = {
        "a.md": b"# Title\n\nwords",
        "a.docx": word("words", title="W"),
        "a.epub": book(),
        "b.html": b"<p>x</p>",
    }
    for name, content in contents.items():
        plain, compressed = parse_document(content, name), parse_document(PACK[packing](content), name + packing)
        assert (plain.text, plain.title) == (compressed.text, compressed.title)
        assert compressed.id == compressed.metadata["path"] == name + packing
        assert compressed.metadata["suffix"] == plain.metadata["suffix"]
        assert compressed.metadata["size"] == plain.metadata["size"]
    lines = b'{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n'
    # Several members or frames one after another, as appending tools write them.
    (tmp_path / f"r.jsonl{packing}").write_bytes(PACK[packing](lines[:30]) + PACK[packing](lines[30:]))
    documents, failures = parts(read_documents(tmp_path / f"r.jsonl{packing}", tmp_path))
    assert [(one.id, one.text) for one in documents] == [
        (f"r.jsonl{packing}#1", "one"),
        (f"r.jsonl{packing}#2", "two"),
    ]
    assert failures == [] and [path.name for path in list_folder(tmp_path).files] == [f"r.jsonl{packing}"]


def test_rows_before_the_damage_are_documents() -> None:
    lines = b"".join(b'{"text": "%s"}\n' % random.Random(i).randbytes(500).hex().encode() for i in range(500))
    for packing in PACKED:
        documents, failures = parts(parse_documents(PACK[packing](lines)[:-2000], f"r.jsonl{packing}"))
        assert 100 < len(documents) < 500
        assert failures[-1].id == f"r.jsonl{packing}" and "damaged" in str(failures[-1].cause)


# Bombs


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A limit of 4 MiB for what a file expands to; memory is watched."""
    monkeypatch.setattr(packed, "MAX_BYTES", 4 * 2**20)
    tracemalloc.start()
    yield 40 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["txt.gz", "txt.zst", "docx", "epub", "jsonl.gz", "jsonl.zst", "csv.zst"])
def test_bombs_are_refused_before_they_fill_the_memory(kind: str, small: int) -> None:
    zeros = (b" " * 999 + b"\n") * (60 * 1024)
    if kind in ("docx", "epub"):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(10):
                archive.writestr(f"{number}.xml", zeros[: 6 * 2**20])
        bomb = data.getvalue()
    else:
        bomb = PACK[kind[kind.index(".") :]](zeros)
    del zeros
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    documents, (failure,) = parts(parse_documents(bomb, f"a.{kind}"))
    assert documents == [] and ("MiB, too much" in str(failure.cause) or "200 times" in str(failure.cause))
    assert tracemalloc.get_traced_memory()[1] - before < small


def test_a_zip_that_declares_less_than_it_holds_is_damaged(small: int) -> None:
    """The sizes in its list bind the reader, so that a list that lies leads nowhere."""
    sound = book(**{"OEBPS/text/one.xhtml": "<p>" + "x" * 8 * 2**20 + "</p>"})
    size = (8 * 2**20 + 7).to_bytes(4, "little")
    assert sound.count(size) == 2
    with pytest.raises(DocumentError, match="damaged or no .epub"):
        parse_document(sound.replace(size, (1000).to_bytes(4, "little")), "a.epub")


def test_entities_that_multiply_are_not_expanded() -> None:
    lol = '<!DOCTYPE p [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {after} "{f"&{before};" * 20}">' for before, after in zip("abcdefg", "bcdefgh", strict=True)
    )
    page = f"<?xml version='1.0'?>{lol}]><html><body><p>&h; words</p></body></html>"
    document = parse_document(book(**{"OEBPS/text/one.xhtml": page}), "a.epub")
    assert len(document.text) < 1000 and "words" in document.text

    sound = word("words")
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(sound)) as source, zipfile.ZipFile(data, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "word/document.xml":
                content = content.replace(
                    b"<w:document", lol.replace("DOCTYPE p", "DOCTYPE w").encode() + b"]><w:document", 1
                )
                content = content.replace(b">words<", b">&h; words<")
            target.writestr(name, content)
    try:
        assert len(parse_document(data.getvalue(), "a.docx").text) < 1000
    except DocumentError as error:
        assert "damaged" in str(error)


def test_a_file_too_large_for_one_document(tmp_path: Path, small: int) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(5 * 2**20)
    ((failure,)) = parts(read_documents(tmp_path / "a.txt"))[1]
    assert "a.txt holds more than 4 MiB, too much for one document: split it" in str(failure.cause)


# Rows


def test_json_lines() -> None:
    lines = [
        {
            "id": "x",
            "title": "Title",
            "text": "one",
            "year": 2024,
            "tags": [],
            "metadata": {"lang": "de", "year": 1},
        },
        {"_id": 7, "text": "two", "path": "their own"},
        {"text": "three"},
        {"id": None, "_id": "y", "text": "four"},
    ]
    data = "\n\n".join(json.dumps(line) for line in lines).encode()
    documents, failures = parts(parse_documents(data, "sub/c.JSONL"))
    assert failures == []
    mine = {"path": "sub/c.JSONL", "suffix": ".jsonl"}
    first = {**mine, "size": 3, "id": "x", "year": 2024, "tags": [], "lang": "de"}
    assert documents == [
        Document("sub/c.JSONL#x", "one", "Title", first),
        Document("sub/c.JSONL#7", "two", None, {**mine, "size": 3, "id": "7", "path": "their own"}),
        Document("sub/c.JSONL:5", "three", None, {**mine, "size": 5}),
        Document("sub/c.JSONL#y", "four", None, {**mine, "size": 4, "id": "y"}),
    ]


@pytest.mark.parametrize(
    ("line", "id", "message"),
    [
        ('{"text": "cut', "c.jsonl:2", "line 2 of c.jsonl is not JSON"),
        ("[" * 100_000, "c.jsonl:2", "line 2 of c.jsonl is not JSON"),
        ('["text"]', "c.jsonl:2", "is list and not an object"),
        ('{"id": "a", "title": "x"}', "c.jsonl#a", "line 2 of c.jsonl has no 'text'"),
        ('{"id": "a", "text": null}', "c.jsonl#a", "has no 'text'"),
        ('{"id": "a", "text": 3}', "c.jsonl#a", "its text is int"),
        ('{"id": "a", "text": "x", "title": []}', "c.jsonl#a", "its title is list"),
        ('{"id": "a", "text": " "}', "c.jsonl#a", "line 2 of c.jsonl holds no text"),
        ('{"id": true, "text": "x"}', "c.jsonl:2", "its id is True"),
        ('{"id": "", "text": "x"}', "c.jsonl:2", "its id is ''"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(line: str, id: str, message: str) -> None:
    data = f'{{"text": "before"}}\n{line}\n{{"text": "after"}}\n'.encode()
    documents, (failure,) = parts(parse_documents(data, "c.jsonl"))
    assert [one.text for one in documents] == ["before", "after"]
    assert failure.id == id and message in str(failure.cause)


def test_tables() -> None:
    data = 'ID,Text,Title,year,\n1,"one, and\nmore",First,99,x\n\n2,two,,,\n'.encode("utf-8-sig")
    documents, failures = parts(parse_documents(data, "t.csv"))
    assert failures == []
    mine = {"path": "t.csv", "suffix": ".csv"}
    assert documents == [
        Document("t.csv#1", "one, and\nmore", "First", {**mine, "size": 13, "id": "1", "year": "99", "column 5": "x"}),
        Document("t.csv#2", "two", None, {**mine, "size": 3, "id": "2"}),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_table_without_a_text_column(delimiter: str) -> None:
    data = "name|born\nAda|1815\n\nGrace|\n".replace("|", delimiter).encode()
    documents, _ = parts(parse_documents(data, "t.tsv" if delimiter == "\t" else "t.csv"))
    assert [(one.id[1:].removeprefix(".tsv").removeprefix(".csv"), one.text) for one in documents] == [
        (":2", "name: Ada\nborn: 1815"),
        (":4", "name: Grace"),
    ]
    assert documents[0].metadata["born"] == "1815" and "born" not in documents[1].metadata


@pytest.mark.parametrize(
    ("data", "id", "message"),
    [
        ("text,a\nx,1\ny,2,3\nz,4", "t.csv:3", "line 3 of t.csv has 3 cells, the row of column names 2"),
        ("text,a\nx,1\n ,2\nz,4", "t.csv:3", "line 3 of t.csv holds no text"),
    ],
)
def test_a_broken_row_is_named_and_the_others_are_read(data: str, id: str, message: str) -> None:
    documents, (failure,) = parts(parse_documents(data.encode(), "t.csv"))
    assert [one.text for one in documents] == ["x", "z"]
    assert failure.id == id and message in str(failure.cause)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"text,text\nx,y", "two columns called 'text'"),
        ("t.csv", b"text,a\n", "holds no document"),
        ("t.csv", b"", "holds no document"),
        ("t.jsonl", b"\n \n", "holds no document"),
        ("t.jsonl", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is binary"),
        ("t.csv", bytes(range(256)), "is binary"),
        ("t.jsonl", b"\xff\xfe{\0\x00\xd8\n\0", "begins like utf-16 and is not"),
        ("t.exe", b"x", "no supported kind"),
    ],
)
def test_files_of_rows_that_are_none(name: str, content: bytes, message: str) -> None:
    documents, (failure,) = parts(parse_documents(content, name))
    assert documents == [] and failure.id == name and message in str(failure.cause)


def test_a_file_of_another_kind_is_given_up_soon() -> None:
    """An indented JSON file called .jsonl is not reported line by line."""
    documents, failures = parts(parse_documents(b'{\n"a": 1,\n"b": [\n1,\n' + b"2,\n" * 5000, "a.jsonl"))
    assert documents == [] and len(failures) == 101
    assert "none of its first 100 rows is a document" in str(failures[-1].cause)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_encodings_of_rows(name: str, encoding: str) -> None:
    texts = ["Der Fluß fließt über die Brücke – «déjà vu», sagt der Müller.", "plain words", "Größe zählt, naïve"]
    lines = ["text;a"] if name == "a.csv" else []
    lines += [f"{text};1" if name == "a.csv" else json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    documents, failures = parts(parse_documents("\r\n".join(lines).encode(encoding), name))
    assert failures == [] and [one.text for one in documents] == texts


def test_a_line_too_long_for_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2rag.index.readers.decoding.MAX_LINE_BYTES", 1000)
    data = b'{"text": "a"}\n{"text": "' + b"x" * 5000 + b'"}\n{"text": "b"}\n'
    documents, (failure,) = parts(parse_documents(data, "a.jsonl"))
    assert [one.text for one in documents] == ["a", "b"] and failure.id == "a.jsonl:2"
    assert "line 2 of a.jsonl is longer than" in str(failure.cause)


def test_a_table_holds_texts_longer_than_csv_takes_by_default() -> None:
    documents, failures = parts(parse_documents(b"id,text\n1," + b"word " * 100_000 + b"\n", "a.csv"))
    assert failures == [] and len(documents[0].text) == 500_000


class Endless(io.RawIOBase):
    """A stream of that many rows, made as they are read."""

    def __init__(self, rows: int) -> None:
        self._rows = iter(range(rows))
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        number = next(self._rows, None)
        if number is None:
            return 0
        line = b'{"id": %d, "text": "%s"}\n' % (number, b"word " * 100)
        buffer[: len(line)] = line
        self.given += 1
        return len(line)


def test_rows_stream(tmp_path: Path) -> None:
    """5 MB of rows in a tenth of memory, the first one after a few were read, and the caller's stream stays open."""
    stream = Endless(10_000)
    found = parse_documents(stream, "-.jsonl")  # type: ignore[arg-type]
    assert next(found).id == "-.jsonl#0" and stream.given < 100
    tracemalloc.start()
    assert sum(isinstance(one, Document) for one in found) == 9_999
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert not stream.closed

    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(10_000):
            file.write(b'{"text": "%s"}\n' % (b"word " * 100))
    tracemalloc.start()
    assert sum(isinstance(one, Document) for one in read_documents(path)) == 10_000
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


# The file system


def test_rows_of_a_file_have_its_origin(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.jsonl"
    path.parent.mkdir()
    path.write_text('{"id": 1, "text": "x"}\nbroken\n')
    documents, failures = parts(read_documents(path, tmp_path))
    assert [(one.id, one.origin) for one in documents] == [("sub/a.jsonl#1", str(path))]
    assert [(one.id, one.path) for one in failures] == [("sub/a.jsonl:2", str(path))]
    for name in ("gone.jsonl", "gone.txt", "sub"):
        ((failure,)) = parts(read_documents(tmp_path / name, tmp_path))[1]
        assert failure.id == name and failure.path == str(tmp_path / name)


def test_a_disk_that_fails_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' * 10)

    class Failing(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            if self.tell_read:
                raise OSError(5, "Input/output error")
            self.tell_read = True
            buffer[:28] = b'{"text": "x"}\n' * 2
            return 28

        tell_read = False

    def failing(self: Path, mode: str) -> BinaryIO:
        return io.BufferedReader(Failing())  # type: ignore[return-value]

    monkeypatch.setattr(Path, "open", failing)
    documents, (failure,) = parts(read_documents(path))
    assert len(documents) == 2 and "Input/output error" in str(failure.cause)


# What is told


def test_messages_name_all_kinds_but_those_of_code() -> None:
    told = supported_suffixes()
    assert all(suffix in told for suffix in (*READERS, *ROW_READERS, *PACKED) if suffix not in CODE)
    assert len(told) < 200


def test_every_kind_has_one_reader() -> None:
    assert not READERS.keys() & ROW_READERS.keys() and not (READERS.keys() | ROW_READERS.keys()) & set(PACKED)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in (*READERS, *ROW_READERS, *PACKED))
