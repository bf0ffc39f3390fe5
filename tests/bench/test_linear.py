"""`attensor bench linear`: only the same work is compared, what is left out says why, what is measured is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import Tensor

from attensor.bench.linear import gpu_peers, measure, run
from attensor.bench.linear.forecast import Forecast
from attensor.bench.linear.measure import Check, Row, check_peers, choose_peers
from attensor.bench.linear.options import VARIANTS, BenchLinearOptions
from attensor.bench.linear.problem import Contestant, Problem, useful_flops
from attensor.bench.linear.registry import PEERS, Peer
from attensor.bench.linear.tables import check_table, measure_tables, summary_table
from attensor.errors import BackendError
from attensor.ops import linear_attention_reference

SMALL = BenchLinearOptions(lengths=(128,), tokens=(256,), variants=("none",), modes=("forward",), rounds=1, head_dim=16)
ABSENT = ("is not installed", "needs a GPU", "cannot be imported", "ours is the torch back-end", "no ops/")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Enters a peer that is ours, times a factor, and says `seen` of every call; returns its name."""

    def enter(
        seen: Callable[[Problem], object] = lambda problem: None, *, factor: float = 1.0, **traits: object
    ) -> str:
        def build(problem: Problem) -> Contestant:
            ours = PEERS["ours"].build(problem)

            def forward() -> Tensor:
                seen(problem)
                return factor * ours.forward()

            return replace(ours, forward=forward)

        monkeypatch.setitem(PEERS, "fake", Peer("fake", build, tuple(VARIANTS), "chunked", **traits))
        return "fake"

    return enter


def rows_of(options: BenchLinearOptions) -> list[Row]:
    peers = choose_peers(options.peers)
    cells = measure.measure(options, peers, check_peers(options, peers), lambda running, share: None)
    return [row for cell in cells for row in cell]


