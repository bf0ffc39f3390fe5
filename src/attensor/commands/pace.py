"""What `attensor generate` says at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attensor.models.language.generate import Pace

__all__ = ["sentence"]


def sentence(pace: Pace) -> str:
    """Prompt, speed and state in a line."""
    from attensor.report.numbers import size

    parts = [f"prompt of {pace.prompt} tokens read in {pace.prefill_seconds:.2f} s"]
    if pace.compile_seconds:
        parts.append(f"step compiled in {pace.compile_seconds:.1f} s")
    speed = f", {pace.steps / pace.step_seconds:.1f} tokens/s" if pace.step_seconds else ""
    parts += [f"{pace.tokens} tokens written{speed}", f"state {size(pace.state_bytes())}"]
    return "; ".join(parts)
