"""The benchmarks: each runs at a small size, its contestants compute what they claim, its counts of work add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from attensor.bench.apart import Apart, FirstCall
from attensor.bench.contest import OURS, Contest, Contestant, Peer, Row
from attensor.bench.contestants import latent, linear, linear_problem, neighborhood, relative, softmax
from attensor.bench.contestants import linear_decode as decode
from attensor.bench.contestants.left_product import left_product
from attensor.bench.contestants.linear_problem import LinearProblem
from attensor.bench.contestants.relative import RelativeProblem
from attensor.bench.hold import hold
from attensor.commands.bench_latent import BenchLatent
from attensor.commands.bench_linear import BenchLinear
from attensor.commands.bench_neighborhood import BenchNeighborhood
from attensor.commands.bench_relative import BenchRelative
from attensor.commands.bench_softmax import BenchSoftmax
from attensor.ops import linear_attention_reference, relative_kernel_attention_reference

ABSENT = ("is not installed", "needs a GPU", "cannot be imported", "no ops/", "reads a GPU")
LINEAR = BenchLinear(lengths=(128,), tokens=(256,), rounds=1, head_dim=16)
RELATIVE = BenchRelative(lengths=(17, 34), sizes=((3, 5), (7, 5), (2, 3)), rounds=1, num_heads=2)


@pytest.fixture(autouse=True)
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """First calls take no process, nothing compiles, and decoding is narrow."""
    monkeypatch.setattr(Apart, "first_call", lambda *_, **__: FirstCall(2**20))
    for name, size in (("NUM_HEADS", 2), ("KEY_DIM", 3), ("VALUE_DIM", 5), ("HIDDEN_SIZE", 32), ("LAYERS", 3)):
        monkeypatch.setattr(decode, name, size)
    monkeypatch.setattr(decode, "POSITIONS", (7, 70))
    small = {"hidden_size": 64, "num_attention_heads": 2}
    monkeypatch.setattr(latent, "PRESETS", {name: {**sizes, **small} for name, sizes in latent.PRESETS.items()})
    if "slow" not in request.keywords:
        for module in (linear, relative):
            monkeypatch.setattr(module, "PEERS", [peer for peer in module.PEERS if not peer.compiles])


def by_name(peers: Any, name: str, kind: str = "") -> Peer:
    return next(peer for peer in peers if peer.name == name and (not kind or kind in peer.kinds))


NEIGHBORHOOD = BenchNeighborhood(lines=((12, 3),), grids=((9, 5), (8, 3)), windows=(3, 7), rounds=1)
LATENT = BenchLatent(positions=(7, 33), rounds=1)
SOFTMAX = BenchSoftmax(lengths=(16, 32), queries=(1, 16), heads=((4, 4), (6, 2)), head_dim=8, rounds=1)


@pytest.mark.parametrize(
    ("options", "tables", "peers"),
    [
        (LINEAR, 17, {"ours", "ours-torch", "ours-la1", "sdpa"}),
        (RELATIVE, 14, {"ours", "ours, transforms", "ours, tiles", "softmax", "softmax, bias trained"}),
        (NEIGHBORHOOD, 11, {"ours", "gather", "dense SDPA (masked)"}),
        (SOFTMAX, 6, {"ours", "sdpa", "explicit product"}),
        (LATENT, 3, {"ours", "ours, naive", "ours, keys and values kept"}),
    ],
    ids=["linear", "relative", "neighborhood", "softmax", "latent"],
)
def test_a_bench_runs_and_all_that_is_here_agrees(options: Any, tables: int, peers: set[str], tmp_path: Path) -> None:
    assert hold(options.name, replace(options, save=True), Console(quiet=True), folder=tmp_path) == 0
    assert next(tmp_path.glob("*.md")).read_text().count("\n## ") == tables + 1  # and the one about a GPU
    written = json.loads(next(tmp_path.glob("*.json")).read_text())
    for check in written["checks"]:
        assert check["reason"] == "" or any(reason in check["reason"] for reason in ABSENT), check
        assert check["reason"] or check["max_error"] < 1e-4, check
    timed = [row for row in written["rows"] if not row["skipped"]]
    assert {row["peer"] for row in timed} >= peers
    assert all(row["against_ours"] > 0 for row in timed)


@pytest.mark.parametrize("module", [linear, relative, neighborhood, softmax, latent])
def test_all_problems_are_where_they_shall_be(module: Any) -> None:
    options = {linear: LINEAR, relative: RELATIVE, neighborhood: NEIGHBORHOOD, softmax: SOFTMAX, latent: LATENT}[module]
    bench = module.bench(replace(options, device="cuda"))
    problems = [*bench.small, *(problem for cell in bench.cells for problem in cell.problems)]
    assert {problem.device for problem in problems} == {"cuda"}


def test_files_of_unusual_sizes_are_told_apart() -> None:
    assert [linear.bench(options).suffix for options in (BenchLinear(), LINEAR)] == ["", "-h2-d16"]
    assert [relative.bench(options).suffix for options in (BenchRelative(), RELATIVE)] == ["", "-h2"]


def test_lengths_divide_tokens() -> None:
    bench = linear.bench(replace(LINEAR, lengths=(128, 100, 64, 128)))
    assert [(cell.mode, cell.problems[0].size) for cell in bench.cells[:4]] == [
        (mode, (256, length)) for length in (64, 128) for mode in ("forward", "training")
    ]
    with pytest.raises(ValueError, match=r"none of the lengths \[128\] divides 100 tokens"):
        linear.bench(replace(LINEAR, tokens=(100,)))


def test_a_quick_look_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("attensor.bench.hold.hold", lambda name, options: seen.append(options))
    BenchLinear(quick=True).run()
    BenchRelative(quick=True).run()
    BenchNeighborhood(quick=True).run()
    BenchSoftmax(quick=True).run()
    assert (seen[0].lengths, seen[0].tokens) == ((512, 2048), (4096,))
    assert (seen[1].lengths, seen[1].modes) == ((2048, 4096), ("forward",))
    assert (seen[2].lines, seen[2].grids, seen[2].windows, seen[3].lengths) == (
        ((128, 7),),
        ((32, 7),),
        (3, 7),
        (1024,),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("module", "options"), [(linear, LINEAR), (relative, RELATIVE)], ids=["linear", "relative"])
def test_flex_attention_computes_softmax_attention(module: Any, options: Any) -> None:
    bench = module.bench(options)
    held = Contest([by_name(bench.peers, OURS), by_name(bench.peers, "flex")])
    held.check(bench.small[:2])
    assert all(check.reason == "" for check in held.checks), held.checks


@pytest.mark.parametrize("decay", [None, [-0.1, -0.7, 0.0]])
@pytest.mark.parametrize("length", [1, 13, 16])
def test_the_left_product_is_linear_attention(length: int, decay: list[float] | None) -> None:
    tensors = [torch.randn(2, length, 3, width, dtype=torch.float64, requires_grad=True) for width in (5, 5, 7, 7)]
    *qkv, upstream = tensors
    log_decay = None if decay is None else torch.tensor(decay, dtype=torch.float64)
    expected = linear_attention_reference(*qkv, log_decay=log_decay, scale=1.0)[0]
    out = left_product(*qkv, log_decay, block=4)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    grads = torch.autograd.grad(expected, qkv, upstream)
    for actual, grad in zip(torch.autograd.grad(out, qkv, upstream), grads, strict=True):
        torch.testing.assert_close(actual, grad, rtol=1e-10, atol=1e-10)


def test_useful_work_is_the_causal_half() -> None:
    problem = LinearProblem("none", 3, 256, 5, 7)
    scores_and_values = 2 * 256**2 * 7 + 2 * 256**2 * 7
    assert linear_problem.quadratic(problem) == 3 * 5 * scores_and_values / 2
    assert linear_problem.recurrent(problem) == 3 * 256 * 5 * (2 * 49 + 2 * 49)
    inside = 4 * (2 * 64**2 * 7 + 2 * 64**2 * 7) / 2  # four chunks of 64
    assert linear_problem.chunked(problem) == linear_problem.recurrent(problem) + 3 * 5 * inside
    layer = replace(problem, variant="layer")
    assert linear_problem.chunked(layer) == linear_problem.chunked(problem) + 3 * 256 * 5 * 2 * 35**2
    ours, soft = (by_name(relative.PEERS, name).flops(RelativeProblem(10, 3, 7, True, 5)) for name in (OURS, "softmax"))
    assert (ours, soft) == (5 * 2 * 10**2 * (3 + 7) / 2, 5 * 2 * 10**2 * (7 + 7) / 2)
    assert neighborhood.PEERS[0].flops(neighborhood.NeighborhoodProblem(9, 5, 2, 16)) == 2 * 2 * 81 * 25 * 2 * 16
    seen = 3 + 4 + 5  # keys of the last three of five
    assert softmax.PEERS[0].flops(softmax.SoftmaxProblem(3, 5, 6, 2, 7)) == 2 * 2 * seen * 6 * 7


def test_growth_is_that_of_ours() -> None:
    small = neighborhood.NeighborhoodProblem(6, 3)
    far, wide = replace(small, window_size=5), replace(small, side=12, is_alone=True)
    rows = [
        Row("forward", small, OURS, seconds=2.0, peak_bytes=100),
        Row("forward", wide, OURS, seconds=12.0, peak_bytes=700),
        Row("forward", far, OURS, seconds=9.0, peak_bytes=80),
        Row("forward", small, "gather", seconds=50.0, peak_bytes=9000),
        Row("training", small, OURS, seconds=5.0),
        Row("training", wide, OURS, seconds=20.0),
    ]
    (table,) = neighborhood.growth_table(rows)
    assert table.rows == [
        ("time of a token, forward", "6 x 6", "12 x 12", "1.50x"),
        ("peak memory, forward, 6 x 6", "window 5", "window 3", "1.25x"),
        ("time of a token, forward + backward", "6 x 6", "12 x 12", "1.00x"),
    ]
    assert list(neighborhood.growth_table(rows[3:4])) == []


def test_a_state_stays_and_a_cache_of_keys_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    early, late = (decode.DecodeProblem(decode.GATES, position, 4) for position in (7, 70))
    ours, theirs = (by_name(decode.PEERS, name, decode.GATES).build for name in (OURS, "sdpa"))
    assert [ours(problem).state_bytes for problem in (early, late)] == [4 * 2 * 3 * 5 * 4] * 2
    assert [theirs(problem).state_bytes for problem in (early, late)] == [4 * n * 2 * 8 * 4 for n in (7, 70)]
    monkeypatch.setattr(decode, "KEPT_BYTES", 2 * 70 * 2 * (3 + 5) * 4)
    assert theirs(late).share == 0.5  # two of four layers fit


def test_layers_of_ours_continue_at_the_position() -> None:
    problem = decode.DecodeProblem(decode.LIGHTNING, 7, 1)
    (layer,) = problem.stack(decode.LightningAttention)
    cache = layer.new_cache(1)
    cache.update(7, state=problem.states(layer.key_dim, layer.value_dim)[0])
    token = problem.draw(1, 1, 32, seed=0)
    step = by_name(decode.PEERS, OURS, decode.LIGHTNING).build(problem).forward
    torch.testing.assert_close(step(), token + layer(token, cache=cache))


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_the_mask_is_the_bias_of_ours(is_causal: bool) -> None:
    problem = RelativeProblem(19, 3, 5, is_causal, num_heads=2)
    ours, trained = (by_name(relative.PEERS, name).build(problem) for name in (OURS, "softmax, bias trained"))
    q, k, v, bias = ours.leaves
    assert min(q.min(), k.min()) >= 0
    expected = relative_kernel_attention_reference(q, k, v, relative_bias=bias, is_causal=is_causal)
    torch.testing.assert_close(ours.forward(), expected, rtol=1e-3, atol=1e-4)
    for offset in range(-18, 1 if is_causal else 19):
        diagonal = problem.mask[0].diagonal(offset, 1, 2)
        torch.testing.assert_close(diagonal, bias[:, offset + 18, None].expand_as(diagonal))
    assert is_causal == bool(problem.mask.isinf().any())
    assert [grad.shape for grad in trained.call("training")()] == [leaf.shape for leaf in trained.leaves]
    torch.testing.assert_close(trained.leaves[2], v)


def loop(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, scale: float = 1.0) -> Tensor:
    return linear_attention_reference(q, k, v, log_decay=decay, scale=scale)[0]


def mamba(x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor, chunk_size: int) -> Tensor:
    """What Mamba-2 defines: S_t = exp(A dt) S + dt b x^T, y = c S."""
    return loop(c, b, x * step[..., None], rate * step)


def lightning(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> Tensor:
    assert s.shape == (q.shape[1], 1, 1)
    return loop(*(x.transpose(1, 2) for x in (q, k, v)), -s.flatten()).transpose(1, 2)


def fla(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, **options: Any) -> tuple[Tensor, None]:
    assert options.get("normalize", False) is False
    return loop(q, k, v, options.get("g_gamma", g), q.shape[-1] ** -0.5), None


FAMILIES = ("linear_attn", "simple_gla", "gla")
KERNELS = SimpleNamespace(
    mamba_chunk_scan_combined=mamba,
    lightning_attn_func=lightning,
    flash_attn_func=lambda q, k, v, causal: linear.sdpa(q, k, v, is_causal=causal),
    **{
        f"{how}_{family}": fla
        for how in ("chunk", "fused_recurrent")
        for family in ("linear_attn", "simple_gla", "gla")
    },
)


@pytest.mark.parametrize("name", ["fla-chunk", "fla-recurrent", "lightning-attn", "mamba-ssm", "flash-attn"])
def test_gpu_kernels_are_given_the_same_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what their documentation defines in their place, their inputs make the function that ours computes."""
    monkeypatch.setattr(linear, "load", lambda module, package, device: KERNELS)
    peers = [by_name(linear.PEERS, OURS), by_name(linear.PEERS, name)]
    held = Contest(peers)
    held.check(LinearProblem(kind, 2, 128, 3, 16) for kind in peers[1].kinds)
    checks = [check for check in held.checks if check.peer == name]
    assert [check.kind for check in checks] == list(peers[1].kinds)
    assert all(check.max_error is not None and check.max_error < 1e-4 for check in checks), checks
    for kind in peers[1].kinds:
        contestant: Contestant = peers[1].build(peers[1].sees(LinearProblem(kind, 1, 8, 3, 16)))
        call: Callable[[], Any] = contestant.call("training")
        grads = call()
        assert len(grads) == (4 if kind in ("scalar", "channel") and name != "flash-attn" else 3)
        assert all(grad.abs().sum() > 0 for grad in grads)
