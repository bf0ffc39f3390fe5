"""How well the order of mechanisms after a small budget predicts that after ten times as much, by what is trained.

    python tests/programs/learners.py --candidates plain,counts --steps 1280 --points 128,256,1280

A candidate is a model and an optimizer; each trains the same mechanisms on the standard library at the sizes of
`attensor compare`, at one learning rate, and is scored on the test at some steps of one run: the rate is constant and
the weights are averaged, so that a reading is what a run of so many steps ends with. Prints a line of JSON a run, then
for each candidate the order at each point and Kendall's tau with the order at the last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from attensor.compare import counts
from attensor.compare.config import CompareConfig
from attensor.compare.plan import Plan, make_plan
from attensor.compare.stages import Training
from attensor.compare.tasks import open_task
from attensor.compare.tasks.text import cut, mean_loss
from attensor.models.language import CountedDecoder, Decoder
from attensor.train import TrainConfig, polynomial_average, train
from attensor.train.muon import muon
from attensor.train.optimizer import adamw

# name -> order of the counts (0: none), optimizer, buckets for the embedding of byte pairs, share of the batch
CANDIDATES = {
    "plain": (0, adamw, 0, 1),
    "counts-3": (3, adamw, 0, 1),
    "counts-4": (4, adamw, 0, 1),
    "counts": (5, adamw, 0, 1),
    "counts-6": (6, adamw, 0, 1),
    "counts-pairs": (5, adamw, 2048, 1),
    "counts-half-batch": (5, adamw, 0, 2),
    "plain-muon": (0, muon, 0, 1),
    "counts-muon": (5, muon, 0, 1),
    "counts-muon-pairs": (5, muon, 2048, 1),
}


class PairDecoder(Decoder):
    """A decoder that also embeds each byte together with the one before it, hashed into buckets."""

    def __init__(self, decoder: Decoder, buckets: int) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(decoder.__dict__)
        self._modules = dict(decoder._modules)
        self.pairs = nn.Embedding(buckets, decoder.config.hidden_size)
        nn.init.normal_(self.pairs.weight, std=0.02)

    def forward(self, tokens: Tensor, **past: object) -> Tensor:
        """Logits [B, T, 256]."""
        before = functional.pad(tokens[:, :-1], (1, 0))
        bucket = ((before * 256 + tokens) * 2654435761 & 0x7FFFFFFF) % self.pairs.num_embeddings
        hidden = self.run(self.embed_tokens(tokens) + self.pairs(bucket))
        return functional.linear(hidden, self.embed_tokens.weight)


def curve(plan: Plan, name: str, candidate: str, arguments: argparse.Namespace) -> dict[str, object]:
    """One run."""
    order, optimizer, buckets, parts = CANDIDATES[candidate]
    counts.ORDER = order or 1
    plan = replace(plan, counts=order > 0, batch_size=plan.batch_size // parts)
    task = open_task(plan)
    stages = Training(plan, plan.subject(name), arguments.folder, None)  # type: ignore[arg-type]
    width = stages._balance().mlp_hidden_size
    torch.manual_seed(arguments.seed)
    model = plan.task.build(plan, plan.mixers(plan.subject(name)), width)
    if buckets:
        inner = model.decoder if isinstance(model, CountedDecoder) else model
        paired = PairDecoder(inner, buckets)
        model = CountedDecoder(paired) if isinstance(model, CountedDecoder) else paired
    windows = cut(task._test(task._data, plan.length)[0], plan.length)
    points = tuple(parts * point for point in arguments.points)
    started = time.thread_time()
    progress = train(
        model,
        lambda step: task.batch(step, arguments.seed),
        task.loss,
        TrainConfig(points[-1], arguments.rate, constant_after=20, evaluations=points),
        evaluate=lambda model: mean_loss(task._predictions(model), windows) / math.log(2),
        optimizer=optimizer,
        average=polynomial_average(model),
    )
    scores = {point.step: round(point.score, 4) for point in progress.curve}
    seconds = time.thread_time() - started
    row = {"candidate": candidate, "mechanism": name, "seed": arguments.seed, "scores": scores, "seconds": seconds}
    print(json.dumps(row), flush=True)
    return row


def tau(first: dict[str, float], second: dict[str, float]) -> float:
    """Kendall's: pairs in the same order less those in the other, by all pairs."""
    pairs = list(itertools.combinations(first, 2))
    return sum(math.copysign(1, (first[a] - first[b]) * (second[a] - second[b])) for a, b in pairs) / len(pairs)


def main() -> None:
    """Train every candidate with every mechanism."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", default="plain,counts", help=", ".join(CANDIDATES))
    parser.add_argument("--mechanisms", default="softmax,sliding-window,gla,linear")
    parser.add_argument("--points", type=lambda text: [int(part) for part in text.split(",")], default=[128, 256, 1280])
    parser.add_argument("--rate", type=float, default=6e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder = None
    torch.set_num_threads(1)
    plan = make_plan(CompareConfig(mechanisms=arguments.mechanisms, device="cpu"), created="", command="")
    for candidate in arguments.candidates.split(","):
        rows = [curve(plan, subject.name, candidate, arguments) for subject in plan.subjects]
        steps = list(rows[0]["scores"])
        columns = {step: {str(row["mechanism"]): row["scores"][step] for row in rows} for step in steps}
        for step, scores in columns.items():
            order = ", ".join(f"{name} {scores[name]:.4f}" for name in sorted(scores, key=scores.get))
            print(f"{candidate:20} {step:6} steps  tau {tau(scores, columns[steps[-1]]):+.2f}  {order}", flush=True)


if __name__ == "__main__":
    main()
