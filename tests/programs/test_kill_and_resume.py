"""Three kills; ten take `python tests/programs/kill_and_resume.py --kills 10`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit():
    program = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run(
        [sys.executable, program, "--kills", "3", "--steps", "100"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 3 kills in all" in done.stdout
