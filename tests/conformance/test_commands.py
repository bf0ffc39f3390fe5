"""Every command of the catalogue: quick help, one line for bad input, and nothing edited for a new one."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

import attensor.cards
from attensor import catalogue, cli
from attensor.catalogue import Card, Paper, cards, load
from attensor.commands import GENERAL, GROUPS
from tests.test_import import loaded_after

ALL = cli.commands()
GROUP_NAMES = sorted({words.partition(" ")[0] for words in ALL if " " in words})


def test_help_of_everything_loads_nothing_heavy() -> None:
    """One process for all: whichever loads torch first is named."""
    program = f"""
import contextlib, io, sys
from attensor.cli import main
for words in {["", *GROUP_NAMES, *ALL]}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([*words.split(), "--help"])
    assert "torch" not in sys.modules, words
"""
    assert loaded_after(program) == set()


@pytest.mark.parametrize("words", ALL)
def test_a_command_is_a_documented_dataclass(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = load(ALL[words])
    assert dataclasses.is_dataclass(command)
    assert command.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert command.__module__.startswith("attensor.commands.")
    assert list(inspect.signature(command.run).parameters) == ["self"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words.split(), "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (command.__doc__ or "").splitlines()[0] in shown
    sources = "".join(inspect.getsource(kind) for kind in command.__mro__ if dataclasses.is_dataclass(kind))
    for field in dataclasses.fields(command):
        assert re.search(rf'^    {field.name}: .*\n    """\w', sources, re.MULTILINE), field.name


@pytest.mark.parametrize("words", ["", *GROUP_NAMES, *ALL])
@pytest.mark.parametrize("bad", [["--no-such-option"], ["no-such-word", "nor-this"]], ids=" ".join)
def test_bad_input_is_one_line_and_2(words: str, bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words.split(), *bad]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    if "no card is called" in err:  # a command that takes names
        assert err.startswith("attensor: ")
        assert "the catalogue has" in err
    else:
        assert err.startswith(f"attensor {words}".strip() + ": ")
        assert "--help" in err


@pytest.mark.parametrize("group", GROUP_NAMES)
def test_a_group_lists_its_members(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert group in GROUPS
    with pytest.raises(SystemExit, match="0"):
        cli.main([group])
    shown = capsys.readouterr().out
    for words in ALL:
        if words.startswith(f"{group} "):
            assert words.partition(" ")[2] in shown


def test_a_group_without_commands_does_not_appear(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([])
    shown = capsys.readouterr().out
    for group in GROUPS:
        assert (f"• {group} " in shown) == (group in GROUP_NAMES)


def test_cards_agree_on_what_words_mean() -> None:
    meanings = {(words, path) for card in cards().values() for words, path in card.commands.items()}
    assert len(meanings) == len({words for words, _ in meanings})
    assert not {words for words, _ in meanings} & set(GENERAL)


def test_what_takes_all_image_models_comes_with_a_model() -> None:
    """So that no card repeats it, and a new one has it."""
    own = {"solve puzzle": "attensor.commands.puzzle:SolvePuzzle"}
    options = {
        "name": "x",
        "title": "X",
        "paper": Paper("0000.00000", 2000, "X"),
        "use": "x",
        "avoid": "y",
        "example": "",
    }
    card = Card(**options, models=("attensor.models.vision.x:X",), commands=own)  # type: ignore[arg-type]
    assert card.commands.items() > own.items()
    assert {"train image", "bench vision"} == card.commands.keys() - own.keys()
    assert Card(**options, models=("elsewhere.models:X",)).commands == {}  # type: ignore[arg-type]
    folder = Path(attensor.cards.__path__[0])
    assert [file.name for file in folder.glob("*.py") if re.search("train image|bench vision", file.read_text())] == []


@dataclasses.dataclass(frozen=True)
class SolvePuzzle:
    """Solve a puzzle."""

    seen: ClassVar[list[SolvePuzzle]] = []

    pieces: int = 5
    """How many there are."""

    def run(self) -> int:
        self.seen.append(self)
        return 7


@pytest.fixture
def puzzle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A card file and a command file that were not there before, and nothing else."""
    (tmp_path / "puzzle.py").write_text(
        "from attensor.catalogue import Card, Paper\n"
        "CARD = Card(name='puzzle', title='Puzzle', paper=Paper('0000.00000', 2000, 'P'), use='x', avoid='y',\n"
        "    example='', commands={'solve puzzle': 'attensor.commands.puzzle:SolvePuzzle',\n"
        "    'ponder': 'attensor.commands.puzzle:SolvePuzzle', 'lens broken': 'attensor.commands.not_there:X'})\n"
    )
    monkeypatch.setattr(attensor.cards, "__path__", [*attensor.cards.__path__, str(tmp_path)])
    commands = types.ModuleType("attensor.commands.puzzle")
    commands.SolvePuzzle = SolvePuzzle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "attensor.commands.puzzle", commands)
    cards.cache_clear()
    yield
    cards.cache_clear()
    sys.modules.pop("attensor.cards.puzzle", None)


@pytest.mark.usefixtures("puzzle")
def test_a_new_card_with_a_command_needs_no_edit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    SolvePuzzle.seen.clear()
    assert cli.main(["solve", "puzzle", "--pieces", "9"]) == cli.main(["ponder"]) == 7
    assert SolvePuzzle.seen == [SolvePuzzle(pieces=9), SolvePuzzle()]
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["list"]) == 0
    assert cli.main(["show", "puzzle"]) == 0
    shown = capsys.readouterr().out
    assert "look, solve" in shown
    assert "attensor solve puzzle, attensor ponder" in shown
    solved = ", ".join(words.partition(" ")[2] for words in cli.commands() if words.startswith("solve "))
    assert "puzzle" in solved
    for menu, text in (([], f"Give a problem to a trained model. ({solved})"), (["solve"], "Solve a puzzle.")):
        with pytest.raises(SystemExit):  # and the broken member of another group is not imported
            cli.main(menu)
        assert text in capsys.readouterr().out


@pytest.mark.usefixtures("puzzle")
def test_a_shell_completes_what_there_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    card = catalogue.card("puzzle")
    monkeypatch.delitem(card.commands, "lens broken")
    with pytest.raises(SystemExit):
        cli.main(["--tyro-print-completion", "bash"])
    shown = capsys.readouterr().out
    for word in ("linear", "neighborhood", "puzzle", "--pieces"):
        assert word in shown
    # the script asks a program in Python, of which no line is broken
    (program,) = re.findall(r"<< 'PYTHON_EOF'[^\n]*\n(.*?)^PYTHON_EOF$", shown, re.DOTALL | re.MULTILINE)
    compile(program, "completion", "exec")
