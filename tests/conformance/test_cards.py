"""The catalogue is the single list: nothing public is missing from it, what it names exists, its costs are counted."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import attensor
from attensor import recipes
from attensor.catalogue import SYMBOLS, Card, Domain, Mechanism, cards, load, mechanisms
from tests.conformance.cases import Case, all_cases, name

ONE_EACH = pytest.mark.parametrize("card", list(cards().values()), ids=lambda c: c.name)


def test_every_public_operator_has_a_card_and_a_reference() -> None:
    carded = {path.partition(":")[2] for card in cards().values() for path in card.operators}
    functions = {n: value for n, value in vars(attensor.ops).items() if inspect.isfunction(value)}
    # `backend` and its kind are no operators
    public = {n for n, value in functions.items() if "._" not in value.__module__}
    suffixes = ("_reference", "_step", "_step_reference")
    steps_and_definitions = {f"{n}{suffix}" for n in carded for suffix in suffixes}
    assert public - steps_and_definitions == carded
    assert {f"{n}_reference" for n in carded} <= public


def test_every_public_layer_has_a_card() -> None:
    carded = {path.partition(":")[2] for card in mechanisms().values() for path in card.layers}
    mixers = {
        n
        for n in dir(attensor.nn)
        if inspect.isclass(kind := getattr(attensor.nn, n))
        and issubclass(kind, nn.Module)
        and {"hidden_size", "num_heads"} <= set(inspect.signature(kind).parameters)
    }
    assert mixers == carded


def test_every_recipe_is_named_by_a_card() -> None:
    assert {card.recipe for card in cards().values() if card.recipe} == {
        f"attensor.recipes.{name.replace('-', '_')}" for name in recipes.names()
    }


@ONE_EACH
def test_paths_lead_somewhere(card: Card) -> None:
    assert all(callable(load(path)) for path in card.operators)
    assert all(issubclass(load(path), nn.Module) for path in card.layers + card.models)
    assert all(callable(load(path).run) for path in card.commands.values())


@ONE_EACH
def test_a_card_is_good_for_something(card: Card) -> None:
    assert card.verbs
    assert bool(card.presets) <= bool(card.models)
    assert load(f"attensor.cards.{card.name.replace('-', '_')}:CARD") is card


@ONE_EACH
def test_a_recipe_is_named_like_its_file(card: Card) -> None:
    if card.recipe:
        assert load(f"{card.recipe}:RECIPE").name == card.recipe.rpartition(".")[2].replace("_", "-")


@ONE_EACH
def test_it_swaps_into_foreign_models_if_a_layer_can(card: Card) -> None:
    """By its own card, or that of the layer that it is a variant of."""
    able = [load(path) for path in card.layers if hasattr(load(path), "from_attention")]
    assert able or not card.swaps_into
    for layer in able:
        owner = next(kind for kind in layer.__mro__ if "from_attention" in vars(kind))
        assert any(other.swaps_into and issubclass(load(other.layers[0]), owner) for other in mechanisms().values())


@ONE_EACH
def test_the_example_runs(card: Card) -> None:
    lines = card.example.strip().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(not line.startswith((" ", ")")) for line in lines) == 3  # statements, one of them over three lines
    exec(card.example, {})


@pytest.mark.parametrize("card", mechanisms().values(), ids=lambda c: c.name)
def test_own_symbols_are_used_and_hide_no_common_one(card: Mechanism) -> None:
    assert set(card.symbols) <= set(card.used_symbols)
    assert not set(card.symbols) & set(SYMBOLS)


@pytest.mark.parametrize("case", [c for c in all_cases() if c.variant is None], ids=name)
def test_the_cost_formula_is_what_is_computed(case: Case) -> None:
    """Matrix-product FLOPs of the operator: those of the whole layer less those of its projections and convolutions."""
    if case.card.name == "nprf-rpe" and attensor.ops.kernels_form() == "torch":
        pytest.skip("its formula counts the C++ tiles, which are not built here; torch takes transforms at this length")
    layer = case.layer(dtype=torch.float32)
    space = (256,) if case.domain is Domain.SEQUENCE else (16, 24)
    x = case.hidden_states(space=space).float()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        layer(x)
    projections = FlopCounterMode(display=False)
    with projections, torch.no_grad():
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module(torch.empty(2, *space, module.in_features))
            elif isinstance(module, nn.Conv2d):
                module(torch.empty(2, module.in_channels, *space))
    counted = counter.get_total_flops() - projections.get_total_flops()
    assert case.card.cost("flops", B=2, **layer.cost_sizes(space)) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("case", [c for c in all_cases() if c.is_causal], ids=name)
@pytest.mark.parametrize("context", [5, 200])
def test_the_state_formula_is_what_a_cache_holds(case: Case, context: int) -> None:
    layer = case.layer(dtype=torch.float32)
    cache = layer.new_cache(2, context)
    layer(case.hidden_states(space=(context,)).float(), cache=cache)
    assert case.card.cost("state_bytes", B=2, **layer.cost_sizes((context,))) == cache.nbytes
    sizes = layer.cost_sizes((context,))
    by_token, fixed = (part.subs({s: sizes[s.name] for s in part.free_symbols}) for part in case.card.state_parts)
    assert 2 * (by_token * context + fixed) == cache.nbytes
