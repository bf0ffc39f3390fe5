"""`attensor edit swap`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

__all__ = ["EditSwap"]


@dataclass(frozen=True)
class EditSwap:
    """Put another attention into a trained model of transformers, train it to do what the original did, and report.

    The report always shows what no attention, the mean of the values and a short window reach with the same training.
    """

    model: Positional[Annotated[str, arg(metavar="DIR")]]
    """Folder of the model, as save_pretrained writes it."""
    to: str
    """A mechanism, as `attensor list` names it: sliding-window, gla, retnet, mla, moh, neighborhood."""
    align: Annotated[str, arg(metavar="TEXT")] = "stdlib"
    """A text file or a folder of text to learn from and to be scored on; stdlib is Python's standard library."""
    minutes: float = 5.0
    """Of the alignment, for the replacement and its controls together; 0 for none."""
    distill: float = 0.0
    """Minutes of distillation afterwards, for the replacement and once more for the strongest control; 0 for none."""
    layers: tuple[int, ...] | None = None
    """Which attentions, from 0; negative ones count from the end. Left out: all."""
    options: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE")] = ()
    """Of the layer, several after each other: window_size=64 num_kv_heads=2."""
    out: Annotated[str, arg(metavar="FOLDER")] = "swapped-model"
    """Folder for the model, the report and its numbers; `attensor.edit.load_swapped` reads the model."""
    window_size: int = 8
    """Tokens in the window of the controls."""
    sinks: int = 4
    """First tokens that a control sees besides its window."""
    length: int = 512
    """Bytes of a passage."""
    held_out: int = 120
    """Passages that are scored."""
    batch_size: int = 4
    """Passages of a batch; few, since alignment lives of many steps."""
    context: int = 1024
    """Tokens for which bytes and milliseconds are reported."""
    seed: int = 0
    """Of the batches and of what is drawn anew."""
    resume: bool = False
    """Go on with the run in the output folder that was interrupted; all other options as they were."""
    task: Literal["auto", "next-token", "passages"] = "auto"
    """Score: bits per byte of a causal model, or halves of passages that find each other by hidden states."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: the message names the option, its value and the repair.
        """
        if faulty := [one for one in self.options if "=" not in one]:
            raise ValueError(f"--options {faulty[0]}: must be NAME=VALUE, as in window_size=64.")
        for option in ("window_size", "batch_size", "context"):
            if getattr(self, option) < 1:
                raise ValueError(f"--{option.replace('_', '-')} {getattr(self, option)}: must be at least 1.")
        for option in ("minutes", "distill", "sinks"):
            if not 0 <= getattr(self, option) < float("inf"):
                raise ValueError(f"--{option} {getattr(self, option)}: must be at least 0.")
        for option, least in (("length", 16), ("held_out", 8)):
            if getattr(self, option) < least:
                raise ValueError(f"--{option.replace('_', '-')} {getattr(self, option)}: must be at least {least}.")

    def run(self) -> int:
        """Try the swap, print what may be said of it, and keep the model.

        Raises:
            ValueError, DataError, OSError: found before the training: the model, the mechanism, its options, the text.
        """
        from attensor.swapping import swap_command

        return swap_command(self)