def test_installed_peers_compute_what_ours_does() -> None:
    peers = {name: entry for name, entry in PEERS.items() if not entry.compiles}
    checks = check_peers(BenchLinearOptions(num_heads=2, head_dim=16), peers)
    assert {check.variant for check in checks} == set(VARIANTS)
    for check in checks:
        assert check.reason == "" or any(reason in check.reason for reason in ABSENT), check
        assert check.reason or check.max_error < 1e-4, check
    assert {check.variant for check in checks if check.peer == "ours" and not check.reason} == set(VARIANTS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_flex_attention_computes_softmax_attention() -> None:
    (check,) = check_peers(SMALL, {"ours": PEERS["ours"], "flex": PEERS["flex"]})[1:]
    assert check.reason == ""
    assert check.max_error < 1e-4


def test_another_function_is_not_timed(fake: Callable[..., str]) -> None:
    options = replace(SMALL, peers=(fake(factor=1.01),))
    _, check = check_peers(options, choose_peers(options.peers))
    assert check.reason.startswith("computes another function: it differs by 1.0e-02")
    assert [row.peer for row in rows_of(options)] == ["ours"]


def test_a_peer_that_fails_is_left_out_with_its_reason(fake: Callable[..., str]) -> None:
    def refuse_large(problem: Problem) -> None:
        if problem.length > 128:
            raise RuntimeError("no more than 128\nand more")

    options = replace(SMALL, lengths=(256,), peers=(fake(refuse_large),))
    ours, failed = rows_of(options)
    assert ours.against_ours == 1.0
    assert (failed.peer, failed.seconds, failed.skipped) == ("fake", None, "RuntimeError: no more than 128 and more")


def test_ratios_and_rates_are_of_one_run(fake: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"ours/none": 0.5, "fake/none": 2.0, measure.PRODUCT: 0.25}
    monkeypatch.setattr(measure, "paired", lambda calls, *_, **__: {name: seconds[name] for name in calls})
    ours, theirs = rows_of(replace(SMALL, peers=(fake(),), num_heads=3))
    assert (ours.against_ours, theirs.against_ours) == (1.0, 4.0)
    rate = 2 * 1024**3 / 0.25
    assert ours.of_matrix_rate == pytest.approx(256 * 3 * (4 * 16 * 16 + 64 * 32) / 0.5 / rate)
    assert theirs.of_matrix_rate == pytest.approx(ours.of_matrix_rate / 4)


def test_softmax_is_timed_once_for_all_variants(fake: Callable[..., str]) -> None:
    options = replace(SMALL, variants=("none", "constant", "scalar"), peers=("sdpa",))
    rows = [row for row in rows_of(options) if row.peer == "sdpa"]
    assert [row.variant for row in rows] == ["none", "constant", "scalar"]
    assert len({row.seconds for row in rows}) == 1
    assert {row.computes for row in rows} == {"softmax attention, same sizes"}


def test_a_peer_beyond_its_budget_is_left_out(fake: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "paired", lambda calls, *_, **__: dict.fromkeys(calls, 0.9))
    options = replace(SMALL, lengths=(128, 512), tokens=(512,), peers=(fake(),), budget=3.0)
    found = {(row.peer, row.length): row.skipped for row in rows_of(options)}
    assert found == {
        ("ours", 128): "",
        ("fake", 128): "",
        ("ours", 512): "",
        ("fake", 512): "3.6 s a call expected, budget 3 s",
    }


def test_a_peer_of_which_nothing_is_known_is_tried_on_one_sequence(
    fake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    clock = iter(range(100))
    monkeypatch.setattr(measure, "PROBE_LENGTH", 64)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))  # each call takes a second
    options = replace(SMALL, tokens=(512,), peers=(fake(lambda problem: seen.append((problem.batch, problem.length))),))
    for budget, skipped in ((2.0, ""), (1.9, "8.0 s a call expected, budget 1.9 s")):
        seen.clear()
        monkeypatch.setattr(measure, "paired", lambda calls, *_, **__: dict.fromkeys(calls, 0.5))
        (row,) = (row for row in rows_of(replace(options, budget=budget)) if row.peer == "fake")
        assert row.skipped == skipped
        assert seen == [(2, 128), (1, 64), (1, 64)] + [(4, 128)] * (not skipped)


