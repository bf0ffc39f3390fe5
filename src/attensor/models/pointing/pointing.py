"""What pointer networks and the models that they are compared with share: encoder, teacher forcing, decoding by beams.

Sizes: B batch, n points, m choices, H hidden units. Source: arXiv:1506.03134, sections 2.1 to 2.3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.models.pointing.beam import Beams, beam_search
from attensor.models.pointing.constraints import CONSTRAINTS, Constraint
from attensor.nn._shapes import check_input
from attensor.ops._checks import check_float, check_integers, checked
from attensor.ops._precision import full_precision

__all__ = ["IGNORED", "ConstraintName", "Decoding", "Pointing", "pointing_loss"]

IGNORED = -100
ConstraintName = Literal["none", "hull", "tsp", "delaunay"]


@checked
def pointing_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood over the choices that are no padding, in nats.

    Args:
        logits: [B, m, choices].
        targets: [B, m], `-100` as padding.
    Raises:
        ShapeError, TypeError: sizes or dtypes disagree. ValueError: a target that is no choice (on a CPU).
    """
    name = "pointing_loss"
    check_float(name, "logits", logits, logits, "logits")
    check_integers(name, "targets", targets, logits, "logits")
    if logits.ndim != 3 or targets.shape != logits.shape[:2]:
        raise ShapeError(
            f"{name}: targets must be [B, m] beside logits [B, m, choices] {list(logits.shape)}, got "
            f"{list(targets.shape)}; give one for each choice."
        )
    try:
        return F.cross_entropy(logits.flatten(0, 1), targets.long().flatten(), ignore_index=IGNORED)
    except IndexError as error:
        raise ValueError(
            f"{name}: targets must be below the {logits.shape[-1]} choices, or {IGNORED} for padding: {error}."
        ) from error


