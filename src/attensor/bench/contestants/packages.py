"""Other people's modules, looked up when they are asked for; who is absent is a reason, not an error."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attensor.bench.apart import LeftOut, brief

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["FLEX_HAS_NO_BACKWARD", "causal_blocks", "fla_naive", "heads_first", "load", "load_for_gpu"]

FLEX_HAS_NO_BACKWARD = "FlexAttention has no backward pass on a CPU"


def load(module: str, package: str) -> ModuleType:
    """Somebody else's module.

    Args:
        module: dotted name.
        package: what to install for it.
    Raises:
        LeftOut: it is not there, or cannot be imported.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise LeftOut(f"{package} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations
        try:
            return importlib.import_module(module)
        except Exception as error:  # a broken installation of a peer must not end the benchmark
            raise LeftOut(f"{module} cannot be imported: {brief(error)}") from error


def load_for_gpu(device: str, module: str, package: str) -> ModuleType:
    """The same for a module whose kernels need a GPU."""
    if importlib.util.find_spec(module.partition(".")[0]) is not None and device == "cpu":
        raise LeftOut("needs a GPU")
    return load(module, package)


def fla_naive(family: str) -> ModuleType:
    """`fla/ops/<family>/naive.py` alone, as importing its package would need triton."""
    package = importlib.util.find_spec("fla")
    if package is None or not package.submodule_search_locations:
        raise LeftOut("fla-core is not installed")
    path = Path(package.submodule_search_locations[0], "ops", family, "naive.py")
    spec = importlib.util.spec_from_file_location(f"attensor_peer_{family}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise LeftOut(f"this fla-core has no ops/{family}/naive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def heads_first(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of [B, H, T, D] as one of [B, T, H, D], its output too."""
    return lambda *tensors: attend(*(x.transpose(1, 2) for x in tensors)).transpose(1, 2)


def causal_blocks(length: int, device: str = "cpu") -> BlockMask:
    """FlexAttention's causal mask by blocks of 128, without the T x T mask that `create_block_mask` goes through."""
    from torch.nn.attention.flex_attention import BlockMask

    count = -(-length // 128)
    block = torch.arange(count, dtype=torch.int32, device=device)
    diagonal_first = ((block[:, None] + block) % count).to(torch.int32)[None, None].contiguous()
    return BlockMask.from_kv_blocks(
        torch.ones_like(block)[None, None],
        diagonal_first,
        block[None, None].contiguous(),  # whole blocks before the diagonal one
        block.expand(count, count)[None, None].contiguous(),
        BLOCK_SIZE=128,
        mask_mod=lambda batch, head, i, j: i >= j,
        seq_lengths=(length, length),
    )
