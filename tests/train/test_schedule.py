"""The learning rate rises to its peak and falls to its floor, and nothing else."""

from __future__ import annotations

import pytest

from attensor.train import learning_rate_factor
from attensor.train.loop import evaluation_steps


@pytest.mark.parametrize(("steps", "warmup"), [(101, 10), (7, 0), (3, 1)])
def test_rises_then_falls_to_the_floor(steps, warmup):
    factors = [learning_rate_factor(s, steps, warmup_steps=warmup, final_factor=0.1) for s in range(steps)]
    assert max(factors) == 1.0
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert factors[-1] == pytest.approx(0.1)


def test_half_way_down_is_the_middle():
    assert learning_rate_factor(55, 101, warmup_steps=10, final_factor=0.2) == pytest.approx(0.6)


@pytest.mark.parametrize(("steps", "evaluations"), [(100, 10), (7, 10), (1, 3), (13, 5)])
def test_the_curve_ends_with_the_last_step(steps, evaluations):
    points = evaluation_steps(steps, evaluations)
    assert max(points) == steps
    assert min(points) >= 1
    assert len(points) == min(steps, evaluations)
