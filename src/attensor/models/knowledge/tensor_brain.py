r"""The Tensor Brain: a decoder that oscillates between a subsymbolic state and symbols, for perception and memory.

    bottom-up    n_k = a_k^T sig(q)                    P(k) = softmax(beta n)_k within a group of symbols
    top-down     q <- q + a_k*                         "sample"
                 q <- q + sum_k P(k) a_k               "attention": query sig(q), keys = values = the group's columns
    evolution    h <- B sig(sig(h) + V sig(q)),  q <- W sig(h)      h_0 = 0

The columns a_k of A are both how a symbol is read from the state and what it writes into it. Four windows, in this
order: scene (and time), subject with its unary labels, object, predicate; a symbol is scored, chosen and fed back, then
the next group is scored. Sizes: B rows, D of q, H of h, K symbols.
Source: arXiv:2109.13392 (algorithm), 2001.11027 (layers), 2510.13894 (offset, general update).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.models.knowledge.brain_config import Feedback
from attensor.models.knowledge.brain_config import TensorBrainConfig as TensorBrainConfig
from attensor.models.knowledge.decoding import Decoded
from attensor.models.knowledge.feedback import Choice
from attensor.models.knowledge.scorer import check_index
from attensor.nn._shapes import check_input
from attensor.ops._checks import check_devices, check_float, checked

__all__ = ["TensorBrain", "TensorBrainConfig"]

_Truth = Mapping[str, Tensor] | None
_Feedback = Feedback | Literal["default"] | None


class Evolution(nn.Module):
    """The working memory: what becomes of q between windows.

    Args:
        config: sizes, and the kind of context.
    """

    def __init__(self, config: TensorBrainConfig) -> None:
        super().__init__()
        d, h, is_recurrent = config.dim, config.hidden_size, config.context == "recurrent"
        self.V, self.W = nn.Parameter(torch.empty(h, d)), nn.Parameter(torch.empty(d, h))
        self.B = nn.Parameter(torch.empty(h, h)) if is_recurrent else None
        self.v0 = None if is_recurrent else nn.Parameter(torch.empty(h))

    def forward(self, q: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The next q [B, D] and h [B, H]."""
        driven = torch.sigmoid(q) @ self.V.mT
        if self.B is not None:
            h = torch.sigmoid(torch.sigmoid(h) + driven) @ self.B.mT
        elif self.v0 is not None:
            h = self.v0 + driven
        return torch.sigmoid(h) @ self.W.mT, h


