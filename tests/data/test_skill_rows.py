"""Rows of selective copying, state tracking and the needle, against what they are defined to be, token by token."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from attensor.data.mqar import IGNORED
from attensor.data.needle import DIGITS, QUESTION, SHORTEST, needle_batch
from attensor.data.selective_copying import BLANK, FIRST_VALUE, MARK, selective_copying_batch
from attensor.data.state_tracking import ORDERS, parity_batch, s5_batch

COPYING = {"batch_size": 211, "length": 29, "num_values": 5, "vocab_size": 11}


def test_copying_asks_at_the_end_for_what_lies_among_blanks_in_its_order() -> None:
    tokens, targets = selective_copying_batch(3, seed=5, **COPYING)
    assert tokens.shape == targets.shape == (211, 29)
    assert (tokens[:, -5:] == MARK).all()
    assert (targets[:, :-5] == IGNORED).all()
    for row, target in zip(tokens[:, :-5].tolist(), targets[:, -5:].tolist(), strict=True):
        assert [token for token in row if token != BLANK] == target
    assert set(targets[:, -5:].unique().tolist()) == set(range(FIRST_VALUE, 11))
    # a value stands at every place, and rows differ in where
    assert ((tokens[:, :-5] != BLANK).sum(0) > 0).all()


def test_parity_is_that_of_all_bits_so_far() -> None:
    tokens, targets = parity_batch(0, seed=0, batch_size=13, length=17)
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        assert target == [sum(row[: t + 1]) % 2 for t in range(17)]


def test_products_of_permutations_move_five_things_one_after_the_other() -> None:
    tokens, targets = s5_batch(0, seed=0, batch_size=13, length=17)
    assert sorted(ORDERS) == sorted(set(itertools.permutations(range(5))))
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        where = list(range(5))  # thing -> its place
        for token, state in zip(row, target, strict=True):
            where = [ORDERS[token][place] for place in where]
            assert ORDERS[state] == tuple(where)


@pytest.mark.parametrize("batch", [parity_batch, s5_batch])
def test_states_are_asked_for_at_the_last_tokens_only(batch) -> None:
    options = {"seed": 0, "batch_size": 7, "length": 11}
    (tokens, every), (same, some) = batch(2, **options), batch(2, **options, num_asked=3)
    assert torch.equal(tokens, same)
    assert torch.equal(some[:, -3:], every[:, -3:])
    assert (some[:, :-3] == IGNORED).all()
    assert (every != IGNORED).all()


@pytest.mark.parametrize("length", [SHORTEST, 131])
def test_a_needle_lies_in_the_hay_once_and_is_asked_for_digit_by_digit(length: int) -> None:
    tokens, targets = needle_batch(3, seed=5, batch_size=1999, length=length)
    assert tokens.shape == targets.shape == (1999, length)
    depths = set()
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        text, asked = bytes(row), bytes(byte for byte in target if byte != IGNORED)
        found = re.search(re.escape(QUESTION) + rb"(\d{5})\. ", text)
        assert found is not None
        assert found[1] == asked
        assert target[-DIGITS:] == list(asked)
        assert text.endswith(QUESTION + asked[:-1])
        hay = text[: found.start()] + text[found.end() : length - len(QUESTION) - DIGITS + 1]
        assert not re.search(rb"\d|pass", hay)
        depths.add(found.start())
    assert len(depths) == (1 if length == SHORTEST else length - SHORTEST + 1)  # all depths come


BATCHES = [
    (selective_copying_batch, {"length": 29, "num_values": 5, "vocab_size": 11}),
    (parity_batch, {"length": 64}),
    (s5_batch, {"length": 13}),
    (needle_batch, {"length": 131}),
]


@pytest.mark.parametrize(("batch", "options"), BATCHES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_batch_is_a_function_of_its_arguments(batch, options) -> None:
    first, again, later, other = (
        batch(step, seed=seed, batch_size=13, **options)[0] for step, seed in ((3, 5), (3, 5), (4, 5), (3, 6))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (selective_copying_batch, {"length": 9, "num_values": 5, "vocab_size": 11}, "at least 2 x num_values = 10"),
        (selective_copying_batch, {"length": 9, "num_values": 0, "vocab_size": 11}, "num_values at least 1"),
        (selective_copying_batch, {"length": 29, "num_values": 5, "vocab_size": 3}, "vocab_size must be at least 4"),
        (parity_batch, {"length": 0}, "parity_batch: length must be at least 1, got 0"),
        (s5_batch, {"length": 5, "num_asked": 6}, "s5_batch: num_asked must be 1 to length = 5"),
        (needle_batch, {"length": SHORTEST - 1}, f"length must be at least {SHORTEST}, got {SHORTEST - 1}"),
    ],
)
def test_impossible_rows_are_refused(batch, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch(0, seed=0, batch_size=2, **options)
