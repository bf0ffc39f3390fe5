"""Which heads a token asks, and how much each counts: shared heads always, the best of the others by a router.

    p = softmax of the router's logits over the routed heads,  S = the K largest of them
    "code":   g = a0 h_s softmax(wg_1 x)  of shared heads,  a1 K p / sum_S p  of heads in S,  a = 2 softmax(wg_0 x)
    "paper":  g = a0 softmax(wg_1 x),  a1 p of heads in S,  a = softmax(wg_0 x)
    "hard":   g = 1 of shared heads and of heads in S; in training their gradient is handed on to p (straight through)

Sizes: B sequences, T tokens, C channels, H heads, h_s shared ones, E = H - h_s routed ones, K of them chosen.
Source: arXiv:2410.11842, equations 5 to 10; "code" is what its published models compute: the mean gate of an active
head is 1, while equations 5 to 7 as they stand shrink the output about H-fold.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._shapes import check_range
from attensor.ops._checks import checked
from attensor.ops._precision import full_precision, working_dtype

__all__ = ["HeadRouter", "check_counts", "load_balance_loss"]


class HeadRouter(nn.Module):
    """Gates [B, T, H] of tokens [B, T, C] and their queries [B, T, H, K]; computed in at least float32.

    Keys of the state_dict, as in the published models: `wg.weight` (routed heads), `wg_0.weight` (shared against
    routed), `wg_1.weight` (shared heads); each only where it decides something.

    Args:
        hidden_size: channels C.
        num_heads: heads H; the first ones are shared.
        num_shared: heads h_s that are always on.
        num_active: heads that are on for a token, h_s + K.
        router: `"linear"`: logits are `wg x`; `"query-norm"`: the lengths of the queries, over their standard deviation
            among the routed heads, without parameters.
        gate_scale: `"code"`, `"paper"` or `"hard"`, see above.
        straight_through: with hard gates, what gradient passes: that of `"all"` routed heads, which are then computed
            in training, or of the `"chosen"` ones.
        device, dtype: of the parameters.
    Raises:
        ValueError: more active heads than there are, fewer than shared ones, or routed heads of which none is chosen.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_shared: int,
        num_active: int,
        router: Literal["linear", "query-norm"] = "linear",
        gate_scale: Literal["code", "paper", "hard"] = "code",
        straight_through: Literal["all", "chosen"] = "all",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_range(self, 1, hidden_size=hidden_size, num_heads=num_heads)
        check_range(self, 0, num_shared=num_shared)
        check_counts(self, num_heads, num_shared, num_active)
        self.num_heads, self.num_shared, self.num_active = num_heads, num_shared, num_active
        self.num_routed, self.num_chosen = num_heads - num_shared, num_active - num_shared
        self.kind, self.gate_scale, self.straight_through = router, gate_scale, straight_through
        self.load: Tensor | None = None
        made: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        is_soft = gate_scale != "hard"
        self.wg = nn.Linear(hidden_size, self.num_routed, **made) if self.num_chosen and router == "linear" else None
        self.wg_0 = nn.Linear(hidden_size, 2, **made) if self.num_chosen and num_shared and is_soft else None
        self.wg_1 = nn.Linear(hidden_size, num_shared, **made) if num_shared > 1 and is_soft else None

    @property
    def _is_straight(self) -> bool:
        """Whether gradients of hard gates are handed on: in training, where there is a choice."""
        return self.gate_scale == "hard" and self.training and 0 < self.num_chosen < self.num_routed

    @property
    def learns_of_idle_heads(self) -> bool:
        """Whether gates of 0 have a gradient now, so that every head must be computed."""
        return self._is_straight and self.straight_through == "all" and torch.is_grad_enabled()

    def forward(self, tokens: Tensor, queries: Tensor) -> Tensor:
        """[B, T, H]: 0 for heads that are off. In training the balance of the loads is kept in `load`.

        Args:
            tokens: [B, T, C].
            queries: [B, T, H, K], read by `"query-norm"` alone.
        """
        with full_precision(tokens):
            shared = self._shared(tokens)
            if not self.num_chosen:
                return shared
            probabilities = self._logits(tokens, queries).softmax(-1)  # [B, T, E]
            chosen = probabilities.topk(self.num_chosen, -1).indices
            mask = torch.zeros_like(probabilities).scatter(-1, chosen, 1.0)
            self._note(probabilities, mask)
            return torch.cat(self._balanced(tokens, shared, self._routed(probabilities, mask)), -1)

    def _logits(self, tokens: Tensor, queries: Tensor) -> Tensor:
        if self.wg is not None:
            return _linear(self.wg, tokens)
        routed = queries[..., self.num_shared :, :]
        lengths = torch.linalg.vector_norm(routed.to(working_dtype(routed)), dim=-1)
        if self.num_routed == 1:
            return torch.zeros_like(lengths)
        # queries of one length, as those of padding, have no deviation
        least = torch.finfo(lengths.dtype).eps ** 2
        variance = (lengths - lengths.mean(-1, keepdim=True)).square().sum(-1, keepdim=True) / (self.num_routed - 1)
        logits: Tensor = lengths / variance.clamp_min(least).sqrt()
        return logits

    def _routed(self, probabilities: Tensor, mask: Tensor) -> Tensor:
        if self.gate_scale == "hard":
            passes = probabilities if self.straight_through == "all" else probabilities * mask
            return mask + (passes - passes.detach()) if self._is_straight else mask
        kept = probabilities * mask
        if self.gate_scale == "paper":
            return kept
        total = kept.sum(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).eps)
        return kept / total * self.num_chosen

    def _shared(self, tokens: Tensor) -> Tensor:
        if self.wg_1 is not None:
            gates = _linear(self.wg_1, tokens).softmax(-1)
            return gates * self.num_shared if self.gate_scale == "code" else gates
        return tokens.new_ones(*tokens.shape[:-1], self.num_shared, dtype=working_dtype(tokens))

    def _balanced(self, tokens: Tensor, shared: Tensor, routed: Tensor) -> tuple[Tensor, Tensor]:
        if self.wg_0 is None:
            return shared, routed
        sides = _linear(self.wg_0, tokens).softmax(-1)
        sides = sides * 2 if self.gate_scale == "code" else sides
        return sides[..., :1] * shared, sides[..., 1:] * routed

    def _note(self, probabilities: Tensor, mask: Tensor) -> None:
        """E sum P f, whose least value is K; an exported program has no place to keep it."""
        if self.training and not torch.compiler.is_exporting():
            mean, share = (x.flatten(0, -2).mean(0) for x in (probabilities, mask))
            self.load = self.num_routed * (mean * share).sum()

    def __getstate__(self) -> dict[str, Any]:
        """Without the last batch's balance, which belongs to its graph."""
        return {**self.__dict__, "load": None}

    def extra_repr(self) -> str:
        """Options, for `print(layer)`."""
        return (
            f"num_shared={self.num_shared}, num_active={self.num_active}, router={self.kind!r}, "
            f"gate_scale={self.gate_scale!r}"
        )


