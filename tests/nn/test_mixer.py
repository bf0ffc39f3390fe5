"""Every mechanism's layer is the three steps, and what acts between attention and output projection acts by head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attensor.nn import Heads, Mixer, SequenceMixer, SoftmaxAttention
from attensor.nn.mixer import DecodingMixer
from tests.conformance.cases import HEADS, Case, all_cases, name

EVERY = pytest.mark.parametrize("case", all_cases(), ids=name)


@EVERY
def test_attention_gives_outputs_by_head(case: Case) -> None:
    """Taken apart at `attend`: each head's output reaches the layer's, and without all of them nothing is mixed in."""
    layer, x = case.layer(), case.hidden_states()
    assert isinstance(layer, Mixer)
    assert isinstance(layer, DecodingMixer) == hasattr(layer, "new_cache")
    attend, kept = layer.attend, torch.ones(HEADS, 1, dtype=x.dtype)
    seen: list[tuple[Heads, Tensor]] = []

    def routed(heads: Heads, **options: object) -> Tensor:
        seen.append((heads, attend(heads, **options)))
        return seen[-1][1] * kept

    layer.attend = routed
    whole = layer(x)
    heads, out = seen[0]
    assert out.shape[-2] == HEADS
    assert out.shape[:-2].numel() >= x.shape[:-1].numel()  # more where zeros complete the blocks
    if type(layer).forward in (Mixer.forward, SequenceMixer.forward):
        # products of other strides may round otherwise
        torch.testing.assert_close(layer.merge(out, heads).view(x.shape), whole, rtol=1e-12, atol=1e-12)
    for head in range(HEADS):
        kept[:] = 1
        kept[head] = 0
        assert not torch.allclose(layer(x), whole)


@EVERY
def test_parameters_are_drawn_anew_as_at_first(case: Case) -> None:
    """`reset_parameters` fills everything: nothing is left of what was there."""
    layer = case.layer()
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    layer.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in layer.state_dict().values())


@EVERY
def test_a_layer_shows_its_options(case: Case) -> None:
    layer = case.layer()
    assert {"hidden_size", "num_heads"} <= {*layer.shown}
    assert all(f"{option}={getattr(layer, option)!r}" in repr(layer) for option in layer.shown)


def test_a_layer_without_all_three_steps_is_no_layer() -> None:
    class Half(SequenceMixer):
        def project(self, hidden_states: Tensor, positions: Tensor | None = None) -> Heads:
            return Heads(hidden_states, hidden_states, hidden_states)

    with pytest.raises(TypeError, match=r"abstract methods? .*attend.*merge"):
        Half()


@pytest.mark.parametrize("nonsense", [None, 3, torch.ones(2, 3), (1, 2, 3)], ids=lambda x: type(x).__name__)
def test_a_step_says_what_it_was_given_in_the_place_of_heads(nonsense: object) -> None:
    """Of steps, whose arguments are looked at only when they fail: this is the hot path."""
    layer = SoftmaxAttention(12, 3)
    with pytest.raises(TypeError, match=r"SoftmaxAttention\.attend: heads must be a Heads, got "):
        layer.attend(nonsense)
    if not isinstance(nonsense, Tensor):
        with pytest.raises(TypeError, match=r"SoftmaxAttention\.project: hidden_states must be a torch\.Tensor, got "):
            layer.project(nonsense)
        with pytest.raises(TypeError, match=r"SoftmaxAttention\.merge: out must be a torch\.Tensor, got "):
            layer.merge(nonsense, None)
