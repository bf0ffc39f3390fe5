"""Batches of every language model: sequences packed into a row by any name, and padding where it is easily missed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from tests.models.families import VARIANTS, build, tokens
from tests.models.test_causal_models import EVERY, FAMILIES, MASKS, alone, close

BOUNDS = torch.tensor([0, 4, 11])
POSITIONS = torch.tensor([[*range(4), *range(7)]])
NAMES: dict[str, dict[str, Any]] = {
    "cu_seqlens": {"cu_seqlens": BOUNDS},
    "cu_seq_lens_q": {"cu_seq_lens_q": BOUNDS.int()},
    "cu_seq_lens_k": {"cu_seq_lens_k": BOUNDS.int(), "max_length_k": 7},
    "seq_idx": {"seq_idx": torch.tensor([[0] * 4 + [1] * 7])},
    "position_ids": {"position_ids": POSITIONS},
    "positions not from zero": {"position_ids": POSITIONS + 3},
    "all": {
        "position_ids": POSITIONS,
        "seq_idx": torch.tensor([[5] * 4 + [2] * 7]),
        "cu_seq_lens_q": BOUNDS,
        "cu_seq_lens_k": BOUNDS.clone(),
    },
}
# a graph or a program of each model takes a second or two
TRACED = pytest.mark.parametrize(
    "variant", [name if name in ("gla", "hybrid") else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)


@EVERY
@pytest.mark.parametrize("names", NAMES)
def test_packed_sequences_stay_apart_by_every_name(variant: str, names: str) -> None:
    """In evaluation, in training, and beside a mask of ones."""
    model, row = build(variant), tokens(1, 11)
    expected = torch.cat([model(row[:, :4]).logits, model(row[:, 4:]).logits], 1)
    for mode in (False, True):
        model.train(mode)
        out = model(row, **NAMES[names])
        close(out.logits, expected)
        assert out.past_key_values is None
        close(model(row, attention_mask=torch.ones(1, 11), **NAMES[names]).logits, expected)


@FAMILIES
@pytest.mark.parametrize("names", ["position_ids", "seq_idx"])
def test_several_sequences_in_a_row_are_refused_where_they_cannot_be_kept_apart(variant: str, names: str) -> None:
    model, rows, given = build(variant), tokens(2, 11), NAMES[names]
    with pytest.raises(ValueError, match=f"{names} must hold one sequence a row, or be .*; got .* with several"):
        model(rows, **{name: ids.repeat(2, 1) for name, ids in given.items()})
    with pytest.raises(ValueError, match="cu_seqlens excludes attention_mask and a cache"):
        model(rows[:1], use_cache=True, **given)
    with pytest.raises(ValueError, match="cu_seqlens excludes attention_mask and a cache"):
        model(rows[:1], past_key_values=model(rows[:1]).past_key_values, **given)
    padded = torch.tensor([[0] + [1] * 10])
    with pytest.raises(ValueError, match=r"excludes attention_mask|must not start again in a row that has padding"):
        model(rows[:1], attention_mask=padded, **given)


@FAMILIES
def test_boundaries_that_contradict_each_other_are_refused(variant: str) -> None:
    model, row = build(variant), tokens(1, 11)
    for other in (torch.tensor([0, 5, 11]), torch.tensor([0, 11])):
        with pytest.raises(ValueError, match="cu_seq_lens_k must be the boundaries that cu_seq_lens_q tells"):
            model(row, cu_seq_lens_q=BOUNDS, cu_seq_lens_k=other)


@FAMILIES
@pytest.mark.parametrize("side", MASKS)
def test_positions_of_one_sequence_a_row_change_nothing(variant: str, side: str) -> None:
    """Those that transformers makes from a mask too: at padding they stand still."""
    model, rows, mask = build(variant), tokens(3, 7), torch.tensor(MASKS[side])
    expected = model(rows, attention_mask=mask).logits
    counted = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    for positions in (counted, torch.arange(7)[None], torch.arange(7).expand(3, 7)):
        assert torch.equal(model(rows, attention_mask=mask, position_ids=positions).logits, expected)
    assert torch.equal(model(rows, position_ids=torch.arange(7)[None]).logits, model(rows).logits)
    cache = model(rows, attention_mask=mask).past_key_values
    longer = torch.cat([mask, mask.new_ones(3, 1)], 1)
    model(rows[:, :1], attention_mask=longer, past_key_values=cache, position_ids=torch.full((3, 1), 7))


@EVERY
@pytest.mark.parametrize("use_cache", [False, True])
def test_gradients_pass_through_the_hidden_states_of_a_padded_batch(variant: str, use_cache: bool) -> None:
    """Each is the one that the next block reads: its gradient is that of the rows alone, and nothing at padding."""
    model, rows, mask = build(variant), tokens(3, 7), torch.tensor(MASKS["inner"])
    weight = torch.linspace(-1, 1, 13 * 7 * 3, dtype=torch.float64).view(3, 7, 13)
    got = model(rows, attention_mask=mask, output_hidden_states=True, use_cache=use_cache)
    gradients = torch.autograd.grad((got.logits * weight).sum(), got.hidden_states)
    for index, (row, kept) in enumerate(zip(rows, mask.bool())):
        one = model(row[kept][None], output_hidden_states=True, use_cache=False)
        expected = torch.autograd.grad((one.logits[0] * weight[index, kept]).sum(), one.hidden_states)
        for states, expected_states, gradient, expected_gradient in zip(
            got.hidden_states, one.hidden_states, gradients, expected, strict=True
        ):
            close(states[index, kept], expected_states[0])
            close(gradient[index, kept], expected_gradient[0])
            assert not gradient[index, ~kept].any() or gradient is gradients[-1]  # the projection reads every place


def _continued(variant: str, side: str, **more: Any) -> None:
    """Rows together, then each row alone."""
    model, rows, mask = build(variant), tokens(3, 7), torch.tensor(MASKS[side])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, **more}
    padded = torch.where(mask.bool(), rows, 0)
    together = model.generate(padded, attention_mask=mask, **options)
    assert torch.equal(together[:, :7], padded)
    for row, kept, new in zip(rows, mask, together[:, 7:]):
        prompt = row[kept.bool()][None]
        assert torch.equal(model.generate(prompt, **options)[0, prompt.shape[1] :], new)


@EVERY
@pytest.mark.parametrize("side", ["right", "inner"])
def test_generation_goes_on_from_the_last_real_token(variant: str, side: str) -> None:
    _continued(variant, side)


@FAMILIES
@pytest.mark.parametrize("options", [{"use_cache": False}, {"num_beams": 3}, {"prefill_chunk_size": 7}], ids=str)
def test_generation_goes_on_from_the_last_real_token_in_every_way(variant: str, options: dict[str, Any]) -> None:
    _continued(variant, "right", **options)


@FAMILIES
def test_generation_from_right_padded_embeddings(variant: str) -> None:
    model, rows, mask = build(variant), tokens(3, 7), torch.tensor(MASKS["right"])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    embedded = model.get_input_embeddings()(rows).masked_fill(mask[..., None] == 0, float("nan"))
    got = model.generate(inputs_embeds=embedded, attention_mask=mask, **options)
    assert torch.equal(got, model.generate(rows, attention_mask=mask, **options)[:, 7:])


class _Logits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        return self.model(rows, attention_mask=mask, use_cache=False).logits


def _serves_every_mask(traced: Any, model: Any, rows: Tensor) -> None:
    for mask in [torch.tensor(mask) for mask in MASKS.values()] + [torch.ones(3, 7, dtype=torch.int64)]:
        got = traced(rows, mask)
        close(got[mask.bool()], torch.cat(alone(model, rows, mask)))
        close(got, model(rows, attention_mask=mask, use_cache=False).logits)


@TRACED
def test_one_graph_serves_every_mask(variant: str) -> None:
    model, rows = build(variant), tokens(3, 7)
    torch._dynamo.reset()
    with torch.no_grad():
        _serves_every_mask(torch.compile(_Logits(model), fullgraph=True, backend="eager"), model, rows)


class _Continued(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor, mask: Tensor, cache: Any) -> Tensor:
        return self.model(rows, attention_mask=mask, past_key_values=cache).logits


@pytest.mark.slow
@EVERY
def test_graphs_without_breaks_continue_a_cache_under_every_mask(variant: str) -> None:
    """A prefill in two pieces and steps after it: real tokens as in rows alone, and the cache goes on outside."""
    model = build(variant)
    eager = _Continued(model)
    torch._dynamo.reset()
    compiled = torch.compile(eager, fullgraph=True, backend="eager")
    with torch.no_grad():
        for mask in MASKS.values():
            whole, real = tokens(3, 12), torch.cat([torch.tensor(mask), torch.ones(3, 5, dtype=torch.int64)], 1)
            cache = model.new_cache()
            calls = [(compiled, 7), (compiled, 8), (compiled, 9), (eager, 10), (compiled, 12)]
            got, start = [], 0
            for call, end in calls:
                got.append(call(whole[:, start:end], real[:, :end], cache))
                start = end
            close(torch.cat(got, 1)[real.bool()], torch.cat(alone(model, whole, real)))


def test_a_graph_refuses_padding_inside_what_a_cache_holds() -> None:
    model, rows = build("card-softmax"), tokens(2, 3)
    torch._dynamo.reset()
    compiled = torch.compile(_Continued(model), fullgraph=True, backend="eager")
    with torch.no_grad():
        cache = model(rows).past_key_values
        with pytest.raises(RuntimeError, match="padding after real tokens in some rows"):
            compiled(rows[:, :2], torch.tensor([[1, 1], [0, 1]]), cache)


@pytest.mark.slow
@FAMILIES
def test_one_exported_program_serves_every_mask(variant: str) -> None:
    model, rows = build(variant), tokens(3, 7)
    with torch.no_grad():
        exported = torch.export.export(_Logits(model), (rows, torch.tensor(MASKS["left"])), strict=False).module()
        _serves_every_mask(exported, model, rows)


@TRACED
def test_a_mask_leaves_the_sizes_of_an_exported_model_free(variant: str, request: pytest.FixtureRequest) -> None:
    if "pldr" in variant:
        why = "an axis of blocks of packed tokens has a free length there, which torch's products ask about"
        request.applymarker(pytest.mark.xfail(reason=why, strict=True, raises=torch._dynamo.exc.UserError))
    model, sizes = build(variant), {0: torch.export.Dim("batch", min=2, max=8), 1: torch.export.Dim("length", min=2)}
    with torch.no_grad():
        inputs = tokens(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
        exported = torch.export.export(_Logits(model), inputs, dynamic_shapes=(sizes, sizes), strict=False).module()
        rows, mask = tokens(3, 7), torch.tensor(MASKS["inner"])
        close(exported(rows, mask), model(rows, attention_mask=mask, use_cache=False).logits)


def test_a_graph_refuses_positions_that_start_again() -> None:
    """It has one order for all inputs, and says so when it runs."""
    model, row = build("gla"), tokens(1, 11)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda positions: model(row, position_ids=positions, use_cache=False).logits, fullgraph=True, backend="eager"
    )
    close(compiled(torch.arange(11)[None]), model(row).logits)
    with pytest.raises(RuntimeError, match="position_ids must hold one sequence a row"):
        compiled(POSITIONS)


@FAMILIES
def test_sequences_are_scored_at_their_last_token(variant: str) -> None:
    """Whichever side is padded."""
    config = VARIANTS[variant][0](**build(variant).config.to_dict())
    config.num_labels = 3
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    rows = tokens(3, 7)
    for side in ("left", "right"):
        mask = torch.tensor(MASKS[side])
        out = model(torch.where(mask.bool(), rows, 0), attention_mask=mask, labels=torch.tensor([2, 0, 1]))
        expected = [model(row[kept.bool()][None]).logits[0] for row, kept in zip(rows, mask)]
        close(out.logits, torch.stack(expected))
        loss = torch.nn.functional.cross_entropy(torch.stack(expected), torch.tensor([2, 0, 1]))
        torch.testing.assert_close(out.loss, loss)
        assert all(gradient is not None for gradient in torch.autograd.grad(out.loss, list(model.parameters())))
