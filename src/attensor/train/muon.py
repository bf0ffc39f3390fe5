r"""Muon: steps along orthogonal matrices for the weights of linear layers, AdamW for everything else.

    M <- 0.95 M + 0.05 G,   O = orthogonal(0.05 G + 0.95 M),   W <- W - rate (0.2 sqrt(max(rows, columns)) O + decay W)

A gradient's singular values differ by orders of magnitude, and a step along it moves a matrix in few directions; O has
singular values near 1. The factor makes entries of a step about as large as those of AdamW: one rate serves both.

`torch.optim.Muon` makes the same steps, multiplied in bfloat16. A training step of `attensor compare` then takes 1.03
to 1.16 times as long on a processor that computes in bfloat16, and 2.1 times on one that does not (AVX2; at a width of
256 the optimizer alone 16 times), so it is not taken, and tests compare with it.

Source: Jordan et al., "Muon" (2024); the factor is that of arXiv:2502.16982, section 2.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attensor.train.optimizer import named_trainable

__all__ = ["Muon", "muon", "orthogonal"]

_MOMENTUM = 0.95
_SCALE = 0.2
# of the iteration X <- a X + (b A + c A A) X, A = X X^T: they bring singular values near 1 quickly, not exactly
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """AdamW whose last group of parameters is matrices that take orthogonal steps.

    Args:
        others: groups for AdamW.
        matrices: [rows, columns] each.
        learning_rate: of all.
        weight_decay: of the matrices, per step, times the rate.
        betas: of AdamW.
    """

    def __init__(
        self,
        others: Sequence[dict[str, Any]],
        matrices: Sequence[nn.Parameter],
        learning_rate: float,
        *,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        groups = [*others, {"params": list(matrices), "weight_decay": weight_decay}]
        super().__init__(groups, lr=learning_rate, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all parameters that have a gradient."""
        group = self.param_groups[-1]
        matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
        gradients: list[Tensor] = [matrix.grad for matrix in matrices]
        for matrix in matrices:
            matrix.grad = None  # passed over by AdamW
        value = super().step(closure)
        for matrix, gradient in zip(matrices, gradients, strict=True):
            matrix.grad = gradient
        # matrices of one shape are multiplied together: many small products cost more than one large
        of_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, matrix in enumerate(matrices):
            of_shape[min(matrix.shape), max(matrix.shape)].append(index)
        for indices in of_shape.values():
            self._move([matrices[i] for i in indices], [gradients[i] for i in indices], group)
        return value

    def _move(self, matrices: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        momenta = [self.state[m].setdefault("momentum", torch.zeros_like(m)) for m in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)
        is_tall = [m.shape[0] > m.shape[1] for m in matrices]
        wide = orthogonal(torch.stack([a.mT if tall else a for a, tall in zip(ahead, is_tall, strict=True)]))
        # a rate with which a training diverges may be beyond what the numbers hold
        rate = min(float(group["lr"]), torch.finfo(matrices[0].dtype).max / 1e6)
        torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
        steps = [step.mT if tall else step for step, tall in zip(wide, is_tall, strict=True)]
        torch._foreach_add_(matrices, steps, alpha=-rate * _SCALE * max(matrices[0].shape) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """Near U V^T of the singular value decomposition U S V^T of each of [..., rows, columns], rows <= columns.

    Singular values become 0.7 to 1.2, but those below a thousandth of the root of the sum of squares.
    """
    a, b, c = _COEFFICIENTS
    found: Tensor = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = found @ found.mT
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found


def muon(
    model: nn.Module, learning_rate: float, *, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> Muon:
    """Muon for the weights of all `nn.Linear` in `model`, AdamW for the rest, as `adamw` has it.

    An output projection called `lm_head` or `head` is left to AdamW, and so is what `model.no_weight_decay()` names.
    """
    excepted: set[str] = getattr(model, "no_weight_decay", set)()
    heads = ("lm_head", "head")
    linear = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in heads
    }
    parameters = named_trainable(model)
    matrices = {name for name, p in parameters.items() if id(p) in linear and name not in excepted}

    def chosen(condition: Callable[[str, nn.Parameter], bool]) -> list[nn.Parameter]:
        return [p for name, p in parameters.items() if name not in matrices and condition(name, p)]

    others = [
        {"params": chosen(lambda name, p: p.ndim >= 2 and name not in excepted), "weight_decay": weight_decay},
        {"params": chosen(lambda name, p: p.ndim < 2 or name in excepted), "weight_decay": 0.0},
    ]
    own = [parameters[name] for name in parameters if name in matrices]
    return Muon(others, own, learning_rate, weight_decay=weight_decay, betas=betas)
