"""The loop learns, stops where it is told, and goes on as if it had never stopped."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attensor.train import Diverged, Stopped, TrainConfig, polynomial_average, train
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
    with pytest.raises(ValueError, match=r"no tensor 'weight' of the model; it belongs to another"):
        train(
            nn.Linear(FEATURES, 1), batch, loss, TrainConfig(STEPS, 1e-2), evaluate=evaluate,
            checkpoint=tmp_path / "state.safetensors",
        )  # fmt: skip


def test_vectors_are_not_decayed():
    decay = {p.ndim: g["weight_decay"] for g in adamw(Net(), 1e-3).param_groups for p in g["params"]}
    assert decay == {1: 0.0, 2: 0.1}


def adam_for_groups(model, rate):
    """Adam with AMSGrad and one group a layer, the first at a tenth of the rate."""
    groups = [{"params": list(model.first.parameters()), "lr": rate / 10}]
    groups.append({"params": [*model.norm.parameters(), *model.last.parameters()]})
    return torch.optim.Adam(groups, lr=rate, amsgrad=True)


class Stepped(torch.optim.SGD):
    """Momentum, and a number that is no tensor in the state of each parameter."""

    def __init__(self, model, rate):
        super().__init__(model.parameters(), lr=rate, momentum=0.9)

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["count"] = self.state[p].get("count", 0) + 1
                p.grad.mul_(1 / self.state[p]["count"])
        return super().step(closure)


def forget(step, optimizer):
    """Resets the optimizer at step 9, and changes an option for good at step 4."""
    if step == 9:
        optimizer.state.clear()
    if step == 4:
        optimizer.param_groups[0]["weight_decay"] = 0.3


def run_with_everything(path=None, *, optimizer, stop_after=None):
    torch.manual_seed(3)
    model = Net()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    config = TrainConfig(STEPS, 1e-2, evaluations=4, checkpoint_seconds=1e9, clip_value=0.02, accumulate=3)
    progress = train(
        model, batch, loss, config, evaluate=evaluate, checkpoint=path, optimizer=optimizer, before_step=forget,
        average=average, on_step=lambda p: p.step != stop_after,
    )  # fmt: skip
    return progress, model, average


@pytest.mark.parametrize("optimizer", [adam_for_groups, Stepped, adamw])
def test_a_stopped_run_with_every_option_goes_on_bit_for_bit(tmp_path, optimizer):
    whole, *expected = run_with_everything(optimizer=optimizer)
    for stop in (2, 6, 9, 10):
        with pytest.raises(Stopped):
            run_with_everything(tmp_path / "state.safetensors", optimizer=optimizer, stop_after=stop)
    torch.rand(17)
    progress, *models = run_with_everything(tmp_path / "state.safetensors", optimizer=optimizer)
    assert [(p.step, p.score) for p in progress.curve] == [(p.step, p.score) for p in whole.curve]
    for model, other in zip(models, expected, strict=True):
        for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


class Weights(nn.Module):
    """Three numbers whose gradient is the batch."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))


def trajectory(steps=5, *, optimizer=lambda model, rate: torch.optim.SGD(model.parameters(), lr=rate), **options):
    """Weights after SGD along given gradients: batch n has gradient (n + 1) * (1, -2, 30)."""
    model, seen, average = Weights(), [], options.pop("average", None)
    config = TrainConfig(steps, 0.1, warmup_fraction=0.0, final_factor=1.0, evaluations=1, **options)
    average = average(model) if average else None
    direction = torch.tensor([1.0, -2.0, 30.0], dtype=torch.float64)

    def judge(judged):
        seen.append(judged.w.detach().clone())
        return 0.0

    train(
        model, lambda n: (n + 1) * direction, lambda m, gradient: (m.w * gradient).sum(), config,
        evaluate=judge, optimizer=optimizer, average=average,
    )  # fmt: skip
    return model.w.detach(), seen[0]