@dataclass
class Decoding:
    """What a decoder keeps between steps: its LSTM's state, and what it may look at.

    Attributes:
        hidden, cell: [1, rows, H], a row for each beam.
        fed: [rows, F], what else goes into the next step; None for nothing.
    """

    hidden: Tensor
    cell: Tensor
    fed: Tensor | None = None

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row `index[i]` was."""
        index = index.to(self.hidden.device)
        self.hidden, self.cell = self.hidden[:, index], self.cell[:, index]
        self.fed = None if self.fed is None else self.fed[index]


class Pointing(nn.Module, ABC):
    """What pointer networks and their baselines share: an encoder, teacher forcing, and decoding by beams.

    A kind states `_memory`, what is made once of the encoder's outputs, `_forced`, all steps, and `_step`, the next.
    """

    def __init__(self, hidden_size: int, input_size: int, fed_size: int, init_range: float | None) -> None:
        super().__init__()
        for name, value in (("hidden_size", hidden_size), ("input_size", input_size)):
            if value < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, got {value}.")
        if init_range is not None and not init_range > 0:
            raise ValueError(f"{type(self).__name__}: init_range must be above 0, got {init_range}.")
        self.hidden_size, self.input_size, self.init_range = hidden_size, input_size, init_range
        self.start = nn.Parameter(torch.empty(input_size))
        self.encoder = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.decoder = nn.LSTM(input_size + fed_size, hidden_size, batch_first=True)

    def reset_parameters(self) -> None:
        """Everything uniform between -init_range and init_range; None: as suits points of the unit square.

        Within 3 for weights of coordinates, which deviate by 0.3, with biases by which the middle of the square is
        nothing: without both an LSTM of many units hardly sees where a point lies. Within 1 / sqrt(H) for all else.
        """
        around = self.hidden_size**-0.5 if self.init_range is None else self.init_range
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -around, around)
        if self.init_range is None:
            self._centre()

    @torch.no_grad()
    def _centre(self) -> None:
        """The start of LSTMs whose inputs are points of the unit square."""
        for net in (self.encoder, self.decoder):
            weight, _, bias, _ = net.all_weights[0]
            of_points = nn.init.uniform_(weight[:, : self.input_size], -3.0, 3.0)
            bias.sub_(0.5 * of_points.sum(1))

    @checked
    def forward(self, points: Tensor, targets: Tensor, counts: Tensor | None = None) -> Tensor:
        """Logits of every choice, with the right ones before it.

        Args:
            points: [B, n, input_size].
            targets: [B, m], places from 1 on, 0 for the end, -100 as padding.
            counts: [B], points that are no padding; all if None.
        Returns:
            [B, m, choices]; -inf for points that are padding.
        Raises:
            ShapeError: sizes disagree. TypeError: dtypes. ValueError: a place that is not there.
        """
        counts = self._check(points, counts)
        if targets.ndim != 2 or targets.shape[0] != len(points):
            raise ShapeError(f"{type(self).__name__}: targets must be [{len(points)}, m], got {list(targets.shape)}.")
        check_integers(type(self).__name__, "targets", targets, points, "points")
        if targets.numel() and int(targets.max()) > points.shape[1]:
            raise ValueError(
                f"{type(self).__name__}: targets must be places up to {points.shape[1]}, got {int(targets.max())}; "
                "places count from 1 on."
            )
        with full_precision(points):
            memory, state = self._encode(points, counts)
            given = self._chosen(points, targets[:, :-1])
            start = self.start.expand(len(points), min(1, targets.shape[1]), -1)
            return self._forced(torch.cat([start, given], 1), memory, state)

    @torch.no_grad()
    @checked
    def decode(
        self,
        points: Tensor,
        counts: Tensor | None = None,
        *,
        width: int = 1,
        constraint: ConstraintName | Constraint = "none",
        renormalise: bool = True,
        max_steps: int | None = None,
    ) -> Beams:
        """Answers by beam search.

        Args:
            points: [B, n, input_size].
            counts: [B], points that are no padding; all if None.
            width: beams; 1 is greedy.
            constraint: which answers are allowed: `"none"`, `"hull"`, `"tsp"`, `"delaunay"` or a function as in
                `attensor.models.pointing.constraints`.
            renormalise: probabilities among what is allowed, as when the constraint stands before the softmax.
            max_steps: longest answer; if None n + 2, for `"delaunay"` the 3 (2 n - 5) corners of all triangles and the
                end.
        Raises:
            ShapeError: sizes disagree. ValueError: fewer than three points for a constraint, or a number below 1.
        Cost: each step reads all points; keys are projected once.
        """
        counts = self._check(points, counts)
        longest = self._longest_answer(points, counts, constraint)
        rule = CONSTRAINTS[constraint] if isinstance(constraint, str) else constraint
        with full_precision(points):
            memory, state = self._encode(points, counts)
            search = _Search(self, points, counts, memory, rule, width)
            return beam_search(
                search.step,
                state,
                batch_size=len(points),
                max_steps=max_steps or longest,
                width=width,
                allowed=search.allowed,
                renormalise=renormalise,
            )

    def _longest_answer(self, points: Tensor, counts: Tensor, constraint: ConstraintName | Constraint) -> int:
        """Steps that any answer fits in; refuses too few points for a shape."""
        if constraint in ("hull", "delaunay", "tsp") and counts.numel() and int(counts.min()) < 3:
            raise ValueError(
                f"{type(self).__name__}.decode: {constraint} needs at least 3 points, got {int(counts.min())}."
            )
        return 3 * (2 * points.shape[1] - 5) + 1 if constraint == "delaunay" else points.shape[1] + 2

    def _check(self, points: Tensor, counts: Tensor | None) -> Tensor:
        name = type(self).__name__
        check_input(self, "points", points, self.start)
        if points.ndim != 3 or points.shape[-1] != self.input_size or not points.shape[1]:
            raise ShapeError(f"{name}: points must be [B, n, {self.input_size}], got {list(points.shape)}.")
        if counts is None:
            return torch.full((len(points),), points.shape[1], device=points.device)
        check_integers(name, "counts", counts, points, "points")
        if counts.shape != points.shape[:1]:
            raise ShapeError(f"{name}: counts must be [{len(points)}], got {list(counts.shape)}.")
        if counts.numel() and not (int(counts.min()) >= 1 and int(counts.max()) <= points.shape[1]):
            raise ValueError(
                f"{name}: counts must be from 1 to the {points.shape[1]} points, got {int(counts.min())} to "
                f"{int(counts.max())}."
            )
        return counts

    def _chosen(self, points: Tensor, places: Tensor) -> Tensor:
        """Coordinates of chosen points [B, s, input_size]; what follows the end or padding does not count."""
        index = (places - 1).clamp(0, points.shape[1] - 1)[..., None].expand(-1, -1, self.input_size)
        return points.gather(1, index)

    def _initial(self, batch: int) -> tuple[Tensor, Tensor]:
        """The encoder's state before the first point."""
        zeros = self.start.new_zeros(1, batch, self.hidden_size)
        return zeros, zeros

    def _encode(self, points: Tensor, counts: Tensor) -> tuple[Any, Decoding]:
        """What the decoder looks at, and its state before its first step."""
        batch, longest = points.shape[:2]
        hidden, cell = self._initial(batch)
        if not batch:
            found = points.new_zeros(0, longest, self.hidden_size)
        elif bool((counts == longest).all()):
            found, (hidden, cell) = self.encoder(points, (hidden.contiguous(), cell.contiguous()))
        else:
            packed = nn.utils.rnn.pack_padded_sequence(points, counts.cpu(), True, enforce_sorted=False)
            packed, (hidden, cell) = self.encoder(packed, (hidden.contiguous(), cell.contiguous()))
            found, _ = nn.utils.rnn.pad_packed_sequence(packed, True, total_length=longest)
        return self._memory(found, counts), Decoding(hidden, cell)

    def _choices(self, points: Tensor) -> int:
        return points.shape[1] + 1

    @abstractmethod
    def _memory(self, encoded: Tensor, counts: Tensor) -> Any:
        """What is made once of the encoder's outputs [B, n, H] for all steps."""

    @abstractmethod
    def _forced(self, given: Tensor, memory: Any, state: Decoding) -> Tensor:
        """Logits [B, m, choices] of all steps, whose inputs are given [B, m, input_size]."""

    @abstractmethod
    def _step(self, given: Tensor, memory: Any, state: Decoding) -> Tensor:
        """Logits [B, width, choices] of the next step; changes the state."""


@dataclass(frozen=True)
class _Search:
    """What a beam search asks a model about its points."""

    model: Pointing
    points: Tensor
    counts: Tensor
    memory: Any
    rule: Constraint
    width: int

    def step(self, last: Tensor | None, state: Any) -> Tensor:
        """Logits [B, width, choices] after the last choices, or of the first if None."""
        if last is None:
            given = self.model.start.expand(len(self.points), self.width, -1)
        else:
            given = self.model._chosen(self.points, last)
        return self.model._step(given, self.memory, state)

    def allowed(self, prefix: Tensor) -> Tensor:
        """What may follow each beam."""
        return self.rule(prefix, self.counts, self.model._choices(self.points))
