"""Scorers of triples against PyKEEN's numbers, whole tensors, and sums over all times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attensor.metrics.retrieval import hits_at, mean_reciprocal_rank
from attensor.models.knowledge.memory import marginalise
from attensor.models.knowledge.saved import from_pykeen, load_knowledge, save_knowledge
from attensor.models.knowledge.scorer import TimedScorer
from attensor.models.knowledge.scorers import KINDS, RESCAL, ComplEx, DistMult, Scorer, ScorerConfig, Tucker
from attensor.train.triples import filtered_ranks, one_to_n_loss
from tests.golden.drawn import golden, listing, uniform

ENTITIES, RELATIONS, TIMES = 13, 5, 4
EVERY = pytest.mark.parametrize("kind", KINDS)
SIZES: dict[str, Any] = {"dim": 6, "relation_dim": 4}


def triples() -> Tensor:
    """The same that PyKEEN was given."""
    places = uniform("triples", ENTITIES * RELATIONS * ENTITIES).argsort()[:240]
    return torch.stack([places // (RELATIONS * ENTITIES), places // ENTITIES % RELATIONS, places % ENTITIES], 1)


def drawn(kind: str, *, seed: int = 0, **options: Any) -> Scorer:
    torch.manual_seed(seed)
    time = {"time_dim": 3} if kind == "tucker" and options.get("num_times") else {}
    return KINDS[kind](ScorerConfig(ENTITIES, RELATIONS, **SIZES | time | options)).double()


def as_pykeen(kind: str) -> Scorer:
    """With the weights of the recorded model, through the converter."""
    shapes = listing("tensor-brain")[kind]["weights"]
    weights = {name: (2 * uniform(f"{kind}.{name}", *shape)).round() / 2 for name, shape in shapes.items()}
    model = drawn(kind, inverse=False)
    model.load_state_dict(from_pykeen(weights))
    return model


@EVERY
def test_scores_are_pykeens(kind: str) -> None:
    """Of triples, of all objects, of all subjects."""
    model, numbers = as_pykeen(kind), golden("tensor-brain")
    s, p, o = triples()[200:].unbind(1)
    found = {
        "triples": model.triple_scores(s, p, o),
        "objects": model.scores(s, p),
        "subjects": model.subject_scores(p, o),
    }
    for name, value in found.items():
        torch.testing.assert_close(value, numbers[f"{kind}.{name}"].double(), rtol=1e-12, atol=1e-12)


@EVERY
@pytest.mark.parametrize("ties", ["mean", "optimistic", "pessimistic"])
def test_filtered_ranks_are_those_of_pykeens_evaluator(kind: str, ties: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores with many ties; ours asks with `ties` as it stands in the module's one call."""
    from attensor.metrics import retrieval
    from attensor.train import triples as module

    monkeypatch.setattr(module, "ranks", lambda *given, **options: retrieval.ranks(*given, **options, ties=ties))
    ranks = filtered_ranks(as_pykeen(kind), triples()[200:], triples(), batch_size=7)
    theirs = listing("tensor-brain")[kind]
    found = {"mrr": mean_reciprocal_rank(ranks), "hits@1": hits_at(ranks, 1), "hits@3": hits_at(ranks, 3)}
    found["mean"] = ranks.mean().item()
    for name, value in found.items():
        assert value == pytest.approx(theirs[f"{ties}.{name}"], rel=1e-6), name


def everything(model: Scorer) -> Tensor:
    """theta of all triples at all times by loops over indices: [T, N, P, N]."""
    times: list[int | None] = list(range(model.config.num_times)) or [None]
    out = torch.empty(len(times), ENTITIES, RELATIONS, ENTITIES, dtype=torch.float64)
    for number, t in enumerate(times):
        for s in range(ENTITIES):
            for p in range(RELATIONS):
                out[number, s, p] = by_hand(model, s, p, t)
    return out


def by_hand(model: Scorer, s: int, p: int, t: int | None) -> Tensor:
    """The definitions, one sum at a time, in float64."""
    read = {name: x.detach().abs() if model.config.nonnegative else x.detach() for name, x in model.named_parameters()}
    subjects, objects = (read[f"{role}.weight"] for role in model.roles)
    relation, time = read["relations.weight"][p], None if t is None else read["times.weight"][t]
    if isinstance(model, ComplEx):
        subject, relation, every = (x[..., ::2] + 1j * x[..., 1::2] for x in (subjects[s], relation, objects))
        factor = 1 if time is None else time[::2] + 1j * time[1::2]
        return torch.stack([(subject * relation * factor * every[o].conj()).sum().real for o in range(ENTITIES)])
    if isinstance(model, Tucker):
        core = read["core"] if time is None else torch.tensordot(read["core"], time, 1)
        return torch.tensordot(torch.tensordot(subjects[s], core, 1).mT @ relation, objects, ([0], [1]))
    if isinstance(model, RESCAL):
        return objects @ (relation.view(6, 6).mT @ subjects[s])
    return objects @ (subjects[s] * relation * (1 if time is None else time))


@EVERY
@pytest.mark.parametrize("num_times", [0, TIMES])
def test_questions_agree_with_the_whole_tensor(kind: str, num_times: int) -> None:
    if num_times and kind == "rescal":
        with pytest.raises(ValueError, match="use Tucker"):
            drawn(kind, num_times=num_times)
        return
    model = drawn(kind, inverse=False, num_times=num_times)
    whole, (s, p, o) = everything(model), triples()[:50].unbind(1)
    t = torch.arange(50) % TIMES if num_times else None
    at = torch.zeros(50, dtype=torch.int64) if t is None else t
    torch.testing.assert_close(model.scores(s, p, t), whole[at, s, p], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.subject_scores(p, o, t), whole[at, :, p, o], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.triple_scores(s, p, o, t), whole[at, s, p, o], rtol=1e-12, atol=1e-12)
    if num_times:
        totals = model.total(torch.arange(TIMES))
        torch.testing.assert_close(totals, whole.flatten(1).sum(1), rtol=1e-11, atol=1e-11)


