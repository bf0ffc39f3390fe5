"""Pictures of the cards, drawn from the layers themselves: which tokens reach which, as SVG without a script."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from attensor.catalogue import Domain, Mechanism, build_mixer, load

__all__ = ["influence", "reach"]

_TOKENS, _SIDE = 24, 8
_CELL = 10  # pixels
_CHANNELS, _HEADS, _PROBES = 32, 2, 8


def reach(card: Mechanism) -> str:
    """The figure of a card, as HTML: its first layer, and its second where that looks elsewhere."""
    layers = _layers(card)
    is_row = Domain.SEQUENCE in card.domain
    what = (
        f"Row i shows how strongly each of {_TOKENS} tokens moves the output of token i"
        if is_row
        else f"How strongly each cell of a {_SIDE} x {_SIDE} grid moves the output of the ringed one"
    )
    drawn = "\n".join(_draw(influence(layer, is_row=is_row), is_row=is_row, says=what) for layer in layers)
    where = "" if len(layers) == 1 else "; the first layer, and the second"
    caption = f"{what}: the norm of the derivative in a fresh layer{where}. A stronger shade is more."
    return f'<figure class="reach">\n{drawn}\n<figcaption>{caption}</figcaption>\n</figure>'


def _layers(card: Mechanism) -> list[nn.Module]:
    """The first layer of a stack, and on grids the second if its place decides what it sees."""
    domain = Domain.SEQUENCE if Domain.SEQUENCE in card.domain else Domain.GRID
    options = {**card.mixer_options(domain), **card.example_options}
    kind = load(card.layer)
    count = 2 if domain is Domain.GRID and "layer_index" in inspect.signature(kind).parameters else 1
    made = []
    for index in range(count):
        torch.manual_seed(0)
        layer = build_mixer(kind, _CHANNELS, _HEADS, layer_index=index, num_layers=count, **options)
        made.append(layer.double().eval())
    return made


def influence(layer: nn.Module, *, is_row: bool) -> Tensor:
    """Norms of the Jacobian's blocks, 1 where the largest is: [outputs, inputs], or of one output [rows, columns]."""
    torch.manual_seed(0)
    space = (_TOKENS,) if is_row else (_SIDE, _SIDE)
    x = torch.randn(1, *space, _CHANNELS, dtype=torch.float64, requires_grad=True)
    out = layer(x).flatten(1, -2)[0]  # [tokens, C]
    probes = torch.linalg.qr(torch.randn(_CHANNELS, _PROBES, dtype=torch.float64)).Q.T
    rows = []
    for token in range(_TOKENS) if is_row else [_ringed()]:
        gradients = [torch.autograd.grad(out[token] @ probe, x, retain_graph=True)[0] for probe in probes]
        rows.append(torch.stack(gradients).square().sum((0, 1, -1)).sqrt())
    found = torch.stack(rows) if is_row else rows[0]
    return (found / found.max()).detach()


def _ringed() -> int:
    return (_SIDE // 2) * _SIDE + _SIDE // 2 - 1


def _draw(values: Tensor, *, is_row: bool, says: str) -> str:
    rows, columns = values.shape
    cell = _CELL if is_row else 2 * _CELL
    parts = [
        f'<rect x="{cell * j}" y="{cell * i}" width="{cell}" height="{cell}" fill-opacity="{shade:.2f}"/>'
        for i in range(rows)
        for j in range(columns)
        if (shade := float(values[i, j]) ** 0.5) >= 0.01  # what is small can be seen
    ]
    if not is_row:
        i, j = divmod(_ringed(), _SIDE)
        parts.append(
            f'<rect x="{cell * j + 1}" y="{cell * i + 1}" width="{cell - 2}" height="{cell - 2}" class="ring"/>'
        )
    width, height = cell * columns, cell * rows
    return (
        f'<svg viewBox="-1 -1 {width + 2} {height + 2}" width="{width}" height="{height}" role="img" '
        f'aria-label="{says}"><g fill="currentColor">{"".join(parts)}</g>'
        f'<rect x="0" y="0" width="{width}" height="{height}" class="frame"/></svg>'
    )
