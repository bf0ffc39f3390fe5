"""The loop learns, stops where it is told, and goes on as if it had never stopped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attensor.train import Diverged, Stopped, TrainConfig, train
from attensor.train.optimizer import adamw

FEATURES, BATCH, STEPS = 5, 7, 23


class Net(nn.Module):
    """Dropout makes the run depend on the random generator, a buffer on more than parameters."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(FEATURES, 11)
        self.norm = nn.BatchNorm1d(11)
        self.last = nn.Linear(11, 1)

    def forward(self, x):
        return self.last(nn.functional.dropout(self.norm(self.first(x)).relu(), 0.3, training=self.training))


def batch(step):
    x = torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(step))
    return x, x[:, :1] * 2 - x[:, 1:2]


def loss(model, pair):
    return (model(pair[0]) - pair[1]).square().mean()


def evaluate(model):
    assert not model.training
    return loss(model, batch(10_000)).item()


def run(path=None, *, stop_after=None, config=None):
    torch.manual_seed(3)
    model = Net()
    progress = train(
        model,
        batch,
        loss,
        config or TrainConfig(STEPS, 1e-2, evaluations=4, checkpoint_seconds=1e9),
        evaluate=evaluate,
        checkpoint=path,
        on_step=lambda p: p.step != stop_after,
    )
    return progress, model


@pytest.mark.parametrize("stops", [(1,), (11,), (6, 12), (22,), (23,)], ids=str)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, stops):
    """Parameters, buffers and the curve are those of the run that was never stopped."""
    whole, expected = run()
    for stop in stops:
        with pytest.raises(Stopped, match=f"after step {stop} of {STEPS}"):
            run(tmp_path / "state.safetensors", stop_after=stop)
    torch.rand(17)  # a resumed process has another random state
    progress, model = run(tmp_path / "state.safetensors")
    assert [(p.step, p.score) for p in progress.curve] == [(p.step, p.score) for p in whole.curve]
    for (name, a), b in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_random_state_matters_here(tmp_path):
    """The test above can see a forgotten random state: another one gives other weights."""
    torch.manual_seed(3)
    model = Net()
    torch.manual_seed(4)
    train(model, batch, loss, TrainConfig(STEPS, 1e-2, evaluations=1), evaluate=evaluate)
    assert not torch.equal(model.last.weight, run()[1].last.weight)


def test_it_learns():
    progress, _ = run(config=TrainConfig(300, 1e-2, evaluations=3))
    assert progress.curve[-1].score < 0.3 * evaluate(Net().eval())


def test_checkpoints_are_written_while_it_runs(tmp_path):
    """Without any request to stop, so that a kill loses little."""
    seen = []
    path = tmp_path / "state.safetensors"
    train(
        Net(), batch, loss, TrainConfig(3, 1e-2, checkpoint_seconds=0.0), evaluate=evaluate, checkpoint=path,
        on_step=lambda p: seen.append(path.exists()) or True,
    )  # fmt: skip
    assert seen == [False, True, True]


def test_a_loss_that_is_not_finite_is_named():
    with pytest.raises(Diverged, match=r"step 6, learning rate 0\.01"):
        train(
            Net(),
            batch,
            lambda model, pair: loss(model, pair) * float("nan"),
            TrainConfig(STEPS, 1e-2, evaluations=4),
            evaluate=evaluate,
        )


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path / "state.safetensors", stop_after=2)
    with pytest.raises(ValueError, match=r"no tensor 'weight'.*another model"):
        train(
            nn.Linear(FEATURES, 1), batch, loss, TrainConfig(STEPS, 1e-2), evaluate=evaluate,
            checkpoint=tmp_path / "state.safetensors",
        )  # fmt: skip


def test_vectors_are_not_decayed():
    decay = {p.ndim: g["weight_decay"] for g in adamw(Net(), 1e-3).param_groups for p in g["params"]}
    assert decay == {1: 0.0, 2: 0.1}
