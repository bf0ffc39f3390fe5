"""Files of points: tables as people have them, the published data sets, TSPLIB."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from attensor.data.point_files import read_instances, read_points
from attensor.errors import DataError

TSPLIB = "NAME: small\nDIMENSION : 3\nEDGE_WEIGHT_TYPE : EUC_2D\nNODE_COORD_SECTION\n1 0 0\n2 3.5 0\n3 1e1 4\nEOF\n"


@pytest.mark.parametrize(
    "text",
    [
        "0,1\n2.5,-3\n",
        "x,y\n0,1\n2.5,-3\n",
        "left;right\n0;1\n2.5;-3\n",
        "# made by hand\n0\t1\n\n2.5\t-3  # the second\n",
        "  0   1\n  2.5 -3\n",
        '"Name","Y","X"\na,1,0\nb,-3,2.5\n',
        '"0","1"\n"2.5","-3"\n',
        "NAME: two\nDIMENSION: 2\nNODE_COORD_SECTION\n1 0 1\n2 2.5 -3\nEOF\n",
        "\ufeffx,y\r\n0,1\r\n2.5,-3\r\n",
    ],
)
def test_tables_of_every_kind_hold_the_same_points(tmp_path: Path, text: str) -> None:
    (tmp_path / "points.csv").write_bytes(text.encode())
    assert read_points(tmp_path / "points.csv").tolist() == [[0.0, 1.0], [2.5, -3.0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no points"),
        ("x,y\n", "a header and no points"),
        ("1,2\n1,2,3\n", "line 2: has 3 columns, not 2"),
        ("1\n2\n", "line 1: has 1 column, not 2"),
        ("1,2\nnan,4\n", "line 2: nan is not finite"),
        ("1,2\n\n3,-inf\n", "line 3: -inf is not finite"),
        ("1,2\n3,four\n", "line 2: 'four' is not a number.$"),
        ("1;2\n0,5;2\n", "line 2: '0,5' is not a number; decimals take a point"),
        ("1,2\n3,\n", "line 2: '' is not a number"),
        ("name,x,y\na,1\n", "line 2: has 2 columns, fewer than the header"),
        ("a,b,c\n1,2,3\n", "line 2: has 3 columns"),
    ],
)
def test_what_is_no_table_of_points_is_said_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_points(tmp_path / "points.csv")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no text in UTF-8"):
        read_points(tmp_path / "a.csv")
    with pytest.raises(DataError, match="there is no file"):
        read_points(tmp_path / "b.csv")


def test_tsplib(tmp_path: Path) -> None:
    file = tmp_path / "small.tsp"
    file.write_text(TSPLIB)
    assert read_points(file).tolist() == [[0.0, 0.0], [3.5, 0.0], [10.0, 4.0]]
    for old, new, words in (
        ("EUC_2D", "GEO", "has distances GEO"),
        ("NODE_COORD_SECTION", "EDGE_WEIGHT_SECTION", "no NODE_COORD_SECTION"),
        ("DIMENSION : 3", "DIMENSION : 4", "has 3 cities, and says DIMENSION 4"),
    ):
        file.write_text(TSPLIB.replace(old, new))
        with pytest.raises(DataError, match=words):
            read_points(file)


LINES = "0.1 0.2 0.3 0.4 0.5 0.9 output 1 3 2 1 \n0.5 0.5 0.6 0.1 0.7 0.7 0.0 1.0 output 2 3 4 2\n"


def test_published_files_as_text_and_zip(tmp_path: Path) -> None:
    (tmp_path / "hull.txt").write_text(LINES)
    with zipfile.ZipFile(tmp_path / "hull.zip", "w") as archive:
        first, second = LINES.splitlines(keepends=True)
        archive.writestr("a.txt", first)
        archive.writestr("b.txt", second)
        archive.writestr("read.me", "no points")
    for name in ("hull.txt", "hull.zip"):
        found = read_instances(tmp_path / name)
        assert found.counts.tolist() == [3, 4]
        assert found.targets.tolist() == [[1, 3, 2, 1, 0], [2, 3, 4, 2, 0]]
        assert found.points[0].tolist() == pytest.approx(
            [pytest.approx(one) for one in ([0.1, 0.2], [0.3, 0.4], [0.5, 0.9], [0.0, 0.0])]
        )
    assert len(read_instances(tmp_path / "hull.zip", member="b.txt")) == 1
    assert len(read_instances(tmp_path / "hull.txt", limit=1)) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0.1 0.2 0.3 0.4", "not of the form"),
        ("0.1 0.2 0.3 output 1 1", "not of the form"),
        ("0.1 0.2 0.3 0.4 output 1 3 1", "places from 1 to 3 for 2 points"),
        ("0.1 0.2 0.3 0.4 output 0 1", "places from 0 to 1"),
        ("0.1 b output 1", "could not convert"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "hull.txt").write_text(LINES + line)
    with pytest.raises(DataError, match=f"line 3: .*{words}"):
        read_instances(tmp_path / "hull.txt")


def test_no_such_part_or_kind(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", LINES)
    with pytest.raises(DataError, match=r"has no 'b.txt'; it has a.txt"):
        read_instances(tmp_path / "a.zip", member="b.txt")
    with pytest.raises(DataError, match=r"must end in \.txt or \.zip"):
        read_instances(tmp_path / "a.gz")
