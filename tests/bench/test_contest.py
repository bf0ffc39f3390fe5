"""A contest: other functions are refused, who fails has a reason, ratios are of one run, Ctrl-C loses nothing."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from attensor.bench import contest, hold
from attensor.bench.apart import Apart, FirstCall
from attensor.bench.contest import OURS, SAME, Cell, Contest, Mode, Peer, Row
from attensor.bench.layout import Table
from attensor.bench.tables import check_table, digits, measure_tables, summary_table
from attensor.commands.bench import BenchOptions
from attensor.errors import BackendError, MissingExtraError
from tests.bench import toy
from tests.bench.toy import PEERS, Toy, figures, peer


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, Any], FirstCall]], None]:
    """First calls take no process and no time, or what a function of mode and problem says."""

    def fix(first: Callable[[str, Any], FirstCall] = lambda mode, problem: FirstCall(3 * 2**19)) -> None:
        monkeypatch.setattr(Apart, "first_call", lambda self, build, problem, mode, **options: first(mode, problem))

    fix()
    return fix


def rows_of(peers: tuple[Peer, ...], *lengths: int, mode: Mode = "forward", **options: Any) -> list[Row]:
    held = Contest(peers, rounds=2, **options)
    held.check([Toy(4)])
    return [row for rows in held.measure(Cell(mode, [Toy(length)]) for length in lengths) for row in rows]


def test_another_function_is_not_timed(here: object) -> None:
    held = Contest((*PEERS, peer("wrong", toy.wrong)), rounds=1)
    held.check([Toy(4)])
    reasons = {check.peer: check.reason for check in held.checks}
    assert reasons["wrong"] == "computes another function: it differs by 1.0e-02 of the largest value"
    assert reasons["absent"] == "toys is not installed"
    assert {name for name, reason in reasons.items() if not reason} == {OURS, "same", "square"}
    (rows,) = held.measure([Cell("forward", [Toy(7)])])
    assert [row.peer for row in rows] == [OURS, "same", "square"]


def test_not_a_number_is_another_function(here: object) -> None:
    held = Contest([peer(OURS, reference=lambda problem: torch.full((4,), torch.nan))])
    held.check([Toy(4)])
    assert held.checks[0].reason.startswith("computes another function: it differs by nan")


def test_each_is_compared_with_the_first_of_its_function_and_that_one_with_its_reference() -> None:
    def of_problem(problem: Toy) -> torch.Tensor:
        return 2.02 * problem.leaf(4, seed=0)

    held = Contest([peer(OURS, toy.wrong, reference=of_problem), peer("right", toy.wrong), peer("wrong")])
    held.check([Toy(4)])
    assert [bool(check.reason) for check in held.checks] == [False, False, True]


@pytest.mark.slow
def test_who_fails_later_is_left_out_with_its_reason() -> None:
    rows = rows_of((peer(OURS), peer("failing", toy.failing)), 7, 12)
    assert figures(rows)["failing", 12] == "RuntimeError: no more than 10 and more"
    assert [reason for key, reason in figures(rows).items() if key != ("failing", 12)] == ["", "", ""]


def test_ratios_and_rates_are_of_one_run(here: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed(calls: dict[str, Any], *_: object, **__: object) -> dict[str, list[float]]:
        return dict(zip(calls, ([1.0, 2.0, 3.0], [4.0, 2.0, 9.0], [0.5, 0.25, 0.25]), strict=True))

    monkeypatch.setattr(contest, "alternate", fixed)
    ours, same = rows_of(PEERS[:2], 6, mode="training")
    assert (ours.seconds, ours.against_ours, ours.rounds, ours.products) == (2.0, 1.0, (1.0, 1.0), 8.0)
    assert (same.seconds, same.against_ours, same.rounds) == (4.0, 2.0, (1.0, 4.0))
    assert ours.of_matrix_rate == pytest.approx(3 * 6 / 2.0 / (2 * 1024**3 / 0.25))
    assert same.peak_bytes == 3 * 2**19


def test_a_part_of_the_work_is_scaled_up_to_all_of_it(here: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(problem: Toy) -> contest.Contestant:
        return replace(toy.product(problem), share=0.5, state_bytes=100)

    monkeypatch.setattr(contest, "alternate", lambda calls, *_, **__: {name: [1.0, 3.0] for name in calls})
    ours, other = rows_of((peer(OURS), peer("half", half)), 6, mode="decode")
    assert (ours.seconds, other.seconds, other.against_ours, other.state_bytes) == (2.0, 4.0, 2.0, 200)


def test_another_function_is_timed_once_for_all_that_look_alike_to_it(here: object) -> None:
    held = Contest([peer for peer in PEERS if peer.name in (OURS, "square")], rounds=2)
    (rows,) = held.measure([Cell("forward", [Toy(7, 2.0), Toy(7, 3.0)])])
    assert [(row.peer, row.problem.factor) for row in rows] == [
        (name, factor) for factor in (2.0, 3.0) for name in (OURS, "square")
    ]
    assert len({row.seconds for row in rows}) == 3


def test_who_is_slow_is_not_tried_at_what_takes_more(here: Callable[..., None]) -> None:
    seen = []

    def first(mode: str, problem: Toy) -> FirstCall:
        seen.append((mode, problem.length))
        return FirstCall(reason="slow", is_slow=True) if problem.length > 7 else FirstCall(1)

    here(first)
    rows = rows_of((peer(OURS, toy.absent), peer("slow")), 7, 9, 8, 9, budget=0.5)
    assert [row.skipped for row in rows] == ["", "slow", "slow", "more than 0.5 s a call already at a smaller size"]
    assert seen == [("forward", 7), ("forward", 9), ("forward", 8)]


def test_a_peer_is_timed_in_its_modes_alone(here: object) -> None:
    peers = (peer(OURS), peer("trained", modes=("training",)))
    assert [row.peer for row in rows_of(peers, 7)] == [OURS]
    assert [row.peer for row in rows_of(peers, 7, mode="training")] == [OURS, "trained"]


def test_a_peer_that_cannot_train_says_so(here: object) -> None:
    peers = (peer(OURS), peer("flex", no_backward="no backward pass"))
    assert figures(rows_of(peers, 7, mode="training")) == {(OURS, 7): "", ("flex", 7): "no backward pass"}
    assert figures(rows_of(peers, 7)) == {(OURS, 7): "", ("flex", 7): ""}


@pytest.fixture(scope="module")
def apart() -> Any:
    """One process for the tests below; the torch that it imports takes its time."""
    made = Apart()
    yield made
    made.close()


def test_memory_is_measured_in_a_process_of_its_own(apart: Apart) -> None:
    large = apart.first_call(toy.holding, Toy(40), "forward")
    assert large.peak_bytes == pytest.approx(3 * 40 * 2**20, rel=0.1)
    small = apart.first_call(toy.holding, Toy(11), "forward")
    assert small.peak_bytes == pytest.approx(3 * 11 * 2**20, rel=0.1)


def test_a_first_call_that_takes_too_long_is_ended(apart: Apart) -> None:
    slow = FirstCall(reason="a call takes more than 0.05 s", is_slow=True)
    assert apart.first_call(toy.sleeping, Toy(10), "forward", limit=0.05) == slow
    assert apart.first_call(toy.sleeping, Toy(100000), "forward", limit=0.05) == slow
    assert apart.first_call(toy.sleeping, Toy(10), "forward", limit=5.0).reason == ""


@pytest.mark.slow
def test_a_process_that_ends_is_a_reason_and_the_next_one_starts(apart: Apart) -> None:
    assert apart.first_call(toy.ending, Toy(4), "forward").reason == "its process ended with 3 (-9: out of memory)"
    assert apart.first_call(toy.absent, Toy(4), "forward").reason == "toys is not installed"


def test_a_call_that_asks_for_more_than_half_the_memory_fails_alone(apart: Apart) -> None:
    assert "allocate" in apart.first_call(toy.greedy, Toy(4), "forward").reason


@dataclass(frozen=True)
class Options(BenchOptions):
    """As a command has them."""

    lengths: tuple[int, ...] = (7, 12)
    rounds: int = 1
    save: bool = True


@pytest.fixture
def held(here: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Holds the toy's bench in a folder of its own; the peers travel apart, as no JSON has them."""

    def run(*peers: Peer, **options: Any) -> int:
        monkeypatch.setattr(hold.importlib, "import_module", lambda name: toy)
        monkeypatch.setattr(toy, "bench", lambda given, bench=toy.bench: bench(given, peers))
        return hold.hold("toy", Options(**options), Console(quiet=True), folder=tmp_path)

    return run


