"""The panel's cells: each is done once, one that fails costs its own place, and results show what is there."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime

import pytest
from rich.console import Console

from attensor.catalogue import load
from attensor.compare.config import CompareConfig
from attensor.compare.folder import check_files, new_run
from attensor.compare.plan import make_plan
from attensor.compare.results import collect
from attensor.compare.skills import check_skills, pace, panel, phase, run_skills, skills_are_done
from attensor.lab import Display, Interruption, Outcome, Pool
from tests.compare.skills.toys import TOYS


@pytest.fixture
def plan(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    config = CompareConfig(data=str(text), mechanisms="linear,gla", length=32, jobs=2, device="cpu", skills="1s")
    return make_plan(config, created="now", command="attensor compare")


@pytest.fixture
def run(plan, tmp_path):
    return new_run(tmp_path, datetime(2026, 11, 22), plan)


@pytest.fixture
def done(monkeypatch):
    """Computes the cells in this process with quick tasks; the cells that were computed."""
    for module in (pace, panel, phase):
        monkeypatch.setattr(module, "SKILLS", TOYS)
    monkeypatch.setattr(phase, "skill", lambda name: next(one for one in TOYS if one.name == name))
    cells = []

    def here(self, asked, *, on_end, at_once, on_event, **_):
        for cell in asked:
            cells.append((cell.name, cell.arguments["name"], cell.arguments.get("skill_name")))
            try:
                on_end(cell, Outcome(load(cell.function)(**cell.arguments)))
            except ZeroDivisionError:
                on_end(cell, Outcome(reason="divides by zero"))

    monkeypatch.setattr(Pool, "run", here)
    return cells


def do(run, plan):
    written = []
    with Display("all", ["linear", "gla"], console=Console(file=io.StringIO())) as display:
        run_skills(
            run, plan, plan.subjects, interruption=Interruption(), display=display, on_end=lambda: written.append(1)
        )
    return len(written)


@pytest.mark.slow
def test_every_mechanism_does_every_task_with_equal_steps_and_once(run, plan, done) -> None:
    assert do(run, plan) == 6
    learning = [("learn", name, task) for task in ("easy", "hard") for name in ("linear", "gla")]
    assert done == [("calibrate", "linear", None), ("calibrate", "gla", None), *learning]
    tasks = collect(run, plan)["skills"]["tasks"]
    for task in tasks:
        assert [row["name"] for row in task["rows"]] == ["linear", "gla"]
        assert all(row["steps"] <= task["steps"] for row in task["rows"])
        assert all(row["score"] == row["at"][task["judged"]] for row in task["rows"])
        assert all(row["reason"] is None and row["state_bytes"] > 0 for row in task["rows"])
    check_files(run)
    assert all(skills_are_done(run, plan, subject) for subject in plan.subjects)
    done.clear()
    assert do(run, plan) == 0
    assert done == []


@pytest.mark.slow
def test_a_failure_costs_its_own_place_and_is_tried_again(run, plan, done, monkeypatch) -> None:
    lesson = phase.Lesson

    def broken(subject, task, *rest):
        if (subject.name, task.name) == ("gla", "easy"):
            raise ZeroDivisionError
        return lesson(subject, task, *rest)

    monkeypatch.setattr(phase, "Lesson", broken)
    do(run, plan)
    assert all(skills_are_done(run, plan, subject) for subject in plan.subjects)
    easy, hard = collect(run, plan)["skills"]["tasks"]
    assert [row["reason"] for row in easy["rows"]] == [None, "divides by zero"]
    assert easy["rows"][1]["score"] is None
    assert all(row["score"] is not None for row in hard["rows"])
    monkeypatch.setattr(phase, "Lesson", lesson)
    done.clear()
    do(run, plan)
    assert done == [("learn", "gla", "easy")]
    assert all(row["reason"] is None for row in collect(run, plan)["skills"]["tasks"][0]["rows"])


def test_a_calibration_that_fails_is_the_reason_of_all_tasks(run, plan, done, monkeypatch) -> None:
    measure = phase.measure_paces

    def broken(subject, *rest, **options):
        return 1 / 0 if subject.name == "gla" else measure(subject, *rest, **options)

    monkeypatch.setattr(phase, "measure_paces", broken)
    do(run, plan)
    for task in collect(run, plan)["skills"]["tasks"]:
        assert [row["reason"] for row in task["rows"]] == [None, "divides by zero"]
        assert task["rows"][0]["score"] is not None


def test_the_panel_is_refused_where_mechanisms_mix_images(plan) -> None:
    check_skills(plan)
    images = replace(plan, facts=plan.facts | {"kind": "images", "name": "digits"})
    with pytest.raises(ValueError, match=r"--skills: its tasks are rows of tokens, and digits holds images\. Leave"):
        check_skills(images)
    check_skills(replace(images, config=plan.config | {"skills": None}))


def test_without_the_option_there_is_no_panel(run, plan, done) -> None:
    assert not skills_are_done(run, plan, plan.subjects[0])
    plan.config["skills"] = None
    assert do(run, plan) == 0
    assert collect(run, plan)["skills"] is None
    assert skills_are_done(run, plan, plan.subjects[0])
