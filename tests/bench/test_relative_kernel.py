"""`attensor bench relative`: contestants compute what they claim, who is left out has a reason, ratios add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from attensor import cli
from attensor.bench.linear.problem import Contestant
from attensor.bench.relative_kernel import problem, run
from attensor.bench.relative_kernel.options import BenchRelativeOptions
from attensor.bench.relative_kernel.problem import Problem, Sizes, contestants, useful_flops
from attensor.bench.relative_kernel.tables import Row, measure_tables, summary_table
from attensor.ops import relative_kernel_attention_reference

SMALL = BenchRelativeOptions(lengths=(17, 34), sizes=((3, 5), (7, 5), (2, 3)), rounds=1, num_heads=2)
OURS = ("ours", "ours, transforms", "ours, tiles")
ORDERS = pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(problem: Problem) -> Contestant:
        raise RuntimeError("no compiler\nhere")

    if "slow" not in request.keywords:
        monkeypatch.setattr(problem, "_flex", refuse)
    monkeypatch.setattr(run, "measure_peak_bytes", lambda call: (call(), 3 * 2**19)[1])  # the real one takes its time


@pytest.fixture
def durations(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes timed calls take what a function of the contestant's name and the length says; others take 1 second."""

    def fix(seconds: Callable[[str, int], float]) -> None:
        class Cell(run._Cell):
            def _time(self, calls: dict[tuple[str, ...], Callable[[], object]]) -> dict[tuple[str, ...], float]:
                found = {key: seconds(key[0], self.length) for key in calls}
                for key, time in found.items():
                    self.forecast.add(key, 1, self.length, time)
                return found

        monkeypatch.setattr(run, "_Cell", Cell)

    return fix


def build(sizes: Sizes, mode: str, name: str, made: Problem | None = None) -> Contestant:
    entry = contestants(sizes, mode)[name]
    assert not isinstance(entry, str)
    return entry(made or Problem(sizes))


def rows_of(options: BenchRelativeOptions) -> list[Row]:
    return [row for cell in run.measure(options.settled(), lambda running, share: None) for row in cell]


def skipped(rows: list[Row]) -> dict[tuple[str, int], str]:
    return {(row.contestant, row.sizes.length): row.skipped for row in rows if row.skipped}


def softmax_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, is_causal: bool) -> Tensor:
    """What the mask stands for, query by query. q, k, v: [1, n, H, D], bias: [H, 2 n - 1]."""
    n = q.shape[1]
    rows = []
    for i in range(n):
        seen = range(i + 1 if is_causal else n)
        offsets = [j - i + n - 1 for j in seen]
        scores = torch.einsum("bhd,bjhd->bhj", q[:, i], k[:, : len(offsets)]) * q.shape[-1] ** -0.5 + bias[:, offsets]
        rows.append(torch.einsum("bhj,bjhd->bhd", scores.softmax(-1), v[:, : len(offsets)]))
    return torch.stack(rows, 1)


@ORDERS
@pytest.mark.parametrize("name", OURS)
def test_ours_is_the_operator(name: str, is_causal: bool) -> None:
    sizes = Sizes(37, 3, 5, is_causal, num_heads=2)
    ours = build(sizes, "training", name)
    q, k, v, bias = ours.leaves
    assert min(q.min(), k.min()) >= 0
    expected = relative_kernel_attention_reference(q, k, v, relative_bias=bias, is_causal=is_causal)
    torch.testing.assert_close(ours.forward(), expected, rtol=1e-3, atol=1e-4)
    grads = torch.autograd.grad(expected, ours.leaves, ours.upstream)
    for actual, grad in zip(ours.call("training")(), grads, strict=True):
        torch.testing.assert_close(actual, grad, rtol=1e-2, atol=1e-3)


