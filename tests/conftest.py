"""What holds for every test: one thread, the same random numbers, nothing left over from the test before."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

# Without a GPU Triton's kernels run in its interpreter, which has to be known before triton or attensor is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)

# Found counterexamples belong into a test of their own; the search itself repeats from run to run.
settings.register_profile("attensor", deadline=None, derandomize=True, database=None)
settings.load_profile("attensor")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
