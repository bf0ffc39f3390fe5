"""Latents in another basis: the same model, slices that lose what they must and no more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attensor import edit
from attensor.nn import GroupedLatentAttention, LatentAttention, Slicing

SIZES = {"hidden_size": 24, "num_heads": 3, "kv_rank": 8, "nope_dim": 4, "rotary_dim": 6, "value_dim": 5}


def layer(**options: object) -> LatentAttention:
    torch.manual_seed(0)
    made = LatentAttention(**SIZES, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + (parameter.ndim == 1))
    return made


def inputs() -> Tensor:
    return torch.randn(2, 9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def rotated(original: nn.Module, how: str, groups: int = 2) -> tuple[dict[str, Tensor], Slicing]:
    moments = edit.latent_moments(original, [inputs()])
    state, slicings = edit.rotate_latent(original.state_dict(), how, groups=groups, moments=moments)
    return state, slicings[""]


@pytest.mark.parametrize("how", ["identity", "hadamard", "pca"])
def test_another_basis_is_the_same_function(how: str) -> None:
    original = layer()
    state, slicing = rotated(original, how)
    turned = layer()
    turned.load_state_dict(state)
    torch.testing.assert_close(turned(inputs()), original(inputs()), rtol=1e-10, atol=1e-10)
    assert (turned.kv_a_layernorm.weight == 1).all()
    assert sum(1 / share for share in slicing.norms) == pytest.approx(1.0)


@pytest.mark.parametrize("how", ["identity", "hadamard", "pca"])
def test_matrices_are_orthogonal(how: str) -> None:
    x = torch.randn(30, 8, dtype=torch.float64)
    matrix = edit.rotation(how, 8, moment=x.mT @ x)
    torch.testing.assert_close(matrix.mT @ matrix, torch.eye(8, dtype=torch.float64))
    if how == "hadamard":
        torch.testing.assert_close(matrix.abs(), torch.full((8, 8), 8**-0.5, dtype=torch.float64))
    if how == "pca":
        energies = (x @ matrix).square().sum(0)
        assert (energies.diff() <= 0).all()


def by_definition(made: LatentAttention, x: Tensor, slicing: Slicing) -> Tensor:
    """Section 3.6 of the equations, one group, head and query after the other."""
    latent, turned = (made.kv_a_proj_with_mqa(x)).split([8, 6], -1)
    heads = made.project(x, torch.arange(x.shape[1]))
    turned = heads.k[..., 0, 8:]
    q, q_rotary = heads.q.split([4, 6], -1)
    up = made.kv_b_proj.weight.view(3, 9, 8)
    width = 8 // slicing.groups
    out = torch.zeros(*x.shape[:2], 3, 5, dtype=x.dtype)
    for j in range(slicing.groups):
        own = slice(j * width, (j + 1) * width)
        c = latent[..., own]
        c = c / (slicing.norms[j] / 8 * c.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        c = c * made.kv_a_layernorm.weight[own]
        for h in range(3):
            for b in range(x.shape[0]):
                for i in range(x.shape[1]):
                    scores = (c[b, : i + 1] @ (up[h, :4, own].mT @ q[b, i, h])) * (slicing.gains or (1.0,) * 9)[j]
                    scores = (scores + turned[b, : i + 1] @ q_rotary[b, i, h]) * made.scale
                    out[b, i, h] += up[h, 4:, own] @ (scores.softmax(0) @ c[b, : i + 1])
    return made.o_proj(out.flatten(-2))


@pytest.mark.parametrize("gains", [None, (1.0, 1.7), (0.4, 0.6, 1.1, 3.0)], ids=str)
def test_slices_are_their_definition(gains: tuple[float, ...] | None) -> None:
    groups = 2 if gains is None else len(gains)
    norms = tuple(1.5 + j for j in range(groups))
    slicing = Slicing(groups, norms, gains, when="always")
    torch.testing.assert_close(
        layer(slicing=slicing)(inputs()), by_definition(layer(), inputs(), slicing), rtol=1e-10, atol=1e-10
    )


def test_one_group_is_the_whole_bit_for_bit() -> None:
    assert torch.equal(layer(slicing=Slicing(1, (1.0,), when="always"))(inputs()), layer()(inputs()))


def test_exact_norm_and_softmax_are_exact() -> None:
    sliced = layer(slicing=Slicing(2, None, softmax=False, when="always"))
    torch.testing.assert_close(sliced(inputs()), layer()(inputs()), rtol=1e-10, atol=1e-10)


def test_norms_alone_leave_one_softmax() -> None:
    """Where slices have equal energy, the local norms are the whole one."""
    even = layer(slicing=Slicing(2, (2.0, 2.0), softmax=False, when="always"))
    with torch.no_grad():
        even.kv_a_proj_with_mqa.weight[4:8] = even.kv_a_proj_with_mqa.weight[:4]
    whole = layer()
    whole.load_state_dict(even.state_dict())
    torch.testing.assert_close(even(inputs()), whole(inputs()), rtol=1e-10, atol=1e-10)
    other = layer(slicing=Slicing(2, (2.0, 2.0), softmax=False, when="always"))
    assert (other(inputs()) - layer()(inputs())).norm() > 1e-3


def test_a_latent_that_fits_into_one_slice_loses_nothing() -> None:
    original = layer()
    with torch.no_grad():  # rank 4 of 8
        original.kv_a_proj_with_mqa.weight[4:8] = original.kv_a_proj_with_mqa.weight[:4].roll(1, 0)
    state, slicing = rotated(original, "pca")
    assert slicing.norms[1] == 0.0
    turned = layer(slicing=Slicing(2, slicing.norms, when="always"))
    turned.load_state_dict(state)
    out = turned(inputs())
    assert out.isfinite().all()
    torch.testing.assert_close(out, original(inputs()), rtol=1e-5, atol=1e-5)


def test_prompts_are_exact_and_steps_are_sliced() -> None:
    state, slicing = rotated(layer(), "pca")
    sliced, whole = layer(slicing=slicing), layer()
    for made in (sliced, whole):
        made.load_state_dict(state)
    x = inputs()
    caches = [made.new_cache(2) for made in (sliced, whole)]
    parts = [
        [made(x[:, a:b], cache=cache) for a, b in ((0, 3), (3, 8), (8, 9))]
        for made, cache in zip((sliced, whole), caches)
    ]
    for n in (0, 1):  # a prompt in pieces
        assert torch.equal(parts[0][n], parts[1][n])
    assert torch.equal(caches[0].state_dict()["latent"][:, :8], caches[1].state_dict()["latent"][:, :8])
    assert 1e-6 < (parts[0][2] - parts[1][2]).norm() < parts[1][2].norm()
    assert torch.equal(sliced(x), whole(x))


def test_moments_are_those_of_all_tokens() -> None:
    made = layer()
    batches = [inputs(), inputs()[:1, :4] * 3, inputs()[:, :0]]
    latents = torch.cat([made.kv_a_proj_with_mqa(x)[..., :8].flatten(0, 1) for x in batches])
    latents = latents / (latents.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = latents.mT @ latents / len(latents)
    torch.testing.assert_close(edit.latent_moments(made, batches), {"": expected})
    assert not made.kv_a_proj_with_mqa._forward_hooks


def test_other_tensors_pass() -> None:
    model = nn.ModuleDict({"attention": layer(), "mlp": nn.Linear(3, 3)})
    state, slicings = edit.rotate_latent(model.state_dict(), "hadamard")
    assert slicings == {"attention.": Slicing(2, (2.0, 2.0))}
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, state[name])}
    assert changed == {f"attention.{n}.weight" for n in ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "pca"}, "moments must have an entry"),
        ({"how": "spin"}, "how must be one of 'identity', 'hadamard', 'pca', got 'spin'"),
        ({"how": "identity", "groups": 3}, "groups must divide the latent's width 8, got 3"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit.rotate_latent(layer().state_dict(), **options)


def test_refusals_of_matrices_and_slices() -> None:
    with pytest.raises(ValueError, match="power of two, got 12"):
        edit.rotation("hadamard", 12)
    with pytest.raises(ValueError, match=r"moment must be \[R, R\] = \[4, 4\], got \[3, 3\]"):
        edit.rotation("pca", 4, moment=torch.eye(3))
    with pytest.raises(ValueError, match="norms must have one number for each of the 2 groups, got 3"):
        Slicing(2, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"has 3 latents a token in .*, each with its norm"):
        edit.rotate_latent(GroupedLatentAttention(24, 3, num_latents=3).state_dict(), "identity")
    with pytest.raises(ValueError, match=r"rotate_latent: state_dict must have .*kv_b_proj"):
        edit.rotate_latent({k: x for k, x in layer().state_dict().items() if "kv_b" not in k}, "identity")
    with pytest.raises(ValueError, match=r"kv_rank must be a multiple of slicing\.groups, got 8 and 3"):
        layer(slicing=Slicing(3))
    with pytest.raises(ValueError, match="model has no layer with a kv_a_proj_with_mqa"):
        edit.latent_moments(nn.Linear(2, 2), [])
    with pytest.raises(ValueError, match="batches must hold a token"):
        edit.latent_moments(layer(), [])
