"""Recall rows: pairs first, every key asked for once after them, its value as the target, the rest blank."""

from __future__ import annotations

import pytest
import torch

from attensor.data.mqar import IGNORED, mqar_batch

SIZES = {"batch_size": 13, "length": 53, "num_pairs": 7, "vocab_size": 38}


def test_every_key_is_asked_for_once_and_its_target_is_the_value_beside_it() -> None:
    tokens, targets = mqar_batch(3, seed=5, **SIZES)
    assert tokens.shape == targets.shape == (13, 53)
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        pairs = dict(zip(row[0:14:2], row[1:14:2], strict=True))
        assert len(pairs) == 7
        asked = {place: value for place, value in enumerate(target) if value != IGNORED}
        assert all(place >= 14 and place % 2 == 0 for place in asked)
        assert {row[place]: value for place, value in asked.items()} == pairs
        assert all(row[place] == 0 for place in range(14, 53) if place not in asked)


def test_keys_and_values_come_from_their_halves() -> None:
    tokens, targets = mqar_batch(0, seed=0, batch_size=211, length=28, num_pairs=7, vocab_size=38)
    assert set(tokens[:, 0:14:2].unique().tolist()) == set(range(1, 19))
    assert set(tokens[:, 1:14:2].unique().tolist()) == set(range(19, 38))
    assert set(targets.unique().tolist()) == {IGNORED, *range(19, 38)}


def test_a_small_power_asks_near_the_pairs_and_power_one_anywhere() -> None:
    def mean_distance(power: float) -> float:
        _, targets = mqar_batch(0, seed=0, batch_size=500, length=101, num_pairs=1, vocab_size=6, power=power)
        return float((targets != IGNORED).nonzero()[:, 1].double().mean()) - 2

    # 49 even places at 0, 2, .. 96 after the pair: evenly 48 on average; by 1 / x it is 2 (49 / H(49) - 1) = 19.9
    assert mean_distance(1.0) == pytest.approx(48, abs=4)
    assert mean_distance(1e-9) == pytest.approx(19.9, abs=4)


def test_a_batch_is_a_function_of_its_arguments() -> None:
    first, again, later, other = (
        mqar_batch(step, seed=seed, **SIZES)[0] for step, seed in ((3, 5), (3, 5), (4, 5), (3, 6))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)


def test_impossible_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="length must be at least 4 x num_pairs = 28, got 27"):
        mqar_batch(0, seed=0, **{**SIZES, "length": 27})
    with pytest.raises(ValueError, match="vocab_size must be at least 16 for 7 pairs, got 15"):
        mqar_batch(0, seed=0, **{**SIZES, "vocab_size": 15})
