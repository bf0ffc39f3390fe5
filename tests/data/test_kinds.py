"""Files by what they hold: text of any encoding is read, else it is refused with what to do; and strange sources."""

from __future__ import annotations

import random

import pytest

from attensor.data.kinds import TEXT, kind_of
from attensor.errors import DataError
from tests.data.made import opened, texts, write

MAGIC = {
    "PDF": b"%PDF-1.7\n" + b"1 0 obj <</Type /Catalog>>\n" * 40,
    "Office document": b"PK\x03\x04" + b"word/document.xml" * 40,
    "ZIP": b"PK\x05\x06" + b"x" * 30,
    "gzip": b"\x1f\x8b" + b"x" * 99,
    "Parquet": b"PAR1" + b"x" * 99,
    "zstd": b"\x28\xb5\x2f\xfd" + b"x" * 99,
    "tar": b"name".ljust(257, b"x") + b"ustar" + b"x" * 99,
    "PNG": b"\x89PNG\r\n\x1a\n" + b"x" * 99,
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n" + b"0 0 moveto\n" * 40,
    "program": b"\x7fELF" + b"x" * 99,
    "binary": bytes(random.Random(1).choices(range(1, 256), k=999)),
}


@pytest.mark.parametrize("name", MAGIC)
@pytest.mark.parametrize("form", ["file", "folder"])
def test_what_is_no_text_is_refused_by_kind_with_the_remedy(tmp_path, name, form):
    path = tmp_path / "x" if form == "folder" else tmp_path / "0.dat"
    for i in range(3 if form == "folder" else 1):
        write((path / f"{i}.dat") if form == "folder" else path, MAGIC[name])
    with pytest.raises(DataError, match=rf"{name}.*\. \w.*\.$") as error:
        opened(path)
    assert repr(str(path)) in str(error.value)
    assert "0.dat" in str(error.value)


LEGACY = ["latin-1", "cp1252", "koi8-r", "shift_jis", "gb18030", "big5", "euc-kr", "iso2022_jp", "utf-7", "utf-8-sig"]


@pytest.mark.parametrize("encoding", LEGACY)
def test_text_in_any_encoding_is_text(encoding):
    letters = "\u0430\u0431\u0432 \u65e5\u672c\u8a9e \uac00\ub098 na\u00efve \u00fcber\t\x1b[1mbold\x1b[0m\r\n" * 30
    assert kind_of(letters.encode(encoding, "ignore")) == TEXT
    assert kind_of(bytes(range(128, 256)) * 9) == TEXT


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("form", ["file", "folder", "mixed"])
def test_utf_16_and_32_with_a_mark_are_read_as_their_utf_8_twins(tmp_path, encoding, form):
    own, other = {"file": ("a", ""), "folder": ("abcdefghijklm", ""), "mixed": ("abcdefg", "hijklm")}[form]
    texts(tmp_path / "twin/x", own + other)
    texts(tmp_path / "in/x", own, encoding)
    texts(tmp_path / "in/x", other)
    place = "x/a.txt" if form == "file" else "x"
    data, twin = opened(tmp_path / "in" / place), opened(tmp_path / "twin" / place)
    assert data.notes == ()
    for side in ("train", "selection", "test"):
        size = getattr(twin, f"{side}_bytes")
        assert getattr(data, f"{side}_bytes") == size
        assert getattr(data, f"_{side}").read(0, size) == getattr(twin, f"_{side}").read(0, size)
    assert data.train_bytes > 3 * data.test_bytes > 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "source is empty; give a path"),
        (" ", "source is empty; give a path"),
        ("~nosuchuser/data", "there is no user nosuchuser"),
        ("https://example.org/data.txt", "curl -fLO https://example.org/data.txt  then: "),
        ("s3://bucket/data", "is an address and not a path. Copy it"),
        ("file:///etc/hostname", "is an address and not a path"),
        ("a\0b", "null"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_strange_sources_are_refused_by_name(source, message):
    with pytest.raises(DataError, match=message):
        opened(source)


def test_a_loop_of_links_is_refused_by_name(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for name in ("a", "a/c"):
        with pytest.raises(DataError, match=f"{tmp_path}/{name}' cannot be read: Too many levels"):
            opened(tmp_path / name)