@checked
def load_balance_loss(model: nn.Module) -> Tensor:
    """How unevenly routers load their heads: the mean over layers of E sum_i P_i f_i, at least K.

    P_i is the mean probability of head i, f_i the share of tokens that chose it, which has no gradient; both over all
    tokens of the last forward pass in training mode. Add it to the loss, `loss + 0.01 * load_balance_loss(model)`.
    Layers whose heads are all shared do not count; without any other the loss is 0.

    Args:
        model: any module with layers that route heads.
    Raises:
        ValueError: a router has seen no forward pass in training mode.
    Source: arXiv:2410.11842, equation 8, times E as in its code.
    """
    routers = [part for part in model.modules() if isinstance(part, HeadRouter) and part.num_chosen]
    loads = [router.load for router in routers if router.load is not None]
    if len(loads) < len(routers):
        raise ValueError(
            f"load_balance_loss: {len(routers) - len(loads)} of {len(routers)} routers have seen no tokens in training "
            "mode; call model.train() and run a forward pass before it."
        )
    if not loads:
        return torch.zeros((), device=next((p.device for p in model.parameters()), None))
    return torch.stack(loads).mean()


def check_counts(who: nn.Module, num_heads: int, num_shared: int, num_active: int) -> None:
    """Refuse numbers of heads that no router could serve.

    Raises:
        ValueError: see `HeadRouter`.
    """
    name = type(who).__name__
    if not num_shared <= num_active <= num_heads or num_active < 1:
        raise ValueError(
            f"{name}: num_active must be from num_shared {num_shared} (which it counts) to num_heads {num_heads}, "
            f"at least 1, got {num_active}; choose another num_active or num_shared."
        )
    if num_active == num_shared < num_heads:
        raise ValueError(
            f"{name}: num_active must be greater than num_shared {num_shared}, got {num_active}: of the "
            f"{num_heads - num_shared} routed heads none would ever be on; with num_shared={num_heads} all are shared."
        )


def _linear(layer: nn.Module, tokens: Tensor) -> Tensor:
    """In at least float32; a layer that is quantised or adapted computes as it does."""
    dtype = working_dtype(tokens)
    if type(layer) is nn.Linear:
        return F.linear(tokens.to(dtype), layer.weight.to(dtype))
    out: Tensor = layer(tokens)
    return out.to(dtype)