@EVERY
def test_an_inverse_predicate_asks_for_the_subject(kind: str) -> None:
    model, (s, p, o) = drawn(kind), triples()[:9].unbind(1)
    assert torch.equal(model.subject_scores(p, o), model.scores(o, p + RELATIONS))
    assert not torch.allclose(model.subject_scores(p, o).gather(1, s[:, None])[:, 0], model.triple_scores(s, p, o))


@pytest.mark.parametrize("kind", ["distmult", "cp", "tucker"])
def test_episodes_sum_to_knowledge_exactly(kind: str) -> None:
    """P(s, p, o) = sum_t P(t) P(s, p, o | t), each P(. | t) by brute force over all triples."""
    model = drawn(kind, inverse=False, num_times=TIMES, nonnegative=True)
    weights = torch.tensor([0.1, 0.5, 0.15, 0.25], dtype=torch.float64)
    given_time = everything(model)
    given_time = given_time / given_time.flatten(1).sum(1)[:, None, None, None]
    expected = (weights[:, None, None, None] * given_time).sum(0)
    semantic = marginalise(model, weights)
    s, p, o = torch.cartesian_prod(*map(torch.arange, (ENTITIES, RELATIONS, ENTITIES))).unbind(1)
    actual = semantic.triple_scores(s, p, o).view_as(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)
    assert actual.sum().item() == pytest.approx(1, abs=1e-12)
    mean_field = model.at_mixed_time(weights).triple_scores(s, p, o).view_as(expected)
    assert (mean_field / mean_field.sum() / expected - 1).abs().max() > 1e-5  # without Z_t it is another distribution


def test_what_has_signs_is_not_summed() -> None:
    with pytest.raises(ValueError, match="nonnegative"):
        marginalise(drawn("cp", num_times=TIMES), torch.full((TIMES,), 0.25))
    with pytest.raises(ValueError, match="sum 1"):
        marginalise(drawn("cp", num_times=TIMES, inverse=False, nonnegative=True), torch.ones(TIMES))
    with pytest.raises(ValueError, match="use inverse=False"):
        ScorerConfig(3, 2, nonnegative=True)


@EVERY
def test_the_loss_is_cross_entropy_of_both_questions(kind: str) -> None:
    model, batch = drawn(kind), triples()[:8]
    told = 0.0
    for s, p, o in batch.tolist():
        for asked, right in (((s, p), o), ((o, p + RELATIONS), s)):
            logits = by_hand(model, *asked, None)
            told += float(logits.exp().sum().log() - logits[right]) / 8
    assert one_to_n_loss(model, batch).item() == pytest.approx(told, rel=1e-12)
    rows = [x.abs() for x in model.factors(*batch.unbind(1))]
    assert one_to_n_loss(model, batch, n3=0.1).item() > told
    if kind == "complex":  # the size of a complex number, not of its halves
        weights = model.entities.weight[batch[0, 0]]
        torch.testing.assert_close(rows[0][0], (weights[::2].square() + weights[1::2].square()).sqrt())


def test_a_kind_of_scorer_states_everything() -> None:
    class Half(Scorer):
        def _query(self, s: Tensor, p: Tensor, t: Tensor | None) -> Tensor:
            return self.relations(p)

    class Timeless(TimedScorer):
        _query = _subject_query = Half._query

    for kind, missing in ((Half, "_subject_query"), (Timeless, "_mixed'?, '?_total"), (Scorer, "_query")):
        with pytest.raises(TypeError, match=f"abstract class {kind.__name__} .*{missing}"):
            kind(ScorerConfig(7, 3))


def test_sums_over_times_need_times() -> None:
    rescal, cp = (KINDS[kind](ScorerConfig(7, 3)) for kind in ("rescal", "cp"))
    for model, repair in ((rescal, "RESCAL: has no times .* use Tucker"), (cp, "CP: has no times .* num_times")):
        with pytest.raises(ValueError, match=repair):
            model.total(torch.tensor([0]))
        with pytest.raises(ValueError, match=repair):
            model.at_mixed_time(torch.ones(1))


def test_bad_questions_are_refused() -> None:
    model = DistMult(ScorerConfig(7, 3, dim=4))
    one = torch.tensor([1])
    for call, words in (
        (lambda: model.scores(torch.tensor([7]), one), r"DistMult: s must be 0 \.\. 6, got 7"),
        (lambda: model.scores(one.int(), one), "must be int64"),
        (lambda: model.scores(one, torch.tensor([1, 2])), r"p must be \[B\] = \[1\]"),
        (lambda: model.scores(one, one, one), "has no times"),
        (lambda: model.subject_scores(torch.tensor([3]), one), r"p must be 0 \.\. 2"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            call()


def test_a_folder_keeps_rows_and_names_together(tmp_path: Any) -> None:
    model = drawn("tucker", num_times=TIMES).float()
    names = {"entities": [f"e{i}" for i in range(ENTITIES)], "relations": list("abcde"), "times": list("wxyz")}
    save_knowledge(tmp_path, model, names)
    other, found = load_knowledge(tmp_path)
    assert found == names
    question = (torch.tensor([3, 4]), torch.tensor([1, 9]), torch.tensor([0, 3]))
    assert isinstance(other, Tucker)
    assert torch.equal(other.scores(*question), model.scores(*question))
    with pytest.raises(ValueError, match="must have 5 names of relations, got 4"):
        save_knowledge(tmp_path, model, names | {"relations": list("abcd")})
