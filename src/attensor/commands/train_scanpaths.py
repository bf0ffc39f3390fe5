"""`attensor train scanpaths`: what it can be asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from attensor.commands.small_training import asked_of, carry_out, check_options, say, unfinished
from attensor.errors import DataError
from attensor.files import write_json

if TYPE_CHECKING:
    from attensor.data.gaze import Gaze
    from attensor.models.pointing.oat import OATConfig
    from attensor.train.run_folder import RunFolder
    from attensor.train.scanpaths import ScanpathTraining

__all__ = ["TrainScanpaths"]


@dataclass(frozen=True)
class TrainScanpaths:
    """Train OAT on paths of gaze over scenes of objects, in which one is searched for.

    The same command goes on with a run that was interrupted, to the same numbers.
    """

    data: Positional[Annotated[str, arg(metavar="FILE")]]
    """A file with a scene and a path a line, in JSON, or a folder of such files; a folder with tables of recorded
    reading (areas and fixations, as Data Viewer exports them), or onestop, which lies in the package scanpath-studio;
    or generated, for shelves with simulated observers."""
    out: str = "scanpaths"
    """Folder of the run: checkpoint, curve, and at the end model.safetensors for attensor solve scanpath --model."""
    preset: str | None = None
    """Sizes of the model: oat_generated, small, for numbers or crops on up to 8 rows and columns; oat_reading for up to
    32, as of words; oat_amazon and oat_shelves are the published. Left out: the first of these with enough."""
    steps: int = 1500
    """Of the optimizer, Adam; some 25 ms each with oat_generated on one core."""
    batch_size: int = 32
    """Paths of a step."""
    learning_rate: float = 2e-3
    """Peak; it falls along a half cosine. The published sizes were trained with 1e-4 all the time."""
    held_out: float = 0.1
    """Share of the scenes that is scored and not learned from."""
    scenes: int = 7700
    """Of the generator."""
    crop: tuple[int, ...] | None = None
    """Height and width that crops are brought to: 150,93. Left out: those of the first."""
    threads: int = 1
    """Threads of PyTorch; the last bits depend on it."""
    seed: int = 0
    """Of weights, what is held out, and the order."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: the message names the option, its value and the repair.
        """
        check_options(self, 1, "steps", "batch_size", "threads", "scenes")
        check_options(self, 0, "learning_rate", is_open=True)
        if not 0 < self.held_out < 1:
            raise ValueError(f"--held-out {self.held_out}: must be above 0 and below 1.")
        if self.crop is not None and (len(self.crop) != 2 or min(self.crop) < 1):
            raise ValueError(f"--crop {','.join(map(str, self.crop))}: give height and width, as in 150,93.")

    def run(self) -> int:
        """Read, train, show how it goes, and keep the model.

        Raises:
            DataError, ValueError, OSError: found before the training: data, options, the folder.
        """
        console = Console()
        folder = unfinished(self.out, asked_of(self), console)
        if folder is None:
            return 0
        import torch

        from attensor.train.scanpaths import ScanpathSetup, ScanpathTraining

        torch.set_num_threads(self.threads)
        train, held_out = self._data()
        setup = ScanpathSetup(
            config=self._config(train), steps=self.steps, batch_size=self.batch_size,
            learning_rate=self.learning_rate, seed=self.seed,
        )  # fmt: skip
        say(console, f"{len(train)} paths to learn from, {len(held_out)} held out, {_sizes(train)}")
        training = ScanpathTraining(setup, train, held_out)
        folder.begin(asked_of(self), {})
        progress = carry_out(
            training, setup.train_config, folder, console, units=self.batch_size, unit="paths",
            words=lambda _: _words(training.scores),
        )  # fmt: skip
        if isinstance(progress, int):
            return progress
        self._conclude(training, folder, [[point.step, point.score] for point in progress.curve], console)
        return 0

    def _data(self) -> tuple[Gaze, Gaze]:
        from attensor.data.gaze import generated, recorded
        from attensor.data.scanpath_files import read_scanpaths
        from attensor.data.shelves import Shelves

        if self.data == "generated":
            shelves, kept = Shelves(), max(1, round(self.held_out * self.scenes))
            train = generated(shelves, self.scenes, seed=self.seed)
            return train, generated(shelves, min(kept, 300), seed=self.seed, stream=-1, observers=2)
        path = Path(self.data).expanduser()
        size = None if self.crop is None else (self.crop[0], self.crop[1])
        try:
            return recorded(read_scanpaths(path, crop_size=size), held_out=self.held_out, seed=self.seed)
        except FileNotFoundError as error:
            raise DataError(f"{self.data}: there is no such file; generated and onestop need none.") from error

    def _config(self, train: Gaze) -> OATConfig:
        """The preset, made to fit the data."""
        from attensor.models.pointing.oat import OAT

        if self.preset is not None and self.preset not in OAT.presets:
            raise ValueError(f"--preset {self.preset!r}: must be one of {', '.join(OAT.presets)}.")
        needed, look = int(train.scenes.grid.max()), tuple(train.scenes.looks.shape[2:])
        names = ("oat_generated", "oat_reading", "oat_amazon") if self.preset is None else (self.preset,)
        config = next((OAT.presets[name] for name in names if needed <= OAT.presets[name].place_width), None)
        if config is None:
            most = OAT.presets[names[-1]].place_width
            raise ValueError(
                f"--preset {names[-1]}: has room for {most} rows or columns, and the data has {needed}; "
                + ("take oat_amazon, which has room for 86." if most < 86 else "merge some of them.")
            )
        places = max(config.max_places, needed)
        longest = max(2, int((train.paths >= 0).sum(1).max()))
        look = look[:2] if len(look) == 3 else look
        return dataclasses.replace(config, look=look, max_places=places, max_length=longest)

    def _conclude(
        self, training: ScanpathTraining, folder: RunFolder, curve: list[list[float]], console: Console
    ) -> None:
        training.evaluate(training.model.eval())
        write_json(folder.path / "scores.json", {"held_out": training.scores, "curve": curve})
        training.model.save(folder.path)
        say(console, f"Held out: {_words(training.scores)}")
        say(console, f"Also: attensor solve scanpath scene.json --model {folder.path} --out path.html")


def _sizes(gaze: Gaze) -> str:
    rows, columns = gaze.scenes.grid.max(0).values.tolist()
    return f"scenes of up to {gaze.scenes.looks.shape[1]} objects on {rows} x {columns} places"


def _words(scores: dict[str, float]) -> str:
    """The scores, with what another person reaches where that is known."""
    people = f"; two people {scores['ceiling']:.3f}" if "ceiling" in scores else "; no scene was seen by two people"
    return (
        f"sequence score {scores['score']:.3f}{people}; behaviour {scores['delta']:.3f} off, "
        f"{scores['found']:.1%} found, {scores['length']:.1f} fixations"
    )
