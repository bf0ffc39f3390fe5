"""timm for the tests that compare with it, which are skipped where it is not installed."""

from __future__ import annotations

from typing import Any

import pytest

from attensor.bench.apart import LeftOut
from attensor.bench.contestants import timm_peer
from attensor.bench.contestants.timm_peer import randomise as randomise


def load_timm() -> Any:
    """timm, or skip the calling tests with the reason."""
    try:
        return timm_peer.load_timm()
    except LeftOut as error:
        pytest.skip(f"{error}: pip install --no-deps timm==1.0.31", allow_module_level=True)
