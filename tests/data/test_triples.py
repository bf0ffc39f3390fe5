"""Knowledge graphs from files: what is read, how one file is split, and what is refused."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
import torch

from attensor.data.scenes import SceneData
from attensor.data.triples import answers, open_graph, read_triples
from attensor.errors import DataError, MissingExtraError

LINES = "anna\tknows\tben\nben\tknows\tanna\n\nanna\tlikes\ttea\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_names_become_numbers_in_alphabetical_order(tmp_path: Path) -> None:
    (tmp_path / "graph.tsv").write_text(LINES)
    graph = open_graph("graph.tsv", held_out=0.0)
    assert (graph.entities, graph.relations, graph.times) == (("anna", "ben", "tea"), ("knows", "likes"), ())
    assert graph.train.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 2]]
    assert graph.valid.shape == graph.test.shape == (0, 3)


def test_a_fourth_column_is_a_time(tmp_path: Path) -> None:
    for part, line in (("train", "a\tr\tb\tmon\nb\tr\ta\ttue\n"), ("test", "a\tr\tb\ttue\na\tr\tb\tmon\n")):
        (tmp_path / f"{part}.txt").write_text(line)
    graph = open_graph(".")
    assert graph.times == ("mon", "tue")
    assert graph.train.tolist() == [[0, 0, 1, 0], [1, 0, 0, 1]]
    assert graph.test.tolist() == [[0, 0, 1, 1]]  # the other line is one of the training
    (tmp_path / "valid.txt").write_text("a\tr\tb\n")
    with pytest.raises(DataError, match="some parts have a time"):
        open_graph(".")


def test_headings_marks_and_odd_signs_are_no_names(tmp_path: Path) -> None:
    """Excel's byte order mark, Windows' ends of lines, and names with what Python takes for an end of a line."""
    text = "\ufeffHead\tRelation\tTail\r\nBjörk\tlives in\tReykjavík\r\nж\x85ж\tr\t東\u2028京\r\n"
    (tmp_path / "graph.tsv").write_bytes(text.encode())
    assert read_triples(tmp_path / "graph.tsv") == [("Björk", "lives in", "Reykjavík"), ("ж\x85ж", "r", "東\u2028京")]
    (tmp_path / "graph.tsv").write_text("a\tr\tb\nhead\trelation\ttail\n")
    assert len(read_triples(tmp_path / "graph.tsv")) == 2


def test_n_triples(tmp_path: Path) -> None:
    text = '<http://x/a> <http://x/r> <http://x/b> .\n<http://x/b> <http://x/name> "B\\u00e4r"@de .\n# nothing\n'
    (tmp_path / "graph.nt").write_text(text)
    assert read_triples(tmp_path / "graph.nt") == [
        ("http://x/a", "http://x/r", "http://x/b"),
        ("http://x/b", "http://x/name", '"Bär"@de'),
    ]
    (tmp_path / "graph.nt").write_text("a r b\n")
    with pytest.raises(DataError, match="is no N-Triples"):
        read_triples(tmp_path / "graph.nt")


def test_n_triples_without_rdflib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "graph.nt").write_text("<a:a> <a:r> <a:b> .\n")
    monkeypatch.setitem(sys.modules, "rdflib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "attensor\[graph\]"'):
        read_triples(tmp_path / "graph.nt")


def test_one_file_is_split_and_no_name_is_lost(tmp_path: Path) -> None:
    rows = [(f"e{i}", f"r{(i * j) % 3}", f"e{j}") for i in range(12) for j in range(12) if i != j]
    rows += [("lonely", "r0", "e1"), ("e2", "rare", "e3")]
    (tmp_path / "graph.txt").write_text("".join("\t".join(row) + "\n" for row in [*rows, rows[0]]))
    graph = open_graph("graph.txt", held_out=0.2, seed=1)
    counts = [len(part) for part in (graph.train, graph.valid, graph.test)]
    assert counts == [len(rows) - 2 * 26, 26, 26]
    parts = [set(map(tuple, part.tolist())) for part in (graph.train, graph.valid, graph.test)]
    assert len(set.union(*parts)) == len(rows)  # and none is in two
    assert set(graph.train[:, [0, 2]].flatten().tolist()) == set(range(len(graph.entities)))
    assert set(graph.train[:, 1].tolist()) == set(range(len(graph.relations)))
    assert torch.equal(open_graph("graph.txt", held_out=0.2, seed=1).test, graph.test)
    assert not torch.equal(open_graph("graph.txt", held_out=0.2, seed=2).test, graph.test)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a\tr\tb\na b c\n",
            "line 2: must be subject, predicate, object and maybe a time with tabs between, got 1 column; put a tab",
        ),
        ("a\tr\t\n", "leave none empty"),
        ("a\tr\n", "got 2 columns; give each line a subject"),
        ("a,r,b\n", "got 1 column; put tabs in the place of commas"),
        ("<a:a> <a:r> <a:b> .\n", "if it is N-Triples, call it .nt"),
        ("a\tr\tb\na\tr\tb\tc\n", "line 2: has 4 columns, the lines before it 3"),
        ("\n", "has no triples"),
    ],
)
def test_lines_of_another_form_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "graph.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        open_graph("graph.txt")


def test_what_is_not_there() -> None:
    with pytest.raises(DataError, match="no such file or folder; inside PyKEEN are kinships, nations, umls"):
        open_graph("umsl")
    with pytest.raises(DataError, match=r"holds no train\.txt"):
        open_graph(".")


def test_graphs_inside_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the wheel in this folder, without installing or importing it; and a message that says how to get it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip download --no-deps pykeen"):
        open_graph("nations")
    with zipfile.ZipFile(tmp_path / "pykeen-1.11.1-py3-none-any.whl", "w") as wheel:
        for part in ("train", "valid", "test"):
            wheel.writestr(f"pykeen/datasets/nations/{part}.txt", f"uk\tsends\t{part}\n")
    graph = open_graph("nations")
    assert graph.entities == ("test", "train", "uk", "valid")
    assert [len(part) for part in (graph.train, graph.valid, graph.test)] == [1, 1, 1]


def test_right_answers_of_questions() -> None:
    """Against a set of triples, with times and without."""
    random = torch.Generator().manual_seed(0)
    for columns in (3, 4):
        known = torch.randint(5, (60, columns), generator=random)
        asked = torch.randint(5, (40, columns), generator=random)
        everything = set(map(tuple, known.tolist()))
        expected = [[(row[0], row[1], o, *row[3:]) in everything for o in range(5)] for row in asked.tolist()]
        assert answers(known, asked, 5).tolist() == expected


def test_scenes_are_functions_of_their_number() -> None:
    """Prototypes shine through the noise; whole and union do not say who is who."""
    scenes, triples = SceneData(9, num_classes=2, noise=0.5), torch.tensor([[3, 0, 7]]).expand(20_000, -1)
    scene, subject, object_, union = scenes.features(triples, 4)
    assert torch.equal(subject, scenes.features(triples, 4)[1])
    assert not torch.equal(subject, scenes.features(triples, 5)[1])
    one, other = scenes.prototypes[3], scenes.prototypes[7]
    for x, clean in ((subject, one), (object_, other), (scene, (one + other) / 2), (union, (one + other) / 2)):
        torch.testing.assert_close(x.mean(0), clean, atol=0.02, rtol=0)
        assert (x - clean).std().item() == pytest.approx(0.5, rel=0.02)
    assert sorted(torch.bincount(scenes.classes).tolist()) == [4, 5]
    with pytest.raises(DataError, match="class_share must be at least 0 and at most 1"):
        SceneData(9, class_share=1.5)
