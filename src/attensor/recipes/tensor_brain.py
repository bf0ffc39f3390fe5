"""The Tensor Brain: completion of knowledge graphs, perception with and without feedback, episodes into knowledge.

UMLS and Kinships come from PyKEEN's wheel (see `attensor.data.triples`); scenes are made from Kinships' triples.
Source: arXiv:2109.13392, sections 4 and 5 (arms of perception), 1807.00228 (scorers, episodic to semantic).
"""

from __future__ import annotations

from typing import Any

import torch

from attensor.data.files import generator
from attensor.data.scenes import SceneData
from attensor.data.triples import Graph, open_graph
from attensor.models.knowledge.memory import marginalise, superposition_curve
from attensor.models.knowledge.scorers import CP, ScorerConfig
from attensor.models.knowledge.tensor_brain import TensorBrain, TensorBrainConfig
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict, run_cells
from attensor.recipes._runs import Runs, measure
from attensor.train import TrainConfig, run_training, train
from attensor.train.brain import BrainSetup, BrainTraining, perception, recalled
from attensor.train.setups import TripleSetup
from attensor.train.triples import ScorerTraining, filtered_ranks, ranking

__all__ = ["RECIPE"]

DIMS = {"rescal": 32, "complex": 64, "distmult": 64}
COMPLETED = [f"{graph}, {kind}" for graph in ("kinships", "umls") for kind in DIMS]
DIRECT, NONE, SOFT, DRAWN = "P-Direct", "context, no feedback", "P-SA", "P-Samp"
ARMS: dict[str, tuple[Any, Any]] = {
    SOFT: ("recurrent", "attention"),
    DRAWN: ("recurrent", "sample"),
    NONE: ("recurrent", None),
    DIRECT: (None, None),
}
LABEL_ARMS = (SOFT, NONE)
EPISODES, RANK = 200, 768
NEW_SHARE = 0.2  # of the entities
# of a new entity little tells the class but its prototype's likeness; of a learned one, who it is
LABELLED: dict[str, Any] = {"num_classes": 8, "subject_noise": 2.0, "class_share": 0.2}
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # symbols in one state
_LOG_LEAST = 1e-300


def complete(model: str, seed: int, epochs: int) -> dict[str, Any]:
    """A scorer of one graph: filtered ranks on the test set, both sides."""
    name, kind = model.split(", ")
    graph = open_graph(name)
    options: dict[str, Any] = {"model": kind, "dim": DIMS[kind], "epochs": epochs, "seed": seed}
    training = ScorerTraining(TripleSetup(**options), graph)
    done = run_training(training, training.config)
    curve = [[point.step, point.score] for point in done.curve]
    return {**ranking(filtered_ranks(training.model, graph.test, graph.known)), "curve": curve}