@ORDERS
@pytest.mark.parametrize(("mode", "name"), [("forward", "softmax"), ("training", "softmax, bias trained")])
def test_softmax_attention_has_the_bias_of_ours(mode: str, name: str, is_causal: bool) -> None:
    sizes = Sizes(19, 3, 5, is_causal, num_heads=2)
    made = Problem(sizes)
    softmax = build(sizes, mode, name, made)
    q, k, v, *mask = softmax.leaves
    assert build(sizes, mode, "ours", made).leaves[2:] == (v, made.bias)
    expected = softmax_with_bias(q, k, v, made.bias, is_causal)
    torch.testing.assert_close(softmax.forward(), expected, rtol=1e-4, atol=1e-5)
    if mode == "training":
        *grads, of_bias = torch.autograd.grad(expected, (q, k, v, made.bias), softmax.upstream)
        *actual, of_mask = softmax.call(mode)()
        torch.testing.assert_close(actual, grads, rtol=1e-3, atol=1e-5)
        folded = [of_mask[0].diagonal(offset, 1, 2).sum(-1) for offset in range(-18, 19)]
        torch.testing.assert_close(torch.stack(folded, 1), of_bias, rtol=1e-3, atol=1e-5)
    assert len(mask) == (mode == "training")


@pytest.mark.slow
@ORDERS
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_flex_attention_computes_the_same(is_causal: bool) -> None:
    sizes = Sizes(256, 3, 16, is_causal, num_heads=2)
    made = Problem(sizes)
    flex, softmax = (build(sizes, "forward", name, made).call("forward")() for name in ("flex", "softmax"))
    torch.testing.assert_close(flex, softmax, rtol=1e-4, atol=1e-5)


def test_tables_have_a_row_for_each_contestant_and_are_kept(tmp_path: Path) -> None:
    console = Console(width=160)
    with console.capture() as captured:
        run.run(console, replace(SMALL, save=True), folder=tmp_path)
    text = next(tmp_path.glob("*-relative-h2-cpu.md")).read_text()
    assert text.count("## forward, ") == text.count("## forward + backward, ") == 6
    for title in (
        "forward, causal: 7 features, 2 heads of width 5",
        "forward + backward, bidirectional: 2 features, 2 heads of width 3",
        "ours against softmax attention with the same bias",
    ):
        assert f"## {title}\n" in text
        assert title in captured.get()
    for name, tables in (*((name, 12) for name in ("softmax", *OURS)), ("softmax, bias trained", 6)):
        assert text.count(f"\n| {name} | 17 |") == text.count(f"\n| {name} | 34 |") == tables, name
    assert " | 1.5 |\n" in text
    assert text.count("\n| softmax | 17 | 1.00x |") >= 6  # in training the other one may be faster
    assert text.count("Left out: flex (n 17, 34): RuntimeError: no compiler here.") == 6
    assert text.count("Left out: flex (n 17, 34): FlexAttention has no backward pass on a CPU.") == 6
    assert "- complete: yes" in text


def test_a_quick_look_is_forward_alone_and_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = replace(SMALL, quick=True).settled()
    assert (settled.lengths, settled.modes) == ((2048, 4096), ("forward",))
    assert settled.settled() == settled
    monkeypatch.setattr(run, "measure", lambda options, tick: iter([]))
    run.run(Console(quiet=True), BenchRelativeOptions(quick=True, save=True), folder=tmp_path)
    assert len(list(tmp_path.glob("*-relative-quick-cpu.md"))) == 1


def test_softmax_is_timed_once_for_all_numbers_of_features() -> None:
    rows = rows_of(replace(SMALL, sizes=((3, 5), (7, 5)), lengths=(17,), modes=("forward",)))
    for is_causal in (False, True):
        few, many = ({row.contestant: row for row in rows if row.sizes[1:4] == (m, 5, is_causal)} for m in (3, 7))
        assert few["softmax"].products == many["softmax"].products
        assert few["ours"].products != many["ours"].products


