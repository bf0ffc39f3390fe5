"""Measurements that run inside the process of the tests leave its allocator as other tests expect it."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def allocator_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set for a process cannot be taken back: tests of peak memory in the same process would see less."""
    monkeypatch.setattr("attensor.compare.measure.keep_freed_memory", lambda: None)
