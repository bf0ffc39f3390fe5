"""Run PyKEEN's interactions and its evaluator: `python -m tests.golden.record_pykeen`, where pykeen 1.11 is installed.

It needs neither attensor nor a network. Weights and triples are those of `drawn.py`; scores have many ties.
"""

from __future__ import annotations

import json

import torch
from pykeen.evaluation import RankBasedEvaluator
from pykeen.models import ERModel
from pykeen.nn import modules
from pykeen.triples import CoreTriplesFactory
from safetensors.torch import save_file
from torch import Tensor

from tests.golden.drawn import HERE, uniform

ENTITIES, RELATIONS, DIM, RELATION_DIM = 13, 5, 6, 4
KINDS = {
    "distmult": (modules.DistMultInteraction(), {}),
    "complex": (modules.ComplExInteraction(), {}),
    "rescal": (modules.RESCALInteraction(), {}),
    "tucker": (
        modules.TuckERInteraction(
            embedding_dim=DIM, relation_dim=RELATION_DIM, head_dropout=0, relation_dropout=0,
            head_relation_dropout=0, apply_batch_normalization=False,
        ),
        {},
    ),
    "cp": (modules.CPInteraction(), {}),
}  # fmt: skip


def triples() -> Tensor:
    """240 different ones, in a fixed order."""
    places = uniform("triples", ENTITIES * RELATIONS * ENTITIES).argsort()[:240]
    return torch.stack(
        [places // (RELATIONS * ENTITIES), places // ENTITIES % RELATIONS, places % ENTITIES], 1
    )  # fmt: skip


def coarse(name: str, *shape: int) -> Tensor:
    """Halves from -1 to 1: sums of their products meet often."""
    return (2 * uniform(name, *shape)).round() / 2


def main() -> None:
    """Write `tensor-brain.safetensors` and `tensor-brain.json`."""
    numbers, measured = {}, {}
    for kind, (interaction, _) in KINDS.items():
        model = _model(kind, interaction)
        hrt = triples()[200:]
        numbers[f"{kind}.triples"] = model.score_hrt(hrt)[:, 0]
        numbers[f"{kind}.objects"] = model.score_t(hrt[:, :2])
        numbers[f"{kind}.subjects"] = model.score_h(hrt[:, 1:])
        measured[kind] = _measured(model)
        measured[kind]["weights"] = {name: list(x.shape) for name, x in model.state_dict().items()}
    save_file({name: x.detach().contiguous() for name, x in numbers.items()}, HERE / "tensor-brain.safetensors")
    (HERE / "tensor-brain.json").write_text(json.dumps(measured, indent=1) + "\n", "utf-8")


def _model(kind: str, interaction: modules.Interaction) -> ERModel:
    factory = CoreTriplesFactory(triples()[:180], num_entities=ENTITIES, num_relations=RELATIONS)
    dtype = torch.complex128 if kind == "complex" else torch.float64
    entity = [{"shape": (1, DIM) if kind == "cp" else (DIM,), "dtype": dtype}] * (2 if kind == "cp" else 1)
    shape = {"tucker": (RELATION_DIM,), "rescal": (DIM, DIM), "cp": (1, DIM)}.get(kind, (DIM,))
    model = ERModel(
        triples_factory=factory, interaction=interaction, entity_representations_kwargs=entity,
        relation_representations_kwargs={"shape": shape, "dtype": dtype},
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(coarse(f"{kind}.{name}", *weight.shape))
    return model


def _measured(model: ERModel) -> dict[str, float]:
    """Of both sides, filtered by all triples."""
    known, test = triples()[:200], triples()[200:]
    found = RankBasedEvaluator(filtered=True).evaluate(
        model, test, batch_size=16, additional_filter_triples=[known], use_tqdm=False
    )
    names = {"mrr": "inverse_harmonic_mean_rank", "hits@1": "hits_at_1", "hits@3": "hits_at_3", "mean": "mean_rank"}
    kinds = {"realistic": "mean", "optimistic": "optimistic", "pessimistic": "pessimistic"}
    return {f"{ours}.{name}": found.get_metric(f"both.{theirs}.{metric}") for theirs, ours in kinds.items()
            for name, metric in names.items()}  # fmt: skip


if __name__ == "__main__":
    main()
