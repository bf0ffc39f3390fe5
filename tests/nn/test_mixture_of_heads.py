"""Mixture of heads against loops over tokens and heads, against PyTorch's attention, and what routing is to save."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from attensor.nn import MixtureOfHeads, load_balance_loss
from attensor.nn.head_router import HeadRouter

B, T, C, H = 2, 11, 20, 5


def layer(**options: object) -> MixtureOfHeads:
    torch.manual_seed(0)
    given = {"num_shared": 2, "num_active": 4, "is_causal": False, "rotary_base": None, "dtype": torch.float64}
    return MixtureOfHeads(C, H, **(given | options))


def rows(*space: int, seed: int = 1) -> Tensor:
    return torch.randn(B, *(space or (T,)), C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spread(made: MixtureOfHeads) -> MixtureOfHeads:
    """With routers that have something to say."""
    with torch.no_grad():
        for parameter in made.router.parameters():
            parameter.mul_(5)
    return made


@torch.no_grad()
def gates_by_hand(made: MixtureOfHeads, x: Tensor, scale: str) -> Tensor:
    """One token after the other, [B, T, H], from the equations."""
    router, shared, chosen = made.router, made.num_shared, made.num_active - made.num_shared
    found = torch.zeros(*x.shape[:2], H, dtype=torch.float64)
    for b, t in ((b, t) for b in range(x.shape[0]) for t in range(x.shape[1])):
        token = x[b, t]
        if router.wg is None:
            q = (made.q_proj.weight @ token).view(H, -1)[shared:]
            lengths = torch.stack([row.square().sum().sqrt() for row in q])
            scores = lengths / lengths.std()
        else:
            scores = router.wg.weight @ token
        p = [float(s) for s in scores.exp() / scores.exp().sum()]
        best = sorted(range(len(p)), key=lambda i: -p[i])[:chosen]
        total = sum(p[i] for i in best)
        sides, of_shared = [1.0, 1.0], [1.0] * shared
        if scale != "hard":
            of_shared = torch.softmax(router.wg_1.weight @ token, 0).tolist()
            sides = torch.softmax(router.wg_0.weight @ token, 0).tolist()
        factor = {"code": (2 * shared, 2 * chosen / total), "paper": (1, 1), "hard": (1, 1)}[scale]
        for i in range(shared):
            found[b, t, i] = sides[0] * of_shared[i] * factor[0]
        for i in best:
            found[b, t, shared + i] = 1.0 if scale == "hard" else sides[1] * p[i] * factor[1]
    return found


@pytest.mark.parametrize("router", ["linear", "query-norm"])
@pytest.mark.parametrize("scale", ["code", "paper", "hard"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_equals_a_loop_over_tokens_and_heads(router: str, scale: str, is_causal: bool) -> None:
    made, x = spread(layer(router=router, gate_scale=scale, is_causal=is_causal)), rows()
    q, k, v = (p(x).unflatten(-1, (H, -1)) for p in (made.q_proj, made.k_proj, made.v_proj))
    gates, out = gates_by_hand(made, x, scale), torch.zeros(B, T, C, dtype=torch.float64)
    for b, t, h in ((b, t, h) for b in range(B) for t in range(T) for h in range(H)):
        seen = slice(t + 1) if is_causal else slice(None)
        weights = torch.softmax(k[b, seen, h] @ q[b, t, h] / (C // H) ** 0.5, 0)
        of_head = made.o_proj.weight[:, h * C // H : (h + 1) * C // H]
        out[b, t] += gates[b, t, h] * (of_head @ (weights @ v[b, seen, h]))
    torch.testing.assert_close(made.eval()(x), out, rtol=1e-10, atol=1e-12)


def test_with_all_heads_it_is_multihead_attention() -> None:
    made = layer(num_shared=2, num_active=H, gate_scale="hard", qkv_bias=True, out_bias=True)
    theirs = nn.MultiheadAttention(C, H, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in (made.q_proj, made.k_proj, made.v_proj)]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in (made.q_proj, made.k_proj, made.v_proj)]))
        theirs.out_proj.load_state_dict(made.o_proj.state_dict())
    x = rows().requires_grad_()
    weights = torch.linspace(-1, 2, B * T * C, dtype=torch.float64).view(B, T, C)
    found = []
    for out in (made(x), theirs(x, x, x, need_weights=False)[0]):
        found.append((out, *torch.autograd.grad((out * weights).sum(), x)))
    for ours, other in zip(*found):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("shared", "active"), [(1, 3), (1, 1), (5, 5), (0, 2), (4, 5)])
def test_active_heads_weigh_one_on_average(shared: int, active: int) -> None:
    """By the published scale, one shared head and none routed included, with which the published code fails."""
    heads = 1 if (shared, active) == (1, 1) else H
    torch.manual_seed(0)
    router = HeadRouter(C, heads, num_shared=shared, num_active=active, dtype=torch.float64)
    gates = router(rows(), rows(T, heads))
    assert ((gates != 0).sum(-1) == active).all()
    expected = torch.full((B, T), float(active), dtype=torch.float64)
    if 0 < shared < active:  # 2 a0 h_s + 2 a1 K, a0 + a1 = 1
        sides = 2 * torch.softmax(router.wg_0(rows()), -1)
        expected = sides[..., 0] * shared + sides[..., 1] * (active - shared)
    torch.testing.assert_close(gates.sum(-1), expected)


def test_balance_is_least_where_all_heads_are_alike() -> None:
    """K for equal probabilities, whichever heads then are chosen; E where all tokens want the same."""
    made = layer(num_shared=1, num_active=3).train()
    nn.init.zeros_(made.router.wg.weight)
    made(rows())
    assert load_balance_loss(made).item() == pytest.approx(2.0)
    with torch.no_grad():
        made.router.wg.weight[1] = 50.0
        made.router.wg.weight[3] = 49.0
    made(rows().abs())
    assert load_balance_loss(made).item() == pytest.approx(4.0, rel=1e-2)


def test_balance_is_the_equation_and_its_gradient_comes_by_probabilities_alone() -> None:
    made, x = spread(layer()).train(), rows()
    made(x)
    loss = load_balance_loss(made)
    p = torch.softmax(x @ made.router.wg.weight.T, -1).flatten(0, 1)
    share = torch.stack([(p >= p.topk(2).values[:, -1:])[:, i].double().mean() for i in range(3)])
    expected = 3 * sum(p[:, i].mean() * share[i] for i in range(3))
    torch.testing.assert_close(loss, expected)
    for found, known in zip(*(torch.autograd.grad(y, made.router.wg.weight) for y in (loss, expected))):
        torch.testing.assert_close(found, known)
    assert load_balance_loss(nn.ModuleList([made, layer(num_shared=H, num_active=H)])).item() == loss.item()
    assert load_balance_loss(nn.Linear(2, 3)).item() == 0


def test_balance_of_no_training_pass_is_refused_and_copies_do_not_carry_it() -> None:
    made = layer()
    with pytest.raises(ValueError, match=r"load_balance_loss: 1 of 1 routers .* model\.train\(\)"):
        load_balance_loss(made.eval())
    made.train()(rows())
    assert copy.deepcopy(made).router.load is None
    assert made.router.load is not None


@pytest.mark.parametrize("passing", ["all", "chosen"])
def test_hard_gates_learn_straight_through(passing: str) -> None:
    """The gradient of a gate of 1 or 0 goes to the probability of its head."""
    made = spread(layer(gate_scale="hard", straight_through=passing)).train()
    heads = made.project(rows())
    out = made.attend(heads)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view_as(out)
    (found,) = torch.autograd.grad((out * weights).sum(), made.router.wg.weight)
    every = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in heads[:3])).transpose(1, 2).detach()
    of_gate = (every * weights).sum(-1)[..., 2:]
    if passing == "chosen":
        of_gate = of_gate * (heads.gate[..., 2:] != 0)
    p = torch.softmax(rows() @ made.router.wg.weight.T, -1)
    (expected,) = torch.autograd.grad((p * of_gate.detach()).sum(), made.router.wg.weight)
    torch.testing.assert_close(found, expected)


def test_a_swap_there_and_back_is_bit_equal() -> None:
    made = layer(num_kv_heads=1, head_dim=6, rotary_base=100.0, qkv_bias=True, out_bias=True, is_causal=True)
    weights = made.to_attention()
    swapped = MixtureOfHeads.from_attention(weights, num_active=0.6)
    assert (swapped.num_shared, swapped.num_active, swapped.router.kind) == (2, 3, "query-norm")
    back = swapped.to_attention()
    for name, value in vars(weights).items():
        same = torch.equal(getattr(back, name), value) if isinstance(value, Tensor) else getattr(back, name) == value
        assert same, name
    everything = MixtureOfHeads.from_attention(weights, num_active=H)
    plain = MixtureOfHeads.from_attention(weights, num_shared=H, num_active=H)
    torch.testing.assert_close(everything(rows()), plain(rows()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kv", "dim"), [(None, None), (1, 6)])
def test_decoding_asks_the_heads_that_the_whole_asks(kv: int | None, dim: int | None) -> None:
    made = layer(is_causal=True, rotary_base=100.0, num_kv_heads=kv, head_dim=dim or 4, router="query-norm").eval()
    x, cache = rows(), made.new_cache(B)
    steps = [made(token, cache=cache) for token in x.split([4, *[1] * (T - 4)], 1)]
    torch.testing.assert_close(torch.cat(steps, 1), made(x), rtol=1e-10, atol=1e-12)


def test_queries_of_one_length_have_no_deviation() -> None:
    """Padding, a token of zeros: no NaN, and none in the gradient."""
    made, x = layer(router="query-norm"), torch.zeros(B, T, C, dtype=torch.float64, requires_grad=True)
    out = made(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert out.isfinite().all()
    assert grad.isfinite().all()


def test_half_of_the_heads_cost_half() -> None:
    """As torch counts products; the projections of both are the same."""
    found = {}
    for active in (2, 4):
        torch.manual_seed(0)
        made = MixtureOfHeads(16, 4, num_shared=1, num_active=active, is_causal=False, rotary_base=None).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            heads = made.project(torch.randn(1, 300, 16))
            before = counter.get_total_flops()
            made.attend(heads)
        found[active] = counter.get_total_flops() - before
    assert found[2] == found[4] / 2


REFUSED = {
    r"num_active must be from num_shared 2 .* to num_heads 5, .* got 6": {"num_active": 6},
    r"num_active must be greater than num_shared 4, got 4: of the 1 routed": {"num_shared": 4, "num_active": 4},
    r"num_active must be greater than 0": {"num_active": 0},
    r"num_shared must be at least 0": {"num_shared": -1},
    r"router must be one of 'linear', 'query-norm'": {"router": "norm"},
    r"dropout_p is no option": {"dropout_p": 0.1},
    r"hidden_size 20 is not a multiple of num_heads 3": {"num_heads": 3, "num_active": 2, "num_shared": 1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_options_are_refused(message: str) -> None:
    options = {"num_heads": H, "num_shared": 2, "num_active": 3, **REFUSED[message]}
    with pytest.raises((ValueError, TypeError), match=f"MixtureOfHeads: .*{message}"):
        MixtureOfHeads(C, **options)
