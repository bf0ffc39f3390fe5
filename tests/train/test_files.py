"""A file is whole or absent."""

from __future__ import annotations

import pytest

from attensor.train.files import atomic_path, read_json, write_json


def test_json_round_trips(tmp_path):
    value = {"a": [1, 2.5, None], "b": "é"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert [f.name for f in tmp_path.iterdir()] == ["x.json"]


def test_an_absent_file_is_none(tmp_path):
    assert read_json(tmp_path / "x.json") is None


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, 1)

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("hal")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert read_json(path) == 1
    assert [f.name for f in tmp_path.iterdir()] == ["x.json"]


def test_not_a_number_is_refused(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    assert read_json(tmp_path / "x.json") == 1
