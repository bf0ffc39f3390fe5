"""The Tensor Brain against its equations in loops of Python numbers, and the laws of its memories."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attensor.data.scenes import SceneData
from attensor.models.knowledge.memory import mean_time, superposition_curve, write_concept
from attensor.models.knowledge.saved import load_knowledge, save_knowledge
from attensor.models.knowledge.tensor_brain import TensorBrain, TensorBrainConfig
from attensor.train import run_training
from attensor.train.brain import BrainSetup, BrainTraining, perception, recalled

SIZES = TensorBrainConfig(5, 3, {"class": 2, "kind": 4}, 6, input_size=7, dim=8, hidden_size=9)
WINDOWS = ["scene", "subject", "class", "kind", "object", "predicate"]
CONTEXTS = pytest.mark.parametrize("context", ["recurrent", "feedforward", None])


def drawn(seed: int = 0, **options: Any) -> TensorBrain:
    torch.manual_seed(seed)
    brain = TensorBrain(replace(SIZES, **options)).double()
    with torch.no_grad():
        for name, parameter in brain.named_parameters():
            if name in ("a0", "evolution.v0"):
                parameter.normal_()
    return brain


def features(count: int = 3) -> list[Tensor]:
    return list(torch.randn(4, count, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64))


class ByHand:
    """The decoding program of arXiv:2109.13392 for one row, numbers in lists."""

    def __init__(self, brain: TensorBrain) -> None:
        self.c, self.w = brain.config, {name: x.detach().tolist() for name, x in brain.state_dict().items()}

    def sig(self, x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def g(self, x: Tensor) -> list[float]:
        pairs = zip(self.w["encoder.weight"], self.w["encoder.bias"])
        return [sum(w * v for w, v in zip(row, x.tolist())) + b for row, b in pairs]

    def column(self, k: int) -> list[float]:
        return [row[k] for row in self.w["A"]]

    def n(self, q: list[float], group: str) -> list[float]:
        scores = []
        for k in self.c.groups[group]:
            a = self.column(k)
            n = sum((self.sig(x) - (0.5 if self.c.centred else 0)) * y for x, y in zip(q, a))
            if self.c.offset == "learned":
                n += self.w["a0"][k]
            elif self.c.offset == "sums":
                n -= sum(math.log1p(math.exp(y)) for y in a)
            scores.append(n)
        return scores

    def softmax(self, scores: list[float]) -> list[float]:
        top = [math.exp(self.c.beta * (n - max(scores))) for n in scores]
        return [x / sum(top) for x in top]

    def evolve(self, q: list[float], h: list[float]) -> tuple[list[float], list[float]]:
        if self.c.context is None:
            return [0.0] * len(q), h
        v = [sum(w * self.sig(x) for w, x in zip(row, q)) for row in self.w["evolution.V"]]
        if self.c.context == "recurrent":
            inner = [self.sig(self.sig(x) + y) for x, y in zip(h, v)]
            h = [sum(w * x for w, x in zip(row, inner)) for row in self.w["evolution.B"]]
        else:
            h = [x + y for x, y in zip(self.w["evolution.v0"], v)]
        return [sum(w * self.sig(x) for w, x in zip(row, h)) for row in self.w["evolution.W"]], h

    def add(self, q: list[float], fed: list[float]) -> list[float]:
        return [self.c.keep * x + self.c.write * y for x, y in zip(q, fed)]

    def feed(self, q: list[float], group: str, told: int | None) -> list[float]:
        if told is not None:
            return self.add(q, self.column(self.c.groups[group][told]))
        if self.c.feedback is None:
            return q
        weights = self.softmax(self.n(q, group))
        columns = [self.column(k) for k in self.c.groups[group]]
        return self.add(q, [sum(p * a[i] for p, a in zip(weights, columns)) for i in range(len(q))])

    def decode(self, q: list[float], senses: list[list[float]], told: dict[str, int]) -> list[list[float]]:
        """Scores of the six windows."""
        zero, out = [0.0] * self.c.dim, []
        h = [0.0] * self.c.hidden_size
        out.append(self.n(q, "entities"))
        for window, sense in zip(("subject", "object", "predicate"), senses or [zero] * 3):
            q, h = self.evolve(q, h)
            q = [x + y for x, y in zip(q, sense)]
            out.append(self.n(q, "predicates" if window == "predicate" else "entities"))
            if window != "predicate":
                q = self.feed(q, "entities", told.get(window))
            if window == "subject":
                out += [self.n(q, "class"), self.n(q, "kind")]
        return out


@CONTEXTS
@pytest.mark.parametrize("offset", [None, "sums", "learned"])
@pytest.mark.parametrize("feedback", ["attention", "sample", None])
def test_perception_is_the_program(context: Any, offset: Any, feedback: Any) -> None:
    """Each window's scores, with soft feedback, told symbols, or none; centred or not; the general update."""
    options = {"centred": offset != "sums", "keep": 0.9, "write": 1.2, "beta": 1.7}
    brain = drawn(context=context, offset=offset, feedback=feedback, **options)
    hand, seen = ByHand(brain), features()
    truth = {"subject": torch.tensor([4, 0, 2]), "object": torch.tensor([1, 1, 3])}
    decoded = brain.perceive(*seen, truth=truth)
    assert [step.window for step in decoded.steps] == WINDOWS
    for row in range(3):
        told = {window: int(x[row]) for window, x in truth.items()} if feedback == "sample" else {}
        scene, *senses = (hand.g(x[row]) for x in seen)
        for step, expected in zip(decoded.steps, hand.decode(scene, senses, told), strict=True):
            assert step.scores[row].tolist() == pytest.approx(expected, rel=1e-11, abs=1e-12), step.window


