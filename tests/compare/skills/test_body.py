"""The panel's model: the same short convolution for all, equal parameters, answers alone through the head."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from attensor.catalogue import Domain
from attensor.compare.skills.body import ShortConvolution, balanced, build, right_answers, skill_loss, state_bytes
from attensor.compare.skills.skill import skill
from attensor.compare.subjects import Subject, resolve
from attensor.data.mqar import IGNORED

NAMES = [subject.name for subject in resolve(None, Domain.SEQUENCE)]


def test_the_convolution_is_depthwise_and_sees_the_past_only() -> None:
    torch.manual_seed(0)
    layer = ShortConvolution(torch.nn.Identity(), 5).double()
    hidden_states = torch.randn(2, 11, 5, dtype=torch.float64)
    # conv1d correlates: its last weight meets the present token
    kernel = layer.weight.flip(0).T[:, None]  # [C, 1, K]
    expected = functional.conv1d(functional.pad(hidden_states.mT, (2, 0)), kernel, groups=5).mT
    torch.testing.assert_close(layer(hidden_states), expected)
    assert layer(hidden_states[:, :1]).shape == (2, 1, 5)


@pytest.mark.parametrize("name", NAMES)
def test_all_models_have_as_many_parameters(name: str) -> None:
    def count(subject: Subject) -> int:
        model = build(subject, 2, balanced(subject))
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(Subject.of(name)) == pytest.approx(count(Subject.of("softmax")), rel=0.02)


def test_a_stack_is_as_deep_as_its_turn_and_compared_with_softmax_of_that_depth() -> None:
    stack = Subject.of("gla", "gla", "softmax")
    model = build(stack, 2, balanced(stack))
    deep = build(Subject.of("softmax"), 2, 96, num_layers=3)
    assert len(model.layers) == 3
    counts = [sum(parameter.numel() for parameter in one.parameters()) for one in (model, deep)]
    assert counts[0] == pytest.approx(counts[1], rel=0.02)


def test_loss_and_answers_are_those_of_all_logits_at_the_places_asked_for() -> None:
    torch.manual_seed(0)
    model = build(Subject.of("softmax"), 256, 16)
    tokens, targets = batch = skill("recall").tests["1x"](0, seed=0, batch_size=3)
    logits = model(tokens)
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(skill_loss(model, batch), expected)
    targets[0] = torch.where(targets[0] != IGNORED, logits[0].argmax(-1), IGNORED)  # one row right, two by luck
    right, answers, nats = right_answers(model, batch)
    assert (right, answers) == (4, 12)
    assert nats / answers == pytest.approx(skill_loss(model, batch).item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_what_the_cache_of_a_layer_holds(name: str) -> None:
    subject = Subject.of(name)
    mixers = subject.mixers(Domain.SEQUENCE, 64, 2, 2)
    caches = [mixers(index).new_cache(1) for index in range(2)]
    for index, cache in enumerate(caches):
        mixers(index)(torch.zeros(1, 40, 64), cache=cache)
    held = sum(cache.nbytes for cache in caches)
    assert 2 * state_bytes(subject, 40) == held
