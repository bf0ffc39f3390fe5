"""One case for each card and domain: how to build its layer small, and inputs for it."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attensor.catalogue import Domain, Mechanism, build_mixer, load, mechanisms

HIDDEN, HEADS = 12, 3  # a head's widths differ from the number of heads, the batch and the lengths
SPACE = {Domain.SEQUENCE: (7,), Domain.GRID: (5, 6)}


@dataclass(frozen=True)
class Case:
    """A card in one of its domains, with its own options or those of one of its variants."""

    card: Mechanism
    domain: Domain
    variant: str | None = None

    @property
    def layer_type(self) -> type[nn.Module]:
        return load(self.card.layer)

    @property
    def is_causal(self) -> bool:
        return self.card.is_causal and self.domain is Domain.SEQUENCE

    def layer(self, *, layer_index: int = 0, num_heads: int = HEADS, seed: int = 0, **options: Any) -> nn.Module:
        torch.manual_seed(seed)
        varied = self.card.variants[self.variant] if self.variant else {}
        options = {**self.card.mixer_options(self.domain), **self.card.example_options, **varied, **options}
        layer = build_mixer(
            self.layer_type,
            HIDDEN,
            num_heads,
            layer_index=layer_index,
            num_layers=2,
            **{"dtype": torch.float64, **options},
        )
        with torch.no_grad():  # zero-initialised biases and tables would hide their gradients
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return layer

    def hidden_states(self, *, batch: int = 2, space: tuple[int, ...] | None = None, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *(space or SPACE[self.domain]), HIDDEN, dtype=torch.float64, generator=generator)


def all_cases() -> list[Case]:
    """Every card in every one of its domains and variants."""
    return [
        Case(card, domain, variant)
        for card in mechanisms().values()
        for domain in Domain
        if domain in card.domain
        for variant in (None, *card.variants)
    ]


def name(case: Case) -> str:
    """Test id."""
    return "-".join(filter(None, (case.card.name, str(case.domain.name).lower(), case.variant)))


LAWS: dict[str, list[Callable[..., None]]] = {}
CAUSAL_LAWS: set[str] = set()


def law(called: str, *, causal: bool = False) -> Callable[[Callable[..., None]], Any]:
    """A test of the law of that name, over all cases but those whose card says that it breaks it by definition.

    Variants of a card belong to the slow tests.

    Args:
        called: what `breaks` of a card names.
        causal: of causal cases only.
    """

    def tests(test: Callable[..., None]) -> Any:
        LAWS.setdefault(called, []).append(test)
        CAUSAL_LAWS.update([called] * causal)
        bound = [c for c in all_cases() if called not in c.card.breaks and (c.is_causal or not causal)]
        marked = [pytest.param(c, marks=[pytest.mark.slow] * (c.variant is not None)) for c in bound]
        return pytest.mark.parametrize("case", marked, ids=name)(test)

    return tests


def obey(case: Case, called: str, folder: Path) -> None:
    """Run the tests of a law on any case, with every choice of their parameters.

    Raises:
        Exception: what the first test that fails raises.
    """
    for test in LAWS[called]:
        fixtures = {"tmp_path": folder} if "tmp_path" in inspect.signature(test).parameters else {}
        marks = [m.args for m in getattr(test, "pytestmark", []) if m.name == "parametrize" and m.args[0] != "case"]
        # one name with its values, or some names with tuples of theirs
        choices = [
            [{names: v} if isinstance(names, str) else dict(zip(names, v, strict=True)) for v in values]
            for names, values in marks
        ]
        for chosen in itertools.product(*choices):
            test(case, **{k: v for part in chosen for k, v in part.items()}, **fixtures)


def weights(like: Tensor) -> Tensor:
    """Uneven weights for a loss: a plain sum hides transposed gradients."""
    return torch.linspace(-1, 1, like.numel(), dtype=like.dtype).view_as(like) + 0.3


def run(layer: nn.Module, hidden_states: Tensor) -> list[Tensor]:
    """Output, input gradient and every parameter gradient of a weighted loss."""
    hidden_states = hidden_states.detach().requires_grad_()
    out = layer(hidden_states)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    # with no sequence at all, a table may not enter the graph; otherwise every parameter must
    is_empty = out.numel() == 0
    loss = (out * weights(out)).sum()
    grads = torch.autograd.grad(loss, [hidden_states, *parameters], allow_unused=is_empty, materialize_grads=is_empty)
    return [out.detach(), *grads]
