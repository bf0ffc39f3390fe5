"""How alike two paths of gaze are, and how somebody behaved on the way.

Paths are objects in the order in which they were looked at, int64 [P, L], -1 behind the end. Sizes: P pairs or paths,
L and M fixations. Sources: arXiv:2407.13335; multimatch: Jarodzka, Holmqvist and Nystrom, ETRA 2010, and Dewhurst et
al., Behavior Research Methods 44, 2012.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attensor.ops._checks import check_float, check_integers, checked

__all__ = ["behaviour", "delta", "edit_distance", "multimatch", "sequence_score", "true_probability"]


@checked
def sequence_score(paths: Tensor, others: Tensor) -> Tensor:
    """Fixations that both paths have in the same order, over those of the longer: 1 for equal paths, 0 for none.

    Needleman and Wunsch's alignment with 1 for a match and nothing for mismatches and gaps.

    Args:
        paths, others: [P, L] and [P, M].
    Returns:
        [P], float64; not a number where both are empty.
    Raises:
        ValueError: no paths, or not as many of each.
    Cost: O(P L M).
    """
    _check("sequence_score", paths, others)
    common = paths.new_zeros(paths.shape[0], others.shape[1] + 1)
    for place in range(paths.shape[1]):
        match = (paths[:, place, None] == others) & (paths[:, place, None] >= 0)
        # a cell is the largest of those above, to the left, and one more than that before both where they match
        best = torch.maximum(common[:, 1:], common[:, :-1] + match)
        common = torch.cat([common[:, :1], best], 1).cummax(1).values
    longer = torch.maximum(_lengths(paths), _lengths(others))
    return common[:, -1].double() / longer


@checked
def edit_distance(paths: Tensor, others: Tensor) -> Tensor:
    """Fixations to insert, delete or exchange until the paths are equal; arguments as of `sequence_score`.

    Returns:
        [P], int64.
    """
    _check("edit_distance", paths, others)
    ends, places = _lengths(others), torch.arange(others.shape[1] + 1, device=paths.device)
    cost = places.expand(paths.shape[0], -1)
    result = cost.gather(1, ends[:, None])[:, 0]
    for place in range(paths.shape[1]):
        exchanged = cost[:, :-1] + (paths[:, place, None] != others)
        best = torch.minimum(cost[:, 1:] + 1, exchanged)
        # an insertion costs 1 a place: the smallest of (cost - place), carried to the right
        cost = (torch.cat([cost[:, :1] + 1, best], 1) - places).cummin(1).values + places
        result = torch.where(paths[:, place] >= 0, cost.gather(1, ends[:, None])[:, 0], result)
    return result


@checked
def behaviour(paths: Tensor, target: Tensor) -> Tensor:
    """What somebody did: whether the last fixation is the target, the length, and three shares of the fixations.

    A fixation is a *refixation* if the one before is of the same object, else *search* if it is the first of its
    object, else a *revisit*.

    Args:
        paths: [P, L].
        target: [P].
    Returns:
        [P, 5], float64: ends at the target, length, shares of search, refixation and revisit, which sum to 1.
    Raises:
        ValueError: sizes or dtypes are wrong, or a path is empty.
    """
    _check("behaviour", paths, paths)
    _check_target("behaviour", "target", paths, target)
    lengths = _lengths(paths)
    real, count = paths >= 0, paths.shape[1]
    earlier = torch.ones(count, count, dtype=torch.bool, device=paths.device).tril(-1)
    seen = ((paths[:, :, None] == paths[:, None]) & earlier).any(-1)
    again = torch.cat([real.new_zeros(real.shape[0], 1), paths[:, 1:] == paths[:, :-1]], 1)
    kinds = torch.stack([~seen, again, seen & ~again], -1) & real[..., None]
    found = paths.gather(1, lengths[:, None] - 1)[:, 0] == target
    shares = kinds.sum(1).double() / lengths[:, None]
    return torch.cat([torch.stack([found, lengths], 1).double(), shares], 1)


@checked
def delta(paths: Tensor, target: Tensor, others: Tensor, others_target: Tensor) -> float:
    """How far a model's mean behaviour is from that of people: the mean of five relative differences.

    No ranking by itself: random paths of the right length come close.

    Args:
        paths, target: of the model, as of `behaviour`.
        others, others_target: of people.
    Returns:
        0 for equal means; infinite where people never did what the model did.
    Raises:
        ValueError: as `behaviour`.
    """
    _check("delta", paths, paths, "paths", "paths")
    _check("delta", others, others, "others", "others")
    for whose, x, to in (("target", paths, target), ("others_target", others, others_target)):
        _check_target("delta", whose, x, to)
    model, people = behaviour(paths, target).mean(0), behaviour(others, others_target).mean(0)
    return torch.where(model == people, 0.0, (model - people).abs() / people).mean().item()


@checked
def true_probability(logits: Tensor, labels: Tensor) -> float:
    """Mean probability of what came next, as told all that came before.

    Args:
        logits: [.., classes].
        labels: [..], negative ones do not count.
    Raises:
        ValueError: sizes, dtypes or devices disagree, or a label of no class.
    """
    check_float("true_probability", "logits", logits, logits, "logits")
    check_integers("true_probability", "labels", labels, logits, "logits")
    if not logits.ndim or labels.shape != logits.shape[:-1] or labels.is_meta:
        raise ValueError(
            f"true_probability: labels must be {list(logits.shape[:-1])} beside logits {list(logits.shape)}, got "
            f"{list(labels.shape)} on {labels.device}; give one for each row."
        )
    if labels.numel() and int(labels.max()) >= logits.shape[-1]:
        raise ValueError(
            f"true_probability: labels must be below the {logits.shape[-1]} classes, got {int(labels.max())}."
        )
    chosen = logits.double().softmax(-1).gather(-1, labels.long().clamp(min=0)[..., None])[..., 0]
    return chosen[labels >= 0].mean().item()


@checked
def multimatch(path: Tensor, other: Tensor, *, width: float, height: float) -> tuple[float, float, float, float]:
    """Likeness of two paths on a screen, from 0 to 1: shape, direction, length and position of the saccades.

    Saccades are aligned by the cheapest way through the matrix of their differences; nothing is simplified before.

    Args:
        path, other: [L, 2] and [M, 2], x and y of each fixation, at least three.
        width, height: of the screen, in the same unit.
    Raises:
        ValueError: fewer than three fixations, another shape, or no screen.
    Cost: O(L M).
    """
    for name, x in (("path", path), ("other", other)):
        check_float("multimatch", name, x, path, "path")
        if x.ndim != 2 or x.shape[1] != 2 or x.shape[0] < 3 or not bool(x.isfinite().all()):
            raise ValueError(
                f"multimatch: {name} must be [L, 2] with at least 3 fixations, all of them finite, got {list(x.shape)}."
            )
    if not (width > 0 and height > 0):
        raise ValueError(f"multimatch: width and height must be above 0, got {width} and {height}.")
    one, two = path.double().diff(dim=0), other.double().diff(dim=0)
    apart = torch.cdist(one[None], two[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
    pairs = _cheapest_way(apart.tolist())
    left, right = (torch.tensor(places) for places in zip(*pairs, strict=True))
    one, two, diagonal = one[left], two[right], math.hypot(width, height)
    turn = (torch.atan2(one[:, 1], one[:, 0]) - torch.atan2(two[:, 1], two[:, 0])).abs()
    turn = torch.minimum(turn, 2 * math.pi - turn)
    starts = path[left].double() - other[right].double()
    differences = (
        (one - two).norm(dim=1) / (2 * diagonal),
        turn / math.pi,
        (one.norm(dim=1) - two.norm(dim=1)).abs() / diagonal,
        starts.norm(dim=1) / diagonal,
    )
    shape, direction, length, position = (1 - x.quantile(0.5).item() for x in differences)
    return shape, direction, length, position


def _cheapest_way(cost: list[list[float]]) -> list[tuple[int, int]]:
    """Cells from the first to the last, each right of or below the one before, or both; the first costs nothing."""
    rows, columns = len(cost), len(cost[0])
    best = {(0, 0): (0.0, (0, 0))}
    for row in range(rows):
        for column in range(columns):
            before = [(row - 1, column - 1), (row - 1, column), (row, column - 1)]
            ways = [(best[cell][0], cell) for cell in before if cell in best]
            if ways:
                least, cell = min(ways)
                best[row, column] = (least + cost[row][column], cell)
    way = [(rows - 1, columns - 1)]
    while way[-1] != (0, 0):
        way.append(best[way[-1]][1])
    return way[::-1]


def _lengths(paths: Tensor) -> Tensor:
    return (paths >= 0).sum(1)


def _check_target(name: str, argument: str, paths: Tensor, target: Tensor) -> None:
    """Refuse what is not one object for each path, and paths without a fixation."""
    if target.shape != paths.shape[:1] or target.dtype != torch.int64 or target.device != paths.device:
        raise ValueError(
            f"{name}: {argument} must be [{paths.shape[0]}] int64, one for each path, got {list(target.shape)} "
            f"{target.dtype} on {target.device}."
        )
    if bool(((empty := _lengths(paths)) == 0).any()):
        raise ValueError(
            f"{name}: paths must have a fixation, got none in {int((empty == 0).sum())} beside {argument}; leave it."
        )


def _check(name: str, paths: Tensor, others: Tensor, first: str = "paths", second: str = "others") -> None:
    for argument, x in ((first, paths), (second, others)):
        if x.ndim != 2 or x.dtype != torch.int64 or x.is_meta:
            raise ValueError(
                f"{name}: {argument} must be [P, L] int64, -1 behind the end, got {list(x.shape)} {x.dtype} on "
                f"{x.device}."
            )
        if bool(((x[:, :-1] < 0) & (x[:, 1:] >= 0)).any()):
            raise ValueError(f"{name}: {argument} must have -1 behind the end alone, got one before a fixation.")
    if paths.shape[0] != others.shape[0] or paths.device != others.device:
        raise ValueError(
            f"{name}: paths {list(paths.shape)} on {paths.device} and others {list(others.shape)} on {others.device} "
            "must be pairs on one device."
        )
