"""How a symbol is chosen and what it writes into the state: by attention over the columns, by one of them, or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from attensor.models.knowledge.brain_config import Feedback
from attensor.models.knowledge.decoding import Step
from attensor.models.knowledge.scorer import check_index
from attensor.ops import softmax_attention
from attensor.ops._checks import is_readable

if TYPE_CHECKING:
    from attensor.models.knowledge.tensor_brain import TensorBrain

__all__ = ["Choice"]

_KINDS = ("attention", "sample", None, "default")


class Choice:
    """The rule of one decode.

    Args:
        name: who decodes, for messages.
        brain: whose columns they are.
        count: rows B of the decode.
        feedback: `"attention"`, `"sample"`, None, or `"default"` for the configuration's.
        truth: window -> [B] right symbols, told to `"sample"` in the place of a draw.
        given: window -> [B] symbols that are known, fed back as they are.
        generator: of the draws; PyTorch's own if None.
    Raises:
        ValueError: an unknown feedback, window or symbol. TypeError, ShapeError: other symbols.
    """

    def __init__(
        self,
        name: str,
        brain: TensorBrain,
        count: int,
        feedback: Feedback | Literal["default"] | None,
        *,
        truth: Mapping[str, Tensor] | None = None,
        given: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if feedback not in _KINDS:
            raise ValueError(f"{name}: feedback must be one of {', '.join(map(repr, _KINDS))}, got {feedback!r}.")
        self._name, self._brain, self._generator = name, brain, generator
        self._feedback = brain.config.feedback if feedback == "default" else feedback
        self._truth, self._given = dict(truth or {}), dict(given or {})
        for argument, symbols in (("truth", self._truth), ("given", self._given)):
            _check_symbols(f"{name}: {argument}", brain, symbols, count)

    def read(self, window: str, group: str, q: Tensor) -> Step:
        """Score a group and leave the state as it is."""
        scores = self._brain.scores(q, group)
        return Step(window, group, q, scores, self._given.get(window, scores.argmax(-1)), None)

    def feed(self, window: str, group: str, q: Tensor) -> tuple[Tensor, Step]:
        """Score a group, choose, and write into the state: the state behind it, and the step."""
        scores, config = self._brain.scores(q, group), self._brain.config
        if self._feedback is None and window not in self._given:
            return q, Step(window, group, q, scores, scores.argmax(-1), None)
        chosen = self._chosen(window, scores)
        if self._feedback == "attention" and window not in self._given:
            fed = self._expected(q, group)
        else:
            fed = self._brain.columns(group).T[chosen]
        return config.keep * q + config.write * fed, Step(window, group, q, scores, chosen, fed)

    def _chosen(self, window: str, scores: Tensor) -> Tensor:
        if window in self._given:
            return self._given[window]
        if self._feedback == "attention":
            return scores.argmax(-1)
        if window in self._truth:
            return self._truth[window].clamp(min=0)  # -100 has no column; its row has no loss either
        shares = (self._brain.config.beta * scores).softmax(-1)
        if is_readable(shares) and not bool(shares.isfinite().all()):
            raise ValueError(
                f"{self._name}: {window} cannot be drawn, its scores must be finite, got NaN; look for it in what is "
                "seen and in the weights."
            )
        return torch.multinomial(shares, 1, generator=self._generator)[:, 0]

    def _expected(self, q: Tensor, group: str) -> Tensor:
        """sum_k P(k) a_k: attention of the states to the columns, which are keys and values, [B, D]."""
        beta, activity = self._brain.config.beta, self._brain.activity(q)
        columns = self._brain.columns(group).T.to(activity.dtype)[None, :, None]  # [1, K, 1, D]
        offsets = self._brain.offsets(group)
        mask = (beta * offsets)[None, None, None] if isinstance(offsets, Tensor) else None
        out: Tensor = softmax_attention(activity[None, :, None], columns, columns, scale=beta, attn_mask=mask)
        return out[0, :, 0]


def _check_symbols(name: str, brain: TensorBrain, symbols: Mapping[str, Tensor], count: int) -> None:
    config = brain.config
    groups = {"time": "times", "subject": "entities", "object": "entities", "predicate": "predicates"}
    groups |= {group: group for group in config.unary}
    for window, index in symbols.items():
        if window not in groups:
            raise ValueError(f"{name} must be of the windows {', '.join(groups)}, got {window!r}.")
        size = len(config.groups[groups[window]])
        if not isinstance(index, Tensor) or index.shape != (count,):
            shape = list(index.shape) if isinstance(index, Tensor) else type(index).__name__
            raise ValueError(f"{name}[{window!r}] must be [B] = [{count}], got {shape}.")
        check_index(name, window, index.masked_fill(index == -100, 0), size, index)
