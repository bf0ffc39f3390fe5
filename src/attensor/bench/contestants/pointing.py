"""`attensor bench pointing`: additive scores without a tensor of pairs and channels, paths of gaze, tours."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attensor.bench.apart import brief
from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem, Row
from attensor.bench.contestants.gaze import GAZE_PEERS, HOW_TO_READ_PATHS, ScanpathProblem
from attensor.bench.hold import Bench
from attensor.bench.layout import Table
from attensor.bench.machine import version_of
from attensor.data.tours import MOST_EXACT, exact_tours, short_tour, tour_length
from attensor.models.pointing import PointerNetwork
from attensor.models.pointing.saved import load_pointing, shipped_model
from attensor.ops import pointer_scores

if TYPE_CHECKING:
    from attensor.commands.bench_pointing import BenchPointing

__all__ = ["PEERS", "PointingProblem", "bench"]

HOW_TO_READ = (
    "Scores of m queries against n keys, m = n, of as many inputs as a batch has; useful operations are 2 m n H an "
    "input, tanh not counted. 'one tensor' is how the replication of the paper computes them, 'a loop' does one query "
    "after the other, as a decoder does that projects nothing ahead."
)
_TIMES, _KINDS = 5, ("scores",)


@dataclass(frozen=True)
class PointingProblem(Problem):
    """n queries and n keys of width H, in a batch."""

    length: int
    hidden_size: int
    batch_size: int

    kind = property(lambda self: _KINDS[0])
    title = property(lambda self: f"{self.batch_size} inputs, {self.hidden_size} units")
    size = property(lambda self: (self.hidden_size, self.batch_size, self.length))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Queries, keys, weight and scores."""
        rows = (self.batch_size, self.length, self.hidden_size)
        return (rows, rows, (self.hidden_size,), (self.batch_size, self.length, self.length))


def _ours(problem: PointingProblem) -> Contestant:
    return problem.contestant(lambda queries, keys, weight: pointer_scores(queries, keys, weight=weight))


def _at_once(problem: PointingProblem) -> Contestant:
    return problem.contestant(_one_tensor)


def _one_tensor(queries: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    return torch.tanh(queries[:, :, None] + keys[:, None]) @ weight


def _loop(problem: PointingProblem) -> Contestant:
    def steps(queries: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        return torch.cat([_one_tensor(query[:, None], keys, weight) for query in queries.unbind(1)], 1)

    return problem.contestant(steps)


def _flops(problem: PointingProblem) -> float:
    return 2.0 * problem.batch_size * problem.length**2 * problem.hidden_size


PEERS = (
    Peer(OURS, _ours, _flops, kinds=_KINDS, packages=("attensor",)),
    Peer("one tensor", _at_once, _flops, kinds=_KINDS, packages=("torch",)),
    Peer("a loop", _loop, _flops, kinds=_KINDS, packages=("torch",)),
    *GAZE_PEERS,
)


def bench(options: BenchPointing) -> Bench:
    """The contest of the options."""
    made: dict[str, Any] = {"hidden_size": options.hidden_size, "batch_size": options.batch_size}
    small: list[Problem] = [PointingProblem(7, 16, 3, device=options.device)]
    small.append(ScanpathProblem(8, 5, preset="tiny", device=options.device))
    cells = [
        Cell(mode, [PointingProblem(length, device=options.device, **made)])
        for mode in options.modes
        for length in sorted(set(options.lengths))
    ]
    for objects in sorted(set(options.objects)):
        cells.append(Cell("forward", [ScanpathProblem(objects, options.fixations, device=options.device)]))
    how_to_read = f"{HOW_TO_READ} {HOW_TO_READ_PATHS}"
    return Bench(PEERS, small, cells, how_to_read, findings=partial(_tours, cities=options.cities))


def _tours(rows: Sequence[Row], *, cities: Sequence[int]) -> Iterable[Table]:
    """Milliseconds of a tour, the median of five, and the mean length over the shortest that was found."""
    try:
        model, _ = load_pointing(shipped_model("tsp"))
    except FileNotFoundError:
        model = PointerNetwork(128).eval()
    solvers: dict[str, Callable[[Any], Any]] = {
        "pointer network, 1 beam": partial(_pointed, model, 1),
        "pointer network, 3 beams": partial(_pointed, model, 3),
        "dynamic programming (ours)": _exact,
        "local search (ours)": short_tour,
        **{f"{name} {version_of(name)}": solve for name, solve in _INSTALLED.items() if version_of(name)},
    }
    table = Table("Tours, ms an instance, and length over the shortest of the row", ["cities", *solvers], note=_NOTE)
    for size in cities:
        generator = torch.Generator().manual_seed(size)
        sets = torch.rand(_TIMES, size, 2, generator=generator, dtype=torch.float64).numpy()
        found = {name: _timed(solve, sets) for name, solve in solvers.items()}
        best = min(length for _, length in found.values() if length is not None)
        cells = [
            f"{milliseconds:.3g}, {length / best - 1:+.1%}" if length is not None else milliseconds
            for milliseconds, length in found.values()
        ]
        table.rows.append([str(size), *map(str, cells)])
    return [table]


_NOTE = "The pointer network was trained on few cities; beyond them it is only shown. Times of one core, one instance."


def _timed(solve: Callable[[Any], Any], sets: Any) -> tuple[Any, float | None]:
    seconds, lengths = [], []
    try:
        if solve(sets[0]) is None:
            return "-", None
        for points in sets:
            began = time.process_time()
            tour = solve(points)
            seconds.append(time.process_time() - began)
            lengths.append(tour_length(points, tour))
    except Exception as error:  # whatever goes wrong inside another's solver is the reason why it is left out
        return brief(error), None
    return 1000 * statistics.median(seconds), sum(lengths) / len(lengths)


def _pointed(model: Any, width: int, points: Any) -> Any:
    given = torch.from_numpy(points).float()[None]
    answer = model.decode(given, width=width, constraint="tsp").best[0]
    return (answer[: len(points)] - 1).numpy()


def _exact(points: Any) -> Any:
    return exact_tours(points[None])[0] if len(points) <= MOST_EXACT else None


def _python_tsp(points: Any) -> Any:
    exact = importlib.import_module("python_tsp.exact")
    if len(points) > MOST_EXACT:
        return None
    places = torch.from_numpy(points)
    return torch.tensor(exact.solve_tsp_dynamic_programming(torch.cdist(places, places).numpy())[0]).numpy()


def _elkai(points: Any) -> Any:
    places = torch.from_numpy(points)
    whole = (1e6 * torch.cdist(places, places)).round().long().tolist()
    return torch.tensor(importlib.import_module("elkai").DistanceMatrix(whole).solve_tsp()[:-1]).numpy()


_INSTALLED: dict[str, Callable[[Any], Any]] = {"python-tsp": _python_tsp, "elkai": _elkai}