def test_who_is_expected_to_exceed_the_budget_is_left_out(durations: Callable[..., None]) -> None:
    durations(lambda name, n: (2.0 if name == "ours, tiles" else 1.0) * n / 17)
    rows = rows_of(replace(SMALL, sizes=((3, 5),), modes=("training",), budget=3.0))
    assert skipped(rows) == {
        ("flex", 17): "FlexAttention has no backward pass on a CPU",
        ("flex", 34): "FlexAttention has no backward pass on a CPU",
        ("ours, tiles", 34): "4.0 s expected, budget 3 s",
    }
    assert rows[-3].products == 2.0


@pytest.mark.parametrize("limit", [4 * 2 * 34**2, 4 * 2 * 34**2 - 1])
def test_softmax_is_left_out_where_its_matrices_do_not_fit(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "DENSE_BYTES", limit)
    found = skipped(rows_of(replace(SMALL, sizes=((3, 5),), modes=("training",), budget=100.0)))
    # four matrices at 17 are as large as one at 34
    assert (("softmax, bias trained", 17) in found) == (("softmax", 34) in found) == (limit < 4 * 2 * 34**2)
    assert found["softmax, bias trained", 34].startswith("its n x n matrices take 0.0 GiB, limit ")
    for name in OURS[1:]:
        assert (found.get((name, 34)) == "nothing to compare it with, softmax is left out") == (
            ("softmax", 34) in found
        )
    assert ("ours", 34) not in found


def test_ours_is_within_the_budget_only_where_softmax_is_left_out(durations: Callable[..., None]) -> None:
    for softmax, reason in ((5.0, None), (5.1, "6.0 s expected, budget 5 s")):
        durations(lambda name, n, softmax=softmax: (softmax if name == "softmax" else 3.0) * n / 17)
        found = skipped(rows_of(replace(SMALL, sizes=((3, 5),), modes=("forward",), budget=5.0)))
        assert found.get(("ours", 34)) == reason


def test_a_long_first_length_is_foretold_by_shorter_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(calls: dict[str, Callable[[], object]], *_: object, **__: object) -> dict[str, float]:
        return {name: 1.0 if name == run.PRODUCT else next(clock) for name in calls}

    clock = iter([0.5, 1.0] * 4)  # softmax and ours, in both orders
    monkeypatch.setattr(run, "PROBE_LENGTHS", (8, 16))
    monkeypatch.setattr(run, "paired", timed)
    found = skipped(rows_of(replace(SMALL, sizes=((3, 5),), lengths=(64,), modes=("forward",), budget=1.95)))
    assert found["softmax", 64] == "4.0 s expected, budget 3.9 s"
    assert found["ours", 64] == "4.0 s expected, budget 1.95 s"
    assert next(clock, None) is None


def test_a_call_beyond_the_budget_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(run.time, "perf_counter", lambda: next(clock))  # each call takes a second
    monkeypatch.setattr(run, "paired", lambda calls, *_, **__: dict.fromkeys(calls, 1.0))
    options = replace(SMALL, sizes=((3, 5),), lengths=(17,), modes=("forward",))
    assert set(skipped(rows_of(replace(options, budget=0.67)))) == {("flex", 17)}
    found = skipped(rows_of(replace(options, budget=0.66)))
    assert found["ours, tiles", 17] == found["ours, transforms", 17] == "a call took 1.0 s, budget 0.66 s"
    assert "softmax" not in {name for name, _ in found}
    found = skipped(rows_of(replace(options, budget=0.33)))
    assert found["softmax", 17] == "a call took 1.0 s, budget 0.66 s"


