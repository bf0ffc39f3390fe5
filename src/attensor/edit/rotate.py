r"""Another basis for the latents of multi-head latent attention: the same model, ready to be cut into slices.

The norm's weight g moves into what reads the latent, and any orthogonal U may then turn the latent, because a norm
without weights does not see it:

    RMSNorm_g(c) = RMSNorm_1(c) diag(g),   RMSNorm_1(c) = RMSNorm_1(c U) U^T
    W_down' = W_down U,   W_up' = W_up diag(g) U,   g' = 1

Which U makes no difference to the whole latent's attention, and all the difference to slices of it (`nn.Slicing`).
Sizes: R width of the latent. Source: arXiv:2508.15881, section 3.2, in the rows and columns of a state_dict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.nn._shapes import check_range
from attensor.nn.latent import Slicing
from attensor.ops._checks import check_float, checked

__all__ = ["latent_moments", "rotate_latent", "rotation"]

_DOWN, _NORM, _UP = "kv_a_proj_with_mqa", "kv_a_layernorm.weight", "kv_b_proj.weight"
How = Literal["identity", "hadamard", "pca"]


@checked
def rotation(how: How, rank: int, *, moment: Tensor | None = None, seed: int = 0) -> Tensor:
    """An orthogonal matrix U, float64 [R, R]; latents c become c U.

    Args:
        how: `"identity"`; `"hadamard"`: spreads every channel evenly over all, signs drawn at random; `"pca"`:
            directions in the order of their energy, so that the first slice holds most of it.
        rank: R, below 2^14; for `"hadamard"` a power of two.
        moment: [R, R], second moment of the latents, for `"pca"`.
        seed: of the signs.
    Raises:
        ValueError: an unknown kind, no power of two, or no moment. ShapeError: a moment of another size.
    """
    check_range("rotation", 1, 2**14, rank=rank)
    if moment is not None:
        check_float("rotation", "moment", moment, moment, "moment")
    if how == "identity":
        return torch.eye(rank, dtype=torch.float64)
    if how == "hadamard":
        if rank < 1 or rank & (rank - 1):
            raise ValueError(f"rotation: rank must be, for 'hadamard', a power of two, got {rank}; 'pca' takes others.")
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while matrix.shape[0] < rank:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        signs = torch.randint(0, 2, (rank, 1), generator=torch.Generator().manual_seed(int(seed))) * 2 - 1
        return signs * matrix / math.sqrt(rank)
    if how != "pca":
        raise ValueError(f"rotation: how must be 'identity', 'hadamard' or 'pca', got {how!r}.")
    if moment is None:
        raise ValueError("rotation: 'pca' needs the second moment of the latents; use edit.latent_moments.")
    if list(moment.shape) != [rank, rank]:
        raise ShapeError(f"rotation: moment must be [R, R] = {[rank, rank]}, got {list(moment.shape)}.")
    if moment.is_meta or not moment.isfinite().all():
        raise ValueError(
            "rotation: moment must be finite, got NaN or infinity; use edit.latent_moments of a sound model."
        )
    vectors: Tensor = torch.linalg.eigh(moment.double()).eigenvectors
    return vectors.flip(1)


@checked
def latent_moments(model: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Second moments of every latent layer's latents, by norm and without its weight, so that tokens count alike.

    Args:
        model: with layers like `nn.LatentAttention` or transformers' DeepSeek attention, in any places.
        batches: inputs; each is handed to `model(batch)`, or `model(**batch)` if it is a mapping.
    Returns:
        Name of each latent layer -> float64 [R, R], the mean over all tokens.
    Raises:
        ValueError: no such layer, or no tokens.
    """
    found: dict[str, tuple[Tensor, int]] = {}
    with torch.no_grad(), _observed(model, found):
        for batch in batches:
            model(**batch) if isinstance(batch, Mapping) else model(batch)
    if not found:
        raise ValueError("latent_moments: batches must hold a token, got none; pass text of the model's use.")
    return {name: total / count for name, (total, count) in found.items()}


