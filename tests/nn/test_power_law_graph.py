"""Power-law graph attention: its formula token by token, what a cache keeps, fixed matrices, and the future."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.catalogue import Domain, mechanism
from attensor.errors import ShapeError
from attensor.nn import PowerLawGraphAttention, SoftmaxAttention, rotary_embedding
from attensor.ops import power_law_operator_reference
from tests.conformance import test_laws
from tests.conformance.cases import Case

SMALL: dict[str, Any] = {"units": 2, "depth": 2, "net_size": 5, "dtype": torch.float64}


def layer(**options: Any) -> PowerLawGraphAttention:
    torch.manual_seed(0)
    made = PowerLawGraphAttention(12, 3, **{**SMALL, **options})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def states(batch: int = 2, tokens: int = 11) -> Tensor:
    return torch.randn(batch, tokens, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def net(made: PowerLawGraphAttention, gram: Tensor) -> Tensor:
    """A of one row's sums [H, D, D], row by row of each matrix."""
    a = F.layer_norm(gram, (4,), made.norm.weight, made.norm.bias, 1e-6)
    for unit in made.net:
        inside = a
        for one in unit.layers:
            w = dict(one.named_parameters())
            gate, up = (inside @ w[f"{name}_weight"].T + w[f"{name}_bias"] for name in ("gate", "up"))
            inside = (gate * gate.sigmoid() * up) @ w["down_weight"].T + w["down_bias"]
        a = F.layer_norm(a + inside, (4,), unit.norm.weight, unit.norm.bias, 1e-6)
    return a


def by_tokens(made: PowerLawGraphAttention, x: Tensor) -> Tensor:
    """One row [T, C] by the definition: a loop over tokens, each with the operator of the blocks before its own."""
    tokens = len(x)
    q, k, v = (F.linear(x, p.weight, p.bias).view(1, tokens, 3, 4) for p in (made.q_proj, made.k_proj, made.v_proj))
    q, k = (rotary_embedding(t, torch.arange(tokens), interleaved=made.interleaved) for t in (q, k))
    parameters = (made.operator_weight, made.operator_bias, made.exponent, made.mix, made.mix_bias)
    outs = []
    for i in range(tokens):
        seen = tokens if made.operator == "sequence" else i // made.block_size * made.block_size
        gram = sum((torch.einsum("hd,he->hde", q[0, j], q[0, j]) for j in range(seen)), torch.zeros(3, 4, 4).double())
        operator = power_law_operator_reference(net(made, gram), *parameters)[2]
        scores = torch.einsum("hd,hde,jhe->hj", q[0, i], operator, k[0, : i + 1]) / 2
        outs.append(torch.einsum("hj,jhd->hd", scores.softmax(-1), v[0, : i + 1]).flatten())
    return F.linear(torch.stack(outs), made.o_proj.weight, made.o_proj.bias)


@pytest.mark.parametrize(
    "options", [{"block_size": 4}, {"block_size": 1, "interleaved": False}, {"operator": "sequence"}]
)
def test_it_is_its_formula(options: dict[str, Any]) -> None:
    made, x = layer(**options), states()
    expected = torch.stack([by_tokens(made, row) for row in x])
    torch.testing.assert_close(made(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [7, 70])
def test_the_paper_s_operator_sees_the_future_and_that_of_blocks_does_not(length: int) -> None:
    """The law of causality fails for the first, and nothing but the operator differs."""
    card = mechanism("pldr-llm")
    apart = dataclasses.replace(card, variants={"sequence": {"operator": "sequence"}, "blocks": {}})
    test_laws.test_the_future_does_not_leak(Case(apart, Domain.SEQUENCE, "blocks"), length)
    with pytest.raises(AssertionError):
        test_laws.test_the_future_does_not_leak(Case(apart, Domain.SEQUENCE, "sequence"), length)


@pytest.mark.parametrize("interleaved", [True, False])
def test_identity_is_softmax_attention(interleaved: bool) -> None:
    """In place of neighbours: rows of q and k sorted so that pairs are halves; forward, gradients and decoding."""
    ours, twin = layer(custom="identity", interleaved=interleaved), SoftmaxAttention(12, 3, dtype=torch.float64)
    order = torch.tensor([0, 2, 1, 3] if interleaved else [0, 1, 2, 3])
    with torch.no_grad():
        for name in "qkvo":
            mine = ours.get_submodule(f"{name}_proj")
            mine.bias.zero_()
            weight = mine.weight.view(3, 4, 12)[:, order].reshape(12, 12) if name in "qk" else mine.weight
            twin.get_submodule(f"{name}_proj").weight.copy_(weight)
    x = states().requires_grad_()
    found, expected = ours(x), twin(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), x) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert ours.new_cache(2).can_crop


def decoded(made: PowerLawGraphAttention, x: Tensor, prompt: int, **options: Any) -> Tensor:
    cache = made.new_cache(len(x), **options)
    return torch.cat([made(piece, cache=cache) for piece in (x[:, :prompt], *x[:, prompt:].split(1, 1))], 1)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{"operator": "sequence"}, {"block_size": 4}], ids=str)
