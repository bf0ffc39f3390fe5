"""Kill a comparison with SIGKILL at random moments, resume it, and compare every final number bit for bit.

    python tests/programs/kill_and_resume.py --kills 10

A small comparison of two mechanisms runs once without interruption. Then the same comparison runs again; its whole
process group is killed at a random moment and the run resumed, until so many kills have happened and the last run has
finished. Steps, learning rates, curves, scores and the trained weights must be those of the undisturbed run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

START = """
import sys
from attensor.compare.config import CompareConfig
from attensor.compare.comparison import compare
out, data, steps = sys.argv[1:4]
sizes = {"length": 32, "batch_size": 4, "max_length": 512}
compare(CompareConfig(data=data, mechanisms="softmax,gla", steps=int(steps), out=out, **sizes))
"""
RESUME = """
import sys
from attensor.compare.config import CompareConfig
from attensor.compare.comparison import compare
compare(CompareConfig(resume=sys.argv[1]))
"""


def main() -> int:
    """Returns the exit status: 0 when all runs agree."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(sysconfig.get_paths()["stdlib"]) / "json"
        started = time.monotonic()
        expected = final_numbers(undisturbed(Path(folder) / "undisturbed", data, options.steps))
        duration = time.monotonic() - started
        print(f"undisturbed: {duration:.1f} s", flush=True)
        kills = attempt = 0
        while kills < options.kills:
            attempt += 1
            out = Path(folder) / f"killed-{attempt}"
            kills += killed_until_done(out, data, options.steps, moments, duration, options.kills - kills)
            found = final_numbers(only_run(out))
            if found != expected:
                print(f"FAILED after {kills} kills:\n{difference(expected, found)}")
                return 1
            print(f"run {attempt}: the same numbers after {kills} kills in all", flush=True)
    return 0


def undisturbed(out: Path, data: Path, steps: int) -> Path:
    """A run from beginning to end."""
    subprocess.run([sys.executable, "-c", START, out, data, str(steps)], check=True, stdout=subprocess.DEVNULL)
    return only_run(out)


def killed_until_done(
    out: Path, data: Path, steps: int, moments: random.Random, duration: float, most_kills: int
) -> int:
    """Start or resume until the run is finished; returns how often it was killed on the way."""
    kills = 0
    while True:
        run = only_run(out, or_none=True)
        command = [START, out, data, str(steps)] if run is None else [RESUME, run]
        process = subprocess.Popen(
            [sys.executable, "-c", *map(str, command)], stdout=subprocess.DEVNULL, start_new_session=True
        )
        # later than the start of Python, earlier than the end
        patience = moments.uniform(0.1, 0.9) * duration if kills < most_kills else None
        try:
            status = process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            print(f"  killed after {patience:.2f} s: {stage(out)}", flush=True)
            continue
        if status:
            raise SystemExit(f"the run in {out} ended with status {status}")
        return kills


def only_run(out: Path, *, or_none: bool = False) -> Path | None:
    """The folder of the run in `out`."""
    runs = [plan.parent for plan in out.glob("*/plan.json")]
    if not runs and or_none:
        return None
    (run,) = runs
    return run


def stage(out: Path) -> str:
    """What there is on the disk, for the log."""
    run = only_run(out, or_none=True)
    if run is None:
        return "no plan yet"
    names = {"softmax": [], "gla": []}
    for name, there in names.items():
        there += sorted(f.name for f in (run / name).glob("*") if f.suffix in (".json", ".safetensors", ".tmp"))
    return "; ".join(
        f"{name}: {there[-1] if there else 'nothing'} ({len(there)} files)" for name, there in names.items()
    )


def final_numbers(run: Path) -> dict[str, object]:
    """Everything a resumed run must reproduce: no times, and the digest of each model."""
    results = json.loads((run / "results.json").read_text())
    numbers: dict[str, object] = {"finished": results["finished"]}
    for row in results["mechanisms"]:
        for key in ("status", "parameters", "learning_rate", "pilots", "steps", "score", "score_2x", "score_4x"):
            numbers[f"{row['name']} {key}"] = row[key]
        for each in row["runs"]:
            numbers[f"{row['name']} {each['seed']} curve"] = [
                (p["step"], p["tokens"], p["score"]) for p in each["curve"]
            ]
            numbers[f"{row['name']} {each['seed']} final"] = each["final"]
            weights = (run / each["checkpoint"]).read_bytes()
            numbers[f"{row['name']} {each['seed']} weights"] = hashlib.sha256(weights).hexdigest()
    return numbers


def difference(expected: dict[str, object], found: dict[str, object]) -> str:
    """The numbers that differ."""
    return "\n".join(
        f"{key}: {expected[key]} became {found.get(key)}" for key in expected if expected[key] != found.get(key)
    )


if __name__ == "__main__":
    sys.exit(main())
