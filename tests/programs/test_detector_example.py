"""The example of a detector: its scenes, its answers, and that a step makes it better."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parents[2] / "docs" / "examples" / "detector.py"


@pytest.fixture(scope="module")
def detector():
    spec = importlib.util.spec_from_file_location("attensor_docs_detector", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cells_that_answer_say_the_box_they_belong_to(detector):
    """Decoding the targets gives the boxes back, and every box has cells that answer for it."""
    places = torch.tensor(
        [[(x + 0.5) * s, (y + 0.5) * s, s] for s in (4, 8, 16) for y in range(64 // s) for x in range(64 // s)]
    )
    for number in range(40):
        _, boxes, kinds = detector.scene(number)
        found, distances = detector.targets(places, boxes, kinds)
        decoded = torch.cat([places[:, :2] - distances[:, :2], places[:, :2] + distances[:, 2:]], 1)
        same = (decoded[:, None] == boxes).all(-1) & (found[:, None] == kinds)
        assert same.any(0).all()
        assert same.any(1).sum() == (found >= 0).sum()


def test_overlaps_are_those_of_counted_pixels(detector):
    generator = torch.Generator().manual_seed(0)
    low, size = (torch.randint(a, b, (9, 2), generator=generator) for a, b in ((0, 15), (1, 12)))
    boxes = torch.cat([low, low + size], 1)
    masks = torch.zeros(9, 30, 30, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.tolist()):
        mask[top:bottom, left:right] = True
    both, either = ((op(masks[:, None], masks)).sum((-2, -1)) for op in (torch.logical_and, torch.logical_or))
    torch.testing.assert_close(detector.overlaps(boxes.float(), boxes.float()), both / either)


@pytest.mark.slow
def test_the_loss_of_some_scenes_falls(detector):
    torch.manual_seed(0)
    model = detector.Detector("davit_tiny", width=16)
    scenes = [detector.scene(number) for number in range(2)]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    values = []
    for _ in range(8):
        value = detector.loss(model, scenes)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]
    boxes, kinds = detector.detect(model.eval(), scenes[0][0], least=0.0)
    assert len(boxes) == len(kinds) > 0
    assert (detector.overlaps(boxes, boxes) - torch.eye(len(boxes))).max() < 0.5
