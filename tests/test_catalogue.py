"""Cards: found by name, light to read, with formulas that can be evaluated; layers are found through them."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator

import pytest

import attensor
from attensor import catalogue
from attensor.catalogue import (
    Card,
    Domain,
    Mechanism,
    Paper,
    build_mixer,
    cards,
    load,
    mechanism,
    mechanisms,
    parse_stack,
)

NAMES = {"softmax", "sliding-window", "linear", "lightning", "scalar-gated", "gla", "neighborhood", "axial"}


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
    assert set(cards()) >= NAMES
    assert mechanism("gla").paper.url == "https://arxiv.org/abs/2312.06635"


def test_an_unknown_name_is_answered_with_the_known_and_the_nearest() -> None:
    for find in (mechanism, catalogue.card):
        with pytest.raises(
            ValueError, match=r"'lightening'.*axial, davit, .*gated-deltanet, .*gla, .*Did you mean 'lightning'\?"
        ):
            find("lightening")


def test_formulas_are_evaluated_with_named_sizes() -> None:
    assert card().cost("flops", B=2, T=10, H=3, K=5, V=7, C=64) == 2 * 2 * 100 * 3 * 12 + 10
    assert card().cost("state_bytes", H=3, K=5, V=7, W=1) == 4 * 3 * 5 * 7


def test_a_missing_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"new: the formula state_bytes = 4\*H\*K\*V needs K, V as well"):
        card().cost("state_bytes", H=2)


@pytest.mark.parametrize("name", mechanisms())
def test_formulas_use_known_symbols_and_every_size_is_given(name: str) -> None:
    layer = load(mechanism(name).layer)
    domain = Domain.SEQUENCE if Domain.SEQUENCE in mechanism(name).domain else Domain.GRID
    space = (256,) if domain is Domain.SEQUENCE else (8, 9)
    mixer = build_mixer(layer, 12, 3, layer_index=1, num_layers=2, **mechanism(name).mixer_options(domain))
    sizes = {"B": 2, **mixer.cost_sizes(space)}
    for formula in ("flops", "state_bytes"):
        assert {s.name for s in mechanism(name).formula(formula).free_symbols} <= set(mechanism(name).used_symbols)
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


def test_heads_and_space_reach_those_who_ask() -> None:
    class Fixed:
        def __init__(self, hidden_size: int, space: tuple[int, ...], *, width: int = 2) -> None:
            self.seen = hidden_size, space, width

    class OtherName:
        def __init__(self, channels: int, heads: int) -> None:
            self.seen = channels, heads

    class Anything:
        def __init__(self, channels: int, *rest: int, **options: int) -> None:
            self.seen = channels, rest, options

    class NoHeads:
        def __init__(self, hidden_size: int, width: int = 7) -> None:
            self.seen = hidden_size, width

    class ByName:
        def __init__(self, hidden_size: int, *, num_heads: int) -> None:
            self.seen = hidden_size, num_heads

    place = {"layer_index": 1, "num_layers": 3, "space": (5, 6)}
    assert build_mixer(ByName, 4, 1, **place).seen == (4, 1)
    assert build_mixer(Fixed, 4, 1, **place).seen == (4, (5, 6), 2)
    assert build_mixer(OtherName, 4, 1, **place).seen == (4, 1)
    assert build_mixer(Anything, 4, 1, **place, width=5).seen == (4, (1,), {"width": 5})
    assert build_mixer(NoHeads, 4, 1, **place).seen == (4, 7)


def test_a_stack_is_written_with_counts() -> None:
    assert parse_stack("3*gla+softmax") == ("gla", "gla", "gla", "softmax")
    assert parse_stack(" gla + 2 * retnet ") == ("gla", "retnet", "retnet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gla+softmacks", "no mechanism is called 'softmacks'.*Did you mean 'softmax'"),
        ("0*gla", r"stack '0\*gla': '0\*gla' must be"),
        ("gla+", "'' must be a mechanism or COUNT"),
        ("gla*3", r"'gla\*3' must be"),
    ],
)
def test_a_stack_of_another_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_stack(text)


PLAIN = {
    "name": "plain",
    "title": "Plain",
    "paper": Paper("0000.00000", 2000, "A paper"),
    "use": "x",
    "avoid": "y",
    "example": "",
}


def test_verbs_follow_from_what_a_card_has() -> None:
    assert Card(**PLAIN).verbs == ()
    assert Card(**PLAIN, commands={"bench plain": "a:B"}).verbs == ()
    everything = Card(
        **PLAIN,
        layers=("a:L",),
        models=("a:M",),
        swaps_into=("timm",),
        recipe="a",
        commands=dict.fromkeys(("solve hull", "lens tree", "edit swap"), "a:B"),
    )
    assert everything.verbs == ("use", "model", "swap", "look", "edit", "solve", "reproduce")
    assert card().verbs == ("use",)


def test_a_mechanism_adds_its_operator_and_layer_to_those_of_the_card() -> None:
    one = card(operators=("attensor.ops:toeplitz",))
    assert one.operators == ("attensor.ops:linear_attention", "attensor.ops:toeplitz")
    assert one.layers == (one.layer,)


class Point:
    """An entry point of another distribution."""

    def __init__(self, name: str, found: object) -> None:
        self.name, self.value, self.found = name, f"outside:{name}", found
        self.dist = types.SimpleNamespace(name="outside-cards")

    def load(self) -> object:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Point]]:
    found: list[Point] = []
    monkeypatch.setattr(catalogue.metadata, "entry_points", lambda group: found)
    cards.cache_clear()
    yield found
    cards.cache_clear()


def test_other_distributions_add_cards(points: list[Point]) -> None:
    points += [Point("plain", Card(**PLAIN)), Point("new", card())]
    assert list(cards())[-2:] == ["plain", "new"]
    assert "plain" not in mechanisms()
    assert mechanism("new").name == "new"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (ImportError("no module 'cuda_magic'"), "cannot be imported: ImportError.*cuda_magic"),
        (SyntaxError("invalid syntax"), "cannot be imported: SyntaxError"),
        ("a text", "it is no Card"),
        (card(name="gla"), "a card is called 'gla' already"),
    ],
)
def test_a_broken_card_of_another_distribution_is_left_out_with_a_warning(
    found: object, why: str, points: list[Point]
) -> None:
    points += [Point("broken", found), Point("plain", Card(**PLAIN))]
    with pytest.warns(UserWarning, match=f"broken = 'outside:broken' of outside-cards is left out.*{why}"):
        assert "plain" in cards()
    assert mechanism("gla").title == "Gated linear attention"


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