def test_batches_are_accumulated_to_their_mean():
    start, direction = Weights().w.detach(), torch.tensor([1.0, -2.0, 30.0], dtype=torch.float64)
    weights, _ = trajectory(clip_norm=None, accumulate=4)
    torch.testing.assert_close(weights, start - 0.1 * sum(range(1, 21)) / 4 * direction, rtol=1e-12, atol=0)


def test_entries_are_cut_before_the_norm():
    start = Weights().w.detach()
    weights, _ = trajectory(clip_norm=None, clip_value=2.5)
    cut = sum(torch.tensor([n, -2 * n, 30 * n], dtype=torch.float64).clamp(-2.5, 2.5) for n in range(1, 6))
    torch.testing.assert_close(weights, start - 0.1 * cut, rtol=1e-12, atol=0)
    weights, _ = trajectory(clip_norm=0.5, clip_value=2.5)
    units = [torch.tensor([n, -2 * n, 30 * n], dtype=torch.float64).clamp(-2.5, 2.5) for n in range(1, 6)]
    torch.testing.assert_close(weights, start - 0.1 * sum(0.5 * u / u.norm() for u in units), rtol=1e-6, atol=0)


def test_the_average_is_what_is_evaluated():
    weights, judged = trajectory(clip_norm=None, average=AveragedModel)
    path, w = [], Weights().w.detach()
    for n in range(1, 6):
        w = w - 0.1 * n * torch.tensor([1.0, -2.0, 30.0], dtype=torch.float64)
        path.append(w)
    torch.testing.assert_close(weights, path[-1], rtol=1e-12, atol=0)
    torch.testing.assert_close(judged, torch.stack(path).mean(0), rtol=1e-12, atol=0)


def test_the_schedule_multiplies_the_rate_of_each_group():
    rates = []
    config = TrainConfig(10, 1e-2, warmup_fraction=0.5, evaluations=1)
    learners = []

    def recorded(model, rate):
        learners.append(adam_for_groups(model, rate))
        return learners[0]

    train(
        Net(), batch, loss, config, evaluate=evaluate, optimizer=recorded,
        on_step=lambda p: rates.append([group["lr"] for group in learners[0].param_groups]) or True,
    )  # fmt: skip
    assert rates[0] == pytest.approx([0.0002, 0.002])
    assert rates[4] == pytest.approx([0.001, 0.01])
    assert rates[9] == pytest.approx([0.0001, 0.001])


def test_a_run_goes_on_only_with_its_own_kind_of_optimizer(tmp_path):
    with pytest.raises(Stopped):
        run_with_everything(tmp_path / "state.safetensors", optimizer=Stepped, stop_after=2)
    with pytest.raises(ValueError, match="saved optimizer has 1 groups of parameters, this one 2"):
        run_with_everything(tmp_path / "state.safetensors", optimizer=adamw)


def test_what_a_model_excepts_is_not_decayed():
    model = Net()
    model.no_weight_decay = lambda: {"last.weight"}
    decayed = [p for g in adamw(model, 1e-3).param_groups for p in g["params"] if g["weight_decay"]]
    assert len(decayed) == 1
    assert decayed[0] is model.first.weight


def test_the_hook_comes_before_each_step_with_its_number():
    """Resetting the optimizer before step 2 begins its averages anew there."""
    seen = []

    def hook(step, optimizer):
        seen.append((step, [int(state["step"]) for state in optimizer.state.values()][:1]))
        if step == 2:
            optimizer.state.clear()

    train(Net(), batch, loss, TrainConfig(4, 1e-2, evaluations=1), evaluate=evaluate, before_step=hook)
    assert seen == [(0, []), (1, [1]), (2, [2]), (3, [1])]


def constant_run(steps, path=None, *, stop_after=None):
    """A run at a constant rate, judged by its averaged weights: (progress, model, average)."""
    torch.manual_seed(3)
    model = Net()
    average = polynomial_average(model)
    config = TrainConfig(steps, 1e-2, constant_after=5, evaluations=(4, 9, 17, 23), checkpoint_seconds=1e9)
    progress = train(
        model, batch, loss, config, evaluate=evaluate, checkpoint=path, average=average,
        on_step=lambda p: p.step != stop_after,
    )  # fmt: skip
    return progress, model, average


