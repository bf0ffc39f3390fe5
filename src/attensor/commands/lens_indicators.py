"""`attensor lens indicators`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

__all__ = ["LensIndicators"]


@dataclass(frozen=True)
class LensIndicators:
    """What every attention of a model does with a text: entropy, concentration, head diversity, sink, local focus."""

    model: Positional[Annotated[str, arg(metavar="DIR")]]
    """Folder of the model, as save_pretrained writes it; without a tokenizer there bytes are tokens."""
    text: Annotated[str, arg(metavar="FILE")]
    """The text to read."""
    length: int = 128
    """Tokens of a passage."""
    passages: int = 8
    """Passages from the beginning of the text, over which is averaged; fewer where the text ends."""
    out: Annotated[str | None, arg(metavar="FILE")] = None
    """Write all numbers, head by head, as JSON here."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: the message names the option, its value and the repair.
        """
        for option in ("length", "passages"):
            if getattr(self, option) < 1:
                raise ValueError(f"--{option} {getattr(self, option)}: must be at least 1.")

    def run(self) -> int:
        """Read the text, print a table, and write the file that was asked for.

        Raises:
            ValueError, OSError: no such model or text, a text shorter than a passage, no attention with weights.
        """
        from attensor.indicating import indicators_command

        return indicators_command(self)
