"""How sure a mean is: Student's interval, the bootstrap, and a test that shuffles signs.

Written out with the standard library and torch; numbers agree with scipy to 1e-8.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attensor.metrics.student import t_quantile
from attensor.ops._checks import checked

__all__ = ["Interval", "SignFlip", "bootstrap_interval", "sign_flip_test", "t_interval"]

_ROWS = 1000  # samples at once: memory


@dataclass(frozen=True)
class Interval:
    """An estimate and the range that holds the true value with the asked-for confidence.

    Attributes:
        estimate: from all values.
        low, high: ends of the range; nan for a single value.
        count: values, for instance one a seed.
    """

    estimate: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        """`0.912 [0.899, 0.925] (3 values)`, with two significant digits of the half-width."""
        if math.isnan(self.low):
            return f"{self.estimate:.3f} ({self.count} value{'s' * (self.count != 1)})"
        digits = 3
        if 0 < self.half_width < math.inf:
            digits = min(max(1 - math.floor(math.log10(self.half_width)), 0), 6)
        return f"{self.estimate:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}] ({self.count} values)"


@checked
def t_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean of independent, roughly normal values with its two-sided interval by Student's t.

    Args:
        values: one a seed, or one difference a seed.
        confidence: probability that such a range holds the true mean.
    Raises:
        ValueError: no values, or a confidence outside of (0, 1).
    """
    _check("t_interval", values, confidence)
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = t_quantile((1 + confidence) / 2, count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


@checked
def bootstrap_interval(
    values: Sequence[float],
    *,
    statistic: Callable[[Tensor], Tensor] = lambda samples: samples.mean(-1),
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A statistic with its percentile interval: the statistic of many samples drawn from the values with replacement.

    Too narrow below some ten values, where `t_interval` is the choice for a mean.

    Args:
        values: independent measurements.
        statistic: [.., count] float64 to [..], over the last axis.
        confidence: share of the samples' statistics inside the range.
        resamples: how many samples.
        seed: of the draws.
    Raises:
        ValueError: no values, or a confidence outside of (0, 1).
    """
    _check("bootstrap_interval", values, confidence, seed, resamples=resamples)
    data, generator = torch.tensor(values, dtype=torch.float64), torch.Generator().manual_seed(int(seed))
    parts = []
    for start in range(0, resamples, _ROWS):
        drawn = torch.randint(len(data), (min(_ROWS, resamples - start), len(data)), generator=generator)
        parts.append(statistic(data[drawn]))
    tail = (1 - confidence) / 2
    low, high = torch.cat(parts).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(statistic(data).item(), low, high, len(data))


@dataclass(frozen=True)
class SignFlip:
    """Result of `sign_flip_test`.

    Attributes:
        p_value: share of the sign patterns whose mean is at least as far from zero as the observed one.
        smallest: the least `p_value` that so many differences could have given.
        is_exact: all patterns were counted, not a sample of them.
    """

    p_value: float
    smallest: float
    is_exact: bool


@checked
def sign_flip_test(
    differences: Sequence[float],
    *,
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
    samples: int = 20_000,
    seed: int = 0,
) -> SignFlip:
    """Whether paired differences are centred on zero, by flipping their signs; assumes symmetry and nothing more.

    With n differences no p-value can be below 2^-n (2^(1 - n) two-sided): three seeds never reach 0.05.

    Args:
        differences: one a pair, for instance of two models with the same seed.
        alternative: "two-sided", "greater" (the mean is above zero) or "less".
        samples: patterns drawn when there are more than this; the observed one counts as one of them.
        seed: of the draws.
    Raises:
        ValueError: no differences, or another alternative.
    """
    _check("sign_flip_test", differences, 0.5, seed, samples=samples)
    data, count = torch.tensor(differences, dtype=torch.float64), len(differences)
    is_exact = count < 63 and 2**count <= samples
    signs: Iterator[Tensor]
    if is_exact:
        signs = iter([torch.arange(2**count)[:, None] >> torch.arange(count) & 1])
    else:
        generator = torch.Generator().manual_seed(int(seed))
        sizes = [min(_ROWS, samples - start) for start in range(0, samples, _ROWS)]
        signs = (torch.randint(2, (size, count), generator=generator) for size in sizes)
    sums, observed = torch.cat([(1.0 - 2 * some).to(data) @ data for some in signs]), data.sum()
    if alternative == "two-sided":
        sums, observed = sums.abs(), observed.abs()
    elif alternative == "less":
        sums, observed = -sums, -observed
    # rounding depends on the order of the terms: what is equal but for that counts as equal
    as_far = int((sums >= observed - 1e-12 * data.abs().sum()).sum())
    extremes = 2 if alternative == "two-sided" else 1
    if is_exact:
        return SignFlip(as_far / 2**count, extremes / 2**count, True)
    return SignFlip((1 + as_far) / (1 + samples), 1 / (1 + samples), False)


def _check(name: str, values: Sequence[float], confidence: float, seed: int = 0, **counts: int) -> None:
    if not len(values):
        raise ValueError(f"{name}: there are no values; give one number for each seed or pair.")
    if not 0 < confidence < 1:
        raise ValueError(f"{name}: confidence must be between 0 and 1, got {confidence}.")
    for argument, value in (*counts.items(), ("seed", abs(seed))):
        if not (argument != "seed") <= value < 2**63:
            raise ValueError(
                f"{name}: {argument} must be at least {int(argument != 'seed')} and below 2**63, got {value}."
            )
