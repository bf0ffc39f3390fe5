"""What is typed wrongly is one line with the nearest thing that exists; help fits a terminal of 80 columns."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

import attensor
from attensor import cli
from attensor.catalogue import card, cards, find_name, mechanism, parse_stack
from attensor.commands.complaints import nearest
from attensor.commands.general import Reproduce
from attensor.commands.reading import values_of
from attensor.errors import MissingExtraError, need, require
from attensor.recipes import Check, Recipe, Verdict

WRONG = [
    (["cmpare"], "attensor: 'cmpare' is no command", "Did you mean attensor compare?"),
    (["LIST"], "'LIST' is no command", "Did you mean attensor list?"),
    (["version"], "'version' is no command", "Did you mean attensor --version?"),
    (["gla"], "'gla' is no command", "gla is a card: attensor show gla."),
    (["bench", "lin"], "attensor bench: 'lin' is no command", "Did you mean attensor bench linear?"),
    (["compare", "--mechnisms", "gla"], "there is no option --mechnisms", "did you mean --mechanisms?"),
    (["compare", "--lr=1"], "there is no option --lr", "did you mean --learning-rates?"),
    (["compare", "gla", "swa"], "'gla swa' belongs to no option", "did you mean --mechanisms gla,swa? See"),
    (["compare", "my_texts"], "'my_texts' belongs to no option", "See attensor compare --help."),
    (["compare", "--seeds", "two"], "--seeds: 'two' is not a whole number", "See attensor compare --help."),
    (["compare", "--steps", "x"], "--steps: 'x' is not a whole number", "See"),
    (["compare", "--steps", "-3"], "attensor compare: --steps -3: must be at least 1", "See"),
    (["compare", "--seeds"], "--seeds needs a value", "See"),
    (["compare", "--size", "tny"], "--size 'tny': give one of tiny, small, base, or several with commas", "See"),
    (["compare", "--learning-rates", "1e-3,x"], "--learning-rates: 'x' is not a number", "See"),
    (["compare", "--mechanisms", "gla,mamba3"], "--mechanisms: no mechanism is called 'mamba3'", "'mamba2' (the card"),
    (["bench", "linear", "--variants", "none,nun"], "--variants: 'nun' is none of none, constant", "See"),
    (["bench", "linear", "--num-heads", "0"], "bench linear: --num-heads must be at least 1", "got 0"),
    (["bench", "neighborhood", "--grids", "64"], "--grids: 1 numbers are no pairs", "See"),
    (["show"], "NAMES is missing", "attensor list"),
    (["show", "sofmax"], "no card is called 'sofmax'", "Did you mean 'softmax'?"),
    (["reproduce"], "NAMES is missing", "See attensor reproduce --help."),
    (["--frobnicate"], "there is no option --frobnicate", "See attensor --help."),
]


@pytest.mark.parametrize(("arguments", "what", "hint"), WRONG, ids=lambda value: " ".join(value) if value else "")
def test_what_is_typed_wrongly_is_one_line_with_a_hint(
    arguments: list[str], what: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert what in err
    assert hint in err
    # neither classes of ours nor what the parser says of a whole option
    assert not re.search(r"Error parsing|helptext|<class|Compare:|\?\.", err)


def test_the_complaint_is_the_same_where_there_are_no_lines_to_draw() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "attensor", "compare", "--mechnisms", "gla"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stderr == (
        "attensor compare: there is no option --mechnisms; did you mean --mechanisms? See attensor compare --help.\n"
    )


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_a_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([option]) == 0
    assert capsys.readouterr().out == f"attensor {attensor.__version__}\n"


@pytest.mark.parametrize("words", ["", *cli.commands(), "bench"])
@pytest.mark.parametrize("first", [False, True], ids=["--help", "help"])
def test_help_fits_80_columns_and_shows_no_insides(
    words: str, first: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        cli.main(["help", *words.split()] if first else [*words.split(), "--help"])
    assert not end.value.code
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert not re.search(r"None|default: \)|False|True|, --no-|ClassVar", shown)


def test_help_of_a_list_says_what_stands_between(capsys: pytest.CaptureFixture[str]) -> None:
    for words, lists in (("compare", 3), ("bench linear", 5), ("show", 1), ("list", 1), ("reproduce", 1)):
        with pytest.raises(SystemExit):
            cli.main([*words.split(), "--help"])
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert shown.count("Commas or spaces between.") == lists, words


def test_aliases_lead_to_one_card_each() -> None:
    count = Counter(name for one in cards().values() for name in (one.name, *one.aliases))
    assert max(count.values()) == 1
    for one in cards().values():
        for alias in one.aliases:
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", alias)
            assert card(alias.upper().replace("-", "_")) is one


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("mamba2", "scalar-gated"),
        ("SSD", "scalar-gated"),
        ("swa", "sliding-window"),
        ("mha", "softmax"),
        ("Attention", "softmax"),
        ("sdpa", "softmax"),
        ("gated-linear-attention", "gla"),
        ("retention", "retnet"),
        ("nat", "neighborhood"),
        ("lightning_attention", "lightning"),
    ],
)
def test_names_of_the_field_are_understood(typed: str, name: str) -> None:
    assert find_name(typed) == name
    assert mechanism(typed).name == name
    assert parse_stack(f"2*{typed}+GLA") == (name, name, "gla")


def test_what_names_nothing_names_nothing() -> None:
    assert find_name("no such thing") is None
    assert nearest("xyzzy", ["list", "show"]) is None
    assert nearest("--batch_size", ["--batch-size"]) == "--batch-size"


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name in names else find(name, *rest))


def test_a_library_that_is_missing_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "jinja2", "pandas")
    need("torch", purpose="everything")
    with pytest.raises(MissingExtraError, match=r'^a page needs jinja2.*: pip install "attensor\[report\]"$'):
        need("torch", "jinja2", purpose="a page")
    with pytest.raises(MissingExtraError, match=r"^a frame needs pandas.*: pip install pandas$"):
        need("pandas", purpose="a frame")
    with pytest.raises(MissingExtraError, match="pip install no_such_library"):
        require("no_such_library.inside", purpose="this")


def test_a_missing_library_is_said_before_a_recipe_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    def run(config: Any) -> Verdict:
        assert capsys.readouterr().out.startswith("There will be no page: the HTML report needs jinja2")
        return Verdict((Check("one at most 2: 1", True),))

    recipe = Recipe("retnet", "arXiv:0", "one is one", run)
    monkeypatch.setattr("attensor.recipes._reproduce.find", lambda name: recipe)
    monkeypatch.setattr("attensor.recipes.find", lambda name: recipe)
    without(monkeypatch, "jinja2", "sklearn")
    assert Reproduce(names=("retnet",), out=tmp_path).run() == 0
    object.__setattr__(recipe, "needs", ("sklearn",))
    assert cli.main(["reproduce", "retnet", "--out", str(tmp_path / "none")]) == 2
    assert 'the recipe retnet needs sklearn, which is not installed: pip install "attensor[vision]"' in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "none").exists()


def test_several_recipes_are_run_and_all_must_be_reproduced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = {"retnet": True, "gla": False}

    def find(name: str) -> Recipe:
        return Recipe(name, "arXiv:0", "one is one", lambda config: Verdict((Check("one: 1", passed[name]),)))

    monkeypatch.setattr("attensor.recipes._reproduce.find", find)
    monkeypatch.setattr("attensor.recipes.find", find)
    out = ["--out", str(tmp_path)]
    assert cli.main(["reproduce", "retnet,retnet", *out]) == 0
    assert cli.main(["reproduce", "retnet", "gla", *out]) == 1
    assert len(list(tmp_path.iterdir())) == 4
    capsys.readouterr()
    assert cli.main(["reproduce", "retnet,gla", "--resume", str(tmp_path)]) == 2
    assert "continues one run; name one recipe" in capsys.readouterr().err


def test_lists_have_commas_or_spaces_and_paths_that_are_there_stay_whole(tmp_path: Any) -> None:
    assert values_of(["1,2", "3,"], int) == values_of(["1", "2,3"], int) == [1, 2, 3]
    there = tmp_path / "one, two"
    there.mkdir()
    assert values_of([str(there), "a,b"], str) == [str(there), "a", "b"]
