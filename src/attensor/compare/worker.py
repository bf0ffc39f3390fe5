"""The process of one mechanism: `python -m attensor.compare.worker RUN NAME train|measure`.

It reads the plan, does the stages that are not done, and ends with 0 (done), 1 (failed: the reason is in
`NAME/failed-PHASE.json`) or 75 (stopped on request: the state is saved).
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import torch

from attensor.compare.measure import Measurement
from attensor.compare.memory import is_out_of_memory
from attensor.compare.plan import Plan
from attensor.compare.reporter import Reporter
from attensor.compare.stages import Training
from attensor.errors import DataError, LawError
from attensor.files import locked, write_json
from attensor.train import Diverged, Stopped

__all__ = ["PHASES", "STOPPED", "main", "reason"]

STOPPED = 75
PHASES: dict[str, type[Training | Measurement]] = {"train": Training, "measure": Measurement}


def main(arguments: list[str]) -> int:
    """Run one phase of one mechanism.

    Args:
        arguments: folder of the run, name of the mechanism, `"train"` or `"measure"`.
    Returns:
        The exit status.
    """
    reporter = Reporter.take_stdout()
    run, name, phase = Path(arguments[0]), arguments[1], arguments[2]
    plan = Plan.load(run)
    folder = run / name
    torch.set_num_threads(plan.threads)
    if plan.device == "cuda":
        # the same numbers after a resume; operations that cannot promise it only warn
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        # waits for a worker whose parent was killed: it ends at its next event
        with locked(folder, wait=True):
            PHASES[phase](plan, plan.subject(name), folder, reporter).run()
    except (Stopped, BrokenPipeError):
        return STOPPED
    except Exception as error:  # the mixer is the user's, and may fail in any way
        traceback.print_exc()
        write_json(folder / f"failed-{phase}.json", {"reason": reason(error)})
        return 1
    return 0


def reason(error: Exception) -> str:
    """One line for the row of a mechanism that failed."""
    first_line = str(error).strip().partition("\n")[0]
    if is_out_of_memory(error):
        return f"out of memory: {first_line}"
    if isinstance(error, LawError | DataError | Diverged):
        return first_line
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line} ({Path(frame.filename).name}, line {frame.lineno})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
