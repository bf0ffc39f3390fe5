"""Fixtures of several operators."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import attensor


@pytest.fixture(params=["fft", "tiles", "tiles in torch"])
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    """An algorithm of `relative_kernel_attention`; its tiles are C++ where that can be compiled, else torch."""
    if request.param == "tiles in torch":
        with attensor.backend("torch"):
            yield "tiles"
    else:
        yield request.param


@pytest.fixture
def unread_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of packed sequences are let through, as where a compiler watches or they lie on a GPU."""
    monkeypatch.setattr("attensor.ops._checks._check_bounds", lambda *arguments: None)
