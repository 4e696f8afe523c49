"""Files into documents: encodings, titles, and every file that is no document."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from m2rag.errors import DocumentError
from m2rag.index.documents import content_hash
from m2rag.index.readers import READERS, list_folder, parse_document, read_document

TEXT = "Der Fluß fließt über die Brücke – «déjà vu», sagt der Müller. Größe zählt, Ärger nicht.\n" * 4


def pdf(pages: list[str], title: str | None = None, password: str | None = None) -> bytes:
    """A PDF with one line of text per page."""
    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    for text in pages:
        page = writer.add_blank_page(600, 800)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET".encode("latin-1"))
        page[NameObject("/Contents")] = writer._add_object(stream)
    if title is not None:
        writer.add_metadata({"/Title": title})
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    data = io.BytesIO()
    writer.write(data)
    return data.getvalue()


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"], ids=str
)
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "a.txt", TEXT.encode(encoding))
    assert read_document(path).text == TEXT


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Le café de la gare est fermé.", "latin-1"),
        ("one naïve word in a long English text about nothing in particular. " * 20, "cp1252"),
        ("“Quoted”, she said – and left.", "cp1252"),
    ],
)
def test_short_western_texts(tmp_path: Path, text: str, encoding: str) -> None:
    assert read_document(write(tmp_path, "a.txt", text.encode(encoding))).text == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива. ", "cp1251"),
        ("Zażółć gęślą jaźń. Wszyscy ludzie rodzą się wolni i równi pod względem swych praw. ", "cp1250"),
        ("すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。", "shift_jis"),
        ("人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。", "gb18030"),
    ],
)
def test_other_scripts_without_a_mark(tmp_path: Path, text: str, encoding: str) -> None:
    assert read_document(write(tmp_path, "a.txt", (text * 5).encode(encoding))).text == text * 5


def test_line_ends_are_unified(tmp_path: Path) -> None:
    assert read_document(write(tmp_path, "a.txt", "one\r\ntwo\rthree\n")).text == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("name", "content", "title"),
    [
        ("stem.txt", "Just words.", "stem"),
        ("a.txt", "PEP: 8\nTitle: Style Guide\nAuthor: G\n\nBody", "Style Guide"),
        ("a.txt", "Note: this\nsays nothing. Title: no", "a"),
        ("a.txt", "Intro\n\nTitle: too late", "a"),
        ("a.rst", "PEP: 20\nTitle: The Zen\n  of Python\nStatus: Final\n\nAbstract\n========\n", "The Zen"),
        ("a.rst", "A heading\n=========\n\nText", "A heading"),
        ("a.rst", ".. comment\n\n*****\nTitle\n*****\n\nSub\n---\n", "Title"),
        ("a.rst", "no heading\n==\n", "a"),
        ("a.md", "# The *one* `title` #\n\ntext", "The one title"),
        ("a.md", "```\n# a comment\n```\n\n## Real\n", "Real"),
        ("a.md", "Set text\n========\n", "Set text"),
        ("a.md", "---\nlayout: post\ntags:\n  - x\ntitle: 'From matter'\n---\n# Other\n", "From matter"),
        ("a.md", "---\nlayout: post\n---\n\n# Heading\n", "Heading"),
        ("a.html", "<html><head><title> In\n head </title></head><body><h1>H</h1>x</body></html>", "In head"),
        ("a.htm", "<h1>First</h1><p>x</p>", "First"),
        ("a.html", "<p>nothing</p>", "a"),
        ("A.PDF", pdf(["Some text"], title="From metadata"), "From metadata"),
        ("stem.pdf", pdf(["Some text"]), "stem"),
    ],
)
def test_titles(tmp_path: Path, name: str, content: str | bytes, title: str) -> None:
    assert read_document(write(tmp_path, name, content)).title == title


def test_html_text(tmp_path: Path) -> None:
    page = """<!doctype html><html><head><title>T</title><style>p {color: red}</style></head><body>
    <script>alert(1)</script><h1>Head</h1><p>One <b>bold</b>,   word&nbsp;&amp; more</p>after
    <ul><li>a</li><li>b</li></ul><table><tr><td>x</td><td>y</td></tr></table><noscript>no</noscript>line<br>break</body></html>"""
    text = read_document(write(tmp_path, "a.html", page)).text
    assert text.split() == "Head One bold, word & more after a b x y line break".split()
    assert "One bold, word & more\n" in text and "alert" not in text and "color" not in text
    assert "\n\n\n" not in text and not text.startswith("\n")


def test_html_encodings(tmp_path: Path) -> None:
    page = '<html><head><meta charset="{}"></head><body><p>Żółć</p></body></html>'
    assert read_document(write(tmp_path, "a.html", page.format("iso-8859-2").encode("iso-8859-2"))).text == "Żółć"
    assert read_document(write(tmp_path, "b.html", page.format("no-such-code"))).text == "Żółć"
    assert read_document(write(tmp_path, "c.html", page.format("ascii"))).text == "Żółć"
    assert read_document(write(tmp_path, "d.html", page.format("utf-8").encode("utf-16"))).text == "Żółć"
    for said in ("undefined", "utf-16", "UTF-32", "unicode_escape", "hex"):
        for end in ("", " "):  # of even and odd length
            assert read_document(write(tmp_path, "e.html", page.format(said) + end)).text == "Żółć", said


def test_pdf_text(tmp_path: Path) -> None:
    document = read_document(write(tmp_path, "a.pdf", pdf(["First page", "Second page"])))
    assert document.text.split() == ["First", "page", "Second", "page"]
    assert document.metadata is not None and document.metadata["suffix"] == ".pdf"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0", "is binary"),
        ("a.md", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is binary"),
        ("a.rst", b"GIF\x01\x02\x03\x04\x05\x06\x07\x08", "is binary"),
        ("a.html", bytes(range(256)), "is binary"),
        ("a.txt", b"\xff\xfea\xd8\0", "begins like utf-16 and is not"),
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\t ", "is empty"),
        ("a.txt", b"\xef\xbb\xbf  \n", "holds no text"),
        ("a.html", b"<html><head><title>T</title></head><body><script>x</script></body></html>", "holds no text"),
        ("a.pdf", b"not a pdf at all", "damaged or no PDF"),
        ("a.pdf", pdf(["Text"])[:200], "damaged or no PDF"),
        ("a.pdf", pdf([]), "OCR"),
        ("a.pdf", pdf([""]), "OCR"),
        ("a.pdf", pdf(["Text"], password="secret"), "protected by a password"),
        ("a.doc", b"PK", "no supported kind: the index reads .txt, .md, .rst, .html, .htm, .pdf"),
    ],
)
def test_files_that_are_no_documents(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DocumentError) as caught:
        read_document(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_pdf_with_an_empty_password_opens(tmp_path: Path) -> None:
    assert read_document(write(tmp_path, "a.pdf", pdf(["Open text"], password=""))).text.strip() == "Open text"


@pytest.mark.parametrize("seed", range(40))
def test_damaged_pdfs_end_as_text_or_document_error(tmp_path: Path, seed: int) -> None:
    """Whatever bytes are hit, nothing but `DocumentError` comes out."""
    import random

    rng = random.Random(seed)
    data = bytearray(pdf(["Some text", "More text"], title="T"))
    for _ in range(rng.randint(1, 30)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        assert read_document(write(tmp_path, "a.pdf", bytes(data))).text
    except DocumentError:
        pass


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="does not exist"):
        read_document(tmp_path / "none.txt")
    (tmp_path / "dir.txt").mkdir()
    with pytest.raises(DocumentError, match="is not a file"):
        read_document(tmp_path / "dir.txt")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.txt")
        with pytest.raises(DocumentError, match="is not a file"):
            read_document(tmp_path / "pipe.txt")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(DocumentError, match="does not exist"):
        read_document(tmp_path / "broken.txt")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads files of any mode")
def test_a_file_without_read_permission(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "secret")
    path.chmod(0)
    with pytest.raises(DocumentError, match="Permission denied"):
        read_document(path)


def test_a_file_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.txt", "secret")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DocumentError, match=r"a.txt cannot be read: Permission denied. Check its permissions"):
        read_document(path)


def test_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "docs/sub/a.txt", "text")
    document = read_document(path, root=tmp_path / "docs")
    assert document.id == document.metadata["path"] == "sub/a.txt"
    assert document.origin == str(path)
    monkeypatch.chdir(tmp_path)
    assert read_document("docs/sub/a.txt").id == "docs/sub/a.txt"
    assert read_document("docs/sub/a.txt").origin == str(path)
    assert read_document("docs/sub/a.txt", root="docs") == document


def test_bytes_with_a_name_give_the_document_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"# Heading\n\ntext"
    file = read_document(write(tmp_path, "sub/A.MD", data), root=tmp_path)
    metadata = {name: value for name, value in file.metadata.items() if name != "mtime"}
    monkeypatch.setattr(Path, "read_bytes", None)
    assert parse_document(data, "sub/A.MD") == replace(file, metadata=metadata, origin=None)
    assert parse_document(b"text", "a b/stem.txt").title == "stem"
    for name, content, message in (("a.exe", b"x", "no supported kind"), ("a.txt", b" ", "a.txt is empty")):
        with pytest.raises(DocumentError, match=message):
            parse_document(content, name)


def test_touching_a_file_does_not_change_its_document(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "text")
    before = read_document(path)
    os.utime(path, (1, 1))
    after = read_document(path)
    assert content_hash(after) == content_hash(before)
    assert after.metadata == {**before.metadata, "mtime": 1} != before.metadata
    path.write_text("next")
    assert content_hash(read_document(path)) != content_hash(before)


def test_listing_a_folder(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.RST", "sub/deep/d.pdf", ".hidden.txt", ".git/x.txt", "e.exe", "sub/noext"):
        write(tmp_path, name, "x")
    write(tmp_path, "index/m2rag.json", "{}")
    write(tmp_path, "index/x.txt", "x")
    listing = list_folder(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in listing.files]
    assert names == ["a.md", "b.txt", "sub/c.RST", "sub/deep/d.pdf"]
    assert listing.skipped == [f"{tmp_path.as_posix()}/{name}" for name in ("e.exe", "sub/noext")]
    assert listing.unreadable == []


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path, "root/z/a.txt", "x")
    write(tmp_path, "outside/b.txt", "y")
    root = tmp_path / "root"
    (root / "a_link_to_z").symlink_to(root / "z", target_is_directory=True)
    (root / "z" / "loop").symlink_to(root, target_is_directory=True)
    (root / "out").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / "file.txt").symlink_to(tmp_path / "outside" / "b.txt")
    names = [path.relative_to(root).as_posix() for path in list_folder(root).files]
    assert names == ["file.txt", "out/b.txt", "z/a.txt"]


def test_a_subfolder_that_cannot_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt", "x")
    write(tmp_path, "locked/b.txt", "x")
    scandir = os.scandir

    def refuse(folder: Path):
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("m2rag.index.readers.listing.os.scandir", refuse)
    listing = list_folder(tmp_path)
    assert [path.name for path in listing.files] == ["a.txt"]
    ((name, error),) = listing.unreadable
    assert name.endswith("locked") and "Permission denied" in str(error)


def test_every_reader_has_a_lower_case_suffix() -> None:
    """`read_document` looks them up that way."""
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in READERS)


def test_the_pdf_of_these_tests_is_one() -> None:
    assert len(PdfReader(io.BytesIO(pdf(["a", "b"]))).pages) == 2
