"""The tasks of the panel: what is asked, of what length, and what knowing nothing gives.

Every form of a task is a batch function `(step, seed=, batch_size=) -> tokens [B, T], targets [B, T]` with targets
where something is asked for and `IGNORED` elsewhere. A score is the share of right answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from attensor.data.mqar import mqar_batch
from attensor.data.needle import needle_batch
from attensor.data.selective_copying import selective_copying_batch
from attensor.data.state_tracking import ORDERS, parity_batch, s5_batch

__all__ = ["SKILLS", "Form", "Skill", "skill"]

Form = partial[tuple[Tensor, Tensor]]

_PARITY, _S5, _NEEDLE = 40, 16, 128  # training lengths
_COPIED, _COPY_KINDS = 8, 16
# published: 8192, with which most of the time goes into telling so many tokens apart: softmax attention recalls 99 %
# after 500 steps of 4096 tokens instead of 250 of 2048, linear attention with gates a half instead of 94 %
_RECALL_VOCABULARY = 256


@dataclass(frozen=True)
class Skill:
    """One task.

    Attributes:
        name, title: for files, and for people.
        claim: what a mechanism that solves it does, to follow a list of names: "recalls 4 pairs".
        vocab_size: tokens that exist.
        chance: the share of right answers of one that knows what answers there are, and nothing more.
        share: of the panel's time.
        training: forms that training steps take in turns.
        tests: key of the results -> form that is scored at the end.
        selection: those of `tests` whose forms, on batches of their own, choose the learning rate and end a training.
        judged: that of `tests` whose score is the mechanism's.
        tokens_per_step: of a training batch.
    """

    name: str
    title: str
    claim: str
    vocab_size: int
    chance: float
    share: float
    training: tuple[Form, ...]
    tests: dict[str, Form]
    selection: tuple[str, ...]
    judged: str
    tokens_per_step: int = 2048

    @property
    def length(self) -> int:
        """Tokens of the longest row of the training."""
        return max(length_of(form) for form in self.training)


def length_of(form: Form) -> int:
    """Tokens of a row."""
    return int(form.keywords["length"])


def _recall(num_pairs: int) -> Form:
    return partial(mqar_batch, length=16 * num_pairs, num_pairs=num_pairs, vocab_size=_RECALL_VOCABULARY)


def _states(batch: Form, length: int) -> dict[str, Form]:
    # the last half alone: the first few states are easy for anyone
    return {f"{f}x": partial(batch, length=f * length, num_asked=f * length // 2) for f in (1, 6)}


# 64 tokens for 4 pairs, 128 for 8, 256 for 16 are those of arXiv:2312.04927, appendix E
SKILLS = (
    Skill(
        name="recall",
        title="Associative recall (MQAR), 4 pairs in 64 tokens",
        claim="recalls 4 pairs",
        vocab_size=_RECALL_VOCABULARY,
        # any of the row's own values
        chance=1 / 4,
        share=0.3,
        training=(_recall(4),),
        tests={"1x": _recall(4)},
        selection=("1x",),
        judged="1x",
    ),
    Skill(
        name="capacity",
        title="Associative recall (MQAR), 4, 8 and 16 pairs in 64 to 256 tokens",
        claim="recalls 16 pairs",
        vocab_size=_RECALL_VOCABULARY,
        chance=1 / 16,
        share=0.25,
        training=tuple(_recall(pairs) for pairs in (4, 8, 16)),
        tests={f"{pairs} pairs": _recall(pairs) for pairs in (4, 8, 16)},
        selection=("4 pairs", "8 pairs", "16 pairs"),
        judged="16 pairs",
    ),
    Skill(
        name="copying",
        title=f"Selective copying, {_COPIED} tokens among 48 blanks",
        claim="copies what lies among blanks",
        vocab_size=_COPY_KINDS,
        # any of the row's own values: the right one, or another that happens to be equal
        chance=(1 + (_COPIED - 1) / (_COPY_KINDS - 2)) / _COPIED,
        share=0.15,
        training=(
            copying := partial(
                selective_copying_batch, length=48 + 2 * _COPIED, num_values=_COPIED, vocab_size=_COPY_KINDS
            ),
        ),
        tests={"1x": copying},
        selection=("1x",),
        judged="1x",
    ),
    Skill(
        name="parity",
        title=f"State tracking: parity, {_PARITY} bits and 6 times that",
        claim="tracks parity at 6 times the trained length",
        vocab_size=2,
        chance=1 / 2,
        share=0.1,
        training=(partial(parity_batch, length=_PARITY),),
        tests=_states(partial(parity_batch), _PARITY),
        selection=("1x",),
        judged="6x",
    ),
    Skill(
        name="s5",
        title=f"State tracking: products of permutations (S5), {_S5} and 6 times that",
        claim="tracks permutations at 6 times the trained length",
        vocab_size=len(ORDERS),
        chance=1 / len(ORDERS),
        share=0.1,
        training=(partial(s5_batch, length=_S5),),
        tests=_states(partial(s5_batch), _S5),
        selection=("1x",),
        judged="6x",
    ),
    Skill(
        name="needle",
        title=f"Needle: a pass key of 5 digits in {_NEEDLE} bytes of text and 4 times that",
        claim="finds a needle at 4 times the trained length",
        vocab_size=256,
        chance=1 / 10,
        share=0.1,
        training=(partial(needle_batch, length=_NEEDLE),),
        tests={f"{factor}x": partial(needle_batch, length=factor * _NEEDLE) for factor in (1, 4)},
        selection=("1x",),
        judged="4x",
    ),
)


def skill(name: str) -> Skill:
    """The task of that name."""
    return next(one for one in SKILLS if one.name == name)
