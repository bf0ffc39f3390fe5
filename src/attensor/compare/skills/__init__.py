"""The skills panel of a comparison: small tasks that each ask for one thing, for every mechanism of the run.

calibrate every mechanism -> one number of steps a task, for all -> a training a mechanism and task -> panel
"""

from __future__ import annotations

from attensor.compare.skills.pace import check_skills as check_skills
from attensor.compare.skills.panel import collect_skills as collect_skills
from attensor.compare.skills.panel import skills_sentences as skills_sentences
from attensor.compare.skills.panel import skills_table as skills_table
from attensor.compare.skills.phase import run_skills as run_skills
from attensor.compare.skills.phase import skills_are_done as skills_are_done
