"""How often a rank is named that is not there, and a gap found that is: by simulation, and by real small runs.

    python -m tests.compare.planted --simulated 2000
    python -m tests.compare.planted --runs 50

The real runs compare a planted pair (the same mechanism under two names, with other initial weights) and one that is
worse by construction, each time on other files of Python's standard library and from other initial weights: 50 take
three quarters of an hour on two idle cores. The planted gap is about 0.04 bits. The last simulated scene has the mean
spreads of ten such runs: all of 1000 draws find the gap, so the power is above 99.7 %; with the widest spread of the
seeds among the ten, 0.008, it is 85 %. A pair counts as ranked when its p after Holm is below alpha, also where a busy
machine withholds the ranking.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from attensor.compare.conclusions import conclusions
from attensor.compare.pairs import ALPHA, compared
from attensor.compare.statistics import samples, unit_weights
from attensor.metrics.student import t_quantile
from tests.compare.made_results import Truth, made_results

__all__ = ["SCENES", "Rates", "expected_power", "real_rates", "simulated_rates"]

MIXERS = Path(__file__).with_name("planted_mixers.py")
# of the real runs: name -> how much is wrong with it
PLANTED = {"Planted": 0.0, "Again": 0.0, "Worse": 1.0}

_FIVE = dict.fromkeys("abcde", 0.0)
_BETTER = {"best": 0.0, **dict.fromkeys("abcd", 0.05)}
# what is simulated: three seeds, a seed's spread of 0.01 and 40 files of heavy-tailed sizes where nothing else is said
SCENES = {
    "five equal ones": Truth(_FIVE),
    "two equal ones": Truth(dict.fromkeys("ab", 0.0)),
    "eleven equal ones": Truth(dict.fromkeys("abcdefghijk", 0.0)),
    "five, two seeds": Truth(_FIVE, seeds=2),
    "five, spreads from 0.003 to 0.03": Truth(_FIVE, seed_sd=(0.003, 0.01, 0.01, 0.02, 0.03)),
    "five, files of one size": Truth(_FIVE, tail=0.0),
    "five, one file": Truth(_FIVE, units=1, unit_sd=0.0, noise_sd=0.0),
    "five, 400 images": Truth(_FIVE, units=400, tail=0.0, noise_sd=0.3),
    "one better by 0.05": Truth(_BETTER),
    "one better by 0.05, files of one size": Truth(_BETTER, tail=0.0),
    "one better by 0.1": Truth({name: 2 * gap for name, gap in _BETTER.items()}),
    # root mean squares over ten real runs, the spread over the units that of the worse one
    "the real runs": Truth(
        {"Planted": 0.0, "Again": 0.0, "Worse": 0.038}, 0.0037, unit_sd=0.0165, noise_sd=0.0085, units=256, tail=0.0
    ),
}


@dataclass(frozen=True)
class Rates:
    """Shares of runs.

    Attributes:
        runs: how many.
        false: in which two equal mechanisms were ranked, or two unequal ones the wrong way round.
        best: in which one was called the best that is not better than all others.
        found: in which the one that is best by truth was called the best.
        pairs: share of all truly different pairs that were found.
    """

    runs: int
    false: float
    best: float
    found: float
    pairs: float

    def __str__(self) -> str:
        most = self.false + 2 * math.sqrt(max(self.false, 1 / self.runs) * (1 - self.false) / self.runs)
        text = f"false ranks {self.false:.1%} (at most {most:.1%}), false bests {self.best:.1%}"
        return text + (f", best found {self.found:.1%}, gaps found {self.pairs:.1%}" if self.pairs >= 0 else "")


def rates(gaps: Mapping[str, float], runs: Iterable[Mapping[tuple[str, str], bool]]) -> Rates:
    """Count.

    Args:
        gaps: name -> how much worse it is by truth.
        runs: of each run, (better, worse) as found -> whether that was decided.
    """
    least = min(gaps.values())
    best = [name for name, gap in gaps.items() if gap == least]
    false, wrong_best, right_best, found, there, count = 0, 0, 0, 0, 0, 0
    for run in runs:
        decided = {pair for pair, is_decided in run.items() if is_decided}
        leaders = [name for name in gaps if all((name, other) in decided for other in gaps if other != name)]
        false += any(gaps[better] >= gaps[worse] for better, worse in decided)
        right_best += leaders == best
        wrong_best += bool(leaders) and leaders != best
        found += sum(gaps[better] < gaps[worse] for better, worse in decided)
        there += sum(gaps[a] != gaps[b] for a, b in combinations(gaps, 2))
        count += 1
    return Rates(count, false / count, wrong_best / count, right_best / count, found / there if there else -1.0)


def simulated_rates(truth: Truth, runs: int, first_seed: int = 0) -> Rates:
    """Rates of results that are drawn from the truth."""

    def decided(seed: int) -> dict[tuple[str, str], bool]:
        results = made_results(truth, seed)
        comparison = compared(samples(results), unit_weights(results))
        return {pair: found.is_decided for pair, found in comparison.pairs.items()}

    return rates(truth.gaps, (decided(seed) for seed in range(first_seed, first_seed + runs)))


def expected_power(truth: Truth, gap: float, weights: torch.Tensor) -> float:
    """Probability that one pair with this gap is found, by the normal distribution and Holm's first step.

    Computed from the truth alone: the standard error is known, the border is that of the degrees of freedom that equal
    spreads give.

    Args:
        truth: equal spreads.
        gap: of the pair.
        weights: sizes of the test units.
    """
    mechanisms, share = len(truth.gaps), (weights / weights.sum()).square()
    seeds = 2 * float(truth.seed_sd) ** 2 / truth.seeds  # type: ignore[arg-type]
    noise = 2 * truth.noise_sd**2 / truth.seeds * float((share / (weights / weights.mean())).sum())
    units = 2 * truth.unit_sd**2 * float(share.sum())
    freedom = [
        (truth.seeds - 1) * (mechanisms - 1),
        min(truth.units - 1.0, float(share.sum() ** 2 / share.square().sum())),
    ]
    parts = (seeds + noise) ** 2 / freedom[0] + (units**2 / max(freedom[1], 1.0) if units else 0.0)
    border = t_quantile(1 - ALPHA / (mechanisms * (mechanisms - 1)), (seeds + noise + units) ** 2 / parts)
    return statistics.NormalDist().cdf(gap / math.sqrt(seeds + noise + units) - border)


def real_rates(runs: int, folder: Path, *, first: int = 0, options: Iterable[str] = ()) -> Rates:
    """Rates of real runs of `attensor compare`, each on its own draw of files; what they say is kept in the folder."""
    found = []
    for index in range(first, first + runs):
        results = real_run(folder / str(index), index, options)
        pairs = conclusions(results)["ranking"]["pairs"]
        found.append({(pair["better"], pair["worse"]): pair["p"] <= ALPHA for pair in pairs})
        text = ", ".join(f"{p['better']} over {p['worse']} {p['difference']:.3f} (p {p['p']:.2g})" for p in pairs)
        print(f"run {index}: {text}", flush=True)
    return rates(PLANTED, found)


def real_run(folder: Path, seed: int, options: Iterable[str] = ()) -> dict[str, Any]:
    """One small run on 120 files of the standard library, and its results."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    data = folder / "data"
    data.mkdir(parents=True)
    for file in random.Random(seed).sample(files, 120):
        shutil.copy(file, data / file.name)
    mixers = folder / MIXERS.name
    mixers.write_text(MIXERS.read_text().replace("RUN = 0", f"RUN = {seed}"))
    command = [sys.executable, "-m", "attensor", "compare", "--data", str(data), "--out", str(folder / "runs")]
    command += ["--mechanisms", ",".join(f"{mixers}:{name}" for name in PLANTED), "--device", "cpu"]
    command += ["--steps", "120", "--seeds", "3", "--length", "64", "--batch-size", "8", "--max-length", "256"]
    subprocess.run([*command, "--learning-rates", "6e-3", *options], check=True, stdout=subprocess.DEVNULL)
    (results,) = folder.glob("runs/*/results.json")
    return json.loads(results.read_text())


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", type=int, default=0, help="draws of each scene")
    parser.add_argument("--runs", type=int, default=0, help="real runs")
    parser.add_argument("--first", type=int, default=0, help="number of the first real run")
    parser.add_argument("--folder", type=Path, help="where the real runs are kept")
    arguments = parser.parse_args()
    if arguments.simulated:
        for name, truth in SCENES.items():
            print(f"{name}: {simulated_rates(truth, arguments.simulated)}", flush=True)
    if arguments.runs:
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.folder or Path(temporary)
            print(f"{arguments.runs} real runs: {real_rates(arguments.runs, folder, first=arguments.first)}")


if __name__ == "__main__":
    main()
