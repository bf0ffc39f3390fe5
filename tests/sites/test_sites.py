"""Sites: what is found is the model's own attention, looking changes nothing, and the way back is bit-equal."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from attensor import sites
from attensor.nn import SoftmaxAttention
from tests.sites.models import CASES, TOKENS, Case, llama


@pytest.fixture(params=list(CASES), ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_every_attention_is_found_once(case: Case) -> None:
    found = sites.find_sites(case.model)
    assert [site.kind for site in found] == [case.kind] * case.count
    assert len({site.name for site in found}) == case.count


@torch.no_grad()
def test_looking_changes_nothing_and_leaves_nothing(case: Case) -> None:
    before = case.call()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in case.model.modules()]
    wanted = ("hidden_states", "q", "k", "v", "out", "weights", "result")
    with sites.capture(sites.find_sites(case.model), wanted) as seen:
        during = case.call()
    assert len(seen) == case.count
    if case.kind == "torch":
        same(during, before)  # torch's encoder leaves its fused path while it is watched
    else:
        assert torch.equal(during, before)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in case.model.modules()] == hooks
    assert torch.equal(case.call(), before)


@torch.no_grad()
def test_what_is_seen_is_what_the_module_computes(case: Case) -> None:
    """Weights times values is the output before the projection; the projection of it is the result."""
    found = sites.find_sites(case.model)
    with sites.capture(found, ("q", "k", "v", "out", "weights", "result", "hidden_states")) as seen:
        case.call()
    for site in found:
        one, weights = seen[site.name], site.weights()
        v = one.v.repeat_interleave(weights.num_heads // weights.num_kv_heads, 2)
        out = torch.einsum("bhij,bjhc->bihc", one.weights, v).flatten(-2)
        real = one.weights.sum((1, 3)).gt(weights.num_heads - 0.5)
        same(out[real], one.out[real])
        # BERT's site ends behind its norm
        if not site.slot:
            same(nn.functional.linear(one.out, weights.out, weights.out_bias)[real], one.result[real])
        same(one.v.flatten(-2), nn.functional.linear(one.hidden_states, weights.v, weights.v_bias))


@torch.no_grad()
def test_nothing_is_kept_where_somebody_receives(case: Case) -> None:
    names: list[str] = []
    with sites.capture(sites.find_sites(case.model), ("q",), receive=lambda site, one: names.append(site.name)) as seen:
        case.call()
    assert not seen
    assert len(names) == case.count


@torch.no_grad()
def test_the_same_attention_in_its_place_computes_the_same(case: Case) -> None:
    before = case.call()
    for site in sites.find_sites(case.model):
        sites.replace(
            site,
            SoftmaxAttention.from_attention(site.weights()) if case.kind != "attensor" else copy.deepcopy(site.module),
        )
    same(case.call(), before)
    found = sites.find_sites(case.model)
    assert [site.is_replaced for site in found] == [True] * case.count
    for site in found:
        site.restore()
    assert torch.equal(case.call(), before)


@torch.no_grad()
def test_a_replaced_attention_can_be_looked_at(case: Case) -> None:
    with sites.capture(sites.find_sites(case.model), ("out", "q")) as before:
        case.call()
    for site in sites.find_sites(case.model):
        sites.replace(
            site,
            SoftmaxAttention.from_attention(site.weights()) if case.kind != "attensor" else copy.deepcopy(site.module),
        )
    with sites.capture(sites.find_sites(case.model), ("out", "q")) as after:
        case.call()
    for name, one in before.items():
        same(after[name].q[1], one.q[1])  # without padding, whose tokens are nobody's


@torch.no_grad()
def test_weights_written_back_are_bit_equal(case: Case) -> None:
    state = copy.deepcopy(case.model.state_dict())
    for site in sites.find_sites(case.model):
        weights = site.weights()
        site.replace(
            SoftmaxAttention.from_attention(weights) if case.kind != "attensor" else copy.deepcopy(site.module)
        )
        for parameter in site.original.parameters():
            parameter.fill_(7.0)
        site.restore(site.weights())
    for name, tensor in case.model.state_dict().items():
        if "self_attn.out_proj" not in name:
            assert torch.equal(tensor, state[name]), name


@torch.no_grad()
def test_masks_that_are_added_are_understood() -> None:
    """Eager attention, whose softmax is of float32 alone, and whose rows that see nothing are NaN in float64."""
    model = llama().model.float()
    model.set_attn_implementation("eager")
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])
    logits = model(TOKENS, attention_mask=mask).logits
    for site in sites.find_sites(model):
        site.replace(SoftmaxAttention.from_attention(site.weights()))
    torch.testing.assert_close(model(TOKENS, attention_mask=mask).logits[mask.bool()], logits[mask.bool()])


@torch.no_grad()
@pytest.mark.parametrize("rope", ["default", "llama3"])
def test_left_padding_cache_and_generation_are_those_of_the_original(rope: str) -> None:
    stretched = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
    parameters = {"rope_type": rope, "rope_theta": 500.0, **(stretched if rope == "llama3" else {})}
    model = llama(rope_parameters=parameters).model
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    choices = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    greedy = {**choices, "do_sample": False, "attention_mask": mask}
    beams = {**greedy, "num_beams": 3}
    expected = [model.generate(TOKENS, **greedy), model.generate(TOKENS, **beams)]
    logits = model(TOKENS, attention_mask=mask).logits
    for site in sites.find_sites(model):
        site.replace(SoftmaxAttention.from_attention(site.weights()))
    same(model(TOKENS, attention_mask=mask).logits[mask.bool()], logits[mask.bool()])
    assert torch.equal(model.generate(TOKENS, **greedy), expected[0])
    assert torch.equal(model.generate(TOKENS, **beams), expected[1])
    prompt = model(TOKENS[:, :4], attention_mask=mask[:, :4], use_cache=True)
    for t in range(4, 7):
        step = model(TOKENS[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=prompt.past_key_values)
        same(step.logits[:, 0], logits[:, t])


@torch.no_grad()
def test_a_mixed_model_decodes_as_it_computes_whole_rows() -> None:
    """One layer of attensor's, one of transformers': both kinds of cache in one."""
    model = llama().model
    site = sites.find_sites(model)[1]
    site.replace(SoftmaxAttention.from_attention(site.weights()))
    whole = model(TOKENS, use_cache=False).logits
    past = None
    for t in range(7):
        step = model(TOKENS[:, t : t + 1], past_key_values=past, use_cache=True)
        past = step.past_key_values
        same(step.logits[:, 0], whole[:, t])


def test_gradients_reach_the_layers() -> None:
    model = llama().model
    for site in sites.find_sites(model):
        site.replace(SoftmaxAttention.from_attention(site.weights()))
    model(TOKENS, labels=TOKENS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_errors_say_what_is_missing() -> None:
    with pytest.raises(ValueError, match="find_sites: model must have an attention"):
        sites.find_sites(nn.Sequential(nn.Linear(3, 3)))
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 31, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1}
    qwen3 = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**sizes, num_attention_heads=3, num_key_value_heads=1, head_dim=8)
    )
    with pytest.raises(ValueError, match=r"q_norm, k_norm"):
        sites.find_sites(qwen3)[0].weights()
    found = sites.find_sites(llama().model)
    with pytest.raises(ValueError, match="capture: wanted must be among"), sites.capture(found, ("weight",)):
        pass
