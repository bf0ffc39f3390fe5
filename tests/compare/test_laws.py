"""Each way to break a law is found and named, with numbers; what is lawful passes."""

from __future__ import annotations

import pytest
import torch

from attensor.compare.laws import check_laws
from attensor.compare.user_files import undisturbed
from attensor.errors import LawError
from tests.compare import mixers


def test_a_lawful_mixer_passes_and_is_left_as_it_was():
    mixer = mixers.Mean(7, 1)
    before = mixer.proj.weight.clone()
    check_laws(mixer, 7, is_grid=False)
    assert mixer.training
    assert mixer.proj.weight.grad is None
    assert torch.equal(mixer.proj.weight, before)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("Future", r"leaks the future: changing token 64 changed output 63 by 0\.\d+"),
        ("Shape", r"wrong shape: input \[2, 137, 7\] gave output \[2, 136, 7\]"),
        ("Dtype", r"wrong dtype: input torch\.float32 gave output torch\.float64"),
        ("Tuple", "a tensor is expected, got tuple"),
        ("NotFinite", r"not finite: \d+ of 1918 outputs"),
        ("Gradient", "gradient not finite: 1918 elements for the input"),
        ("Detached", "no gradient"),
        ("Memory", "remembers earlier calls"),
        ("Batch", "mixes the batch: changing sequence 1 changed the output of sequence 0"),
    ],
)
def test_a_broken_law_is_named(broken, message):
    with pytest.raises(LawError, match=message):
        check_laws(getattr(mixers, broken)(7, 1), 7, is_grid=False)


def test_a_mixer_that_changes_the_precision_of_others_is_named():
    with undisturbed(), pytest.raises(LawError, match=r"sets torch's default dtype to torch\.float64"):
        check_laws(mixers.Precision(7, 1), 7, is_grid=False)


def test_looking_everywhere_is_lawful_on_a_grid():
    class Everywhere(mixers.Mean):
        def forward(self, hidden_states):
            return self.proj(hidden_states + hidden_states.mean((1, 2), keepdim=True))

    check_laws(Everywhere(7, 1), 7, is_grid=True)
    with pytest.raises(LawError, match="mixes the batch"):
        check_laws(mixers.Batch(7, 1), 7, is_grid=True)
