"""A library that is absent is named with the extra that brings it; one that is broken keeps its own error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from attensor.errors import _EXTRAS, MissingExtraError, plain, require


@pytest.mark.parametrize("library", _EXTRAS)
def test_a_missing_library_is_named_with_its_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # what the import system takes for "not there"
    with pytest.raises(MissingExtraError) as caught:
        require(library, purpose="the picture")
    assert str(caught.value) == (
        f'the picture needs {library}, which is not installed: pip install "attensor[{_EXTRAS[library]}]"'
    )
    assert caught.value.name == library


def test_a_missing_part_of_an_absent_library_names_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "jinja2.sandbox", raising=False)
    with pytest.raises(MissingExtraError, match=r"needs jinja2.*attensor\[report\]"):
        require("jinja2.sandbox", purpose="the report")


def test_a_library_that_is_there_is_returned() -> None:
    assert require("json.decoder", purpose="nothing") is sys.modules["json.decoder"]


def test_a_library_that_fails_inside_keeps_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install` would not help there, so the message must not say so."""
    (tmp_path / "broken_library.py").write_text("import something_it_lacks\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_lacks") as caught:
        require("broken_library", purpose="the picture")
    assert not isinstance(caught.value, MissingExtraError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\n  lines\tand words", "two lines and words"),
        ("\x1b]0;title\x07\x1b[31mred\x9b", r"\x1b]0;title\x07\x1b[31mred\x9b"),
        ("\u202e\u4e2d\udcff", r"\u202e\u4e2d".replace(r"\u4e2d", "\u4e2d") + r"\udcff"),
        ("x" * 99_999, "x" * 500 + " ..."),
    ],
    ids=["lines", "escapes", "letters", "long"],
)
def test_text_of_somebody_else_is_one_line_that_moves_no_cursor(text: str, shown: str) -> None:
    assert plain(text) == shown
