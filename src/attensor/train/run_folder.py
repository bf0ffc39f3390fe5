"""The folder of a training that goes on only as it began: what it was asked for, its state, and at the end the model.

run.json            what the run was asked for; another request is refused, the same goes on
state.safetensors   the checkpoint
config.json         written last: the run is finished
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from attensor.files import RUN_MARK, read_json, write_json

__all__ = ["RunFolder"]


class RunFolder:
    """Files of one run.

    Args:
        path: the folder; made when it is not there.
    """

    state_name, last_name = "state.safetensors", "config.json"
    # option that is a fingerprint -> what is said when it differs
    others: ClassVar[Mapping[str, str]] = {"data_fingerprint": "the data are others than they were"}

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / self.state_name

    def kept(self) -> dict[str, Any] | None:
        """What the run in this folder was asked for, and what was decided; None for no run.

        Raises:
            ValueError: the folder holds something else, or what it holds was changed.
        """
        is_file = self.path.exists() and not self.path.is_dir()
        found: dict[str, Any] | None = None if is_file else read_json(self.path / "run.json")
        if found is None and self.path.exists() and (is_file or self._has_others()):
            raise ValueError(f"--out {self.path}: there is something else already; give a new folder.")
        return found

    def _has_others(self) -> bool:
        # a run that was killed before it had begun leaves hidden files alone
        return any(not file.name.startswith(".") for file in self.path.iterdir())

    @property
    def is_finished(self) -> bool:
        """Whether the file that is written last is there."""
        return (self.path / self.last_name).exists()

    def begin(self, asked: Mapping[str, Any], decided: Mapping[str, Any]) -> None:
        """Make the folder and note both."""
        self.make()
        write_json(self.path / "run.json", {"asked": dict(asked), "decided": dict(decided)})

    def make(self) -> None:
        """Make the folder; nothing of it may be data for another run."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / RUN_MARK).touch()

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
                what = self.others.get(option, f"{option} was {before!r} and is now {after!r}")
                raise ValueError(f"--out {self.path}: holds a run that goes on only as it began: {what}. Give another.")