def perceive(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """An arm, trained by itself on scenes of Kinships: what it tells of scenes of the test triples."""
    context, feedback = ARMS[arm]
    graph = open_graph("kinships")
    scenes = SceneData(len(graph.entities), seed=seed)
    how = BrainSetup(steps=steps, learning_rate=1e-2, seed=seed)
    brain = _drawn(graph, seed, context=context, feedback=feedback)
    done = run_training(BrainTraining(brain, graph.train, scenes, how, graph.valid), how.config)
    return {**perception(brain, graph.test, scenes), "curve": [[p.step, p.score] for p in done.curve]}


def label(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """The class of subjects that were learned, and of some that no training triple has; told with and without feedback.

    The subject's window is so noisy that entities are not always told; the others are as of `perceive`.
    """
    context, feedback = ARMS[arm]
    graph = open_graph("kinships")
    scenes = SceneData(len(graph.entities), seed=seed, **LABELLED)
    new = torch.zeros(len(graph.entities), dtype=torch.bool)
    new[torch.randperm(len(new), generator=generator(seed, 4))[: round(NEW_SHARE * len(new))]] = True
    # of each part: triples of learned entities alone, and those of a new subject
    train, valid, test = (part[~new[part[:, [0, 2]]].any(1)] for part in (graph.train, graph.valid, graph.test))
    unseen = graph.known[new[graph.known[:, 0]]]
    how = BrainSetup(steps=steps, learning_rate=1e-2, seed=seed)
    brain = _drawn(graph, seed, unary={"class": scenes.num_classes}, context=context, feedback=feedback)
    run_training(BrainTraining(brain, train, scenes, how, valid), how.config)
    return {"known": perception(brain, test, scenes), "new": perception(brain, unseen, scenes)}


def _drawn(graph: Graph, seed: int, **options: Any) -> TensorBrain:
    torch.manual_seed(seed)
    return TensorBrain(TensorBrainConfig(len(graph.entities), len(graph.relations), **options))


def keep_episodes(seed: int, steps: int) -> dict[str, float]:
    """200 triples, each at its time: recalled by a brain from the time, and summed to knowledge by a CP model."""
    graph = open_graph("kinships")
    episodes = graph.train[torch.randperm(len(graph.train), generator=generator(seed))[:EPISODES]]
    how = BrainSetup(steps=steps, batch_size=EPISODES, learning_rate=1e-2, perceive=False, seed=seed)
    brain, scenes = _drawn(graph, seed, num_times=EPISODES), SceneData(len(graph.entities), seed=seed)
    run_training(BrainTraining(brain, episodes, scenes, how, episodes, episodes), how.config)
    return {**recalled(brain, episodes), **_summed(graph.entities, graph.relations, episodes, steps)}


def _summed(
    entities: tuple[str, ...], relations: tuple[str, ...], episodes: torch.Tensor, steps: int
) -> dict[str, float]:
    """KL of the frequencies from the semantic model, and its largest deviation from the sum over times."""
    sizes: dict[str, Any] = {"dim": RANK, "num_times": EPISODES, "inverse": False, "nonnegative": True}
    model, times = CP(ScorerConfig(len(entities), len(relations), **sizes)), torch.arange(EPISODES)
    s, p, o = episodes.unbind(1)

    def loss(model: CP, batch: None) -> torch.Tensor:
        likelihood = model.triple_scores(s, p, o, times).clamp(min=1e-12).log() - model.total(times).log()
        return -likelihood.mean()

    config = TrainConfig(steps, 0.03, warmup_fraction=0.0, clip_norm=None, evaluations=1)
    train(model, lambda step: None, loss, config, evaluate=lambda model: 0.0, optimizer=_adam)
    weights = torch.full((EPISODES,), 1 / EPISODES, dtype=torch.float64)
    model = model.double()
    semantic = marginalise(model, weights)
    table: dict[tuple[int, ...], int] = {}
    for row in episodes.tolist():
        table[tuple(row)] = table.get(tuple(row), 0) + 1
    seen, counts = torch.tensor(list(table)), torch.tensor(list(table.values()), dtype=torch.float64)
    share = counts / EPISODES
    kl = (share * (share / semantic.triple_scores(*seen.unbind(1)).detach().clamp(min=_LOG_LEAST)).log()).sum()
    return {"kl": float(kl), "deviation": _deviation(model, weights)}


@torch.no_grad()
def _deviation(model: CP, weights: torch.Tensor) -> float:
    """Between the semantic theta of all triples and sum_t P(t) theta_spot / Z_t, each Z_t summed over all of them."""
    pairs = torch.cartesian_prod(torch.arange(model.config.num_entities), torch.arange(model.config.num_relations))
    s, p = pairs.unbind(1)
    few = torch.zeros_like(weights)
    few[::8] = 8 / EPISODES  # every eighth time, the others have no weight
    expected = torch.zeros(len(s), model.config.num_entities, dtype=torch.float64)
    for t in few.nonzero()[:, 0]:
        theta = model.scores(s, p, t.expand(len(s)))
        expected += few[t] * theta / theta.sum()
    return float((marginalise(model, few).scores(s, p) - expected).abs().max() / expected.max())


def superpose(seed: int, trials: int) -> dict[str, Any]:
    """Recall of m random columns, D = 256, of 500."""
    columns = torch.randn(256, 500, generator=generator(seed)) / 16
    recall = superposition_curve(columns, SIZES, trials=trials, generator=generator(seed, 1))
    return {"recall": recall, "few": min(r for m, r in zip(SIZES, recall) if m <= 4)}


def judge(completed: Runs, seen: Runs, labels: Runs, kept: Runs, held: Runs) -> Verdict:
    """The verdict on results by variant, with one result a seed."""
    mark = Check.between
    umls = [
        mark(f"UMLS, {kind}, MRR at least 0.85", completed.interval(f"umls, {kind}", "mrr"), low=0.85) for kind in DIMS
    ]
    rescal, complex_, distmult = (f"kinships, {kind}" for kind in DIMS)
    episodes = kept["episodes"]
    checks = (
        *umls,
        mark("Kinships, complex, MRR at least 0.80", completed.interval(complex_, "mrr"), low=0.80),
        mark("Kinships, rescal, MRR at least 0.75", completed.interval(rescal, "mrr"), low=0.75),
        mark("Kinships, complex over distmult at least 0.08", completed.margin(complex_, distmult, "mrr"), low=0.08),
        mark("predicate, P-SA over P-Direct, at least 0.05", seen.margin(SOFT, DIRECT, "predicate@1"), low=0.05),
        mark("predicate among ten, the same, at least 0.15", seen.margin(SOFT, DIRECT, "predicate@10"), low=0.15),
        mark("predicate among ten, P-SA over no feedback", seen.margin(SOFT, NONE, "predicate@10"), low=0.0),
        *_label_checks(labels),
        mark("episodes recalled from their time, at least 0.9", kept.interval("episodes", "triple"), low=0.9),
        mark("KL of frequencies from semantic memory at most 0.05", kept.interval("episodes", "kl"), high=0.05),
        Check(
            "episodes summed by one mean time are the sum over times within 1e-12: "
            f"{max(r['deviation'] for r in episodes):.1e}",
            max(r["deviation"] for r in episodes) <= 1e-12,
        ),
        Check(
            f"up to 4 symbols in a state are all told: {min(r['few'] for r in held['states']):.4f}",
            min(r["few"] for r in held["states"]) == 1.0,
        ),
    )
    return Verdict(checks, _figures(completed, seen, labels), _charts(completed, seen, held))


def _figures(completed: Runs, seen: Runs, labels: Runs) -> dict[str, str]:
    figures = completed.figures("MRR, {}", "mrr") | completed.figures("hits@10, {}", "hits@10")
    figures |= seen.figures("predicate first, {}", "predicate@1")
    figures |= seen.figures("predicate among ten, {}", "predicate@10")
    figures |= labels.figures("class of learned subjects, {}", "known.class@1")
    figures |= labels.figures("class of new subjects, {}", "new.class@1")
    return figures | seen.figures("feedback of the subject differs by, {}", "spread subject")


def _charts(completed: Runs, seen: Runs, held: Runs) -> tuple[Chart, ...]:
    recall = [Interval.of([r["recall"][i] for r in held["states"]]).mean for i in range(len(SIZES))]
    return (
        Chart("Filtered MRR on validation triples", "step", "MRR", completed.curves()),
        Chart("Predicate first, validation scenes", "step", "share", seen.curves()),
        Chart("Symbols told from their sum", "symbols", "recall", {"D = 256": list(zip(map(float, SIZES), recall))}),
    )


def _label_checks(labels: Runs) -> tuple[Check, ...]:
    """Feedback tells what is known of an entity: it helps with those that were learned, and with no others."""
    mark = Check.between
    return (
        mark("learned entities told, from 0.6 to 0.9", labels.interval(SOFT, "known.subject@1"), low=0.6, high=0.9),
        mark("class of learned entities, P-SA over no feedback, at least 0.03",
             labels.margin(SOFT, NONE, "known.class@1"), low=0.03),
        mark("class of new entities, the same, from -0.02 to 0.02", labels.margin(SOFT, NONE, "new.class@1"),
             low=-0.02, high=0.02),
    )  # fmt: skip


def _run(config: RecipeConfig) -> Verdict:
    open_graph("umls")  # says where to get it before anything is computed
    seeds, epochs, steps, kept_steps, trials = (1, 8, 200, 100, 50) if config.quick else (3, 30, 1500, 1000, 200)
    seen = measure(config, perceive, "arm", ARMS, seeds=seeds, steps=steps)
    completed = measure(config, complete, "model", COMPLETED, seeds=seeds, epochs=epochs)
    labels = measure(config, label, "arm", LABEL_ARMS, seeds=seeds, steps=steps)
    kept = run_cells(config, keep_episodes, [{"seed": seed, "steps": kept_steps} for seed in range(seeds)])
    held = run_cells(config, superpose, [{"seed": seed, "trials": trials} for seed in range(seeds)])
    return judge(completed, seen, labels, Runs(episodes=kept), Runs(states=held))


def _adam(model: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=learning_rate)


RECIPE = Recipe(
    name="tensor-brain",
    paper="arXiv:2109.13392, sections 4 and 5; 1807.00228",
    claim="embeddings complete graphs, asymmetric relations by asymmetric models; context and the feedback of "
    "symbols tell predicates far better than each window alone; episodes sum to knowledge exactly",
    run=_run,
    minutes=44,
)
