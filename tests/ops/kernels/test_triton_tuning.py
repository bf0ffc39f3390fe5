"""Tile sizes fit the device; kernels compile for GPUs that are not here, within the shared memory foreseen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels are written in triton")

from attensor.ops.linear_attention.triton.tuning import fitting, padded

RTX_4090, H100 = 101376, 232448
CONFIGS = [
    SimpleNamespace(kwargs={"BX": tile}, num_stages=stages, num_warps=4) for tile in (32, 64, 128) for stages in (2, 3)
]


def kept(width: int, available: int) -> list[tuple[int, int]]:
    def shared(sizes: Mapping[str, Any]) -> tuple[int, int]:
        return 512 * sizes["BX"] * sizes["X"] // sizes["X"], 2048

    found = fitting(CONFIGS, {"X": width}, {"BX": "X"}, shared, available)
    return [(config.kwargs["BX"], config.num_stages) for config in found]


def test_configs_that_need_too_much_shared_memory_are_left_out() -> None:
    assert kept(256, H100) == [(32, 2), (32, 3), (64, 2), (64, 3), (128, 2), (128, 3)]
    assert kept(256, RTX_4090) == [(32, 2), (32, 3), (64, 2), (64, 3), (128, 2)]
    assert kept(256, 50000) == [(32, 2), (32, 3), (64, 2)]


def test_tiles_wider_than_the_head_are_left_out_and_one_config_always_stays() -> None:
    assert kept(33, H100) == [(32, 2), (32, 3), (64, 2), (64, 3)]
    assert kept(5, H100) == [(32, 2)]
    assert kept(256, 100) == [(32, 2)]


@pytest.mark.parametrize(("size", "tile"), [(1, 16), (16, 16), (17, 32), (64, 64), (100, 128)])
def test_tiles_are_powers_of_two_that_matrix_units_take(size: int, tile: int) -> None:
    assert padded(size) == tile


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "stages"), [(80, 1), (90, 3)])
def test_kernels_compile_for_a_gpu(capability: int, stages: int) -> None:
    """In a process of its own, because this one may interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.kernels.compile_kernels", str(capability), str(stages)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout)
    assert len({row["kernel"] for row in rows}) == 7
    assert [row for row in rows if row["shared"] > row["foreseen"]] == []
