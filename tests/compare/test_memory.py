"""Free memory is the system's or the container's, whichever is less; numbers are written for people."""

from __future__ import annotations

import pytest

from attensor.bench import available
from attensor.bench.available import available_bytes
from attensor.compare.words import enumerated, readable_count


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine with 8 GB free, in a container of 4 GB with 3 GB used, of which 1 GB are old file pages."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    for name, text in {
        "max": "4000000000\n",
        "current": "3000000000\n",
        "stat": "anon 5\ninactive_file 1000000000\n",
    }.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(available, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(available, "_CONTROL_GROUP", tmp_path)
    return tmp_path


def test_the_containers_limit_counts(system):
    assert available_bytes("cpu") == 2_000_000_000


def test_without_a_limit_the_system_counts(system):
    (system / "memory.max").write_text("max\n")
    assert available_bytes("cpu") == 8_000_000 * 1024


def test_where_nothing_is_said_nothing_is_known(system):
    (system / "memory.max").unlink()
    (system / "meminfo").unlink()
    assert available_bytes("cpu") is None


def test_sizes_are_readable():
    assert [readable_count(n) for n in (7, 123_456, 1_500_000, 2e9)] == [
        "7",
        "123 thousand",
        "1.5 million",
        "2 billion",
    ]
    assert [enumerated(x) for x in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
