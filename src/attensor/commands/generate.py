"""`attensor generate`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from attensor.compare.config import GenerateConfig

__all__ = ["Generate"]


@dataclass(frozen=True)
class Generate(GenerateConfig):
    """Write text with a model that `attensor compare` trained, or with one in transformers' format."""

    def run(self) -> None:
        """Print the prompt and what follows, as it is decided."""
        from attensor.compare.generate import generate_text

        sys.stdout.write(self.prompt)
        for piece in generate_text(self):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
