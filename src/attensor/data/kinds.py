"""What a file holds, told by its first bytes or by its suffix, before anything else is read of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import PurePath

__all__ = ["TEXT", "Kind", "image_suffixes", "is_image_name", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """What a file holds, in words, and what its owner can do about it; `encoding` if it is text that is no UTF-8."""

    name: str
    remedy: str = ""
    encoding: str = ""


_UNPACK = "Unpack it and give what was inside"
_AS_TEXT = "Save its text in a text file"
_AS_IMAGES = "Images need their suffix and a folder with a sub-folder for each class"
_AS_UTF8 = "If it is text, convert it to UTF-8 (iconv -t UTF-8)"

TEXT = Kind("text")
_NUL = Kind("binary, or UTF-16 without a mark at its beginning", _AS_UTF8)
_BINARY = Kind("binary", _AS_UTF8)

# UTF-32 before UTF-16: the mark of one begins like that of the other
_MARKS = (
    (b"\xff\xfe\0\0", Kind("UTF-32", encoding="utf-32")),
    (b"\0\0\xfe\xff", Kind("UTF-32", encoding="utf-32")),
    (b"\xff\xfe", Kind("UTF-16", encoding="utf-16")),
    (b"\xfe\xff", Kind("UTF-16", encoding="utf-16")),
)
_MAGIC = (
    (0, b"%PDF-", Kind("PDF", "Convert it to text, for instance with pdftotext")),
    (0, b"%!PS", Kind("PostScript", "Convert it to text, or to PNG if it is an image")),
    (0, b"PK\x03\x04", Kind("ZIP archive or Office document", f"{_UNPACK}, or save the document as text")),
    (0, b"PK\x05\x06", Kind("ZIP archive", _UNPACK)),
    (0, b"\xd0\xcf\x11\xe0", Kind("Office document", _AS_TEXT)),
    (0, b"\x1f\x8b", Kind("gzip archive", _UNPACK)),
    (0, b"BZh", Kind("bzip2 archive", _UNPACK)),
    (0, b"\xfd7zXZ\0", Kind("xz archive", _UNPACK)),
    (0, b"7z\xbc\xaf", Kind("7z archive", _UNPACK)),
    (0, b"Rar!", Kind("RAR archive", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", Kind("zstd archive", _UNPACK)),
    (257, b"ustar", Kind("tar archive", _UNPACK)),
    (0, b"PAR1", Kind("Parquet table", _AS_TEXT)),
    (0, b"ARROW1", Kind("Arrow table", _AS_TEXT)),
    (0, b"SQLite format 3\0", Kind("SQLite database", _AS_TEXT)),
    (0, b"\x89HDF\r\n", Kind("HDF5 file", _AS_TEXT)),
    (0, b"\x93NUMPY", Kind("NumPy array", "Save it as an image, or as text")),
    (0, b"\x7fELF", Kind("program", "Leave it out")),
    (0, b"\x89PNG", Kind("PNG image", _AS_IMAGES)),
    (0, b"\xff\xd8\xff", Kind("JPEG image", _AS_IMAGES)),
    (0, b"GIF8", Kind("GIF image", _AS_IMAGES)),
    (8, b"WEBP", Kind("WebP image", _AS_IMAGES)),
    (4, b"ftypheic", Kind("HEIC image", "Convert it to PNG or JPEG")),
    (4, b"ftyp", Kind("video or AVIF image", _AS_IMAGES)),
)
_SNIFF = 4 * 1024  # bytes that are looked at
# no text in any encoding has them often: those of C0 that neither move the cursor nor shift to other characters
_CONTROL = bytes(b for b in (*range(1, 32), 127) if b not in b"\b\t\n\v\f\r\x0e\x0f\x1b")
_CONTROL_SHARE = 0.03  # a tenth of random bytes; log files hold some


def kind_of(head: bytes) -> Kind:
    """What a file with such first bytes holds, 4 KiB being enough; `TEXT` where nothing speaks against it."""
    head = head[:_SNIFF]
    for mark, kind in _MARKS:
        if head.startswith(mark):
            return kind
    for place, magic, kind in _MAGIC:
        if head.startswith(magic, place):
            return kind
    if b"\0" in head:
        return _NUL
    return _BINARY if len(head) - len(head.translate(None, _CONTROL)) > max(1, _CONTROL_SHARE * len(head)) else TEXT


# what Pillow can open, should it be missing: only to say that it is
_WITHOUT_PILLOW = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
# these need another program, or are no images as a rule
_NOT_ALONE = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, with their dot and in small letters, of the formats that Pillow reads without another program."""
    try:
        from PIL import Image
    except ImportError:
        return _WITHOUT_PILLOW
    suffixes = Image.registered_extensions().items()
    # several photographs in one file: opened as JPEG, and so not registered
    return frozenset(s for s, name in suffixes if name in Image.OPEN and name not in _NOT_ALONE) | {".mpo"}


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its suffix, in any case."""
    return PurePath(name).suffix.lower() in image_suffixes()