@pytest.mark.parametrize("steps", [4, 9, 17])
def test_a_reading_in_mid_run_is_the_separate_run_of_so_many_steps(steps):
    """Score, model and average, bit for bit: what follows after a step has no part in them."""
    long, _, _ = constant_run(STEPS)
    short, model, average = constant_run(steps)
    reading = next(point for point in long.curve if point.step == steps)
    assert short.curve[-1].step == steps
    assert short.curve[-1].score == reading.score
    seen = []
    torch.manual_seed(3)
    again = Net()
    other = polynomial_average(again)

    def on_step(progress):
        if progress.step == steps:
            seen.extend(tensor.clone() for tensor in (*again.state_dict().values(), *other.state_dict().values()))
        return True

    config = TrainConfig(STEPS, 1e-2, constant_after=5, evaluations=(4, 9, 17, 23))
    train(again, batch, loss, config, evaluate=evaluate, average=other, on_step=on_step)
    own = [*model.state_dict().values(), *average.state_dict().values()]
    assert len(own) == len(seen)
    assert all(torch.equal(a, b) for a, b in zip(own, seen, strict=True))


def test_a_cosine_has_no_such_readings():
    """The test above can see a schedule that depends on the end."""
    curves = [
        run(config=TrainConfig(steps, 1e-2, evaluations=(4,), checkpoint_seconds=1e9))[0].curve for steps in (4, STEPS)
    ]
    assert curves[0][-1].score != curves[1][0].score


@pytest.mark.parametrize("stops", [(4,), (11,), (9, 22)], ids=str)
def test_a_stopped_average_goes_on_bit_for_bit(tmp_path, stops):
    whole, expected, averaged = constant_run(STEPS)
    for stop in stops:
        with pytest.raises(Stopped):
            constant_run(STEPS, tmp_path / "state.safetensors", stop_after=stop)
    torch.rand(17)
    progress, model, average = constant_run(STEPS, tmp_path / "state.safetensors")
    assert [(p.step, p.score) for p in progress.curve] == [(p.step, p.score) for p in whole.curve]
    for one, other in ((model, expected), (average, averaged)):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("decay", [0.0, 3.0, 8.0])
def test_the_average_weighs_steps_as_a_polynomial(decay):
    """Step t of T counts as the product of Gamma functions that the recursion unrolls to; with 0 all steps alike."""
    torch.manual_seed(1)
    values = torch.randn(13, 5, dtype=torch.float64)
    model = nn.Linear(5, 1, bias=False, dtype=torch.float64)
    average = polynomial_average(model, decay=decay)
    for value in values:
        model.weight.data.copy_(value)
        average.update_parameters(model)
    t = torch.arange(1, 14, dtype=torch.float64)
    weights = torch.exp(torch.lgamma(t + decay) - torch.lgamma(t))
    expected = (weights[:, None] * values).sum(0) / weights.sum()
    torch.testing.assert_close(average.module.weight[0].detach(), expected, rtol=1e-12, atol=1e-12)


def test_a_constant_rate_rises_over_the_same_steps_in_every_run():
    def rates_of(steps):
        seen = []

        def optimizer(model, rate):
            learner = adamw(model, rate)
            learner.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
            return learner

        config = TrainConfig(steps, 1e-2, constant_after=5, evaluations=1)
        train(Net(), batch, loss, config, evaluate=evaluate, optimizer=optimizer)
        return seen

    rates = [rates_of(steps) for steps in (7, STEPS)]
    assert rates[0] == rates[1][:7] == pytest.approx([2e-3, 4e-3, 6e-3, 8e-3, 1e-2, 1e-2, 1e-2])
    assert set(rates[1][4:]) == {1e-2}
