"""A small detector on any backbone of attensor: a feature pyramid and a RetinaNet-like head, on drawn scenes.

    python docs/examples/detector.py --backbone davit_tiny --steps 600

A cell of a map that lies in the middle of a box answers for it: which class, and how far away its four sides are
(FCOS, arXiv:1904.01355); classes are learned with the focal loss (RetinaNet, arXiv:1708.02002). Prints the share of
boxes of unseen scenes that are found with an overlap of at least a half and the right class, and how many answers are
right.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor import models

KINDS = ("disc", "square", "cross")
SIDE, WIDTH = 64, 64


def scene(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image [3, SIDE, SIDE], boxes [N, 4] as left, top, right, bottom, kinds [N]; a pure function of the number."""
    chance = torch.Generator().manual_seed(number)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=chance))

    image = 0.3 * torch.randn(3, SIDE, SIDE, generator=chance)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    boxes: list[tuple[int, int, int, int]] = []
    kinds = []
    for _ in range(draw(1, 4)):
        half, kind = draw(5, 13), draw(0, len(KINDS))
        x, y = draw(half, SIDE - half), draw(half, SIDE - half)
        box = (x - half, y - half, x + half, y + half)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
            continue
        across, down = (columns - x).abs(), (rows - y).abs()
        inside = {
            "disc": across**2 + down**2 <= half**2,
            "square": torch.maximum(across, down) <= half,
            "cross": (torch.minimum(across, down) <= half // 3) & (torch.maximum(across, down) <= half),
        }[KINDS[kind]]
        colour = torch.rand(3, 1, 1, generator=chance) + 0.7
        image = torch.where(inside, colour, image)
        boxes.append(box)
        kinds.append(kind)
    return image, torch.tensor(boxes, dtype=torch.float32), torch.tensor(kinds)


class Pyramid(nn.Module):
    """Maps of all strides at one width, finest first; coarse ones are added to the finer."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.inside = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.outside = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        found = [layer(one) for layer, one in zip(self.inside, maps)]
        for finer in range(len(found) - 2, -1, -1):
            found[finer] = found[finer] + F.interpolate(found[finer + 1], size=found[finer].shape[-2:])
        return [layer(one) for layer, one in zip(self.outside, found)]


class Detector(nn.Module):
    """Logits of the kinds, and the four distances in pixels, of every cell of every map."""

    def __init__(self, backbone: str, width: int = WIDTH) -> None:
        super().__init__()
        self.backbone = models.create(backbone, img_size=SIDE, features_only=True, out_indices=(0, 1, 2))
        self.strides = self.backbone.feature_info.reduction()
        self.neck = Pyramid(self.backbone.feature_info.channels(), width)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()) for _ in range(2)
        )
        self.kinds, self.sides = nn.Conv2d(width, len(KINDS), 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        nn.init.constant_(self.kinds.bias, -4.0)  # most cells answer for nothing

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, cells, kinds], distances [B, cells, 4], middles and strides of the cells [cells, 3]."""
        logits, distances, places = [], [], []
        for one, stride in zip(self.neck(self.backbone(images)), self.strides):
            logits.append(self.kinds(self.towers[0](one)).flatten(2).mT)
            distances.append(F.softplus(self.sides(self.towers[1](one))).flatten(2).mT * stride)
            rows, columns = one.shape[-2:]
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            where = [(x.flatten() + 0.5) * stride, (y.flatten() + 0.5) * stride, torch.full((x.numel(),), stride)]
            places.append(torch.stack(where, 1))
        return torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(places)


def targets(places: Tensor, boxes: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Of each cell its kind (-1 for none) and distances: cells within 1.5 strides of a middle, on a fitting map."""
    found = torch.full((len(places),), -1)
    distances = torch.zeros(len(places), 4)
    for box, kind in zip(boxes, kinds):
        middle, size = (box[:2] + box[2:]) / 2, box[2] - box[0]
        near = (places[:, :2] - middle).abs().amax(1) < torch.minimum(1.5 * places[:, 2], size / 2)
        fits = places[:, 2] == (4 if size < 16 else 8)  # the coarsest map is for the others' sake
        mine = near & fits
        found[mine] = kind
        distances[mine] = torch.cat([places[mine, :2] - box[:2], box[2:] - places[mine, :2]], 1)
    return found, distances


def loss(model: Detector, scenes: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Focal loss of the kinds and, where there is a box, one minus the overlap."""
    logits, distances, places = model(torch.stack([one[0] for one in scenes]))
    wanted = [targets(places, boxes, kinds) for _, boxes, kinds in scenes]
    kinds, sides = torch.stack([one[0] for one in wanted]), torch.stack([one[1] for one in wanted])
    answers = F.one_hot(kinds.clamp(min=0), len(KINDS)) * (kinds >= 0)[..., None]
    plain = F.binary_cross_entropy_with_logits(logits, answers.float(), reduction="none")
    wrong = torch.where(answers == 1, 1 - logits.sigmoid(), logits.sigmoid())
    weights = torch.where(answers == 1, 0.25, 0.75) * wrong**2
    has_box = kinds >= 0
    count = has_box.sum().clamp(min=1)
    ours, theirs = distances[has_box], sides[has_box]
    shared = torch.minimum(ours, theirs)
    common = (shared[:, 0] + shared[:, 2]) * (shared[:, 1] + shared[:, 3])
    areas = [(d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3]) for d in (ours, theirs)]
    overlap = common / (areas[0] + areas[1] - common)
    return (weights * plain).sum() / count + (1 - overlap).sum() / count


@torch.no_grad()
def detect(model: Detector, image: Tensor, least: float = 0.3) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] and kinds [N]: the surest of each place, others that overlap it by a half left out."""
    logits, distances, places = model(image[None])
    sure, kinds = logits[0].sigmoid().max(1)
    boxes = torch.cat([places[:, :2] - distances[0, :, :2], places[:, :2] + distances[0, :, 2:]], 1)
    kept: list[int] = []
    for index in sure.argsort(descending=True).tolist():
        if sure[index] < least:
            break
        if not kept or overlaps(boxes[index][None], boxes[kept]).max() < 0.5:
            kept.append(index)
    return boxes[kept], kinds[kept]


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection by union of boxes [N, 4] and [M, 4]: [N, M]."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    areas = [(one[:, 2:] - one[:, :2]).prod(-1) for one in (a, b)]
    return common / (areas[0][:, None] + areas[1] - common)


def judge(model: Detector, numbers: range) -> tuple[float, float]:
    """Share of the boxes that are found, and of the answers that are right."""
    model.eval()
    found = right = boxes_in_all = answers = 0
    for number in numbers:
        image, boxes, kinds = scene(number)
        ours, our_kinds = detect(model, image)
        answers, boxes_in_all = answers + len(ours), boxes_in_all + len(boxes)
        if len(ours):
            match = (overlaps(ours, boxes) >= 0.5) & (our_kinds[:, None] == kinds)
            found, right = found + int(match.any(0).sum()), right + int(match.any(1).sum())
    model.train()
    return found / boxes_in_all, right / max(1, answers)


def main() -> None:
    """Train and say what is found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="davit_tiny")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Detector(options.backbone)
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=options.steps)
    started = time.monotonic()
    for step in range(options.steps):
        size = options.batch_size
        value = loss(model, [scene(n) for n in range(step * size, (step + 1) * size)])
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step + 1 == options.steps:
            print(f"step {step}  loss {value.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)
    found, right = judge(model, range(10**6, 10**6 + 100))
    print(f"unseen scenes: {found:.0%} of the boxes found, {right:.0%} of the answers right")


if __name__ == "__main__":
    main()
