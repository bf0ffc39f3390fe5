"""Pointer networks: numbers of the replication, decoding against enumeration, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.models.pointing import PointerNetwork, Seq2SeqBaselines, beam_search
from attensor.models.pointing.constraints import CONSTRAINTS
from attensor.models.pointing.pointing import Pointing, pointing_loss
from tests.golden.drawn import golden, summaries, weights
from tests.golden.record_pointer import HIDDEN, TARGETS, points

SIZES = (2, 5, 7)


def replication() -> PointerNetwork:
    model = PointerNetwork(HIDDEN, dtype=torch.float64)
    theirs = weights({name: x.shape for name, x in PointerNetwork.to_replication(model.state_dict()).items()})
    model.load_state_dict(PointerNetwork.from_replication(theirs))
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    pad = nn.utils.rnn.pad_sequence
    sets = points()
    targets = pad([torch.tensor(row) for row in TARGETS], True, -100)
    return pad(sets, True).requires_grad_(), targets, torch.tensor([len(one) for one in sets])


def test_logits_loss_and_gradients_are_those_of_the_replication() -> None:
    model, expected = replication(), golden("pointer")
    inputs, targets, counts = batch()
    logits = model(inputs, targets, counts)
    loss = pointing_loss(logits, targets)
    loss.backward()
    real = (targets != -100)[..., None].expand_as(logits)
    torch.testing.assert_close(logits[real], expected["logits"][real], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss, expected["loss"], rtol=1e-10, atol=1e-10)
    found = PointerNetwork.to_replication({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(summaries(found), expected["dp"], rtol=1e-10, atol=1e-10)
    of_points = torch.cat([one[:count] for one, count in zip(inputs.grad, counts.tolist(), strict=True)])
    torch.testing.assert_close(of_points, expected["dx"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("task", ["hull", "tsp"])
def test_answers_are_those_of_the_replication(task: str, width: int) -> None:
    inputs, _, counts = batch()
    found = replication().decode(inputs.detach(), counts, width=width, constraint=task).best
    expected = golden("pointer")
    for row, wanted, length in zip(found, expected[f"{task}.{width}"], expected[f"{task}.{width}.lengths"]):
        assert row[:length].tolist() == wanted[:length].tolist()
        assert not row[length:].any()


def test_weights_go_to_the_replication_and_back() -> None:
    model = PointerNetwork(5)
    there = PointerNetwork.to_replication(model.state_dict())
    assert set(there) > {"start_symbol", "end_symbol", "encoder_c_0", "attention.W1", "encoder.weight_ih_l0"}
    back = PointerNetwork.from_replication(there)
    assert all(torch.equal(back[name], x) for name, x in model.state_dict().items())
    assert set(back) == set(model.state_dict())


def test_the_published_size_has_its_number_of_parameters() -> None:
    """Two LSTMs, two matrices, the vectors v, start, end and first cell."""
    with torch.device("meta"):
        model = PointerNetwork()
    assert sum(p.numel() for p in model.parameters()) == 2 * 4 * 256 * (2 + 256 + 2) + 2 * 256**2 + 3 * 256 + 2


def drawn(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "pointer":
        return PointerNetwork(16, init_range=1.0, dtype=torch.float64)
    return Seq2SeqBaselines(16, 9, attention=kind == "attention", init_range=1.0, dtype=torch.float64)


KINDS = pytest.mark.parametrize("kind", ["pointer", "attention", "plain"])


@KINDS
def test_padding_changes_no_logit_and_no_answer(kind: str) -> None:
    model = drawn(kind)
    sets = [torch.rand(count, 2, dtype=torch.float64) for count in (4, 7, 6)]
    inputs, counts = nn.utils.rnn.pad_sequence(sets, True, 9.0), torch.tensor([4, 7, 6])
    targets = torch.tensor([[1, 3, 2, 1, 0], [2, 5, 7, 2, 0], [6, 1, 2, 6, 0]])
    logits = model(inputs, targets, counts)
    answers = model.decode(inputs, counts, width=2, constraint="hull")
    for row, one in enumerate(sets):
        alone = model(one[None], targets[row : row + 1])[0]
        torch.testing.assert_close(logits[row, :, : alone.shape[-1]], alone)
        found = model.decode(one[None], width=2, constraint="hull").best[0].tolist()
        assert answers.best[row].tolist()[: len(found)] == found


@KINDS
def test_what_is_decoded_has_the_likelihood_of_teacher_forcing(kind: str) -> None:
    model, inputs = drawn(kind), torch.rand(3, 6, 2, dtype=torch.float64)
    found = model.decode(inputs, width=3, max_steps=9)
    targets = found.best
    logits = model(inputs, targets)
    if kind != "pointer":  # words of points that are not there
        logits = logits[..., :7]
    chosen = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    is_end = (targets == 0).long()
    is_behind_end = (is_end.cumsum(-1) - is_end).bool()
    torch.testing.assert_close(chosen.masked_fill(is_behind_end, 0.0).sum(-1), found.log_probs[:, 0])


def test_many_beams_find_the_best_tour_of_all() -> None:
    """All 120 valid tours of five cities, each by its own likelihood among what is allowed."""
    model, inputs = drawn("pointer", 3), torch.rand(1, 5, 2, dtype=torch.float64)
    tours = torch.tensor([[*order, order[0], 0] for order in itertools.permutations(range(1, 6))])
    logits = model(inputs.expand(len(tours), -1, -1), tours).detach()
    counts, steps = torch.full((len(tours),), 5), range(tours.shape[1])
    allowed = torch.stack([CONSTRAINTS["tsp"](tours[:, None, :step], counts, 6)[:, 0] for step in steps], 1)
    chosen = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1).gather(-1, tours[..., None])[..., 0].sum(-1)
    assert float(chosen.exp().sum()) == pytest.approx(1.0)
    best, order = chosen.sort(descending=True)
    found = model.decode(inputs, width=120, constraint="tsp")
    torch.testing.assert_close(found.log_probs[0], best)
    assert found.best[0].tolist() == tours[order[0]].tolist()
    greedy = model.decode(inputs, constraint="tsp")
    assert greedy.log_probs[0, 0] <= best[0]


def test_beams_are_different_and_sorted() -> None:
    found = drawn("pointer", 1).decode(torch.rand(2, 6, 2, dtype=torch.float64), width=5, constraint="hull")
    for row, scores in zip(found.sequences.tolist(), found.log_probs.tolist(), strict=True):
        assert len({tuple(one) for one in row}) == 5
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("task", ["hull", "tsp", "delaunay"])
def test_constrained_answers_obey_the_rules_whatever_the_weights(task: str) -> None:
    for seed in range(6):
        model = drawn("pointer", seed)
        counts = torch.tensor([3, 5, 8])
        answers = model.decode(torch.rand(3, 8, 2, dtype=torch.float64), counts, width=1 + seed % 3, constraint=task)
        alive = answers.log_probs > -torch.inf
        assert alive[:, 0].all()
        for row, count, is_alive in zip(answers.sequences, counts.tolist(), alive, strict=True):
            for answer in row[is_alive].tolist():
                _obeys(task, answer, count)


def _obeys(task: str, answer: list[int], count: int) -> None:
    places = answer[: answer.index(0)] if 0 in answer else answer
    assert not any(answer[len(places) :])
    assert all(1 <= place <= count for place in places)
    if task == "tsp":
        assert sorted(places[:-1]) == list(range(1, count + 1))
        assert places[-1] == places[0]
    elif task == "hull":
        ring = places[:-1] if places[-1] == places[0] else places
        assert len(set(ring)) == len(ring) >= 3
    else:
        assert places
        assert len(places) % 3 == 0 or len(places) == len(answer)
        assert all(a < b < c for a, b, c in zip(*[iter(places)] * 3))


def test_without_renormalising_the_likelihood_is_the_model_s() -> None:
    model, inputs = drawn("pointer"), torch.rand(2, 5, 2, dtype=torch.float64)
    free = model.decode(inputs, constraint="tsp", renormalise=False)
    tied = model.decode(inputs, constraint="tsp")
    assert (free.log_probs < tied.log_probs).all()
    chosen = model(inputs, free.best).log_softmax(-1).gather(-1, free.best[..., None])[..., 0]
    torch.testing.assert_close(chosen.sum(-1), free.log_probs[:, 0])


def test_beam_search_takes_any_state() -> None:
    """A decoder that follows a table: tokens by their last one, and a state that counts its steps."""

    class Counted:
        def __init__(self) -> None:
            self.rows = torch.arange(2)

        def reorder(self, index: Tensor) -> None:
            self.rows = self.rows[index]

    table = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.1, 0.4], [0.9, 0.05, 0.05]]).log()
    state = Counted()

    def step(last: Tensor | None, state: Counted) -> Tensor:
        assert state.rows.tolist() == [0, 0, 1, 1]
        return table[0].expand(2, 2, 3) if last is None else table[last]

    found = beam_search(step, state, batch_size=2, max_steps=6, width=2)
    assert found.sequences[0].tolist() == [[1, 0], [2, 0]]
    torch.testing.assert_close(found.log_probs[0].exp(), torch.tensor([0.3, 0.27]))
    with pytest.raises(ValueError, match="width must be at least 1"):
        beam_search(step, state, batch_size=2, max_steps=6, width=0)


def test_glued_sizes_and_options() -> None:
    model = PointerNetwork(8, 3, end_starts_encoder=False, logit_clip=2.0)
    logits = model(torch.rand(2, 5, 3), torch.tensor([[1, 2, 0], [3, 0, -100]]))
    assert logits.shape == (2, 3, 6)
    assert logits.abs().max() <= 2.0
    assert model(torch.rand(0, 5, 3), torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, 6)
    assert model(torch.rand(2, 5, 3), torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 6)
    assert model.bfloat16()(torch.rand(2, 5, 3).bfloat16(), torch.tensor([[1, 0]] * 2)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda m, p, t: m(p[0], t), ShapeError, r"points must be \[B, n, 2\]"),
        (lambda m, p, t: m(p, t[:1]), ShapeError, r"targets must be \[2, m\]"),
        (lambda m, p, t: m(p, t + 9), ValueError, "places up to 5"),
        (lambda m, p, t: m(p, t.float()), TypeError, "targets must be int32 or int64"),
        (lambda m, p, t: m(p, t, torch.tensor([5, 6])), ValueError, "counts must be from 1 to the 5 points"),
        (lambda m, p, t: m.decode(p, torch.tensor([5, 2]), constraint="hull"), ValueError, "at least 3 points"),
        (lambda m, p, t: m.decode(p, width=0), ValueError, "width must be at least 1"),
        (lambda m, p, t: PointerNetwork(0), ValueError, "hidden_size must be at least 1"),
        (lambda m, p, t: PointerNetwork(8, logit_clip=-1.0), ValueError, "logit_clip must be above 0"),
        (lambda m, p, t: Seq2SeqBaselines(8, 4)(p, t), ValueError, "at most max_points = 4"),
    ],
)
def test_what_is_refused(change, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        change(PointerNetwork(8), torch.rand(2, 5, 2), torch.tensor([[1, 2, 0], [3, 0, -100]]))


def test_a_kind_of_pointing_states_everything() -> None:
    class Half(Pointing):
        def _memory(self, encoded: torch.Tensor, counts: torch.Tensor) -> None:
            return None

    with pytest.raises(TypeError, match=r"abstract class Half .*_forced'?, '?_step"):
        Half(8, 2, 0, 0.1)


@pytest.mark.parametrize("kind", ["pointer", "attention", "plain"])
def test_without_a_range_the_middle_of_the_square_is_nothing(kind: str) -> None:
    torch.manual_seed(0)
    model = (
        PointerNetwork(64, init_range=None)
        if kind == "pointer"
        else Seq2SeqBaselines(64, 9, attention=kind == "attention", init_range=None)
    )
    for net in (model.encoder, model.decoder):
        of_points = net.weight_ih_l0[:, :2]
        assert 2.8 < of_points.abs().max() <= 3
        assert (of_points.sum(1) * 0.5 + net.bias_ih_l0).abs().max() <= 1 / 8
        assert (net.weight_ih_l0[:, 2:].abs() <= 1 / 8).all()
        assert 0.1 < net.weight_hh_l0.abs().max() <= 1 / 8
