"""Recorded reading: words become objects, fixations a path, and tables that do not fit are refused by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attensor.data.gaze import recorded
from attensor.data.reading import ONESTOP, has_onestop, read_reports
from attensor.data.scanpath_files import read_scanpaths
from attensor.errors import DataError

AREAS = "participant_id,TRIAL_INDEX,IA_ID,IA_LABEL,IA_LEFT,IA_TOP,IA_RIGHT,IA_BOTTOM"
WORDS = ("1,According,100,50,300,90", "2,to,300,50,360,90", "3,us,100,90,160,130", "4,23 tigers.,160,90,400,130")
FIXATIONS = "participant_id,TRIAL_INDEX,CURRENT_FIX_INDEX,CURRENT_FIX_X,CURRENT_FIX_Y,CURRENT_FIX_INTEREST_AREA_ID"
# the last but one has no area and lies just above the fourth word, the last far away
LOOKED = ("2,310.5,60,2", "1,120,70,1", "3,200,85,.", "4,200,135,", "5,3000,-400,.")


def written(
    folder: Path, *, areas: str = AREAS, words: tuple[str, ...] = WORDS, fixations: str = FIXATIONS,
    looked: tuple[str, ...] = LOOKED, readers: tuple[str, ...] = ("ann", "bob"), separator: str = ",",
) -> Path:  # fmt: skip
    for name, header, rows in (("ia.csv", areas, words), ("fixations.csv", fixations, looked)):
        lines = [header, *(f"{reader},7,{row}" for reader in readers for row in rows)]
        (folder / name).write_text("\n".join(lines).replace(",", separator) + "\n", "utf-8")
    return folder


@pytest.mark.parametrize("separator", [",", "\t"])
def test_words_are_objects_on_lines(tmp_path: Path, separator: str) -> None:
    found = read_scanpaths(written(tmp_path, separator=separator))
    assert len(found.scenes) == len(found.paths) == 2
    scene, path = found.scenes[0], found.paths[0]
    assert scene.cells[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert (scene.grid[0].tolist(), scene.target.tolist()) == ([2, 2], [3])
    assert path is not None
    assert path.tolist() == [0, 1, 0, 3]  # in the order of their numbers; (200, 85) lies in the first word's box
    assert found.names[0] == ("According", "to", "us", "23 tigers.")
    torch.testing.assert_close(scene.looks[0, 0], torch.tensor([0.9, 5.0, 0, 0, 1, 0]))
    torch.testing.assert_close(scene.looks[0, 3], torch.tensor([0.8, 6.0, 1, 0, 0, 1]))


def test_readers_of_a_text_are_kept_together(tmp_path: Path) -> None:
    """One text by two readers cannot be parted into one to learn from and one to score."""
    with pytest.raises(DataError, match="there are only 1 different scenes"):
        recorded(read_reports(written(tmp_path)), held_out=0.5, seed=0)


def test_words_counted_from_0_in_one_table_and_from_1_in_the_other(tmp_path: Path) -> None:
    """Where both say which word it is, that decides."""
    words = tuple(f"{int(word[0]) - 1}{word[1:]}" for word in WORDS)
    fixations = f"{FIXATIONS},CURRENT_FIX_INTEREST_AREA_LABEL"
    folder = written(tmp_path, words=words, fixations=fixations, looked=("1,120,70,1,According", "2,9,9,4,23 tigers."))
    path = read_reports(folder).paths[1]
    assert path is not None
    assert path.tolist() == [0, 3]
    written(tmp_path, words=words, fixations=fixations, looked=("1,120,70,1,tigers",))
    with pytest.raises(DataError, match=r"fixations\.csv, line 2: the words of this reading are not those"):
        read_reports(folder)


def test_columns_of_other_programs(tmp_path: Path) -> None:
    """Data Viewer's own names, and fixations that only have a place."""
    areas = AREAS.replace("participant_id", "RECORDING_SESSION_LABEL").replace("TRIAL_INDEX", "trial_index")
    fixations = "RECORDING_SESSION_LABEL,trial_index,CURRENT_FIX_X,CURRENT_FIX_Y"
    folder = written(tmp_path, areas=areas, fixations=fixations, looked=("110,100", "500,70"), readers=("s1",))
    path = read_reports(folder).paths[0]
    assert path is not None
    assert path.tolist() == [2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"areas": AREAS.replace("IA_LABEL", "LABEL")}, "ia.csv: has no column IA_LABEL; it has participant_id"),
        ({"fixations": FIXATIONS.replace("CURRENT_FIX_Y", "Y")}, "fixations.csv: has no column CURRENT_FIX_Y"),
        ({"fixations": FIXATIONS.replace("TRIAL_INDEX", "TRIAL")}, "must both have a column TRIAL_INDEX"),
        ({"words": ("1,a,.,50,300,90",)}, r"ia.csv, line 2: IA_LEFT must be a number, got '\.'"),
        ({"words": ("1,a,100,50,300,inf",)}, "ia.csv, line 2: IA_BOTTOM must be a number, got 'inf'"),
        ({"words": ("1,a,300,50,100,90",)}, "IA_RIGHT and IA_BOTTOM must be above IA_LEFT and IA_TOP"),
        ({"words": (WORDS[0], WORDS[0])}, "a reading has two words with IA_ID 1"),
        ({"words": ("1,a,100",)}, "ia.csv, line 2: has another number of columns"),
        ({"looked": ("1,nan,.,9",)}, "fixations.csv, line 2: .*INTEREST_AREA_ID 9 is no word"),
        ({"looked": ("1,3000,9,.",)}, "no fixation lies on a word"),
        ({"looked": ()}, "no fixation lies on a word"),
        ({"looked": ("first,3,9,1", "2,3,9,1")}, "line [23]: CURRENT_FIX_INDEX must be a number, got 'first'"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_reports(written(tmp_path, **change))  # type: ignore[arg-type]


def test_tables_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = written(tmp_path)
    table = folder / "fixations.csv"
    table.write_text(table.read_text().replace("bob", "eve"))
    with pytest.raises(DataError, match=r"reading eve, 7 has fixations and no words in ia\.csv"):
        read_reports(folder)
    table.write_bytes(b"\xff\xfe" + FIXATIONS.encode("utf-16-le"))
    with pytest.raises(DataError, match="must hold two tables"):
        read_reports(folder)
    (folder / "ia.csv").unlink()
    with pytest.raises(DataError, match="must hold two tables"):
        read_reports(folder)


def test_onestop_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip download --no-deps scanpath-studio"):
        read_scanpaths(Path(ONESTOP))


@pytest.mark.skipif(not has_onestop(), reason="scanpath-studio, which holds readings of OneStop, is not installed")
def test_onestop() -> None:
    """Two people have read twelve paragraphs; they go on to the end of each."""
    found = read_scanpaths(Path(ONESTOP))
    assert len(found.scenes) == len(found.paths) == len(found.names) == 24
    ends = [int(path.max()) / (scene.looks.shape[1] - 1) for scene, path in zip(found.scenes, found.paths)]  # type: ignore[index]
    assert sum(ends) / len(ends) > 0.9
    train, held_out = recorded(found, held_out=0.2, seed=0)
    assert not set(train.groups.tolist()) & set(held_out.groups.tolist())