@CONTEXTS
def test_memories_start_without_senses(context: Any) -> None:
    brain = drawn(context=context)
    hand = ByHand(brain)
    times, subjects = torch.tensor([5, 0]), torch.tensor([3, 1])
    for row in range(2):
        of_time = hand.decode(hand.column(brain.config.groups["times"][int(times[row])]), [], {})
        of_subject = hand.decode(hand.column(int(subjects[row])), [], {"subject": int(subjects[row])})
        for decoded, expected in ((brain.recall(times), of_time), (brain.remember(subjects), of_subject)):
            for step, scores in zip(decoded.steps, expected, strict=True):
                assert step.scores[row].tolist() == pytest.approx(scores, rel=1e-11, abs=1e-12)
    assert torch.equal(brain.remember(subjects)["subject"].chosen, subjects)


def test_an_expected_event_is_a_state_in_the_place_of_a_column() -> None:
    """Future episodes; knowledge begins at the mean of all times, or at nothing."""
    brain, times = drawn(), torch.tensor([5, 0])
    same = brain.recall(brain.columns("times").T[times])
    assert torch.equal(same.logits, brain.recall(times).logits)
    weights = torch.softmax(torch.arange(6.0, dtype=torch.float64), 0)
    expected = sum(w * brain.columns("times")[:, t] for t, w in enumerate(weights))
    torch.testing.assert_close(mean_time(brain, weights)[0], expected)
    assert brain.remember(start=mean_time(brain, weights)).logits.shape == (1, brain.remember().logits.shape[1])


def test_chaining_goes_from_label_to_label() -> None:
    """Each step is a decode from the label alone; no group is scored after its own label was fed back."""
    brain = drawn(feedback="sample")
    hand = ByHand(brain)
    truth = {"class": torch.tensor([1, 0]), "kind": torch.tensor([2, 3])}
    decoded = brain.reason(torch.tensor([3, 4]), truth=truth)
    assert [step.window for step in decoded.steps] == ["class", "kind"]
    for row, entity in enumerate((3, 4)):
        at = [entity, brain.config.groups["class"][int(truth["class"][row])]]
        for step, k in zip(decoded.steps, at):
            start = hand.column(k)
            evolved, _ = hand.evolve(start, [0.0] * 9)
            expected = hand.n([x + y for x, y in zip(evolved, start)], step.window)
            assert step.scores[row].tolist() == pytest.approx(expected, rel=1e-11)


