"""`attensor train triples`, `solve recall` and `lens decode` on a small graph, from file to page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from attensor import cli
from attensor.commands.lens_decode import LensDecode
from attensor.commands.solve_recall import SolveRecall
from attensor.commands.train_triples import TrainTriples
from attensor.files import read_json

PEOPLE = [f"person{i}" for i in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everybody's neighbours in a circle; one name that must not reach a page as code, or a terminal as markup."""
    folder = tmp_path_factory.mktemp("graph")
    rows = [(a, f"plus{k}", PEOPLE[(i + k) % 9]) for i, a in enumerate(PEOPLE) for k in (1, 2, 3)]
    rows += [("[bold]<script>alert(1)</script>", "plus1", "person0")]
    (folder / "graph.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (folder / "timed.tsv").write_text("".join("\t".join((*row, f"day{n % 3}")) + "\n" for n, row in enumerate(rows)))
    return folder


def trained(folder: Path, *options: str, graph: str = "graph.tsv") -> Path:
    out = folder / "-".join(options).replace("--", "")
    told = ["--learning-rate", "0.05", "--held-out", "0", "--out", str(out)]
    if not out.exists():
        assert cli.main(["train", "triples", str(folder / graph), *told, *options]) == 0
    return out


@pytest.mark.parametrize("kind", ["complex", "tucker"])
def test_a_scorer_answers_what_it_was_told(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained(folder, "--model", kind, "--epochs", "60", "--dim", "16")
    shown = capsys.readouterr().out
    assert "10 entities, 3 predicates, 28 / 0 / 0 triples" in shown
    assert float(re.findall(r"training mrr (\d\.\d+)", shown)[0]) > 0.9
    assert set(read_json(out / "config.json")) == {"model", "config", "notes"}
    assert cli.main(["solve", "recall", "--model", str(out), "--subject", "person3", "--predicate", "plus2"]) in (
        0,
        None,
    )
    first = capsys.readouterr().out.splitlines()[4].split()
    assert first[:2] == ["plus2", "person5"]
    SolveRecall(model=out, subject="[bold]<script>alert(1)</script>").run()
    assert "[bold]<script>" in capsys.readouterr().out


def test_times_are_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained(folder, "--model", "cp", "--epochs", "3", graph="timed.tsv")
    assert "3 times" in capsys.readouterr().out
    SolveRecall(model=out, subject="person1", time="day2", count=3).run()
    assert capsys.readouterr().out.count("person") >= 3
    with pytest.raises(ValueError, match="the model has 3 times; name one, such as 'day0'"):
        SolveRecall(model=out, subject="person1").run()


def test_a_brain_recalls_and_is_looked_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained(folder, "--model", "brain", "--epochs", "20", "--episodes", "5", "--dim", "32")
    SolveRecall(model=out, time="2", count=2).run()
    SolveRecall(model=out, subject="person4").run()
    shown = capsys.readouterr().out
    assert re.search(r"predicate +plus\d", shown)
    assert "time 2" in shown
    page = folder / "page.html"
    LensDecode(model=out, out=page, subject="[bold]<script>alert(1)</script>", object="person2").run()
    text = page.read_text("utf-8")
    assert "<script>alert" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # it loads nothing
    found = _Steps()
    found.feed(text)
    windows = ["scene", "subject", "class", "object", "predicate"]
    assert found.radios == {f"decode-{number}": 5 for number in (1, 2, 3)}
    assert found.labels == windows * 3
    assert "Perception: " in capsys.readouterr().out


class _Steps(HTMLParser):
    """Radio buttons by group, which arrow keys step through, and the words of their labels."""

    def __init__(self) -> None:
        super().__init__()
        self.radios: dict[str, int] = {}
        self.labels: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if told.get("type") == "radio":
            name = str(told["name"])
            self.radios[name] = self.radios.get(name, 0) + 1
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside == "label" or (self._inside == "small" and data.strip().isalpha()):
            self.labels += [data.strip()] if data.strip() else []

    def handle_endtag(self, tag: str) -> None:
        self._inside = "label" if tag == "small" else ""


def test_what_cannot_be_asked(folder: Path) -> None:
    scorer, brain = (
        trained(folder, "--model", "cp", "--epochs", "3", graph="timed.tsv"),
        trained(folder, "--model", "brain", "--epochs", "20", "--episodes", "5", "--dim", "32"),
    )
    for call, words in (
        (lambda: SolveRecall(model=scorer), "--subject or --time must be given"),
        (lambda: SolveRecall(model=scorer, subject="persn1", time="day0").run(), "Did you mean person1"),
        (lambda: SolveRecall(model=brain, subject="person1", predicate="plus1").run(), "--predicate is of scorers"),
        (lambda: SolveRecall(model=brain, time="5").run(), "5 episodes, from 0 to 4"),
        (lambda: SolveRecall(model=folder, subject="person1").run(), "there is no config.json"),
        (lambda: LensDecode(model=scorer, out=folder / "x.html").run(), "train one with --model brain"),
        (lambda: LensDecode(model=brain, out=folder / "x.png"), "--out must end in .html"),
        (lambda: LensDecode(model=brain, out=folder / "no" / "x.html").run(), "there is no folder"),
        (lambda: TrainTriples(data="x", out=folder, learning_rate=0.0), "--learning-rate 0.0: must be above 0"),
        (lambda: TrainTriples(data="x", out=folder, held_out=0.5), "--held-out 0.5: must be 0 to below 0.5"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(words)):
            call()
