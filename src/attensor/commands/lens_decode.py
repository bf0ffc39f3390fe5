"""`attensor lens decode`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from attensor.errors import need

if TYPE_CHECKING:
    from attensor.models.knowledge.tensor_brain import TensorBrain

__all__ = ["LensDecode"]


@dataclass(frozen=True)
class LensDecode:
    """A page that steps through decodes of a Tensor Brain: what each window scored, chose and fed back.

    Shown are a scene that is seen, an episode that is recalled from its time, and what is known of the subject.
    """

    model: Path
    """Folder of a Tensor Brain, as `attensor train triples --model brain` writes it."""
    out: Path
    """Page to write, .html."""
    time: int = 0
    """Number of the episode that is recalled; its subject and object are those of the scene, unless named."""
    subject: str | None = None
    """Entity whose scene is seen and of which knowledge is asked."""
    object: str | None = None
    """The other entity of the scene."""
    count: int = 8
    """Symbols shown in each step."""

    def __post_init__(self) -> None:
        """Refuse what could not be done in the end.

        Raises:
            ValueError: another suffix, or a number out of range.
        """
        if self.out.suffix.lower() != ".html":
            raise ValueError(f"--out must end in .html, got {str(self.out)!r}")
        for option, least in (("time", 0), ("count", 1)):
            if getattr(self, option) < least:
                raise ValueError(f"--{option} must be at least {least}, got {getattr(self, option)}")

    def run(self) -> None:
        """Decode, write, and say it in one line a decode.

        Raises:
            FileNotFoundError: no model. ValueError: a scorer, a name that it does not know, or no folder to write to.
        """
        need("jinja2", "PIL", purpose="a page with pictures")
        if not self.out.absolute().parent.is_dir():
            raise ValueError(f"--out {self.out}: there is no folder {self.out.parent}; make it first.")
        from attensor.lens.decode import read_decodes
        from attensor.models.knowledge.saved import load_knowledge
        from attensor.models.knowledge.tensor_brain import TensorBrain
        from attensor.report.document import write_document

        model, names = load_knowledge(self.model)
        if not isinstance(model, TensorBrain):
            kind = type(model).__name__
            raise ValueError(f"--model {self.model}: is a {kind}, which decodes nothing; train one with --model brain.")
        readings = read_decodes(model, names, **self._asked(model, names))
        facts = {"model": str(self.model), "config": model.config}
        write_document(self.out, "attensor.report:decode.html", decodes=readings, facts=facts)
        console = Console()
        for reading in readings:
            console.print(f"{reading.title}: {reading.sentence}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"Written: {self.out}", highlight=False, markup=False, soft_wrap=True)

    def _asked(self, model: TensorBrain, names: dict[str, list[str]]) -> dict[str, Any]:
        from attensor.files import read_json
        from attensor.models.knowledge.saved import number_of

        count = model.config.num_times
        if count and self.time >= count:
            raise ValueError(f"--time {self.time}: the model has {count} episodes, from 0 to {count - 1}.")
        asked = {
            option: number_of(names, "entities", name, option=f"--{option}")
            for option, name in (("subject", self.subject), ("object_", self.object))
            if name is not None
        }
        notes = read_json(self.model / "config.json").get("notes", {})
        return {**asked, "time": self.time, "count": self.count, "seed": int(notes.get("seed", 0))}
