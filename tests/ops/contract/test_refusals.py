"""Laws of refusals: a tensor that no operator can take is named in the error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.ops.contract.contract import Contract
from tests.ops.contract.inputs import ALLOWED
from tests.ops.contract.laws import EVERY_OPERATOR
from torch import Tensor

BAD: dict[str, Callable[[Tensor], Tensor]] = {
    "of another rank": lambda x: x[None, None],
    "of integers": lambda x: x.double() if x.dtype == torch.int64 else x.long(),
    "of another size": lambda x: torch.nn.functional.pad(x, (0, 3)),
    "of eight bits": lambda x: x.to(torch.float8_e4m3fn if x.is_floating_point() else torch.uint8),
    "elsewhere": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("fault", BAD)
@EVERY_OPERATOR
def test_a_bad_tensor_is_refused_by_name(contract: Contract, fault: str) -> None:
    for case, make in contract.cases.items():
        inputs = make()
        for name, x in inputs.tensors.items():
            if {name, f"{name} of {contract.name}", f"{name} of {case}"} & ALLOWED.get(fault, set()):
                continue
            with pytest.raises((ValueError, TypeError), match=f"^{contract.name}: "):
                contract.call(contract.function, inputs.replaced({name: BAD[fault](x)}))
