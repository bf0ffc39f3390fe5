"""The command line: what it prints, where errors go, and with which exit code it ends."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attensor import cli
from attensor.catalogue import cards, load, mechanism, mechanisms
from attensor.commands.bench_linear import BenchLinear
from attensor.commands.bench_neighborhood import BenchNeighborhood
from attensor.commands.bench_parallel import BenchParallel
from attensor.commands.bench_relative import BenchRelative
from attensor.commands.bench_softmax import BenchSoftmax
from attensor.commands.bench_vision import BenchVision
from attensor.commands.general import Compare, Doctor
from attensor.errors import DataError
from attensor.listing import argument_docs


def handle(monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], int | None]) -> int:
    """Exit code of `attensor doctor` when what it does is `run`."""
    monkeypatch.setattr(Doctor, "run", run)
    return cli.main(["doctor"])


@pytest.mark.parametrize("columns", ["80", "200"])
def test_list_shows_every_card(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= int(columns)
    words = " ".join(shown.split())
    for card in cards().values():
        assert f"{card.name} {card.title}" in words
        assert card.use in words
    assert "\ngla  " in shown
    # a title is never spread over many lines
    assert len(shown.splitlines()) <= 5 * len(cards())


def test_list_takes_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "gla,Mamba2", "softmax", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["gla", "scalar-gated", "softmax"]


def test_list_as_json_is_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(cards())
    assert {row["name"]: row["flops"] for row in rows if "flops" in row} == {
        c.name: c.flops for c in mechanisms().values()
    }
    assert [row["verbs"] for row in rows] == [list(card.verbs) for card in cards().values()]


@pytest.mark.parametrize("name", cards())
def test_show_prints_a_card_in_full(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.main(["show", name]) == 0
    shown, card = capsys.readouterr().out, cards()[name]
    has = (*card.presets, *card.commands, *card.breaks, *card.breaks.values(), *card.swaps_into)
    options = inspect.signature(load(card.layers[0])).parameters if card.layers else ()
    layer = [option for option in ("hidden_size", "num_heads") if option in options]
    for part in (card.title, card.use, card.avoid, card.paper.url, *has, *layer):
        assert part in shown
    for alias in card.aliases:
        assert alias in shown


@pytest.mark.parametrize("name", cards())
@pytest.mark.parametrize("columns", ["80", "40"])
def test_the_code_of_a_card_is_shown_as_it_is(
    name: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert cli.main(["show", name]) == 0
    code = cards()[name].example.strip()
    assert f"\n{code}\n" in capsys.readouterr().out
    assert max(map(len, code.splitlines())) <= 80


def test_show_takes_several_names_by_any_name_they_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "mamba2,", "SWA", "nat"]) == 0
    shown = capsys.readouterr().out
    for name in ("scalar-gated", "sliding-window", "neighborhood"):
        assert f"{name}: {cards()[name].title}" in shown


def test_an_unknown_name_is_one_line_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "neigborhod"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Did you mean 'neighborhood'?" in err


def test_reproduce_without_a_recipe_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "softmax"]) == 2
    assert (
        "softmax has no recipe yet; these have one: axial-transformer, davit, deconstructing-attention, "
        in capsys.readouterr().err
    )


def test_errors_for_the_user_are_one_line_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(command: Any) -> None:
        raise DataError("corpus.txt is empty;\n  give a file with text in it")

    assert handle(monkeypatch, handler) == 2
    assert capsys.readouterr() == ("", "attensor: corpus.txt is empty; give a file with text in it\n")


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(command: Any) -> None:
        raise DataError("corpus.txt is empty")

    monkeypatch.setenv("ATTENSOR_DEBUG", "1")
    with pytest.raises(DataError):
        handle(monkeypatch, handler)


def test_a_value_error_of_ours_is_for_the_user_and_any_other_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    assert handle(monkeypatch, lambda command: mechanism("no such thing") and None) == 2
    with pytest.raises(ValueError, match="invalid literal"):
        handle(monkeypatch, lambda command: int("seven"))


def test_interruption_gives_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(command: Any) -> None:
        raise KeyboardInterrupt

    assert handle(monkeypatch, handler) == 130


def test_options_reach_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("attensor.compare.comparison.compare", seen.append)
    assert cli.main(["compare", "--data", "digits", "--mechanisms", "softmax,my.py:Mine", "--budget", "90s"]) == 0
    assert seen == [Compare(data="digits", mechanisms="softmax,my.py:Mine", budget="90s")]


def test_a_comparison_takes_names_with_spaces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("attensor.compare.comparison.compare", seen.append)
    assert cli.main(["compare", "--mechanisms", "gla,", "3*gla+mha", "--learning-rates", "1e-3,", "0.01"]) == 0
    assert seen == [Compare(mechanisms="gla,3*gla+mha", learning_rates=(1e-3, 0.01))]


def test_options_reach_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr("attensor.doctor.run", lambda console, *, build: seen.append(build))
    assert cli.main(["doctor"]) == cli.main(["doctor", "--build"]) == 0
    assert seen == [False, True]


def test_generated_text_follows_the_prompt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attensor.compare.generate.generate_text", lambda config, pace: iter(["f", "():"]))
    assert cli.main(["generate", "--run", "runs/x", "--mechanism", "gla", "--prompt", "def "]) == 0
    assert capsys.readouterr().out == "def f():\n"


def test_a_run_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["generate", "--run", str(tmp_path / "none"), "--mechanism", "gla"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_doctor_is_reached_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "attensor", "doctor"], capture_output=True, text=True, check=True)
    assert "takes on" in done.stdout


def test_a_bad_option_is_refused_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "--seeds", "1"]) == 2
    assert "at least 2 are needed" in capsys.readouterr().err


def test_argument_docs_reads_shared_and_continued_entries() -> None:
    def documented() -> None:
        """One line.

        Args:
            q, k: [B, T, H, K], any
                float dtype.
            scale: a factor.
        Returns:
            nothing: at all.
        """

    shape = "[B, T, H, K], any float dtype."
    assert argument_docs(documented) == {"q": shape, "k": shape, "scale": "a factor."}


def test_options_reach_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("attensor.bench.hold.hold", lambda name, options: seen.append((name, options)))
    assert cli.main(["bench", "linear", "--lengths", "32,96", "--variants", "none", "--save"]) == 0
    assert cli.main(["bench", "neighborhood", "--grids", "9", "5", "8", "3", "--windows", "3"]) == 0
    assert cli.main(["bench", "parallel", "--lengths", "8192,", "--ranks", "4"]) == 0
    assert cli.main(["bench", "relative", "--sizes", "8x16,4x8", "--modes", "forward", "--budget", "3"]) == 0
    assert cli.main(["bench", "softmax", "--heads", "4", "2"]) == 0
    assert cli.main(["bench", "vision", "--models", "davit_tiny,", "--batch-size", "2", "--image-size", "64"]) == 0
    assert seen == [
        ("linear", BenchLinear(lengths=(32, 96), variants=("none",), save=True)),
        ("neighborhood", BenchNeighborhood(grids=((9, 5), (8, 3)), windows=(3,))),
        ("parallel", BenchParallel(lengths=(8192,), ranks=4)),
        ("relative", BenchRelative(sizes=((8, 16), (4, 8)), modes=("forward",), budget=3.0)),
        ("softmax", BenchSoftmax(heads=((4, 2),))),
        ("vision", BenchVision(models=("davit_tiny",), batch_size=2, image_size=64)),
    ]
