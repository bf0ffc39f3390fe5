r"""What the operators of a PLDR-LLM are, and whether they depend on the input: one reading for each layer and head.

    spread:  root-mean-square distance of G over prompts from its mean, as a share of the mean's norm
    RMSE:    root of the mean square difference between entries of G of two prompts, mean over pairs
    share:   of the squares of A that is left when its mean row is taken from all rows; 0 where the rows are equal

Source: arXiv:2502.13502, sections 3 and 4: G of a trained model is the same for every input, and A has rank one.
Sizes: P prompts, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.models.language.pldr import PLDRForCausalLM, deductive_outputs
from attensor.ops._checks import check_integers, checked

__all__ = ["HeadReading", "LayerReading", "read_operators"]

_RELATIVE = 1e-6  # singular values below that share of the first count as zero


@dataclass(frozen=True)
class HeadReading:
    """One head of one layer; of G of the mean over prompts, where nothing else is said.

    Attributes:
        log10_determinant: log10 |det G|; -inf if it is singular.
        rank, tensor_rank: numerical rank of G, and of A of the first prompt.
        norm: Frobenius norm of G.
        spread, rmse: over prompts, see above; nan with one prompt.
        row_share: see above, mean over prompts; nan where the operator is fixed.
        singular_values: of G, the largest first.
    """

    log10_determinant: float
    rank: int
    tensor_rank: int | None
    norm: float
    spread: float
    rmse: float
    row_share: float
    singular_values: tuple[float, ...]


@dataclass(frozen=True)
class LayerReading:
    """The heads of a layer, and G of the mean over prompts: [H, D, D]."""

    heads: tuple[HeadReading, ...]
    operator: Tensor


@checked
@torch.no_grad()
def read_operators(model: nn.Module, prompts: Sequence[Tensor]) -> list[LayerReading]:
    """Readings of every layer.

    Args:
        model: a `PLDRForCausalLM`, with learned or fixed operators.
        prompts: [T] token ids each, of any lengths.
    Raises:
        ValueError: a model of another family, or no prompt. ShapeError, TypeError: prompts that are no [T] integers.
    Cost: one forward a prompt, and singular values of 2 H matrices D x D a layer.
    """
    if not isinstance(model, PLDRForCausalLM):
        raise ValueError(
            f"read_operators: model must be a PLDRForCausalLM, got {type(model).__name__}, which has no operator."
        )
    for prompt in prompts:
        check_integers("read_operators", "prompts", prompt, prompt)
        if prompt.ndim != 1:
            raise ShapeError(f"read_operators: prompts must be [T] token ids each, got {list(prompt.shape)}.")
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("read_operators: prompts must be one or more, each with a token; give a longer text.")
    layers = [layer.attn for layer in model.model.layers]
    if layers[0].operator == "fixed":
        return [_reading(layer.fixed_operator[None].double(), None) for layer in layers]
    found = [deductive_outputs(model, prompt[None]) for prompt in prompts]
    readings = []
    for index in range(len(layers)):
        outputs = [one[index] for one in found]
        operators = torch.cat([one.operator for one in outputs]).double()  # [P, H, D, D]
        readings.append(_reading(operators, torch.cat([one.tensor for one in outputs]).double()))
    return readings


def _reading(operators: Tensor, tensors: Tensor | None) -> LayerReading:
    """Of [P, H, D, D]."""
    mean, count = operators.mean(0), len(operators)
    values = torch.linalg.svdvals(mean)
    away = (operators - mean).square()
    spread = away.sum((2, 3)).mean(0).sqrt() / mean.norm(dim=(1, 2))
    # over pairs of prompts, mean (x - y)^2 is 2 P / (P - 1) times the mean square distance from the mean
    rmse = (away.mean((0, 2, 3)) * 2 * count / max(count - 1, 1)).sqrt()
    heads = []
    for head in range(len(mean)):
        own = None if tensors is None else tensors[:, head]
        heads.append(
            HeadReading(
                float(torch.linalg.slogdet(mean[head])[1] / torch.log(torch.tensor(10.0))),
                _rank(values[head]),
                None if own is None else _rank(torch.linalg.svdvals(own[0])),
                float(mean[head].norm()),
                float(spread[head]) if count > 1 else float("nan"),
                float(rmse[head]) if count > 1 else float("nan"),
                float("nan") if own is None else _row_share(own),
                tuple(values[head].tolist()),
            )
        )
    return LayerReading(tuple(heads), mean.float())


def _rank(values: Tensor) -> int:
    return int((values > _RELATIVE * values[0]).sum())


def _row_share(tensors: Tensor) -> float:
    left = (tensors - tensors.mean(-2, keepdim=True)).square().sum((1, 2))
    return float((left / tensors.square().sum((1, 2))).mean())
