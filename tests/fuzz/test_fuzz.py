"""A short seeded run of both programs, and that each kind of fault would be seen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attensor import edit, ops
from tests.fuzz import judge, public, refusals, values
from tests.fuzz.calls import Call, need
from tests.fuzz.configurations import CONFIGURATIONS
from tests.fuzz.helpers import HELPERS
from tests.fuzz.layers import LAYERS, names_of_layers
from tests.fuzz.operators import OPERATORS
from tests.fuzz.workers import CRASHED, HANGS, in_processes


def test_every_operator_and_every_layer_is_in_the_tables():
    references = {name.removesuffix("_reference") for name in dir(ops) if name.endswith("_reference")}
    assert references == set(OPERATORS)
    assert names_of_layers() <= set(LAYERS)
    assert len(HELPERS) == 31


def test_whatever_is_public_is_called_or_has_a_reason_not_to_be() -> None:
    found, calls = list(public.public()), public.called()
    forgotten = [f"{module}.{name}" for module, name, made in found if id(made) not in calls]
    forgotten = [path for path in forgotten if path.rpartition(".")[2] not in public.EXCEPTED]
    assert not forgotten, f"in no table of the fuzzer, and not excepted: {', '.join(forgotten)}"
    assert len(found) > 150
    names = {name for _, name, made in found if id(made) not in calls}
    assert set(public.EXCEPTED) <= names, f"excepted for nothing: {sorted(set(public.EXCEPTED) - names)}"


def test_what_no_table_calls_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(public.ROWS, "align")
    calls = public.called(draws=1)
    assert id(edit.align) not in calls
    assert id(edit.distill) in calls


def _all_positive(arguments: dict[str, Any]) -> None:
    need(bool((arguments["x"] > 0).all()), "x: not positive")


ONES = "torch.ones(2, 3)"


@pytest.mark.parametrize(
    ("kind", "target", "x"),
    [
        ("accepted", "(lambda x: x + 1)", ONES),
        ("wrong numbers", "(lambda x: x + 1.01)", ONES),
        ("wrong numbers", "(lambda x: x[0] + 1)", ONES),
        ("wrong numbers", "(lambda x: x * nan)", ONES),
        ("silent acceptance", "(lambda x: x + 1)", f"-{ONES}"),
        ("silent acceptance", "(lambda x: 1)", "'abc'"),
        ("raw error", "(lambda x: x.no_such)", f"-{ONES}"),
        ("raw error", "(lambda x: x.no_such)", ONES),
        ("raw error", "(lambda x: say('toy: y must be positive; use y.abs().'))", f"-{ONES}"),
        ("raw error", "(lambda x: say('other: x must be positive; use x.abs().'))", f"-{ONES}"),
        ("raw error", "(lambda x: say('toy: x'))", f"-{ONES}"),
        ("clear error", "(lambda x: say('toy: x must be positive; use x.abs().'))", f"-{ONES}"),
        ("refusal of what is legal", "(lambda x: say('toy: x must be positive; use x.abs().'))", ONES),
    ],
)
def test_each_kind_of_fault_is_seen(monkeypatch: pytest.MonkeyPatch, kind: str, target: str, x: str) -> None:
    def say(text: str) -> None:
        raise ValueError(text)

    monkeypatch.setitem(judge.evaluate.__globals__["NAMES"], "say", say)
    call = Call(
        title="toy",
        target=target,
        arguments={"x": x},
        kinds={"x": "*tensor:float"},
        rules=_all_positive,
        says=("toy",),
        reference="(lambda x: x + 1)",
        corrupted={"x": "changed"},
    )
    assert judge.outcome(call)[0] == kind


def test_a_crash_and_a_hang_are_results_and_the_work_goes_on() -> None:
    work = in_processes("tests.fuzz.misbehaving:piece", (10,), range(7), count=2, limit=1.5)
    found = dict(work)
    assert found.pop(2)[0] == CRASHED
    assert found.pop(4)[0] == HANGS
    assert found == {number: [10 * number] for number in (0, 1, 3, 5, 6)}


def test_corrupted_calls() -> None:
    outcomes = [judge.judge(0, index) for index in range(1200)]
    faults = [f"{one.kind}: {one.what}\n    {one.line}" for one in outcomes if one.kind in judge.FAULTS]
    assert not faults, "\n".join(faults)
    assert len({one.title for one in outcomes}) > 50


def test_values() -> None:
    compared = [one for index in range(300) for one in values.compare(0, index)]
    beyond = [one for one in compared if one.error > values.LIMITS[one.dtype]]
    assert not beyond, "\n".join(
        f"{one.operator}, {one.form}: {one.error} {one.what}\n    {one.line}" for one in beyond
    )
    assert {one.operator for one in compared} == set(CONFIGURATIONS)


def test_the_page_shows_counts_and_examples(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch) -> None:
    found = [
        judge.Outcome("softmax_attention", "clear error", "line 1", "", ""),
        judge.Outcome("softmax_attention", "raw error", "line 2", "IndexError", "q: 0-d"),
    ]
    monkeypatch.setattr(refusals, "_outcomes", lambda options: iter(found))
    assert refusals.main(["--calls", "2", "--save", str(tmp_path / "found.json")]) == 1
    shown = capsys.readouterr().out
    assert "raw error: softmax_attention (q: 0-d)" in shown
    assert "line 2" in shown
    assert "line 1" not in shown
    assert [one["kind"] for one in json.loads((tmp_path / "found.json").read_text())] == ["clear error", "raw error"]
    monkeypatch.setattr(refusals, "_outcomes", lambda options: iter(found[:1]))
    assert refusals.main(["--calls", "1"]) == 0


def test_ctrl_c_shows_what_was_found(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    def interrupted(options):
        yield judge.Outcome("toeplitz", "silent acceptance", "line", "x: why", "x: how")
        raise KeyboardInterrupt

    monkeypatch.setattr(refusals, "_outcomes", interrupted)
    assert refusals.main(["--calls", "9"]) == 1
    shown = capsys.readouterr().out
    assert "Interrupted after 1 of 9 calls." in shown
    assert "silent acceptance: toeplitz (x: how)" in shown


def test_a_wrong_value_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = values.DEFINITIONS["block_attention"]
    index = next(n for n in range(100) if values.draw_configuration(0, n).operator == "block_attention")
    monkeypatch.setitem(values.DEFINITIONS, "block_attention", lambda a: [2 * x + 1 for x in right(a)])
    assert all(one.error > values.LIMITS[one.dtype] for one in values.compare(0, index))
