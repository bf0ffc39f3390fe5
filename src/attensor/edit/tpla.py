r"""Latent attention cut over devices in one step: turned, sliced, with the constants that its own text asks for.

    state, slicings = edit.to_tpla(model, batches, how="pca", groups=2)
    model.load_state_dict(state)                 # computes what it did
    edit.apply_slicings(model, slicings)         # single tokens after a prompt are approximate from here on

Slice j of a latent stands for the whole by two constants of its layer. Its norm's a_j is all energy over that of the
slice, the reciprocal of a share (the paper's formula for PCA gives the share itself, by which norms would be wrong).
Its gain mu_j multiplies the scores of the slice: 1; a_j, which the paper's text says and which lets a weak slice speak
loud; or fitted:

    mu_j = E[s s_j] / E[s_j^2],   s_j = Q_j . c_j,  s = sum_j s_j     over queries and tokens, latents less their mean

the least squares of the whole latent's scores, up to what is the same for all tokens and no softmax sees. Of slices
that do not vary together (`"pca"`) it is 1 but for the mean.
Sizes: R width of the latent. Source: arXiv:2508.15881, sections 3.2 and 3.3; the fit is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from attensor.edit.rotate import (
    How,
    hooked,
    latent_layers,
    latent_moments,
    moment_of,
    normed_latents,
    rotate_latent,
    rotation,
)
from attensor.nn.latent import LatentAttention, Slicing
from attensor.ops._checks import checked

__all__ = ["GAINS", "Gains", "ScoreMoments", "apply_slicings", "score_moments", "slicing_options", "to_tpla"]

Gains = Literal["one", "reciprocal", "fitted"]
GAINS: tuple[Gains, ...] = ("one", "reciprocal", "fitted")


class ScoreMoments(NamedTuple):
    """What scores are made of, float64 [R, R]: the covariance of latents, and the second moment of queries."""

    covariance: Tensor
    queries: Tensor


@checked
def to_tpla(
    model: nn.Module,
    batches: Iterable[Any] = (),
    *,
    how: How = "pca",
    groups: int = 2,
    gains: Gains = "one",
    softmax: bool = True,
    when: Literal["decode", "always"] = "decode",
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict[str, Slicing]]:
    """Weights and slices of a model with latent attention; the model stays as it is.

    Args:
        model: with layers like `nn.LatentAttention` or transformers' DeepSeek attention.
        batches: text of its use, see `latent_moments`; `"identity"` and `"hadamard"` do without: slices count alike.
        how: see `rotation`.
        groups: slices, a divisor of R.
        gains: `"one"`, `"reciprocal"` or `"fitted"`, which needs batches.
        softmax, when: see `Slicing`.
        seed: of the signs of `"hadamard"`.
    Returns:
        The state_dict, which computes the same, for `load_state_dict`; and name of each latent layer -> `Slicing`, for
        `apply_slicings`, or by `slicing_options` for a configuration.
    Raises:
        ValueError: what `rotate_latent` refuses, unknown gains, or no batches where they are needed.
    """
    texts = _texts(batches, how, gains)
    moments = latent_moments(model, texts) if texts else None
    scores = score_moments(model, texts) if gains == "fitted" else {}
    state, slicings = rotate_latent(model.state_dict(), how, groups=groups, moments=moments, seed=seed)
    for name, slicing in slicings.items():
        rank = state[f"{name}kv_a_layernorm.weight"].shape[0]
        moment = moment_of(moments, name, rank, is_needed=False)
        found = _gains(slicing, gains, rotation(how, rank, moment=moment, seed=seed), scores.get(name))
        slicings[name] = replace(slicing, gains=found, softmax=softmax, when=when)
    return state, slicings


def _texts(batches: Iterable[Any], how: How, gains: Gains) -> list[Any]:
    """The batches, to be read more than once; refused where there are none and some are needed."""
    if gains not in GAINS:
        raise ValueError(f"to_tpla: gains must be one of {', '.join(GAINS)}, got {gains!r}.")
    texts = list(batches)
    if not texts and (how == "pca" or gains == "fitted"):
        asking = "how='pca'" if how == "pca" else "gains='fitted'"
        raise ValueError(f"to_tpla: {asking} needs batches, text of the model's use, got none.")
    return texts


def _gains(slicing: Slicing, kind: Gains, matrix: Tensor, scores: ScoreMoments | None) -> tuple[float, ...] | None:
    if kind == "reciprocal":
        return slicing.norms
    return None if scores is None else fitted_gains(scores, matrix, slicing.groups)


def fitted_gains(scores: ScoreMoments, matrix: Tensor, groups: int) -> tuple[float, ...]:
    """mu_j of each slice; 1 for a slice whose scores do not differ.

    Args:
        scores: of the layer before it is turned.
        matrix: U, float64 [R, R].
        groups: slices.
    """
    latents, queries = (matrix.mT @ moment.to(matrix) @ matrix for moment in scores)
    width, found = len(matrix) // groups, []
    for j in range(groups):
        own = slice(j * width, (j + 1) * width)
        together = (latents[own] * queries[own]).sum()  # E[s s_j] = tr(C[j] Q[:, j]), both symmetric
        alone = (latents[own, own] * queries[own, own]).sum()
        found.append(float(together / alone) if alone > 1e-12 * (latents * queries).sum().abs() else 1.0)
    return tuple(found)


@torch.no_grad()
@checked
def score_moments(model: nn.Module, batches: Iterable[Any]) -> dict[str, ScoreMoments]:
    """Moments of every latent layer's latents and of the queries as they meet them, by norm and without its weight.

    Args:
        model, batches: as of `latent_moments`.
    Raises:
        ValueError: no such layer, or no tokens.
    """
    modules = dict(model.named_modules())
    sums: dict[str, list[Tensor]] = {}
    hooks: dict[nn.Module, Any] = {}
    for name in latent_layers(modules, "score_moments"):
        down = modules[f"{name}kv_a_proj_with_mqa"]
        queries = modules.get(f"{name}q_b_proj") or modules[f"{name}q_proj"]
        hooks[down] = _latent_hook(sums, name, modules[f"{name}kv_a_layernorm"])
        hooks[queries] = _query_hook(sums, name, modules)
    with hooked(hooks):
        for batch in batches:
            model(**batch) if isinstance(batch, Mapping) else model(batch)
    found = {}
    for name in {key.partition(":")[0] for key in sums}:
        count, mean, second = sums[f"{name}:latents"]
        rows, queries_too = sums[f"{name}:queries"]
        mean = mean / count
        found[name] = ScoreMoments(second / count - mean[:, None] * mean, queries_too / rows)
    if not found:
        raise ValueError("score_moments: batches must hold a token, got none; pass text of the model's use.")
    return found


def _add(sums: dict[str, list[Tensor]], key: str, new: Sequence[Tensor]) -> None:
    sums[key] = [x + old for x, old in zip(new, sums.get(key, [torch.zeros((), dtype=torch.float64)] * len(new)))]


def _latent_hook(sums: dict[str, list[Tensor]], name: str, norm: nn.Module) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        latent = normed_latents(norm, output)
        if len(latent):
            _add(sums, f"{name}:latents", [torch.tensor(len(latent)), latent.sum(0), latent.mT @ latent])

    return hook


def _query_hook(sums: dict[str, list[Tensor]], name: str, modules: Mapping[str, Any]) -> Any:
    layer, norm = modules[name.removesuffix(".")], modules[f"{name}kv_a_layernorm"]
    rank = norm.weight.shape[0]
    rotary = modules[f"{name}kv_a_proj_with_mqa"].weight.shape[0] - rank

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        by_head = torch.unflatten(output, -1, (layer.num_heads, -1))
        q = by_head[..., :-rotary].flatten(0, -3).double()  # [tokens, H, N]
        up = torch.unflatten(modules[f"{name}kv_b_proj"].weight, 0, (layer.num_heads, -1))[:, : q.shape[-1]].double()
        met = torch.einsum("thn,hnr->thr", q, up * norm.weight.double()).flatten(0, 1)
        if len(met):
            _add(sums, f"{name}:queries", [torch.tensor(len(met)), met.mT @ met])

    return hook


@checked
def apply_slicings(model: nn.Module, slicings: Mapping[str, Slicing]) -> None:
    """Let layers of attensor decode in slices, in place.

    Args:
        model: with `nn.LatentAttention` layers, whose weights are turned already.
        slicings: of `to_tpla`, `rotate_latent` or `load_slicings`.
    Raises:
        ValueError: a name that is no such layer, or slices that do not divide its latent; nothing is changed then.
    """
    modules = dict(model.named_modules())
    layers: dict[str, Any] = {name: modules.get(name.removesuffix(".")) for name in slicings}
    for name, layer in layers.items():
        if not isinstance(layer, LatentAttention):
            raise ValueError(
                f"apply_slicings: {name!r} must be an nn.LatentAttention of model, got {type(layer).__name__}; layers "
                "of transformers cannot be sliced, see latent_from_transformers."
            )
        if layer.kv_rank % slicings[name].groups:
            raise ValueError(
                f"apply_slicings: groups must divide the latent's width {layer.kv_rank}, got {slicings[name].groups}."
            )
    for name, layer in layers.items():
        layer.slicing = slicings[name]


@checked
def slicing_options(slicings: Mapping[str, Slicing]) -> dict[str, dict[str, Any]]:
    """Slices as `mixer_options` of a `StackConfig`: number of each layer -> its options, as JSON can hold them.

    Raises:
        ValueError: a name without the number of a layer.
    """
    options = {}
    for name, slicing in slicings.items():
        numbers = [part for part in name.split(".") if part.isdigit()]
        if not numbers:
            raise ValueError(f"slicing_options: {name!r} must have the number of a layer, as in model.layers.0.attn.")
        options[numbers[0]] = {"slicing": asdict(slicing)}
    return options
