"""Other people's functions, looked up when they are asked for; who is absent is a reason, not an error."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.bench.apart import LeftOut, brief

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["FLEX", "causal_blocks", "fla_naive", "flex", "heads_first", "load", "sdpa"]

# What `Peer` is told of FlexAttention.
FLEX: dict[str, Any] = {"compiles": True, "no_backward": "FlexAttention has no backward pass on a CPU"}


def load(module: str, package: str, device: str = "cuda") -> ModuleType:
    """Somebody else's module.

    Args:
        module: dotted name.
        package: what to install for it.
        device: where kernels are to run that need a GPU.
    Raises:
        LeftOut: it is not there, or cannot be imported, or there is no use for it.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise LeftOut(f"{package} is not installed")
    if device == "cpu":
        raise LeftOut("needs a GPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations
        try:
            return importlib.import_module(module)
        except Exception as error:  # a broken installation of a peer must not end the benchmark
            raise LeftOut(f"{module} cannot be imported: {brief(error)}") from error


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


def sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """PyTorch's softmax attention of [B, T, H, D] with its options."""
    return heads_first(partial(F.scaled_dot_product_attention, **options))(q, k, v)


def flex(**options: Any) -> Callable[..., Tensor]:
    """FlexAttention of [B, T, H, D] with its options, compiled for one size alone."""
    from torch.nn.attention.flex_attention import flex_attention

    # or the sizes before would count against the number of recompilations, and those to come be dynamic
    torch.compiler.reset()
    compiled = heads_first(partial(torch.compile(flex_attention, fullgraph=True), **options))
    # on a CPU it refuses whatever could be differentiated, even where nothing is
    return lambda *tensors: compiled(*(x.detach() if x.device.type == "cpu" else x for x in tensors))


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
