"""The folder of an image training: what was asked for, the state, the curve, and at the end the model.

run.json            what the run was asked for; another request is refused, the same goes on
state.safetensors   the checkpoint
curve.json          scores of what is held out, by step; files that were broken
model.safetensors   weights for `models.create(name, pretrained=FOLDER, ...)`; config.json says with which arguments,
                    or is that of a model that saves itself
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attensor.files import read_json, write_json
from attensor.train.image import ImageTraining
from attensor.train.image_tasks import Scores
from attensor.train.run_folder import RunFolder

__all__ = ["ImageFolder"]


class ImageFolder(RunFolder):
    """Files of one training of an image model."""

    others: ClassVar[Mapping[str, str]] = {"data_fingerprint": "the images are others than they were"}

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
