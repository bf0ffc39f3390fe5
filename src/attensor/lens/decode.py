"""Reading a Tensor Brain at work: the steps of a scene, an episode, and knowledge, as a page shows them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.data.pictures import png
from attensor.data.scenes import SceneData
from attensor.models.knowledge.decoding import Decoded, Step
from attensor.models.knowledge.saved import check_names
from attensor.models.knowledge.tensor_brain import TensorBrain
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked

__all__ = ["DecodeReading", "StepReading", "read_decodes"]


@dataclass(frozen=True)
class StepReading:
    """One step for a page.

    Attributes:
        window: its name.
        said: what is done with the symbol.
        symbols: name and probability, the likeliest first.
        rest: probability of all others.
        entropy: of the whole choice, in bits.
        feedback: size of what is fed back over that of the state; None where nothing is.
        picture: PNG in base64, sig(q) of the state before the step, a cell a number, 1/2 white.
    """

    window: str
    said: str
    symbols: tuple[tuple[str, float], ...]
    rest: float
    entropy: float
    feedback: float | None
    picture: str


@dataclass(frozen=True)
class DecodeReading:
    """One decode for a page.

    Attributes:
        title: which memory or sense.
        start: where the state begins.
        sentence: subject, predicate, object as chosen.
        steps: in their order.
    """

    title: str
    start: str
    sentence: str
    steps: tuple[StepReading, ...]


@torch.no_grad()
@checked
def read_decodes(
    brain: TensorBrain,
    names: Mapping[str, Sequence[str]],
    *,
    subject: int | None = None,
    object_: int | None = None,
    time: int = 0,
    count: int = 8,
    seed: int = 0,
) -> list[DecodeReading]:
    """A scene, an episode and knowledge, each decoded once.

    Args:
        brain: trained on scenes of `SceneData(seed=seed)`.
        names: its vocabulary.
        subject, object_: numbers of entities; those that the episode has if None.
        time: number of the episode; without times there is none.
        count: symbols a step.
        seed: of the scenes, and of draws.
    Raises:
        ValueError: a number that is not there, or not as many names as the brain has columns.
    """
    config, found = brain.config, []
    check_names(brain, names, source="read_decodes: names")
    check_range("read_decodes", 1, count=count)
    check_range("read_decodes", 0, config.num_entities, subject=subject, object_=object_)
    check_range("read_decodes", 0, max(config.num_times, 1), time=time)
    random = torch.Generator().manual_seed(seed)
    if config.num_times:
        decoded = brain.recall(torch.tensor([time]), generator=random)
        found.append(_read("Episodic memory", f"the column of time {names['times'][time]!r}", decoded, names, count))
        chosen = {window: int(decoded[window].scores.argmax(-1)) for window in ("subject", "object")}
        subject = chosen["subject"] if subject is None else subject
        object_ = chosen["object"] if object_ is None else object_
    subject, object_ = subject or 0, object_ or 0
    if isinstance(brain.encoder, torch.nn.Linear):
        seen = _scenes(brain, seed).features(torch.tensor([[subject, 0, object_]]), -1)
        start = f"features of a scene of {names['entities'][subject]!r} and {names['entities'][object_]!r}"
        found.insert(0, _read("Perception", start, brain.perceive(*seen, generator=random), names, count))
    decoded = brain.remember(torch.tensor([subject]), generator=random)
    found.append(_read("Semantic memory", f"the column of {names['entities'][subject]!r}", decoded, names, count))
    return found


def _scenes(brain: TensorBrain, seed: int) -> SceneData:
    config = brain.config
    classes = config.unary.get("class", 0)
    return SceneData(config.num_entities, num_classes=classes, input_size=config.input_size, seed=seed)


def _read(title: str, start: str, decoded: Decoded, names: Mapping[str, Sequence[str]], count: int) -> DecodeReading:
    steps = tuple(_step(step, decoded.probabilities(step.window)[0], names, count) for step in decoded.steps)
    chosen = {step.window: _names_of(step, names)[int(step.chosen[0])] for step in decoded.steps}
    return DecodeReading(title, start, " — ".join(chosen[w] for w in ("subject", "predicate", "object")), steps)


def _step(step: Step, share: Tensor, names: Mapping[str, Sequence[str]], count: int) -> StepReading:
    best = share.topk(min(count, len(share)))
    known = _names_of(step, names)
    symbols = tuple((known[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist()))
    entropy = -(share * share.clamp(min=1e-30).log2()).sum()
    fed = None if step.feedback is None else float(step.feedback[0].norm() / step.state[0].norm().clamp(min=1e-30))
    said = "read, nothing is fed back" if fed is None else f"{known[int(step.chosen[0])]} is chosen and fed back"
    rest = max(0.0, 1 - float(best.values.sum()))
    return StepReading(step.window, said, symbols, rest, float(entropy), fed, _picture(step.state[0]))


def _names_of(step: Step, names: Mapping[str, Sequence[str]]) -> Sequence[str]:
    return names["relations" if step.group == "predicates" else step.group]


def _picture(state: Tensor, columns: int = 32) -> str:
    """sig(q) from blue (0) over white (1/2) to red (1), in rows of 32."""
    gamma = 2 * torch.sigmoid(state.float()) - 1
    rows = torch.zeros(-(-len(gamma) // columns) * columns)
    rows[: len(gamma)] = gamma
    share = rows.view(-1, columns)
    fade = 1 - share.abs()
    red, blue = torch.where(share >= 0, 1.0, fade), torch.where(share <= 0, 1.0, fade)
    pixels = (255 * torch.stack([red, fade, blue])).round().to(torch.uint8)
    return base64.b64encode(png(pixels, scale=8)).decode()