def test_draws_follow_the_probabilities_and_repeat() -> None:
    brain = drawn(feedback="sample", beta=8.0)
    seen = [x[:1].expand(4000, -1) for x in features()]
    first, second = (brain.perceive(*seen, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    share = torch.bincount(first["subject"].chosen, minlength=5) / 4000
    torch.testing.assert_close(share.double(), first.probabilities("subject")[0], atol=0.03, rtol=0)
    given = brain.perceive(*seen, given={"subject": torch.full((4000,), 2)}, feedback="attention")
    assert (given["subject"].chosen == 2).all()


def test_an_episode_is_recognised_first() -> None:
    brain = drawn()
    decoded = brain.perceive(*features(), with_time=True)
    assert [step.window for step in decoded.steps] == ["time", *WINDOWS]
    with pytest.raises(ValueError, match="with_time needs times"):
        drawn(num_times=0).perceive(*features(), with_time=True)


def test_without_feedback_and_context_each_window_is_alone() -> None:
    """P-Direct."""
    brain, seen = drawn(context=None, feedback=None), features()
    other = [x if i == 3 else x + 1 for i, x in enumerate(seen)]
    assert torch.equal(brain.perceive(*seen)["predicate"].scores, brain.perceive(*other)["predicate"].scores)
    mixed = drawn().perceive(*other)["predicate"].scores
    assert not torch.allclose(mixed, drawn().perceive(*seen)["predicate"].scores)


@pytest.mark.parametrize("offset", [None, "learned"])
def test_a_concept_is_written_at_once(offset: Any, tmp_path: Any) -> None:
    """Other groups keep their columns, the state recalls the new one, and the larger model travels."""
    brain = drawn(offset=offset, dim=64)
    before = {group: brain.columns(group).detach().clone() for group in brain.config.groups}
    norm = brain.A.norm(dim=0).mean().item()
    state = 2 * torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    number = write_concept(brain, state, group="kind")
    assert number == 4
    assert brain.columns("kind").shape == (64, 5)
    for group, columns in before.items():
        assert torch.equal(brain.columns(group)[:, : columns.shape[1]], columns), group
    new = brain.columns("kind")[:, number]
    assert new.norm().item() == pytest.approx(norm)
    assert new.sum().item() == pytest.approx(0, abs=1e-12)
    scores = (torch.sigmoid(state) - 0.5) @ brain.columns("kind")
    assert int(scores.argmax()) == number
    names = {group: [f"{group} {i}" for i in range(len(places))] for group, places in brain.config.groups.items()}
    save_knowledge(tmp_path, brain, names | {"relations": names["predicates"]})
    other, _ = load_knowledge(tmp_path)
    assert isinstance(other, TensorBrain)
    assert other.config == brain.config
    assert torch.equal(other.perceive(*features()).logits, brain.perceive(*features()).logits)


def test_a_state_holds_some_symbols() -> None:
    random = torch.Generator().manual_seed(0)
    columns = torch.randn(256, 500, generator=random) / 16
    curve = superposition_curve(columns, (1, 4, 32, 500), trials=50, generator=random)
    assert curve[0] == curve[1] == curve[3] == 1.0
    assert 0.5 < curve[2] < 0.95
    with pytest.raises(ValueError, match="sizes must be at least 1 and below 501"):
        superposition_curve(columns, (501,))


def test_a_new_column_does_not_recall_itself_without_centred_scores() -> None:
    """Why scores are centred: the constant half of each sum outweighs the signal."""
    found = {}
    for centred in (True, False):
        brain = TensorBrain(TensorBrainConfig(400, 2, dim=128, centred=centred))
        scores = brain.scores(brain.columns("entities").T, "entities")
        found[centred] = (scores.argmax(-1) == torch.arange(400)).double().mean().item()
    assert found[True] > 0.99
    assert found[False] < 0.5


def test_what_does_not_fit_is_refused() -> None:
    brain, seen = drawn(), features()
    for call, words in (
        (lambda: brain.perceive(*seen[:3], seen[3][:, :5]), r"union must be \[3, 7\], got \[3, 5\]"),
        (lambda: brain.perceive(*seen, feedback="hard"), "feedback must be"),
        (lambda: brain.perceive(*seen, truth={"colour": torch.zeros(3)}), "must be of the windows"),
        (lambda: brain.perceive(*seen, truth={"subject": torch.tensor([1, 5, 0])}), r"must be 0 \.\. 4, got 0 \.\. 5"),
        (lambda: brain.recall(3), r"recall: time must be a torch.Tensor, got 3"),  # type: ignore[arg-type]
        (lambda: brain.recall(torch.tensor([6])), r"time must be 0 \.\. 5"),
        (lambda: brain.remember(torch.tensor([5])), r"subject must be 0 \.\. 4"),
        (lambda: brain.columns("colours"), "group must be one of entities, class"),
        (lambda: replace(SIZES, unary={"scene": 2}), "names of its own"),
        (lambda: replace(SIZES, beta=0.0), "beta must be greater than 0"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            call()


@pytest.mark.slow
def test_it_learns_scenes_and_episodes() -> None:
    """A made graph in which the predicate says who is of the first six: no single window tells it."""
    random = torch.Generator().manual_seed(0)
    pairs = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    triples = torch.stack([pairs[:, 0], 2 * (pairs[:, 0] < 6).long() + (pairs[:, 1] < 6).long(), pairs[:, 1]], 1)
    triples = triples[torch.randperm(144, generator=random)]
    scenes, episodes = SceneData(12, num_classes=3, noise=0.3), triples[:10]
    torch.manual_seed(0)
    brain = TensorBrain(TensorBrainConfig(12, 4, {"class": 3}, dim=48, hidden_size=48))
    how = BrainSetup(steps=150, batch_size=64, learning_rate=0.03)
    run_training(BrainTraining(brain, triples[:120], scenes, how, triples[120:]), how.config)
    found = perception(brain, triples[120:], scenes)
    assert found["predicate@1"] > 0.9
    assert found["class@1"] > 0.9
    assert found["spread subject"] > 0.2
    brain = TensorBrain(TensorBrainConfig(12, 4, num_times=10, dim=48, hidden_size=48))
    how = BrainSetup(steps=400, learning_rate=0.01, perceive=False)
    run_training(BrainTraining(brain, triples, SceneData(12), how, triples, episodes), how.config)
    assert recalled(brain, episodes)["triple"] > 0.6  # by chance 1 of 576
