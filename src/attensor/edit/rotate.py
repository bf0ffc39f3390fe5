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
    if moment is not None and how != "pca":
        check_float("rotation", "moment", moment, moment, "itself")
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
    check_moment("rotation", "moment", moment, rank)
    vectors: Tensor = torch.linalg.eigh(moment.double()).eigenvectors
    return vectors.flip(1)


def check_moment(
    name: str, argument: str, moment: Tensor, rank: int, remedy: str = "edit.latent_moments of the same model"
) -> None:
    """Refuse what is no finite floating [R, R].

    Raises:
        TypeError, ShapeError, ValueError: another dtype, size, or NaN.
    """
    check_float(name, argument, moment, moment, "itself")
    if list(moment.shape) != [rank, rank]:
        raise ShapeError(f"{name}: {argument} must be [R, R] = {[rank, rank]}, got {list(moment.shape)}; use {remedy}.")
    if moment.is_meta or not moment.isfinite().all():
        raise ValueError(f"{name}: {argument} must be finite, got NaN, infinity or no numbers; use {remedy}.")


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

    def observe(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            latent = normed_latents(modules[f"{name}{_NORM.partition('.')[0]}"], output)
            total, count = found.get(name, (torch.zeros_like(latent.mT @ latent), 0))
            if len(latent):
                found[name] = (total + latent.mT @ latent, count + len(latent))

        return hook

    with hooked({modules[f"{name}{_DOWN}"]: observe(name) for name in latent_layers(modules)}):
        yield


def latent_layers(modules: Mapping[str, Any], who: str = "latent_moments") -> list[str]:
    """Names of the latent layers among those of modules, each with the dot behind it.

    Raises:
        ValueError: there is none.
    """
    found = [name.removesuffix(_DOWN) for name in modules if name.rpartition(".")[2] == _DOWN]
    if not found:
        raise ValueError(f"{who}: model has no layer with a {_DOWN}; it needs multi-head latent attention.")
    for name in found:
        if isinstance(modules.get(f"{name}{_NORM.partition('.')[0]}"), nn.Identity):
            raise ValueError(
                f"{who}: {name!r} has latents without a norm (kv_norm=False), as those made of softmax attention; "
                "edit.gqa_to_latent makes them with one."
            )
    return found


def normed_latents(norm: nn.Module, projected: Tensor) -> Tensor:
    """Latents by norm and without its weight, float64 [tokens, R], of what the projection gives with rotary keys."""
    weight: Any = norm.weight
    latent = projected[..., : weight.shape[-1]].flatten(0, -2).double()
    return latent * (latent.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


@contextmanager
def hooked(hooks: Mapping[nn.Module, Any], *, with_kwargs: bool = False) -> Iterator[None]:
    """Forward hooks of modules, for a while."""
    handles = [module.register_forward_hook(hook, with_kwargs=with_kwargs) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
        ValueError, ShapeError: a layer whose norm or up-projection is not in the state_dict, or of other sizes.
    """
    turned, slicings = dict(state_dict), {}
    for key in [key for key in state_dict if key.endswith(f"{_DOWN}.weight")]:
        name = key.removesuffix(f"{_DOWN}.weight")
        _check_whole(name, state_dict)
        gain = state_dict[f"{name}{_NORM}"]
        check_layer(name, gain, groups)
        moment = moment_of(moments, name, len(gain), is_needed=how == "pca")
        matrix = rotation(how, len(gain), moment=moment, seed=seed).to(gain.device)
        names = [key, f"{name}{_DOWN}.bias", f"{name}{_NORM}", f"{name}{_UP}"]
        turned.update({one: turned_tensor(one, state_dict[one], matrix, gain) for one in names if one in state_dict})
        slicings[name] = Slicing(groups, slice_norms(moment, matrix, groups))
    return turned, slicings


def _check_whole(name: str, state_dict: Mapping[str, Tensor]) -> None:
    """Refuse a layer of which a part is missing, or no matrix beside a norm of R numbers."""
    parts = [f"{name}{part}" for part in (_NORM, f"{_DOWN}.weight", _UP)]
    if absent := [part for part in parts if part not in state_dict]:
        raise ValueError(f"rotate_latent: state_dict must have {absent[0]!r}; give layers whole.")
    gain, down, up = (state_dict[part] for part in parts)
    for part, x in zip(parts, (gain, down, up)):
        check_float("rotate_latent", f"state_dict[{part!r}]", x, x, "itself")
    if gain.ndim == 1 and (down.ndim != 2 or len(down) < len(gain) or up.ndim != 2 or up.shape[1] != len(gain)):
        raise ShapeError(
            f"rotate_latent: state_dict of {name!r} must have a norm [R], {_DOWN} [R + D, C] and {_UP} [.., R], got "
            f"{list(gain.shape)}, {list(down.shape)} and {list(up.shape)}; give those of one layer."
        )


def check_layer(name: str, gain: Tensor, groups: int) -> None:
    """Refuse a layer that cannot be turned and cut.

    Args:
        name: of the layer.
        gain: the weight of its norm.
        groups: slices.
    Raises:
        ValueError: several latents a token, or slices that do not divide the latent.
    """
    if gain.ndim != 1:
        raise ValueError(
            f"rotate_latent: state_dict has {gain.shape[0]} latents a token in {name!r}, each with its norm; it is cut "
            "already, one latent for each device."
        )
    if groups < 1 or len(gain) % groups:
        raise ValueError(f"rotate_latent: groups must divide the latent's width {len(gain)}, got {groups}.")


def turned_tensor(name: str, tensor: Tensor, matrix: Tensor, gain: Tensor) -> Tensor:
    """A tensor of a latent layer in the new basis, in its own dtype; what is none of the four passes.

    Args:
        name: of the tensor, which says what it is.
        tensor: as it is.
        matrix: U, float64 [R, R].
        gain: [R], the weight of the layer's norm before.
    """
    if name.endswith((f"{_DOWN}.weight", f"{_DOWN}.bias")):
        latent, rotary = torch.split(tensor, [len(matrix), len(tensor) - len(matrix)])  # those of the rotary key stay
        return torch.cat([(matrix.mT @ latent.double()).to(tensor.dtype), rotary])
    if name.endswith(_UP):
        return (tensor.double() * gain.double() @ matrix).to(tensor.dtype)
    return torch.ones_like(tensor) if name.endswith(_NORM) else tensor


def moment_of(moments: Mapping[str, Tensor] | None, name: str, rank: int, *, is_needed: bool) -> Tensor | None:
    """The moment of a layer whose latent has `rank` numbers; None where there are none and none is needed.

    Raises:
        ValueError: it is missing. ShapeError, TypeError: another size or dtype.
    """
    moment = None if moments is None else moments.get(name)
    if moment is None and (is_needed or moments is not None):
        raise ValueError(f"rotate_latent: moments must have an entry for {name!r}; use edit.latent_moments.")
    if moment is not None:
        check_moment("rotate_latent", f"moments[{name!r}]", moment, rank)
    return moment


def slice_norms(moment: Tensor | None, matrix: Tensor, groups: int) -> tuple[float, ...]:
    """All energy over that of each slice; 0 for a slice that holds nothing, which then stays nothing.

    Args:
        moment: [R, R] of the latents before they are turned; None where the energies are taken to be equal.
        matrix: U, [R, R].
        groups: slices.
    """
    if moment is None:
        return (float(groups),) * groups
    energies = (matrix * (moment.to(matrix) @ matrix)).sum(0).clamp(min=0).view(groups, -1).sum(1)
    total = energies.sum()
    return tuple(float(total / energy) if energy > 1e-12 * total else 0.0 for energy in energies)
