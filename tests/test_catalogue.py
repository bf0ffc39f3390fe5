"""Cards: found by name, light to read, with formulas that can be evaluated; layers are found through them."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

import attensor
from attensor import catalogue
from attensor.catalogue import Domain, Mechanism, Paper, build_mixer, cards, load, mechanism

SEQUENCE = ["softmax", "sliding-window", "linear", "lightning", "scalar-gated", "gla"]
NAMES = [*SEQUENCE, "neighborhood", "window-grid", "axial"]


def card(**changes: object) -> Mechanism:
    fields = {
        "name": "new",
        "title": "New",
        "paper": Paper("0000.00000", 2000, "A paper"),
        "use": "x",
        "avoid": "y",
        "operator": "attensor.ops:linear_attention",
        "layer": "attensor.nn.linear_attention:LinearAttention",
        "domain": Domain.SEQUENCE,
        "is_causal": True,
        "flops": "2*B*T**2*H*(K + V) + Min(C, T)",
        "state_bytes": "4*H*K*V",
        "example": "",
    }
    return Mechanism(**{**fields, **changes})


def test_the_first_families_are_there() -> None:
    assert set(NAMES) <= set(cards())
    assert mechanism("gla").paper.url == "https://arxiv.org/abs/2312.06635"


def test_an_unknown_name_is_answered_with_the_known_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'lightening'.*axial, gla, .*Did you mean 'lightning'\?"):
        mechanism("lightening")


def test_formulas_are_evaluated_with_named_sizes() -> None:
    assert card().cost("flops", B=2, T=10, H=3, K=5, V=7, C=64) == 2 * 2 * 100 * 3 * 12 + 10
    assert card().cost("state_bytes", H=3, K=5, V=7, W=1) == 4 * 3 * 5 * 7


def test_a_missing_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"new: the formula state_bytes = 4\*H\*K\*V needs K, V as well"):
        card().cost("state_bytes", H=2)


@pytest.mark.parametrize("name", NAMES)
def test_formulas_use_known_symbols_and_every_size_is_given(name: str) -> None:
    known, layer = set(catalogue.SYMBOLS), load(mechanism(name).layer)
    domain = Domain.SEQUENCE if Domain.SEQUENCE in mechanism(name).domain else Domain.GRID
    space = (256,) if domain is Domain.SEQUENCE else (8, 9)
    mixer = build_mixer(layer, 12, 3, layer_index=1, num_layers=2, **mechanism(name).mixer_options(domain))
    sizes = {"B": 2, **mixer.cost_sizes(space)}
    assert set(sizes) <= known
    for formula in ("flops", "state_bytes"):
        assert mechanism(name).cost(formula, **sizes) >= 0
    assert sizes["T"] == {1: 256, 2: 72}[len(space)]


def test_position_in_the_stack_reaches_those_who_ask() -> None:
    class Asks:
        def __init__(self, hidden_size: int, num_heads: int, *, layer_index: int, num_layers: int) -> None:
            self.place = layer_index, num_layers

    class DoesNot:
        def __init__(self, hidden_size: int, num_heads: int, *, width: int) -> None:
            self.width = width

    assert build_mixer(Asks, 4, 1, layer_index=1, num_layers=3).place == (1, 3)
    assert build_mixer(DoesNot, 4, 1, layer_index=1, num_layers=3, width=5).width == 5


def test_options_depend_on_the_domain() -> None:
    options = card(options={"a": 1, "b": 2}, grid_options={"b": 3})
    assert options.mixer_options(Domain.GRID) == {"a": 1, "b": 3}
    assert options.mixer_options(Domain.SEQUENCE) == {"a": 1, "b": 2}


def test_a_layer_is_public_as_soon_as_a_card_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in `attensor.nn` is edited for a new mechanism."""

    class Novelty:
        pass

    module = types.ModuleType("attensor.nn.novelty")
    module.Novelty = Novelty
    monkeypatch.setitem(sys.modules, "attensor.nn.novelty", module)
    assert not hasattr(attensor.nn, "Novelty")
    with_it = {**cards(), "new": card(layer="attensor.nn.novelty:Novelty")}
    monkeypatch.setattr(catalogue, "cards", lambda: with_it)
    assert attensor.nn.Novelty is Novelty
    assert "Novelty" in dir(attensor.nn)


def test_an_unknown_layer_is_answered_with_the_known() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'Attention'.*SoftmaxAttention"):
        _ = attensor.nn.Attention


def test_reading_all_cards_imports_neither_torch_nor_sympy() -> None:
    heavy = "print({'torch', 'sympy', 'numpy'} & set(sys.modules))"
    program = f"import sys; from attensor.catalogue import cards; cards(); {heavy}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
