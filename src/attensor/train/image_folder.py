"""The folder of an image training: what was asked for, the state, the curve, and at the end the model.

run.json            what the run was asked for; another request is refused, the same goes on
state.safetensors   the checkpoint
curve.json          scores of what is held out, by step; files that were broken
model.safetensors   weights for `models.create(name, pretrained=FOLDER, ...)`; config.json says with which arguments,
                    or is that of a model that saves itself
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attensor.files import RUN_MARK, read_json, write_json
from attensor.train.image import ImageTraining
from attensor.train.image_tasks import Scores

__all__ = ["ImageFolder"]


class ImageFolder:
    """Files of one run.

    Args:
        path: the folder; made when it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "state.safetensors"

    def kept(self) -> dict[str, Any] | None:
        """What the run in this folder was asked for, and what was decided; None for no run.

        Raises:
            ValueError: the folder holds something else, or what it holds was changed.
        """
        found: dict[str, Any] | None = read_json(self.path / "run.json")
        if found is None and self.path.exists() and (not self.path.is_dir() or self._has_others()):
            raise ValueError(f"--out {self.path}: there is something else already; give a new folder.")
        return found

    def _has_others(self) -> bool:
        # a run that was killed before it had begun leaves hidden files alone
        return any(not file.name.startswith(".") for file in self.path.iterdir())

    @property
    def is_finished(self) -> bool:
        """Whether the model is there; `config.json` is written last."""
        return (self.path / "config.json").exists()

    def begin(self, asked: Mapping[str, Any], decided: Mapping[str, Any]) -> None:
        """Make the folder and note both; nothing of it may be data for another run."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / RUN_MARK).touch()
        write_json(self.path / "run.json", {"asked": dict(asked), "decided": dict(decided)})

    def check(self, asked: Mapping[str, Any]) -> None:
        """Compare a request with that of the run.

        Raises:
            ValueError: it is another one; names the first option that differs.
        """
        kept = self.kept()
        if kept is None:
            return
        now = json.loads(json.dumps(asked))
        for option in dict.fromkeys([*now, *kept["asked"]]):
            before, after = kept["asked"].get(option), now.get(option)
            if before != after:
                what = f"{option} was {before!r} and is now {after!r}"
                if option == "data_fingerprint":
                    what = "the images are others than they were"
                raise ValueError(f"--out {self.path}: holds a run that goes on only as it began: {what}. Give another.")

    def keep_curve(self, training: ImageTraining) -> None:
        """Write the scores so far."""
        points = [{"step": step, **vars(scores)} for step, scores in sorted(training.scores.items())]
        write_json(self.path / "curve.json", {"points": points, "broken": sorted(training.broken)})

    def load_curve(self, training: ImageTraining) -> None:
        """Read them again: what is measured once more replaces them."""
        found = read_json(self.path / "curve.json") or {"points": [], "broken": []}
        for point in found["points"]:
            step = point.pop("step")
            training.scores[step] = training.task.scores(**point)
        training.broken.update(found["broken"])

    def keep_model(self, training: ImageTraining, name: str, test: Scores | None) -> None:
        """Write the model that was scored, and how it is built, normalised and what its answers mean."""
        views, setup = training.views, training.setup
        facts: dict[str, Any] = {
            "model": name,
            "img_size": list(setup.image_size),
            "classes": list(training.source.classes),
            "mean": list(views.pixels.mean),
            "std": list(views.pixels.std),
            "kept": views.kept,
            "held_out": vars(training.scores[max(training.scores)]),
        }
        if test is not None:
            facts["test"] = vars(test)
        training.task.keep(self.path, training.trained, facts)