@contextmanager
def _observed(model: nn.Module, found: dict[str, tuple[Tensor, int]]) -> Iterator[None]:
    modules = dict(model.named_modules())
    downs = [name for name in modules if name.rpartition(".")[2] == _DOWN]
    if not downs:
        raise ValueError(f"latent_moments: model has no layer with a {_DOWN}; it needs multi-head latent attention.")

    def observe(name: str) -> Any:
        rank = modules[f"{name}{_NORM.partition('.')[0]}"].weight.shape[0]

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            latent = output[..., :rank].flatten(0, -2).double()
            latent = latent * (latent.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
            total, count = found.get(name, (torch.zeros(rank, rank, dtype=torch.float64, device=latent.device), 0))
            if len(latent):
                found[name] = (total + latent.mT @ latent, count + len(latent))

        return hook

    hooks = [modules[down].register_forward_hook(observe(down.removesuffix(_DOWN))) for down in downs]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@checked
def rotate_latent(
    state_dict: Mapping[str, Tensor],
    how: How = "pca",
    *,
    groups: int = 2,
    moments: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict[str, Slicing]]:
    """A checkpoint in another basis of its latents, and how each layer's latent may then be sliced.

    Args:
        state_dict: of a model, or a shard of one that holds layers whole; what is no latent layer passes as it is.
        how: see `rotation`.
        groups: slices, a divisor of R.
        moments: of each layer, as `latent_moments` names them; `"pca"` needs them, the others take energies from them.
        seed: of the signs of `"hadamard"`.
    Returns:
        The state_dict, which computes the same in exact arithmetic, in the dtypes it had; and name of each latent layer
        -> `Slicing` with the norms that its energies ask for (without moments: `groups` for each slice).
    Raises:
        ValueError: groups do not divide the latent, a layer without its moment, or what `rotation` refuses.
        KeyError: a layer whose norm or up-projection is not in the state_dict.
    """
    turned, slicings = dict(state_dict), {}
    for key in [key for key in state_dict if key.endswith(f"{_DOWN}.weight")]:
        name = key.removesuffix(f"{_DOWN}.weight")
        weight = state_dict[f"{name}{_NORM}"]
        rank = weight.shape[0]
        if groups < 1 or rank % groups:
            raise ValueError(f"rotate_latent: groups must divide the latent's width {rank}, got {groups}.")
        moment = _moment_of(moments, name, is_needed=how == "pca")
        matrix = rotation(how, rank, moment=moment, seed=seed).to(weight.device)
        for down in (key, f"{name}{_DOWN}.bias"):
            if down in state_dict:
                turned[down] = _turned_rows(state_dict[down], matrix)
        up = state_dict[f"{name}{_UP}"]
        turned[f"{name}{_UP}"] = (up.double() * weight.double() @ matrix).to(up.dtype)
        turned[f"{name}{_NORM}"] = torch.ones_like(weight)
        slicings[name] = Slicing(groups, _norms(moment, matrix, groups))
    return turned, slicings


def _moment_of(moments: Mapping[str, Tensor] | None, name: str, *, is_needed: bool) -> Tensor | None:
    moment = None if moments is None else moments.get(name)
    if moment is None and (is_needed or moments is not None):
        raise ValueError(f"rotate_latent: moments must have an entry for {name!r}; use edit.latent_moments.")
    return moment


def _turned_rows(weight: Tensor, matrix: Tensor) -> Tensor:
    """The first R rows turned; those of the rotary key behind them stay."""
    latent, rotary = torch.split(weight, [len(matrix), len(weight) - len(matrix)])
    return torch.cat([(matrix.mT @ latent.double()).to(weight.dtype), rotary])


def _norms(moment: Tensor | None, matrix: Tensor, groups: int) -> tuple[float, ...]:
    """All energy over that of each slice; 0 for a slice that holds nothing, which then stays nothing."""
    if moment is None:
        return (float(groups),) * groups
    energies = (matrix * (moment.to(matrix) @ matrix)).sum(0).clamp(min=0).view(groups, -1).sum(1)
    total = energies.sum()
    return tuple(float(total / energy) if energy > 1e-12 * total else 0.0 for energy in energies)
