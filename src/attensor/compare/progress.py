"""A comparison on the terminal: what its processes say, as bars, lines and the time left."""

from __future__ import annotations

from typing import Any

from attensor.compare.plan import Plan
from attensor.lab import Display

__all__ = ["Watch"]

# what a mechanism takes besides its training: two starts of Python, laws, calibration; then its measurements
_START_SECONDS = 5.0
_MEASURE_SECONDS = 6.0


class Watch:
    """Shows events of the mechanisms.

    Args:
        plan: of the run.
        display: with a row for each mechanism.
    """

    def __init__(self, plan: Plan, display: Display) -> None:
        self._display = display
        names = [subject.name for subject in plan.subjects]
        # None: not known before the first one of them has measured its step
        share = None if plan.share_seconds is None else plan.share_seconds + _START_SECONDS
        # trainings run `jobs` at a time, measurements one at a time
        self._training = display.expect(dict.fromkeys(names, share), plan.jobs)
        self._measuring = display.expect(dict.fromkeys(names, _MEASURE_SECONDS), 1)
        self.tick = display.tick

    def event(self, name: str, event: dict[str, Any]) -> None:
        """Show one event of a mechanism."""
        stage = event["stage"]
        if stage in ("cost", "decode"):
            state = f"measures {stage}" + (f", {event['length']}" if "length" in event else "")
        else:
            score = event.get("score")
            state = stage if score is None else f"{stage}, {score:.3f}"
            if "seconds_left" in event:
                self._training.left[name] = event["seconds_left"]
        self._display.row(name, state, stage=stage, fraction=event.get("fraction"))
        self.tick()

    def ended(self, name: str, phase: str, reason: str | None) -> None:
        """Show the end of a phase, or why it failed."""
        self.finished(name, is_measured=phase == "measure" or reason is not None)
        if reason is not None:
            self._display.alarm(f"{name} failed", reason)
        state = "failed" if reason is not None else "trained" if phase == "train" else "done"
        self._display.row(name, state, stage=f"end of {phase}", fraction=None if reason else 1.0)
        self.tick()

    def finished(self, name: str, *, is_measured: bool) -> None:
        """A mechanism is trained, and perhaps measured: now, or by an earlier run."""
        for work in (self._training, self._measuring) if is_measured else (self._training,):
            self._display.done += work.left[name] != 0.0
            work.finished(name)
