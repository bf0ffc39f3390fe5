"""Drawings of answers about points, as numbers for the page's SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Drawing", "drawings"]

SIDE, MARGIN = 360.0, 16.0
_NAMED = 60  # points whose numbers can be read


@dataclass(frozen=True)
class Drawing:
    """One answer.

    Attributes:
        title: whose it is.
        path: closed lines, as the attribute `d` of an SVG path.
        wrong: the same for lines that the best answer does not have.
        dots: x, y and number of each point; no number where there are too many.
        radius: of a dot.
        side: of the square.
        text: for who cannot see it.
    """

    title: str
    path: str
    wrong: str
    dots: list[tuple[float, float, str]]
    radius: float
    side: float
    text: str


def drawings(solution: Any) -> list[Drawing]:
    """Both answers of a `Solution`, the model's first; its lines that the best answer does not have are told apart."""
    places = [(MARGIN + SIDE * x, MARGIN + SIDE * (1 - y)) for x, y in solution.points.tolist()]
    size = 3 if solution.task == "delaunay" else 0
    edges = [_edges(answer, size) for answer in (solution.found, solution.best)]
    titles = ("Pointer network", f"Solver: {solution.solver}")
    found = []
    for title, own, other, answer in zip(titles, edges, edges[::-1], (solution.found, solution.best)):
        is_model = title == titles[0]
        right = [edge for edge in own if edge in set(other) or not is_model]
        wrong = [edge for edge in own if edge not in set(other) and is_model]
        text = f"{title}: {', '.join(str(solution.rows[place - 1]) for place in answer)}"
        found.append(
            Drawing(
                title,
                _path(right, places),
                _path(wrong, places),
                [(x, y, str(row) if len(places) <= _NAMED else "") for (x, y), row in zip(places, solution.rows)],
                3.5 if len(places) <= _NAMED else 2.0,
                SIDE + 2 * MARGIN,
                text,
            )
        )
    return found


def _edges(answer: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Pairs of places, the lower one first: of one ring, or of rings of `size` corners."""
    rings = [answer[i : i + size] for i in range(0, len(answer), size)] if size else [answer]
    edges = [(a, b) for ring in rings for a, b in zip(ring, [*ring[1:], *ring[:1]])]
    return list(dict.fromkeys((min(a, b), max(a, b)) for a, b in edges))


def _path(edges: Sequence[tuple[int, int]], places: Sequence[tuple[float, float]]) -> str:
    def at(place: int) -> str:
        x, y = places[place - 1]
        return f"{x:.1f},{y:.1f}"

    return "".join(f"M{at(a)}L{at(b)}" for a, b in edges)
