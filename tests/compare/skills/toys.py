"""Tasks that are learned in seconds."""

from __future__ import annotations

from functools import partial

from attensor.compare.skills.skill import Skill
from attensor.data.mqar import mqar_batch
from attensor.data.state_tracking import parity_batch

ONE_PAIR = partial(mqar_batch, length=8, num_pairs=1, vocab_size=12)

# the value is always the second token
EASY = Skill(
    name="easy",
    title="One pair",
    claim="recalls one pair",
    vocab_size=12,
    chance=1.0 / 6,
    share=0.6,
    training=(ONE_PAIR,),
    tests={"1x": ONE_PAIR, "2x": partial(mqar_batch, length=16, num_pairs=1, vocab_size=12)},
    selection=("1x",),
    judged="1x",
    tokens_per_step=256,
)
HARD = Skill(
    name="hard",
    title="Parity",
    claim="tracks parity",
    vocab_size=2,
    chance=0.5,
    share=0.4,
    training=(partial(parity_batch, length=32), partial(parity_batch, length=16)),
    tests={"1x": partial(parity_batch, length=32, num_asked=4)},
    selection=("1x",),
    judged="1x",
    tokens_per_step=64,
)
TOYS = (EASY, HARD)
