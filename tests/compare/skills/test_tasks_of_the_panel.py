"""Every task of the panel can be solved, gives nothing away, and is scored on rows that no training has seen."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import pairwise

import pytest
import torch

from attensor.compare.skills import lesson
from attensor.compare.skills.skill import SKILLS, length_of
from attensor.data.mqar import IGNORED
from attensor.data.state_tracking import ORDERS

FORMS = [(task, key) for task in SKILLS for key in task.tests]
every_form = pytest.mark.parametrize(("task", "key"), FORMS, ids=lambda value: getattr(value, "name", value))
every_task = pytest.mark.parametrize("task", SKILLS, ids=lambda task: task.name)


def solve_recall(seen: list[int]) -> int:
    return next(after for token, after in pairwise(seen) if token == seen[-1])


def solve_copying(seen: list[int]) -> int:
    return [token for token in seen if token > 1][seen.count(1) - 1]


def solve_parity(seen: list[int]) -> int:
    return sum(seen) % 2


def solve_s5(seen: list[int]) -> int:
    where = range(5)
    for token in seen:
        where = [ORDERS[token][place] for place in where]
    return ORDERS.index(tuple(where))


def solve_needle(seen: list[int]) -> int:
    question = b"The pass key is "
    key = re.search(question + rb"(\d{5})\. ", bytes(seen))
    assert key is not None
    return key[1][len(seen) - bytes(seen).rindex(question) - len(question)]


SOLVERS = {
    "recall": solve_recall,
    "capacity": solve_recall,
    "copying": solve_copying,
    "parity": solve_parity,
    "s5": solve_s5,
    "needle": solve_needle,
}


@every_form
def test_a_solver_that_reads_up_to_the_question_is_always_right(task, key: str) -> None:
    tokens, targets = task.tests[key](-1, seed=0, batch_size=5)
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        asked = [place for place, value in enumerate(target) if value != IGNORED]
        assert asked
        assert [SOLVERS[task.name](row[: place + 1]) for place in asked] == [target[place] for place in asked]


@every_form
def test_where_and_at_which_token_the_question_stands_gives_nothing_away(task, key: str) -> None:
    def answers(step: int):
        tokens, targets = task.tests[key](step, seed=0, batch_size=400)
        rows, places = (targets != IGNORED).nonzero(as_tuple=True)
        return zip(tokens[rows, places].tolist(), places.tolist(), targets[rows, places].tolist(), strict=True)

    table: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for token, place, value in answers(0):
        table[token, place][value] += 1
    guessed = [
        table[token, place].most_common(1)[0][0] == value for token, place, value in answers(1) if table[token, place]
    ]
    naming_any = task.chance if task.name in ("parity", "s5", "needle") else 1 / 14
    assert sum(guessed) / max(len(guessed), 1) < naming_any + 5 * (naming_any / max(len(guessed), 1)) ** 0.5


@every_task
def test_all_answers_come_as_often(task) -> None:
    targets = torch.cat([task.tests[task.judged](step, seed=0, batch_size=500)[1].flatten() for step in range(4)])
    counts = torch.bincount(targets[targets != IGNORED])
    counts = counts[counts.nonzero()[0, 0] :].double()  # from the first answer on: the values of a range
    expected = counts.mean()
    # the mean of the squared deviations in units of the expected one is 1; five of its own deviations around it
    deviation = ((counts - expected) ** 2 / expected).sum() / (len(counts) - 1)
    # answers of one row of recall and of the states are not drawn independently of each other, but each is uniform
    assert deviation < 1 + 5 * (2 / (len(counts) - 1)) ** 0.5
    assert (
        len(counts) == {"recall": 128, "capacity": 128, "copying": 14, "parity": 2, "s5": 120, "needle": 10}[task.name]
    )


@every_task
def test_training_selection_and_test_have_no_row_in_common(task) -> None:
    def rows(step: int, forms) -> set[tuple[int, ...]]:
        return {tuple(row) for form in forms for row in form(step, seed=lesson.SEED, batch_size=50)[0].tolist()}

    training = set().union(*(rows(step, task.training) for step in range(20)))
    purposes = [(lesson._SELECTION_BATCH, lesson._SELECTION_BATCHES), (lesson._TEST_BATCH, lesson._TEST_BATCHES)]
    held_out = [set().union(*(rows(first - i, task.tests.values()) for i in range(count))) for first, count in purposes]
    assert not training & held_out[0]
    assert not training & held_out[1]
    assert not held_out[0] & held_out[1]
    assert lesson._TEST_BATCH < lesson._SELECTION_BATCH - lesson._SELECTION_BATCHES < 0


@every_task
def test_naming_one_of_the_rows_own_answers_at_random_gives_chance(task) -> None:
    _, targets = task.tests[task.judged](-3, seed=0, batch_size=400)
    choose = torch.Generator().manual_seed(0)
    right = answers = 0
    for target in targets:
        values = target[target != IGNORED]
        if task.name in ("parity", "s5", "needle"):  # there the answers are known without the row
            known = {"parity": range(2), "s5": range(120), "needle": range(48, 58)}[task.name]
            named = torch.tensor(known)[torch.randint(len(known), (len(values),), generator=choose)]
        else:
            named = values[torch.randint(len(values), (len(values),), generator=choose)]
        right, answers = right + int((named == values).sum()), answers + len(values)
    assert right / answers == pytest.approx(task.chance, abs=5 * (task.chance / answers) ** 0.5)


def test_the_panel_is_consistent() -> None:
    assert sum(task.share for task in SKILLS) == pytest.approx(1)
    assert len({task.name for task in SKILLS}) == len(SKILLS)
    for task in SKILLS:
        assert task.judged in task.tests
        assert set(task.selection) <= set(task.tests)
        # what chooses is as long as what was trained on; what is judged may be longer
        assert {length_of(task.tests[key]) for key in task.selection} == {length_of(form) for form in task.training}
