"""Recipes: names lead to them, they judge by their marks, and the command keeps what was found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from attensor import cli, recipes
from attensor.catalogue import cards, load
from attensor.recipes import CellError, Check, Interval, Recipe, RecipeConfig, Verdict
from attensor.recipes._outcome import count_marks, outcome_of
from attensor.recipes._runs import Runs

CARDS = [card for card in cards().values() if card.recipe]
FINDING = Verdict(
    (Check("half at most 0.6: 0.5", True), Check("none at all: <b>1</b>", False)), {"a gate": "1.234 bits"}
)


def seeds_of(*values: float) -> list[dict[str, Any]]:
    """Results of training runs with these losses, one a seed."""
    return [{"loss": {str(f): value for f in (1, 2, 4, 8)}, "curve": [[5, value]]} for value in values]


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_found_by_the_name_of_its_file(name: str) -> None:
    assert recipes.find(name).name == name


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_card_leads_to_its_recipe(card: Any) -> None:
    assert recipes.find(card.name) is load(f"{card.recipe}:RECIPE")


def test_a_mechanism_without_a_recipe_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"softmax has no recipe yet; these have one: .*gla, .*retnet"):
        recipes.find("softmax")
    with pytest.raises(ValueError, match=r"no card is called 'sofmax'.*Did you mean 'softmax'"):
        recipes.find("sofmax")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        # mean 2, standard deviation 1: 4.303 / sqrt(3); means and points of t from a table
        ([1.0, 2.0, 3.0], "2.0 ± 2.5 (3 seeds)"),
        ([0.9, 0.92, 0.91, 0.93], "0.915 ± 0.021 (4 seeds)"),
        ([0.5, 0.5], "0.500 ± 0.000 (2 seeds)"),
        ([123.0, 175.0, 148.0], "149 ± 65 (3 seeds)"),
        ([0.25], "0.250 (1 seed)"),
    ],
    ids=str,
)
def test_an_interval_is_students(values: list[float], text: str) -> None:
    assert str(Interval.of(values)) == text


def test_an_interval_of_many_values_is_nearly_normal() -> None:
    wide = Interval.of([0.0, 1.0] * 50)
    assert wide.half_width == pytest.approx(1.984 * 0.5025 / 10, rel=1e-3)
    with pytest.raises(ValueError, match="values"):
        Interval.of([])


@pytest.mark.parametrize(
    ("values", "passed", "bounds", "mark"),
    [
        ((1.0, 2.0, 3.0), True, (), "reached"),
        ((1.0, 2.0, 3.0), True, (1.9,), "not decided"),
        ((1.0, 2.0, 3.0), False, (4.4,), "not decided"),
        ((1.0, 2.0, 3.0), False, (4.6,), "not reached"),
        ((1.0, 2.0, 3.0), True, (-0.6, 4.6), "reached"),
        ((1.0, 2.0, 3.0), True, (-0.4, 4.6), "not decided"),
        ((2.0,), False, (2.0,), "not reached"),  # one seed has no interval
    ],
    ids=str,
)
def test_a_mark_inside_the_interval_is_not_decided(
    values: tuple[float, ...], passed: bool, bounds: tuple[float, ...], mark: str
) -> None:
    assert Check("a mark", passed, Interval.of(values), bounds).mark == mark


@pytest.mark.parametrize(
    ("reached", "missed", "opened", "outcome"),
    [
        (3, 0, 0, "reproduced"),
        (3, 0, 1, "partly"),
        (2, 2, 0, "partly"),
        (1, 0, 5, "partly"),
        (2, 3, 0, "not seen at this size"),
        (0, 0, 4, "not seen at this size"),
        (0, 1, 0, "not seen at this size"),
    ],
)
def test_the_paper_is_judged_by_its_marks(reached: int, missed: int, opened: int, outcome: str) -> None:
    marks = ["reached"] * reached + ["not reached"] * missed + ["not decided"] * opened
    assert outcome_of(marks) == outcome_of(marks[::-1]) == outcome  # type: ignore[arg-type]


def test_counts_name_only_what_there_is() -> None:
    assert count_marks(["reached", "not decided", "reached", "not reached"]) == (
        "2 of 4 marks reached, 1 not reached, 1 not decided"
    )
    assert count_marks(["reached"]) == "1 of 1 mark reached"


def pretend(monkeypatch: pytest.MonkeyPatch, run: Any, **more: Any) -> Recipe:
    """A recipe of that name that does not measure anything."""
    recipe = Recipe("retnet", "arXiv:2307.08621, section 3.5", "less is less", run, **more)
    monkeypatch.setattr("attensor.recipes._reproduce.find", lambda name: recipe)
    return recipe


def test_the_command_writes_the_verdict_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, lambda config: FINDING)
    assert cli.main(["reproduce", "retnet", "--quick", "--out", str(tmp_path)]) == 1
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "verdict.json").read_text())
    assert (found["recipe"], found["outcome"], found["quick"]) == ("retnet", "partly", True)
    assert [check["mark"] for check in found["checks"]] == ["reached", "not reached"]
    page = (folder / "report.html").read_text()
    assert "retnet: a quick run indicates partly" in page
    assert not re.search(r"\bholds\b|does not hold", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    assert "&lt;b&gt;1&lt;/b&gt;" in page
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "less is less",
        "section 3.5",
        "a gate",
        "1.234 bits",
        "a quick run indicates and does not decide: partly",
    ):
        assert part in shown
    assert "hold" not in shown


def test_a_claim_that_is_reproduced_is_exit_code_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda config: Verdict(FINDING.checks[:1]))
    assert cli.main(["reproduce", "retnet", "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("minutes", "more", "is_said"), [(5, [], False), (40, [], True), (40, ["--quick"], False)], ids=str
)
def test_a_recipe_beyond_five_minutes_says_so_first(
    minutes: int,
    more: list[str],
    is_said: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend(monkeypatch, lambda config: Verdict(FINDING.checks[:1]), minutes=minutes)
    cli.main(["reproduce", "retnet", "--out", str(tmp_path), *more])
    assert capsys.readouterr().out.startswith("retnet takes up to 40 minutes on two cores") == is_said


def test_an_interrupted_recipe_says_how_to_go_on_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[RecipeConfig] = []

    def run(config: RecipeConfig) -> Verdict:
        seen.append(config)
        if len(seen) == 1:
            raise KeyboardInterrupt
        return Verdict(FINDING.checks[:1])

    pretend(monkeypatch, run)
    assert cli.main(["reproduce", "retnet", "--quick", "--out", str(tmp_path)]) == 130
    again = re.search(r"Continue with: attensor (.*)", capsys.readouterr().out)
    assert again is not None
    assert cli.main(again[1].split()) == 0
    assert seen[0] == seen[1]
    assert seen[1].quick


def test_a_run_of_something_else_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, lambda config: FINDING)
    cli.main(["reproduce", "retnet", "--out", str(tmp_path)])
    (folder,) = tmp_path.iterdir()
    monkeypatch.undo()
    for arguments, message in (
        (["gla", "--resume", str(folder)], "that is a run of retnet, not of gla"),
        (["retnet", "--quick", "--resume", str(folder)], "that is a full run; leave out --quick"),
        (["retnet", "--resume", str(tmp_path)], "no run of a recipe is there"),
        (["retnet", "--quick", "--save"], "--save and --quick exclude each other"),
    ):
        capsys.readouterr()
        assert cli.main(["reproduce", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_cell_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: RecipeConfig) -> Verdict:
        raise CellError("train(seed=3) failed: ValueError: no")

    pretend(monkeypatch, run)
    assert cli.main(["reproduce", "retnet", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "attensor: train(seed=3) failed: ValueError: no\n"


GATES = {"no gate": 2.31, "constant decay": 2.22, "gate per head": 1.84, "gate per channel (GLA)": 1.85}


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, []),
        ({"gate per channel (GLA)": 1.87}, ["a gate per head"]),
        ({"constant decay": 1.99}, ["constant decay at most"]),
        ({"constant decay": 2.32}, ["less no gate"]),
    ],
    ids=str,
)
def test_the_gate_ablation_judges_by_the_marks_of_the_sheet(changed: dict[str, float], missed: list[str]) -> None:
    from attensor.recipes import gla

    text = {gate: seeds_of(loss, loss + 0.01) for gate, loss in {**GATES, **changed}.items()}
    recall = {
        "constant decay": [{"accuracy": 0.30, "curve": [[5, 0.3]]}] * 2,
        "gate per channel (GLA)": [{"accuracy": 0.36, "curve": [[5, 0.4]]}] * 2,
    }
    failed = [check.text for check in gla.judge(Runs(text), Runs(recall)).checks if not check.passed]
    assert len(failed) == len(missed)
    assert all(part in text for part, text in zip(missed, failed, strict=True))


def test_recall_and_length_have_marks_of_their_own() -> None:
    from attensor.recipes import gla

    text = {gate: seeds_of(loss) for gate, loss in GATES.items()}
    text["gate per channel (GLA)"][0]["loss"]["4"] += 0.03
    recall = {
        "constant decay": [{"accuracy": 0.32, "curve": [[5, 0.3]]}],
        "gate per channel (GLA)": [{"accuracy": 0.36, "curve": [[5, 0.4]]}],
    }
    passed = [check.passed for check in gla.judge(Runs(text), Runs(recall)).checks]
    assert passed == [True, True, True, False, False]


def times_of(**per_token: float) -> dict[str, Any]:
    """A result of lightning attention's measurement; times per token grow by the given powers of the length."""
    from attensor.recipes.lightning_attention import BOTH, FORWARD, LA1, LA2, LENGTHS, SOFTMAX

    powers = {LA1: per_token["la1"], LA2: per_token["la2"], SOFTMAX: 1.0}
    rows = [
        [name, passes, n, n * (n / 1024) ** powers[name]]
        for name in LENGTHS
        for passes in (FORWARD, BOTH)
        for n in LENGTHS[name]
    ]
    return {"rows": rows, "difference": per_token.get("difference", 1e-6)}