def test_a_backward_pass_that_cannot_be_held_is_left_out(
    fake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = 3 * 4 * 256 * 2 * 16**2
    name = fake(kept_states=3)
    for memory, expected in ((2 * kept, ""), (2 * kept - 2, "keeps 0 GiB of states for the backward pass")):
        monkeypatch.setattr(measure, "total_bytes", lambda device, memory=memory: memory)
        rows = rows_of(replace(SMALL, modes=("forward", "training"), peers=(name,)))
        assert [row.skipped for row in rows if row.peer == "fake"] == ["", expected]


def test_what_was_measured_survives_an_interruption(fake: Callable[..., str], tmp_path: Path) -> None:
    def interrupt(problem: Problem) -> None:
        if problem.batch == 1:
            raise KeyboardInterrupt

    options = replace(SMALL, lengths=(128, 256), peers=(fake(interrupt),), save=True, num_heads=3)
    with pytest.raises(KeyboardInterrupt):
        run.run(Console(quiet=True), options, folder=tmp_path)
    written = json.loads(next(tmp_path.glob("*-linear-partial-h3-d16-cpu.json")).read_text())
    assert [(row["peer"], row["length"]) for row in written["rows"]] == [("ours", 128), ("fake", 128)]
    assert written["machine"]["complete"] == "no, interrupted"


def test_tables_and_figures_are_kept(fake: Callable[..., str], tmp_path: Path) -> None:
    options = replace(SMALL, modes=("forward", "training"), variants=("constant", "layer"), peers=(fake(),), save=True)
    console = Console(width=200)
    with console.capture() as captured:
        run.run(console, options, folder=tmp_path)
    text = next(tmp_path.glob("*-linear-h2-d16-cpu.md")).read_text()
    for title in ("## contestants", "## forward, constant decay", "## forward + backward, the whole lightning layer"):
        assert title in text
        assert title[3:] in captured.get()
    assert text.count("| ours | 2 x 128 | 1.00x |") == 4
    assert all(fact in text for fact in ("- threads: 1", "- complete: yes", "4 K V + 64 (K + V)"))
    data = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert data["options"]["variants"] == ["constant", "layer"]
    assert [check["peer"] for check in data["checks"]] == ["ours", "fake"] * 2
    for row in data["rows"]:
        assert row["tokens_per_second"] == pytest.approx(256 / row["seconds"])


def test_a_table_relates_tokens_to_those_of_2048_and_names_what_is_missing() -> None:
    rows = [
        Row("forward", "none", "ours", "the same function", 8192, 512, 2.0, 1.0, 0.5, 6 * 2**20),
        Row("forward", "none", "ours", "the same function", 8192, 2048, 4.0, 1.0, 0.25, 18 * 2**20),
        Row("forward", "none", "sdpa", "softmax attention, same sizes", 8192, 512, 6.0, 3.0, 0.125, 12 * 2**20),
        Row("forward", "none", "sdpa", "softmax attention, same sizes", 8192, 2048, skipped="too slow"),
    ]
    (table,) = measure_tables(rows, BenchLinearOptions())
    assert table.rows == [
        ("ours", "16 x 512", "1.00x", "4,096", "0.50", "50.0%", "6.0", "0.5x"),
        ("sdpa (softmax)", "16 x 512", "3.00x", "1,365", "-", "12.5%", "12.0", "1.0x"),
        ("ours", "4 x 2048", "1.00x", "2,048", "1.00", "25.0%", "18.0", "1.5x"),
    ]
    assert table.note == "Left out: sdpa (T 2048): too slow."
    assert summary_table(rows).rows == [("sdpa", "none", "forward", "3.00x", "-")]
    (line,) = check_table([Check("sdpa", "none", "softmax attention, same sizes", None, "too old")]).rows
    assert line == ("sdpa", f"torch {torch.__version__}", "none", "softmax attention, same sizes", "left out: too old")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("none", "nothing")}, r"--variants: unknown 'nothing'; choose from none, constant, scalar"),
        ({"modes": ("backward",)}, r"--modes: unknown 'backward'; choose from forward, training, decode"),
        ({"modes": ()}, r"--modes: nothing chosen"),
        ({"peers": ("mine",)}, r"--peers: unknown 'mine'; choose from all, ours, .*mamba-ssm"),
        ({"tokens": (100,)}, r"none of the lengths \[128\] divides 100 tokens"),
        ({"rounds": 0}, r"rounds must be at least 1, got 0"),
        ({"budget": 0.0}, r"lengths and budget must be positive"),
        ({"device": "tpu"}, r"device must be cpu or cuda, got 'tpu'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.run(Console(quiet=True), replace(SMALL, **options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(BackendError, match="no GPU here; use --device cpu"):
        run.run(Console(quiet=True), replace(SMALL, device="cuda"))


def test_ours_always_takes_part_and_lengths_divide_tokens() -> None:
    assert list(choose_peers(("sdpa",))) == ["ours", "sdpa"]
    assert list(choose_peers(("all",))) == list(PEERS)
    options = BenchLinearOptions(lengths=(2048, 512, 3000, 512))
    assert options.lengths_of(4096) == (512, 2048)
    assert BenchLinearOptions(quick=True).settled().tokens == (4096,)


def test_a_forecast_follows_the_last_growth() -> None:
    forecast, key = Forecast(), ("peer", "none")
    assert forecast.seconds(key, 4096, 512) is None
    forecast.add(key, 4096, 512, 1.0)
    assert forecast.seconds(key, 4096, 2048) == pytest.approx(4.0)  # in proportion, as nothing else is known
    assert forecast.seconds(key, 8192, 512) == pytest.approx(2.0)
    forecast.add(key, 4096, 2048, 2.0)
    assert forecast.seconds(key, 4096, 8192) == pytest.approx(4.0)  # the square root
    assert forecast.seconds(key, 8192, 2048) == pytest.approx(4.0)
    forecast.add(key, 8192, 2048, 5.0)
    assert forecast.seconds(key, 8192, 8192) == pytest.approx(10.0)  # its own time, the growth seen elsewhere
    forecast.add(key, 8192, 8192, 4.0)
    assert forecast.seconds(key, 8192, 65536) == pytest.approx(4.0)  # never faster with the length


def test_useful_work_is_the_causal_half() -> None:
    problem = Problem("none", 3, 256, 5, 7)
    scores_and_values = 2 * 256**2 * 7 + 2 * 256**2 * 7
    assert useful_flops(problem, "forward", "quadratic") == 3 * 5 * scores_and_values / 2
    assert useful_flops(problem, "forward", "recurrent") == 3 * 256 * 5 * (2 * 49 + 2 * 49)
    inside = 4 * (2 * 64**2 * 7 + 2 * 64**2 * 7) / 2  # four chunks of 64
    recurrent = useful_flops(problem, "forward", "recurrent")
    assert useful_flops(problem, "forward", "chunked") == recurrent + 3 * 5 * inside
    layer = problem.variation("layer")
    assert useful_flops(layer, "training", "chunked") == 3 * (
        useful_flops(problem, "forward", "chunked") + 3 * 256 * 5 * 2 * 35**2
    )


def loop(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, scale: float = 1.0) -> Tensor:
    return linear_attention_reference(q, k, v, log_decay=decay, scale=scale)[0]


def mamba(x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor, chunk_size: int) -> Tensor:
    """What Mamba-2 defines: S_t = exp(A dt) S + dt b x^T, y = c S."""
    return loop(c, b, x * step[..., None], rate * step)


def lightning(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> Tensor:
    assert s.shape == (q.shape[1], 1, 1)
    return loop(*(x.transpose(1, 2) for x in (q, k, v)), -s.flatten()).transpose(1, 2)


def fla(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, **options: object) -> tuple[Tensor, None]:
    assert options.get("normalize", False) is False
    return loop(q, k, v, options.get("g_gamma", g), q.shape[-1] ** -0.5), None


FLA = ("linear_attn", "simple_gla", "gla")
KERNELS = SimpleNamespace(
    mamba_chunk_scan_combined=mamba,
    lightning_attn_func=lightning,
    flash_attn_func=lambda q, k, v, causal: gpu_peers.sdpa(q, k, v),
    **{f"{schedule}_{family}": fla for schedule in ("chunk", "fused_recurrent") for family in FLA},
)


@pytest.mark.parametrize("name", ["fla-chunk", "fla-recurrent", "lightning-attn", "mamba-ssm", "flash-attn"])
def test_gpu_kernels_are_given_the_same_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what their documentation defines in their place, their inputs make the function that ours computes."""
    monkeypatch.setattr(gpu_peers, "load_for_gpu", lambda device, module, package: KERNELS)
    peers = {"ours": PEERS["ours"], name: PEERS[name]}
    options = replace(SMALL, variants=tuple(PEERS[name].variants), num_heads=3)
    checks = [check for check in check_peers(options, peers) if check.peer == name]
    assert [check.variant for check in checks] == list(PEERS[name].variants)
    assert all(check.max_error is not None and check.max_error < 1e-4 for check in checks), checks
    for check in checks:
        contestant = PEERS[name].build(Problem(check.variant, 1, 8, 3, 16))
        assert isinstance(contestant, Contestant)
        grads = contestant.call("training")()
        trained = 4 if check.variant in ("scalar", "channel") and not PEERS[name].is_softmax else 3
        assert len(grads) == trained
        assert all(grad.abs().sum() > 0 for grad in grads)
