"""What holds for every test: one thread, the same random numbers, nothing left over from the test before."""

from __future__ import annotations

import os
from collections.abc import Iterator

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


@pytest.fixture(params=["cpp", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """A back-end of `linear_attention` on a CPU; C++ as what is taken unasked, because other operators have none."""
    # here, because the interpreter has to be set above
    import attensor
    from attensor.ops._operator import OPERATORS
    from attensor.ops._native.compiler import compiler

    if request.param == "cpp":
        if compiler() is None:
            pytest.skip("there is no C++ compiler")
        assert OPERATORS["linear_attention"].best(torch.device("cpu")) == "cpp"
        yield "cpp"
    else:
        with attensor.backend(request.param):
            yield request.param