def test_what_was_measured_survives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(made: Problem) -> Contestant:
        if made.sizes.length == 34:
            raise KeyboardInterrupt
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(problem, "_flex", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.run(Console(quiet=True), replace(SMALL, num_heads=1, save=True), folder=tmp_path)
    text = next(tmp_path.glob("*-relative-partial-cpu.md")).read_text()
    assert "| ours | 17 |" in text
    assert "| 34 |" not in text
    assert "- complete: no, interrupted" in text


def test_a_failure_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Tensor, **__: object) -> Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(problem, "relative_kernel_attention", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        rows_of(SMALL)


def test_ratios_are_to_the_faster_softmax_and_growth_is_a_power() -> None:
    at_1, at_2 = Sizes(1024, 32, 64, False), Sizes(4096, 32, 64, False)
    rows = [
        Row("training", at_1, "softmax", 3.0, 2**20),
        Row("training", at_1, "softmax, bias trained", 2.0, 2**21),
        Row("training", at_1, "ours", 4.0, 0),
        Row("training", at_2, "softmax", 24.0, 2**20),
        Row("training", at_2, "softmax, bias trained", skipped="too large"),
        Row("training", at_2, "ours", 16.0, 3 * 2**19),
    ]
    (table,) = measure_tables(rows)
    assert table.title == "forward + backward, bidirectional: 32 features, 1 head of width 64"
    assert table.note == "Left out: softmax, bias trained (n 4096): too large."
    assert [row[:1] + row[1:3] + row[4:] for row in table.rows] == [
        ("softmax", "1024", "0.67x", "-", "1.0"),
        ("softmax, bias trained", "1024", "1.00x", "-", "2.0"),
        ("ours", "1024", "0.50x", "-", "0.0"),
        ("softmax", "4096", "1.00x", "1.50", "1.0"),
        ("ours", "4096", "1.50x", "1.00", "1.5"),
    ]
    assert table.rows[2][3] == f"{3 * 2 * 1024**2 * (32 + 64) / 4 / (2 * 1024**3):.1%}"
    assert summary_table(rows).rows == [
        ("32", "64", "bidirectional", "forward + backward", "4096", "0.50x", "1.50x"),
    ]


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ((1, 1, 1), "8"),
        ((1, 3, 1), "32"),
        ((1, 1, 3), "none of these"),
        ((3, 1, None), "16"),
        ((2, 2, 2), "none of these"),
    ],
)
def test_ours_wins_from_the_length_after_which_it_never_loses(ours: tuple[float | None, ...], expected: str) -> None:
    rows = []
    for length, products in zip((8, 16, 32), ours, strict=True):
        rows.append(Row("forward", Sizes(length, 2, 3, True), "softmax", 2.0))
        rows.append(Row("forward", Sizes(length, 2, 3, True), "ours", products, skipped="" if products else "slow"))
    (row,) = summary_table(rows).rows
    assert row[4] == expected
    (nothing,) = summary_table([Row("forward", Sizes(8, 2, 3, True), "ours", 1.0)]).rows
    assert nothing[4:] == ("-", "-")


def test_useful_work_is_two_products_over_the_keys_that_are_seen() -> None:
    scores_and_values = 2 * 10**2 * 3 + 2 * 10**2 * 7
    assert useful_flops(Sizes(10, 3, 7, False, 5), "forward", "ours, transforms") == 5 * scores_and_values
    assert useful_flops(Sizes(10, 3, 7, True, 5), "training", "ours") == 3 * 5 * scores_and_values / 2
    assert useful_flops(Sizes(10, 3, 7, False), "forward", "softmax, bias trained") == 2 * 2 * 10**2 * 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": ()}, "--lengths: nothing chosen"),
        ({"sizes": ()}, "--sizes: nothing chosen"),
        ({"modes": ()}, "--modes: nothing chosen"),
        ({"lengths": (8, 0)}, r"lengths and sizes must be at least 1, got \[8, 0\] and \[\[3, 5\]"),
        ({"sizes": ((32, 0),)}, r"lengths and sizes must be at least 1, got \[17, 34\] and \[\[32, 0\]\]"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"rounds": -1}, "rounds must be at least 1, got -1"),
        ({"budget": 0.0}, "budget must be positive, got 0"),
        ({"budget": float("nan")}, "budget must be positive, got nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.run(Console(quiet=True), replace(SMALL, **options))


def test_the_command_line_refuses_them_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "relative", "--num-heads", "0"]) == 2
    assert capsys.readouterr() == ("", "attensor: bench relative: num_heads must be at least 1, got 0.\n")
