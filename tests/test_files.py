"""A file is whole or absent, a folder new or held by one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attensor.files import (
    RUN_MARK,
    DamagedFileError,
    atomic_path,
    locked,
    new_folder,
    read_json,
    user_path,
    write_json,
    write_text,
)


def test_json_round_trips(tmp_path):
    value = {"a": [1, 2.5, None], "b": "é"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert [f.name for f in tmp_path.iterdir()] == ["x.json"]


def test_an_absent_file_is_none(tmp_path):
    assert read_json(tmp_path / "x.json") is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 99_999], ids=["empty", "cut", "bytes", "deep"])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"x\.json: is damaged \(.*\)\. Delete it"):
        read_json(tmp_path / "x.json")


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*x\.json'"), atomic_path(tmp_path / "x.json"):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("text", ["", "  ", "https://a.b/c", "file:///c", "~nosuchuser/x"])
def test_what_is_no_path_is_refused(text):
    with pytest.raises(ValueError, match=rf"--data {text.strip()}"):
        user_path(text, "--data")


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("https://a.b/c/tiny.txt", "curl -fLO https://a.b/c/tiny.txt  then: --data ./tiny.txt"),
        ("http://a.b/my%20text", "curl -fLO http://a.b/my%20text  then: --data ./my%20text"),
        ("https://a.b/?id=3", "curl -fL 'https://a.b/?id=3' -o ./data.txt  then: --data ./data.txt"),
        ("https://a.b/x.txt?raw=true", "curl -fL 'https://a.b/x.txt?raw=true' -o ./x.txt  then: --data ./x.txt"),
        ("https://a.b/x.tar.gz", "curl -fLO https://a.b/x.tar.gz && mkdir data && tar -C data -xf ./x.tar.gz  then: "),
        ("https://a.b/x.txt.gz", "curl -fLO https://a.b/x.txt.gz && mkdir data && gunzip -c ./x.txt.gz > data/text"),
        ("https://a.b/x.zip", "&& mkdir data && unzip -d data ./x.zip  then: --data ./data"),
        ("https://a.b/$(rm x);y", "curl -fLO 'https://a.b/$(rm x);y'  then: --data './$(rm x);y'"),
        ("file:///etc/two%20words", "Give the path alone: --data '/etc/two words'"),
        ("s3://bucket/x", "with the program that reads such addresses"),
    ],
)
def test_an_address_is_refused_with_what_to_type_instead(address, remedy):
    """The line can be pasted: nothing in an address is run by the shell."""
    with pytest.raises(ValueError, match=re.escape(f"--data {address}: is an address and not a path. ")) as refused:
        user_path(address, "--data")
    assert remedy in str(refused.value)


def test_a_path_is_absolute_and_its_links_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of/somebody")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert user_path("loop", "--data") == tmp_path / "loop"
    assert user_path("~/x", "--data") == Path("/home/of/somebody/x")


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


def test_a_folder_is_held_by_one(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="another attensor works in this folder"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
    with locked(tmp_path), locked(tmp_path, name=".another"):
        pass


def test_a_folder_that_is_there_is_not_taken_again(tmp_path):
    made = [new_folder(tmp_path / "runs", "now").name for _ in range(3)]
    assert made == ["now", "now-1", "now-2"]


def test_a_name_that_is_no_utf_8_can_be_written(tmp_path):
    write_text(tmp_path / "x.txt", "a\udcffé")
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "a?é"


def test_a_run_folder_is_marked(tmp_path):
    assert (new_folder(tmp_path, "run") / RUN_MARK).exists()