@pytest.mark.parametrize(
    ("times", "losses", "passed"),
    [
        ({"la1": 1.2, "la2": 0.0}, (2.0, 2.01), [True, True, True, True, True, True, True, True]),
        ({"la1": 1.2, "la2": 1.0}, (2.0, 2.03), [False, False, True, True, False, False, True, False]),
        (
            {"la1": 0.8, "la2": 0.0, "difference": 2e-4},
            (2.0, 2.0),
            [True, True, False, False, False, True, False, True],
        ),
    ],
    ids=str,
)
def test_constant_speed_is_judged_by_the_marks_of_the_sheet(
    times: dict[str, float], losses: tuple[float, float], passed: list[bool]
) -> None:
    from attensor.recipes import lightning_attention as recipe

    texts = {recipe.LA1: seeds_of(losses[0]), recipe.LA2: seeds_of(losses[1])}
    assert [check.passed for check in recipe.judge([times_of(**times)], Runs(texts)).checks] == passed


def test_the_parts_of_transnormerllm_are_judged_by_the_marks_of_the_sheet() -> None:
    from attensor.recipes import transnormerllm as recipe

    def judged(decode: tuple[float, float], train: float, **losses: float) -> list[bool]:
        of = {"TNL": 2.0, "TRANSFORMER": 1.98, "WITHOUT_DECAY": 2.03, "ABSOLUTE": 2.01, "LAYER_NORM": 1.99} | losses
        texts = {getattr(recipe, variant): seeds_of(loss) for variant, loss in of.items()}
        rows = [[recipe.TNL, 64, 1.0], [recipe.TNL, 4096, decode[0]]]
        rows += [[recipe.TRANSFORMER, 64, 1.0], [recipe.TRANSFORMER, 4096, decode[1]]]
        times = [{"decode": rows, "train": {"512": 1.0, "8192": train}}]
        return [check.passed for check in recipe.judge(Runs(texts), times).checks]

    assert judged((1.2, 2.1), 0.7) == [True] * 7
    assert judged((1.4, 1.9), 0.6) == [True, True, True, True, False, False, False]
    assert judged((1.2, 2.1), 1.6, TRANSFORMER=1.96, WITHOUT_DECAY=2.01, ABSOLUTE=2.0, LAYER_NORM=2.03) == [
        *[False, False, False, False, True, True, False]
    ]


def test_a_report_in_the_terminal_shows_what_counts() -> None:
    recipe = recipes.find("gla")
    console = Console(width=150)
    with console.capture() as captured:
        console.print(recipe.report(FINDING, RecipeConfig(Path(), quick=True)))
    for part in (recipe.paper, "half at most 0.6: 0.5", "1.234 bits", "indicates and does not decide: partly"):
        assert part in captured.get()