def test_tables_and_figures_are_kept(held: Callable[..., int], tmp_path: Path) -> None:
    assert held(*PEERS) == 0
    text = next(tmp_path.glob("*-toy-cpu.md")).read_text()
    for title in ("contestants", "forward, toy, times 2", "forward + backward, toy, times 2", "time of a peer over"):
        assert f"## {title}" in text
    for length in (7, 12):
        assert len(re.findall(rf"\| ours \| {length} \| [\d.,]+ \| 1\.00x \| - \|", text)) == 2
    assert text.endswith("## GPU\n\nNot yet measured.\n")
    assert "- complete: yes" in text
    written = json.loads(next(tmp_path.glob("*-toy-cpu.json")).read_text())
    assert written["options"]["lengths"] == [7, 12]
    assert [check["peer"] for check in written["checks"]] == [OURS, "same", "square", "absent"]
    assert {row["kind"] for row in written["rows"]} == {"times 2"}
    assert len(written["rows"]) == 12
    assert not list(tmp_path.glob(".*"))


def test_what_was_measured_survives_an_interruption(held: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        held(peer(OURS), peer("interrupted", toy.interrupted), quick=True)
    text = next(tmp_path.glob("*-toy-quick-partial-cpu.md")).read_text()
    assert text.count("| interrupted | 7 |") == 2
    assert "| 12 |" not in text
    assert "- complete: no, interrupted" in text


def test_peers_are_chosen_by_name(held: Callable[..., int], tmp_path: Path) -> None:
    assert held(*PEERS, peers=("same",)) == 0
    text = next(tmp_path.glob("*.md")).read_text()
    assert [name for name in (OURS, "same", "square", "absent") if f"| {name} |" in text] == [OURS, "same"]


@pytest.mark.parametrize("build", [toy.absent, toy.failing])
def test_a_failure_of_ours_is_not_hidden(held: Callable[..., int], build: Any, tmp_path: Path) -> None:
    assert held(peer(OURS, build), peer("same"), save=False) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": ()}, "bench toy: --lengths: nothing chosen"),
        ({"lengths": ((8, 7), (9, 0))}, "bench toy: --lengths must be at least 1, got 0"),
        ({"peers": ("mine",)}, "bench toy: --peers: unknown 'mine'; choose from all, ours, same, square, absent"),
        ({"rounds": -1}, "bench toy: --rounds must be at least 1, got -1"),
        ({"budget": 0.0}, "bench toy: --budget must be above 0, got 0"),
        ({"budget": float("nan")}, "bench toy: --budget must be above 0, got nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    held: Callable[..., int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        held(*PEERS, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_refused(held: Callable[..., int]) -> None:
    with pytest.raises(BackendError, match="bench toy: PyTorch sees no GPU here; use --device cpu"):
        held(*PEERS, device="cuda")


def test_a_table_says_what_grows_who_computes_something_else_and_what_is_missing() -> None:
    rows = [
        Row("training", Toy(8), OURS, SAME, 2.0, 1.0, 1.0, (1.0, 1.0), 0.5, 2**20),
        Row("training", Toy(8), "sdpa", "softmax attention", 6.0, 3.0, 3.0, (2.5, 3.5), 0.125, 2**19),
        Row("training", Toy(32), OURS, SAME, 16.0, 8.0, 1.0, (1.0, 1.0), 0.25, 3 * 2**19),
        Row("training", Toy(32), "sdpa", "softmax attention", skipped="too slow"),
        Row("training", Toy(64), "sdpa", "softmax attention", skipped="too slow"),
    ]
    (table,) = measure_tables(rows)
    assert table.title == "forward + backward, toy, times 2"
    assert ["-".join(table.columns)] == [
        "contestant-size-time, s-against ours-over rounds-growth-tokens/s-of matrix rate-peak MiB-of inputs"
    ]
    assert table.rows == [
        ["ours", "8", "2.00", "1.00x", "-", "-", "4.00", "50.0%", "1.0", "32768.0x"],
        ["sdpa (softmax)", "8", "6.00", "3.00x", "2.50 to 3.50", "-", "1.33", "12.5%", "0.5", "16384.0x"],
        ["ours", "32", "16.0", "1.00x", "-", "1.50", "2.00", "25.0%", "1.5", "12288.0x"],
    ]
    assert table.note == "Left out: sdpa (32, 64): too slow."
    (summary,) = summary_table(rows)
    assert list(summary_table(rows[:1])) == []
    assert (summary.columns, summary.rows) == (
        ("peer", "variant", "mode", "8"),
        [("sdpa", "toy, times 2", "forward + backward", "3.00x")],
    )


def test_checks_that_are_alike_share_a_row() -> None:
    checks = [contest.Check("same", kind, SAME, error) for kind, error in (("a", 1e-7), ("b", 3e-6))]
    table = check_table(
        [*checks, contest.Check("same", "c", SAME, None, "too old")], [peer("same", packages=("torch",))], ""
    )
    version = f"torch {torch.__version__}"
    assert table.rows == [("same", "3e-06", SAME, version, "a, b"), ("same", "left out", "too old", version, "c")]


def test_a_table_is_the_same_in_markdown_and_on_screen() -> None:
    table = Table("title", ("name", "value"), [("first", "1.0x")], note="a note")
    assert table.markdown() == "## title\n\n| name | value |\n| --- | ---: |\n| first | 1.0x |\n\na note\n"
    console = Console(width=60)
    with console.capture() as captured:
        console.print(table.rich())
    assert all(text in captured.get() for text in ("title", "first", "1.0x", "a note"))


@pytest.mark.parametrize(
    ("seconds", "unit", "shown"), [(2.5, "s", "2.50"), (0.0123, "ms", "12.3"), (4e-5, "us", "40.0")]
)
def test_the_unit_of_time_is_chosen_once_a_table(seconds: float, unit: str, shown: str) -> None:
    (table,) = measure_tables([Row("forward", Toy(n), OURS, SAME, t) for n, t in ((8, seconds), (9, 0.9 * seconds))])
    # the median of the two is a little below the first, and above one of the unit
    assert table.columns[2] == f"time, {unit}"
    assert table.rows[0][2] == shown


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (1.234, "1.23"), (99.97, "100.0"), (1234.5, "1,234"), (0.0, "0")]
)
def test_three_digits_count(value: float, text: str) -> None:
    assert digits(value) == text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_terminal_cuts_no_name_and_no_time(width: int) -> None:
    names = (OURS, "a-peer-of-a-long-name-naive")
    ratios = (3343.35, 3582.22)
    rows = [
        Row(mode, Toy(length), name, SAME, 12.34, 1.0, 3457.3, ratios, 0.5, 2**30, 2**30)
        for mode in ("forward", "decode")
        for length in (123456, 234567)
        for name in names
    ]
    console = Console(width=width)
    for table in [*measure_tables(rows), *summary_table(rows)]:
        with console.capture() as captured:
            console.print(table.rich(width))
        shown = captured.get()
        assert max(map(len, shown.splitlines())) <= width
        assert "…" not in shown
        assert shown.count(names[1]) >= 1
        for text in ("123456", "3,457x"):
            assert text in shown
        assert ("A wider terminal" in shown) == (width < 100 and "12.3" in shown)


def test_lines_instead_of_a_bar_where_there_is_no_terminal(
    here: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hold.importlib, "import_module", lambda name: toy)
    monkeypatch.setattr(toy, "bench", lambda given, bench=toy.bench: bench(given, PEERS))
    file = io.StringIO()
    assert hold.hold("toy", Options(save=False), Console(file=file, width=80), folder=tmp_path) == 0
    lines = [line for line in file.getvalue().splitlines() if re.match(r"\d/", line)]
    assert [line.partition("  ")[0] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert all((" left  timing" in line) == (i < 3) for i, line in enumerate(lines))
    assert "\r" not in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_a_peer_asked_for_by_name_must_be_installed(held: Callable[..., int]) -> None:
    absent = peer("absent", packages=("no-such-library",))
    with pytest.raises(MissingExtraError, match=r"bench toy: --peers absent: .*: pip install no-such-library"):
        held(peer(OURS), absent, peers=("absent",))


def test_a_peer_that_is_not_installed_is_no_fault_when_all_are_asked_for(held: Callable[..., int]) -> None:
    assert held(peer(OURS), peer("absent", packages=("no-such-library",)), save=False) == 0