def test_the_four_settings_of_the_caches(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Keys, values and G are bit for bit keys, values and A; G alone is both but for rounding; nothing is different."""
    made, x, prompt = layer(**options).to(dtype), states().to(dtype), 6
    with_g = decoded(made, x, prompt)
    made.keeps = "tensor"
    assert torch.equal(decoded(made, x, prompt), with_g)
    made.keeps = "operator"
    exact = 1e-9 if dtype == torch.float64 else 1e-4
    if made.operator == "sequence":
        made.given = made.deductive_outputs(x[:, :prompt]).operator
        torch.testing.assert_close(made(x), with_g, rtol=exact, atol=exact)
        made.given = None
        assert (made(x)[:, prompt:] - with_g[:, prompt:]).abs().max() > 1e-3  # G of all is not that of the prompt
    else:
        torch.testing.assert_close(made(x), with_g, rtol=exact, atol=exact)


@torch.no_grad()
def test_beams_take_their_operator_with_them() -> None:
    """Rows that are reordered go on with the G of the row that they were."""
    made, x, index = layer(operator="sequence"), states(3), torch.tensor([2, 0, 0])
    cache = made.new_cache(3)
    made(x[:, :8], cache=cache)
    before = cache.state_dict()["statistics.operator"]
    cache.reorder(index)
    assert torch.equal(cache.state_dict()["statistics.operator"], before[index])
    torch.testing.assert_close(made(x[index, 8:9], cache=cache), decoded(made, x[index, :9], 8)[:, 8:])


@torch.no_grad()
def test_padding_and_packing_leave_the_operator_of_a_sequence_alone() -> None:
    made, x = layer(operator="sequence"), states(2, 9)
    alone = [made(x[:1, 3:]), made(x[1:])]
    packed = made(torch.cat([x[:1, 3:], x[1:]], 1), cu_seqlens=torch.tensor([0, 6, 15]))
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-10, atol=1e-10)
    cache = made.new_cache(2)
    cache.first = torch.tensor([3, 0])
    padded = made(x, cache=cache)
    torch.testing.assert_close(padded[0, 3:], alone[0][0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(padded[1], alone[1][0], rtol=1e-10, atol=1e-10)
    late = made.new_cache(2)
    late.first = torch.tensor([3, 0])
    pieces = torch.cat([made(piece, cache=late) for piece in x.split([2, 7], 1)], 1)
    torch.testing.assert_close(pieces[0, 3:], alone[0][0], rtol=1e-10, atol=1e-10)


def test_what_it_concludes_is_there_to_be_read() -> None:
    made, x = layer(block_size=4), states()
    found = made.deductive_outputs(x)
    assert [list(one.shape) for one in found] == [[2, 3, 4, 4]] * 4
    assert (found.metric > 0).all()
    torch.testing.assert_close(found.potential, found.metric**made.exponent)
    torch.testing.assert_close(found.operator, made.mix @ found.potential + made.mix_bias)
    made.records = True
    longer = torch.cat([x, states(2, 5)], 1)
    made(longer)
    assert made.last_outputs is not None
    for n, one in enumerate(made.last_outputs.operator.unbind(1)[1:], 1):  # of the block behind 4 n tokens
        torch.testing.assert_close(one, made.deductive_outputs(longer[:, : 4 * n]).operator)


def test_a_net_is_replaced_by_what_it_concluded() -> None:
    made, x = layer(operator="sequence"), states(1)
    expected, operator = made(x), made.deductive_outputs(x).operator[0]
    made.fix(operator)
    assert {name.split(".")[0] for name in made.state_dict()} == {*(f"{n}_proj" for n in "qkvo"), "fixed_operator"}
    torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)
    made.reset_parameters()
    assert torch.equal(made.fixed_operator, operator)
    with pytest.raises(ValueError, match=r"deductive_outputs: the operator is fixed"):
        made.deductive_outputs(x)


def test_a_custom_operator_is_kept_with_the_weights() -> None:
    matrix = torch.arange(48.0, dtype=torch.float64).view(3, 4, 4) / 48
    made = layer(custom=matrix)
    assert made.operator == "fixed"
    assert torch.equal(made.state_dict()["fixed_operator"], matrix)
    assert not made.fixed_operator.requires_grad
    other = layer(custom="random")
    assert not torch.equal(other(states()), made(states()))
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(states()), made(states()))
    with pytest.raises(ShapeError, match=r"custom must be \[H, D, D\] = \[3, 4, 4\], got \[4, 4\]"):
        layer(custom=matrix[0, :4])
    with pytest.raises(ShapeError, match="custom must be"):
        made.fix(matrix[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"units": 0}, "units must be at least 1 and below 4096, got 0"),
        ({"operator": "blocks"}, "operator must be one of 'previous-blocks', 'sequence', 'fixed', got 'blocks'"),
    ],
    ids=str,
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(**options)
    with pytest.raises(ValueError, match="even head width, got hidden_size 12 / num_heads 4 = 3"):
        PowerLawGraphAttention(12, 4)


@pytest.mark.parametrize("operator", ["previous-blocks", "sequence", "fixed"])
def test_no_tokens_give_none(operator: str) -> None:
    made = layer(operator=operator)
    for rows in (0, 2):
        assert made(torch.zeros(rows, 0, 12, dtype=torch.float64)).shape == (rows, 0, 12)
