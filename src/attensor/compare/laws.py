"""Laws that every mixer must obey, tried on a tiny input before any training.

A break is reported with the law's name and the numbers that show it, so that an unfair result never gets a score.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attensor.errors import LawError

__all__ = ["check_laws"]

# one below, at and above the usual chunk sizes: leaks hide at the borders of chunks
_CHANGED_TOKENS = (1, 9, 63, 64, 65, 130)
_TOKENS = 137
_SIDE = 16
_TOLERANCE = 1e-5


def check_laws(mixer: nn.Module, hidden_size: int, *, is_grid: bool, device: torch.device | str = "cpu") -> None:
    """Try the mixer: shape, dtype, finite numbers and gradients, no memory between calls, batch, causality.

    Args:
        mixer: called as `mixer(hidden_states)`.
        hidden_size: width of its input.
        is_grid: feed `[2, 16, 16, hidden_size]` and skip causality; else `[2, 137, hidden_size]`.
        device: where the mixer lives.
    Raises:
        LawError: names the first broken law, with numbers.
    """
    generator = torch.Generator().manual_seed(0)
    space = (_SIDE, _SIDE) if is_grid else (_TOKENS,)
    precision = torch.get_default_dtype()
    inputs = torch.randn(2, *space, hidden_size, generator=generator).to(device)
    other = torch.randn(2, *space, hidden_size, generator=generator).to(device)
    mixer.eval()
    outputs = _check_call(mixer, inputs)
    _check_gradients(mixer, inputs)
    with torch.no_grad():
        again = _largest(mixer(inputs) - outputs)
        if again > _tolerance(outputs):
            raise LawError(f"remembers earlier calls: the same input gives an output that differs by {again:.2g}")
        mixed = torch.stack([inputs[0], other[1]])
        difference = _largest(mixer(mixed)[0] - outputs[0])
        if difference > _tolerance(outputs):
            raise LawError(f"mixes the batch: changing sequence 1 changed the output of sequence 0 by {difference:.2g}")
        if not is_grid:
            _check_causality(mixer, inputs, other, outputs)
    if torch.get_default_dtype() != precision:
        raise LawError(f"sets torch's default dtype to {torch.get_default_dtype()}, and all models after it follow")
    mixer.train()


def _check_call(mixer: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        outputs = mixer(inputs)
    if not isinstance(outputs, Tensor):
        raise LawError(f"wrong output: a tensor is expected, got {type(outputs).__name__}")
    if outputs.shape != inputs.shape:
        raise LawError(f"wrong shape: input {list(inputs.shape)} gave output {list(outputs.shape)}; they must be equal")
    if outputs.dtype != inputs.dtype:
        raise LawError(f"wrong dtype: input {inputs.dtype} gave output {outputs.dtype}; they must be equal")
    bad = int((~outputs.isfinite()).sum())
    if bad:
        raise LawError(f"not finite: {bad} of {outputs.numel()} outputs are infinite or not a number")
    return outputs


def _check_gradients(mixer: nn.Module, inputs: Tensor) -> None:
    inputs = inputs.clone().requires_grad_()
    outputs = mixer(inputs)
    if not outputs.requires_grad:
        raise LawError("no gradient: the output does not depend on the input or any parameter by autograd")
    outputs.square().mean().backward()
    gradients = {"the input": inputs.grad, **{name: p.grad for name, p in mixer.named_parameters()}}
    for name, gradient in gradients.items():
        if gradient is not None and not gradient.isfinite().all():
            raise LawError(f"gradient not finite: {int((~gradient.isfinite()).sum())} elements for {name}")
    mixer.zero_grad(set_to_none=True)


def _check_causality(mixer: nn.Module, inputs: Tensor, other: Tensor, outputs: Tensor) -> None:
    for token in _CHANGED_TOKENS:
        changed = inputs.clone()
        changed[:, token] = other[:, token]
        difference = (mixer(changed) - outputs)[:, :token].abs().amax(dim=(0, 2))  # [token]
        worst = int(difference.argmax())
        # written so that NaN counts as a leak
        if not float(difference[worst]) <= _tolerance(outputs):
            raise LawError(
                f"leaks the future: changing token {token} changed output {worst} by {float(difference[worst]):.2g}"
            )


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _tolerance(outputs: Tensor) -> float:
    return _TOLERANCE * max(1e-3, float(outputs.abs().max()))