class TensorBrain(nn.Module):
    """See above; a decode costs four windows of 2 D K + 2 H D + H^2 multiplications.

    Args:
        config: sizes and choices.
        encoder: of a window's features [B, input_size] to [B, D]; a linear one if None.
    """

    tiny: ClassVar[TensorBrainConfig] = TensorBrainConfig(5, 3, {"class": 2}, 4, input_size=6, dim=8, hidden_size=7)
    presets: ClassVar[dict[str, TensorBrainConfig]] = {}

    @checked
    def __init__(self, config: TensorBrainConfig, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.A = nn.Parameter(torch.empty(config.dim, config.num_columns))
        self.a0 = nn.Parameter(torch.empty(config.num_columns)) if config.offset == "learned" else None
        self.encoder = nn.Linear(config.input_size, config.dim) if encoder is None else encoder
        self.evolution = None if config.context is None else Evolution(config)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Columns of norm 1 in the mean, Xavier for V, B, W; a learned offset takes the constant half of each score."""
        nn.init.normal_(self.A, std=1 / math.sqrt(self.config.dim))
        if self.a0 is not None:
            self.a0.copy_(-self.A.sum(0) / 2)
        for parameter in () if self.evolution is None else self.evolution.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
        if isinstance(self.encoder, nn.Linear):
            self.encoder.reset_parameters()

    def forward(self, scene: Tensor, subject: Tensor, object_: Tensor, union: Tensor) -> Decoded:
        """As `perceive`, with the feedback of the configuration."""
        return self.perceive(scene, subject, object_, union)

    @checked
    def perceive(
        self,
        scene: Tensor,
        subject: Tensor,
        object_: Tensor,
        union: Tensor,
        *,
        truth: _Truth = None,
        given: _Truth = None,
        feedback: _Feedback = "default",
        generator: torch.Generator | None = None,
        with_time: bool = False,
    ) -> Decoded:
        """A sentence about what is seen.

        Args:
            scene, subject, object_, union: [B, input_size], features of the whole, of the two boxes, of both together.
            truth: window -> [B] right symbols, told to the feedback `"sample"` in training (teacher forcing).
            given: window -> [B] symbols that are known and fed back as they are, whichever the feedback.
            feedback: `"attention"`, `"sample"`, None, or the configuration's.
            generator: of the draws; PyTorch's own if None.
            with_time: before all else, ask which episode this is like, and feed it back.
        Returns:
            steps "scene", "subject", the unary groups, "object", "predicate"; before them "time" if asked.
        Raises:
            ShapeError: other features. ValueError, TypeError: symbols or windows that are not there.
        """
        windows = {"scene": scene, "subject": subject, "object_": object_, "union": union}
        for argument, x in windows.items():
            if x.ndim != 2 or x.shape != scene.shape or x.shape[-1] != self.config.input_size:
                wanted = f"[{scene.shape[0] if scene.ndim else 'B'}, {self.config.input_size}]"
                raise ShapeError(f"TensorBrain.perceive: {argument} must be {wanted}, got {list(x.shape)}.")
            check_input(self, argument, x, self.encoder.weight if type(self.encoder) is nn.Linear else None)
        if with_time and not self.config.num_times:
            raise ValueError("TensorBrain.perceive: with_time needs times, num_times is 0; build it with num_times.")
        name, count = "TensorBrain.perceive", len(scene)
        how = Choice(name, self, count, feedback, truth=truth, given=given, generator=generator)
        return self._decode([self.encoder(x) for x in windows.values()], how, with_time=with_time)

    @checked
    def recall(
        self,
        time: Tensor,
        *,
        truth: _Truth = None,
        feedback: _Feedback = "default",
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """Episodic memory: what was at a time, with nothing seen.

        Args:
            time: [B] int64, indices of episodes; or [B, D], states in the place of a column: of an expected event
                (future), or a mean of columns.
            truth, feedback, generator: as of `perceive`.
        Raises:
            ShapeError, TypeError, ValueError: other times.
        """
        if time.is_floating_point():
            check_float("TensorBrain.recall", "time", time, self.A, "the brain")
            if time.ndim != 2 or time.shape[1] != self.config.dim:
                raise ShapeError(f"TensorBrain.recall: time must be [B, {self.config.dim}], got {list(time.shape)}.")
            start = time
        else:
            check_index("TensorBrain.recall", "time", time, self.config.num_times, time)
            if time.is_meta:
                check_devices("TensorBrain.recall", self.A, "the brain", time=time)
            start = self.columns("times").T[time]
        how = Choice("TensorBrain.recall", self, len(start), feedback, truth=truth, generator=generator)
        return self._decode([start, 0, 0, 0], how)

    @checked
    def remember(
        self,
        subject: Tensor | None = None,
        *,
        start: Tensor | None = None,
        truth: _Truth = None,
        feedback: _Feedback = "default",
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """Semantic memory: what holds in general, of a subject or of anything.

        Args:
            subject: [B] int64, entities to speak of; None lets the decoder choose.
            start: [B, D], where q begins: the mean of time columns, for instance. Left out: the subject's column, or
                zeros.
            truth, feedback, generator: as of `perceive`.
        Raises:
            ShapeError, TypeError, ValueError: other subjects.
        """
        given = None
        if subject is not None:
            check_index("TensorBrain.remember", "subject", subject, self.config.num_entities, subject)
            given = {"subject": subject}
            start = self.columns("entities").T[subject] if start is None else start
        if start is None:
            start = self.A.new_zeros(1, self.config.dim)
        check_float("TensorBrain.remember", "start", start, self.A, "the brain")
        if start.ndim != 2 or start.shape[1] != self.config.dim:
            raise ShapeError(f"TensorBrain.remember: start must be [B, {self.config.dim}], got {list(start.shape)}.")
        name, count = "TensorBrain.remember", len(start)
        how = Choice(name, self, count, feedback, truth=truth, given=given, generator=generator)
        return self._decode([start, 0, 0, 0], how)

    @checked
    def reason(self, subject: Tensor, *, truth: _Truth = None, generator: torch.Generator | None = None) -> Decoded:
        """Reasoning by chaining: each label is fed back, and the next group is decoded from it alone.

        The groups of `unary` are steps from the individual to its class, from there to what that is one of, and so on;
        none is scored again after its own label was fed back.

        Args:
            subject: [B] int64, entities.
            truth, generator: as of `perceive`.
        Returns:
            a step for each unary group.
        Raises:
            ShapeError, TypeError, ValueError: other subjects.
        """
        check_index(name := "TensorBrain.reason", "subject", subject, self.config.num_entities, subject)
        mode = self.config.feedback or "attention"
        how, steps = Choice(name, self, len(subject), mode, truth=truth, generator=generator), []
        column = self.columns("entities").T[subject]
        for group in self.config.unary:
            evolved, _ = self._evolve(column, column.new_zeros(len(column), self.config.hidden_size))
            _, step = how.feed(group, group, evolved + column)
            steps.append(step)
            column = column if step.feedback is None else step.feedback
        return Decoded(tuple(steps), self.config.beta)

    @checked
    def columns(self, group: str) -> Tensor:
        """a_k of a group: [D, K of the group].

        Raises:
            ValueError: no such group.
        """
        places = self.config.groups
        if group not in places:
            raise ValueError(f"TensorBrain.columns: group must be one of {', '.join(places)}, got {group!r}.")
        return self.A[:, places[group].start : places[group].stop]

    def scores(self, q: Tensor, group: str) -> Tensor:
        """n_k of the states q [B, D]: [B, K of the group], at least float32."""
        columns = self.columns(group)
        return self.activity(q) @ columns.to(torch.promote_types(q.dtype, torch.float32)) + self.offsets(group)

    def activity(self, q: Tensor) -> Tensor:
        """sig(q), minus 1/2 if `centred`, at least float32: what the columns read."""
        gamma = torch.sigmoid(q.to(torch.promote_types(q.dtype, torch.float32)))
        return gamma - 0.5 if self.config.centred else gamma

    def offsets(self, group: str) -> Tensor | float:
        """What is added to the scores of a group: [K of the group], or 0."""
        if self.config.offset is None:
            return 0.0
        if self.a0 is None:
            return -F.softplus(self.columns(group)).sum(0)
        places = self.config.groups[group]
        return self.a0[places.start : places.stop]

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Features of as many scenes as there are entities."""
        count, size = self.config.num_entities, self.config.input_size
        waves = torch.arange(4 * count * size).view(4, count, size).sin()
        return dict(zip(("scene", "subject", "object_", "union"), waves))

    def _evolve(self, q: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return (torch.zeros_like(q), h) if self.evolution is None else self.evolution(q, h)

    def _decode(self, windows: list[Any], how: Choice, *, with_time: bool = False) -> Decoded:
        """The four windows, from what each gets by its sense (or 0)."""
        scene, subject, object_, union = windows
        q, steps = scene, []
        h = q.new_zeros(q.shape[0], self.config.hidden_size)
        if with_time:
            q, step = how.feed("time", "times", q)
            steps.append(step)
        # labels of the scene are read, and not fed back: it has many
        steps.append(how.read("scene", "entities", q))
        q, h = self._evolve(q, h)
        q, step = how.feed("subject", "entities", q + subject)
        steps.append(step)
        steps += [how.read(group, group, q) for group in self.config.unary]
        q, h = self._evolve(q, h)
        q, step = how.feed("object", "entities", q + object_)
        steps.append(step)
        q, h = self._evolve(q, h)
        steps.append(how.read("predicate", "predicates", q + union))
        return Decoded(tuple(steps), self.config.beta)
