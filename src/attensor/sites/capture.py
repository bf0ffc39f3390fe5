"""What flows through attentions while a model runs, by hooks that leave the model's own output alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from attensor.ops import softmax_attention
from attensor.ops._checks import checked
from attensor.sites.site import AttentionSite

__all__ = ["Captured", "capture"]


@dataclass
class Captured:
    """What was asked for of one call of one attention; the rest is None.

    Attributes:
        hidden_states: [B, T, C], what the attention received: the residual stream, after the norm where one is before.
        q: [B, T, H, K], as scores are made of them (turned by rotary positions).
        k, v: [B, T, Hkv, K], of the tokens of this call, without what a cache holds.
        weights: [B, H, T, T], after the softmax, or of a recurrence that divides by their sum; zeros in rows that see
            nothing.
        out: [B, T, H * V], the heads' outputs side by side, before the output projection.
        result: [B, T, C], after it.
    """

    hidden_states: Tensor | None = None
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    weights: Tensor | None = None
    out: Tensor | None = None
    result: Tensor | None = None


_NAMES = tuple(field.name for field in fields(Captured))
Receive = Callable[[AttentionSite, Captured], None]


@checked
@contextmanager
def capture(
    sites: Sequence[AttentionSite], wanted: Iterable[str] = ("out",), *, receive: Receive | None = None
) -> Iterator[dict[str, Captured]]:
    """Look into attentions while a model runs. Afterwards no hook is left, and nothing was changed.

    Tensors are as the model made them: part of the graph where gradients are recorded. Memory, for each site, until the
    next call of it: hidden_states and result B T C numbers each, q, k, v and out B T (2 H + 2 Hkv) K, weights B H T T.
    q, k, v and weights are computed once more from what the attention received, which costs as much as its projections.
    Around `torch.nn.TransformerEncoderLayer` hooks switch off torch's fused path, whose rounding is another.

    Args:
        sites: from `find_sites`; replaced ones too.
        wanted: which of `hidden_states`, `q`, `k`, `v`, `weights`, `out`, `result`.
        receive: called with each site and what it did, at once; nothing is kept then.
    Yields:
        Name of a site -> what its last call did.
    Raises:
        ValueError: something else is wanted; weights of a layer that has none.
    """
    names = tuple(wanted)
    if unknown := [name for name in names if name not in _NAMES]:
        raise ValueError(f"capture: wanted must be among {', '.join(_NAMES)}, got {unknown[0]!r}.")
    seen: dict[str, Captured] = {}

    def keep(site: AttentionSite, captured: Captured) -> None:
        if receive is None:
            seen[site.name] = captured
        else:
            receive(site, captured)

    hooks = []
    try:
        for site in sites:
            hooks += _watch(site, names, keep)
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _watch(site: AttentionSite, names: Sequence[str], keep: Receive) -> list[Any]:
    """Hooks of one site: before its output projection, and after the whole."""
    before: list[Tensor] = []
    projection = site.projection if "out" in names else None

    def at_projection(_: nn.Module, args: tuple[Any, ...]) -> None:
        before[:] = [args[0]]

    def at_end(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        result = output[0] if isinstance(output, tuple) else output
        keep(site, _captured(site, names, args, kwargs, before.pop() if before else None, result))

    hooks: list[Any] = [] if projection is None else [projection.register_forward_pre_hook(at_projection)]
    place = site.model.get_submodule(site.path)
    if site.slot:  # the projection comes after it: the module around both ends both
        place = site.module
    hooks.append(place.register_forward_hook(at_end, with_kwargs=True))
    return hooks


def _captured(
    site: AttentionSite,
    names: Sequence[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Tensor | None,
    result: Tensor,
) -> Captured:
    call, captured = site.call(args, kwargs), Captured()
    if "hidden_states" in names:
        captured.hidden_states = call.hidden_states
    if {"q", "k", "v", "weights"} & {*names} or (out is None and "out" in names):
        heads = site.heads(call)
        for name in {"q", "k", "v"} & {*names}:
            setattr(captured, name, getattr(heads, name))
        if "weights" in names:
            captured.weights = site.attention_map(call, heads)
        if out is None and "out" in names:
            scale, mask, is_causal = site.scores(call)
            out = softmax_attention(
                heads.q, heads.k, heads.v, scale=scale, attn_mask=mask, is_causal=is_causal
            ).flatten(-2)
    captured.out = out if "out" in names else None
    captured.result = result if "result" in names else None
    return captured
