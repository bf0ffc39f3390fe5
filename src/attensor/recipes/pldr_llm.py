"""PLDR-LLM: its operator G becomes the same for every input, and can stand for the net that makes it.

Small byte-level models with an operator of the whole input, of earlier blocks, and with three that are fixed: identity,
random, and what the first had learned. Their loss is that of next bytes with a G that has not seen them: of another
text where the operator reads the whole input. Source: arXiv:2502.13502.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from attensor.compare.tasks.text import cut, mean_loss, next_byte_loss
from attensor.recipes._language import text
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict, run_cells
from attensor.recipes._runs import Runs, measure
from attensor.train import TrainConfig, train

__all__ = ["RECIPE"]

LEARNED, BLOCKS, IDENTITY, RANDOM, TRANSFERRED = "whole input", "earlier blocks", "identity", "random", "transferred"
VARIANTS = (BLOCKS, LEARNED, RANDOM, IDENTITY)
LENGTH, PROMPTS, PREFIX, STEPS_BEHIND = 64, 32, 24, 24
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 8, 5e-3, 0.5
SIZES = {
    "vocab_size": 256, "hidden_size": 32, "intermediate_size": 85, "num_hidden_layers": 2, "num_attention_heads": 2,
    "net_size": 42, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
KEPT, TENSOR, RECOMPUTED, TWIN = "KV and G kept", "KV and A kept", "KV kept, net at every step", "softmax attention"


class Logits(nn.Module):
    """Tokens to logits of a PLDR-LLM, without caches."""

    def __init__(self, **options: Any) -> None:
        from attensor.models.language.pldr import PLDRConfig, PLDRForCausalLM

        super().__init__()
        self.language_model = PLDRForCausalLM(PLDRConfig(**{**SIZES, **options}))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] to [B, T, V]."""
        logits: Tensor = self.language_model(tokens, use_cache=False).logits
        return logits


def train_variant(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """A trained model: its loss, its curve, and of a learned operator what becomes of it; then one that takes its G."""
    torch.manual_seed(seed)
    if variant == LEARNED:
        model, readings = Logits(operator="sequence"), list[dict[str, float]]()
        result = _fit(model, seed, steps, partial(_read, readings))
        result["readings"] = readings
        torch.manual_seed(seed)
        other = Logits(operator="fixed", custom="external")
        for layer, operator in zip(other.language_model.model.layers, _operators(model, _prompts()[:1]), strict=True):
            layer.attn.fix(operator[0])
        return {**result, "transferred": _fit(other, seed, steps, _loss)}
    options = {"operator": "previous-blocks", "block_size": LENGTH // 2} if variant == BLOCKS else {"custom": variant}
    return _fit(Logits(**options), seed, steps, _loss)


def _fit(model: Logits, seed: int, steps: int, score: Callable[[Logits], float]) -> dict[str, Any]:
    """Train in place, every parameter decayed, as the paper does."""
    data = text()

    def batch(step: int) -> Tensor:
        return data.batch(step, seed=seed, batch_size=BATCH_SIZE, length=LENGTH)

    def optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), eps=1e-5, weight_decay=WEIGHT_DECAY)

    first = score(model.eval())
    settings = TrainConfig(steps, LEARNING_RATE, constant_after=50, clip_norm=None, clip_value=1.0, evaluations=8)
    found = train(model.train(), batch, next_byte_loss, settings, evaluate=score, optimizer=optimizer).curve
    curve = [[0, first], *([point.step, point.score] for point in found)]
    return {"loss": curve[-1][1], "curve": curve}


def _prompts() -> Tensor:
    """[windows, T + 1] of held-out bytes."""
    return cut(text().selection(LENGTH, limit=PROMPTS), LENGTH)[:PROMPTS]


@torch.no_grad()
def _operators(model: Logits, windows: Tensor) -> list[Tensor]:
    """G of every layer and prompt: [B, H, D, D] each."""
    from attensor.models.language.pldr import deductive_outputs

    return [one.operator for one in deductive_outputs(model.language_model, windows[:, :-1])]


def _loss(model: Logits, operators: list[Tensor] | None = None) -> float:
    """Nats a byte of the held-out windows but the first, with these operators where they are given."""
    from attensor.models.language.pldr import given_operators

    windows = _prompts()[1:]
    if operators is None:
        return mean_loss(model, windows)
    with given_operators(model.language_model, operators):
        return mean_loss(model, windows)


@torch.no_grad()
def _read(readings: list[dict[str, float]], model: Logits) -> float:
    """Add what the operators are like; the loss with the first prompt's G."""
    from attensor.models.language.pldr import deductive_outputs

    found = deductive_outputs(model.language_model, _prompts()[:, :-1])
    shares = torch.cat([row_share(one.tensor).flatten() for one in found])
    spreads = [spread(one.operator) for one in found]
    firsts = [one.operator[0] for one in found]
    loss = _loss(model, firsts)
    readings.append(
        {
            "share": float(shares.median()),
            "spread": max(spreads),
            "own": _loss(model),
            "first": loss,
            "identity": _loss(model, [_like(torch.eye(one.shape[-1]).expand_as(one), one) for one in firsts]),
            "random": _loss(model, [_like(_normal(one), one) for one in firsts]),
            "agreement": _agreement(model, _prompts()[:, :-1]),
        }
    )
    return loss


def row_share(tensor: Tensor) -> Tensor:
    """Share of the squares of [.., D, D] that is left when its mean row is taken from all rows; 0: rows are equal."""
    left: Tensor = (tensor - tensor.mean(-2, keepdim=True)).square().sum((-2, -1))
    return left / tensor.square().sum((-2, -1))


def spread(operators: Tensor) -> float:
    """Root-mean-square distance of [B, H, D, D] from their mean, as a share of its norm."""
    mean = operators.mean(0)
    return float((operators - mean).square().sum((1, 2, 3)).mean().sqrt() / mean.norm())


def _normal(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(7))


def _like(matrix: Tensor, other: Tensor) -> Tensor:
    """With the norms of the heads of the other."""
    norms: list[Tensor] = [x.norm(dim=(-2, -1), keepdim=True) for x in (matrix, other)]
    return matrix * (norms[1] / norms[0])


@torch.no_grad()
def _agreement(model: Logits, windows: Tensor) -> float:
    """Share of next bytes that a cache with the prompt's G chooses as does everything computed anew."""
    cache, same = model.language_model.new_cache(), []
    model.language_model(windows[:, :PREFIX], past_key_values=cache)
    for place in range(PREFIX, PREFIX + STEPS_BEHIND):
        cached = model.language_model(windows[:, place : place + 1], past_key_values=cache).logits[:, -1]
        anew = model(windows[:, : place + 1])[:, -1]
        same.append((cached.argmax(-1) == anew.argmax(-1)).float().mean())
    return float(torch.stack(same).mean())


def time_decode(steps: int) -> dict[str, float]:
    """Median seconds of the processor for one decoding step in each setting, of the published 110M sizes, in turns."""
    from attensor.models.language.pldr import PLDRConfig, PLDRForCausalLM
    from attensor.nn import SoftmaxAttention

    torch.manual_seed(0)
    model: Any = PLDRForCausalLM(PLDRConfig.from_preset("v51-110M"))
    model.eval()
    ours: list[Any] = [layer.attn for layer in model.model.layers]
    twins: list[Any] = [SoftmaxAttention(mixer.hidden_size, mixer.num_heads) for mixer in ours]
    settings = {
        KEPT: ("sequence", "operator", 64), TENSOR: ("sequence", "tensor", 64),
        RECOMPUTED: ("previous-blocks", "operator", 1),
    }  # fmt: skip
    prompt, caches = torch.arange(1, 33)[None], dict[str, Any]()
    seconds: dict[str, list[float]] = {name: [] for name in (*settings, TWIN)}

    def run(name: str, tokens: Tensor) -> None:
        for layer, mixer, twin in zip(model.model.layers, ours, twins, strict=True):
            layer.attn = twin if name == TWIN else mixer
            if name != TWIN:
                mixer.operator, mixer.keeps, mixer.block_size = settings[name]
        cache = caches.setdefault(name, model.new_cache())
        model(tokens, past_key_values=cache)

    with torch.inference_mode():
        for name in seconds:
            run(name, prompt)
        for step in range(steps):
            for name in seconds if step % 2 else reversed(seconds):
                begun = time.process_time()
                run(name, prompt[:, :1])
                seconds[name].append(time.process_time() - begun)
    return {name: median(times) for name, times in seconds.items()}


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps = (2, 120) if config.quick else (3, 1000)
    runs = measure(config, train_variant, "variant", VARIANTS, seeds=seeds, steps=steps)
    (times,) = run_cells(config, time_decode, [{"steps": 20 if config.quick else 100}], at_once=1)
    return judge(runs, times)


def judge(runs: Runs, times: dict[str, float]) -> Verdict:
    """The verdict on results of `train_variant`, one a seed, by variant, and of `time_decode`."""
    runs = Runs({**runs, TRANSFERRED: [result["transferred"] for result in runs[LEARNED]]})

    def left(result: dict[str, Any], name: str) -> float:
        """After training, as a share of before; the inverse has no bound, and its mean over seeds says nothing."""
        return float(result["readings"][-1][name] / result["readings"][0][name])

    def last(result: dict[str, Any], name: str, less: str | None = None) -> float:
        reading = result["readings"][-1]
        return float(reading[name] - (reading[less] if less else 0))

    def of(function: Callable[..., float], *names: str) -> Interval:
        return runs.interval(LEARNED, lambda result: function(result, *names))

    worst = Interval.of([max(losses) / min(losses) for losses in zip(*(runs.of(v, "loss") for v in runs), strict=True)])
    replaced = runs.interval(LEARNED, lambda result: abs(last(result, "first", "own")))
    rising = runs.interval(LEARNED, lambda r: r["readings"][-1]["agreement"] - r["readings"][0]["agreement"])
    to_twin, to_anew = times[KEPT] / times[TWIN], times[KEPT] / times[RECOMPUTED]
    checks = (
        Check.between(
            "rows of A: of the share in which they differ at most a fifth is left", of(left, "share"), high=0.2
        ),
        Check.between("G: of its spread over prompts at most a fifth is left", of(left, "spread"), high=0.2),
        Check.between("G: its spread over prompts is at most 0.03 after training", of(last, "spread"), high=0.03),
        Check.between("loss with one prompt's G for all, changed by at most 0.01 nats a byte", replaced, high=0.01),
        Check.between(
            "control: identity of that norm raises it by at least 0.3", of(last, "identity", "first"), low=0.3
        ),
        Check.between("control: random of that norm raises it by at least 0.3", of(last, "random", "first"), low=0.3),
        Check.between("bytes chosen with a cache as without at least 0.93", of(last, "agreement"), low=0.93),
        Check.between("that share is larger after training than before", rising, above=0),
        Check.between("losses of learned and fixed operators, largest to least at most 1.15", worst, high=1.15),
        Check(f"a decoding step with G kept at most 1.15 of softmax attention's: {to_twin:.2f}", to_twin <= 1.15),
        Check(f"a decoding step with G kept at most 0.5 of one with the net: {to_anew:.2f}", to_anew <= 0.5),
    )
    figures = runs.figures("loss, {}, nats a byte", "loss")
    figures |= {f"ms of a decoding step, {name}": f"{1e3 * value:.1f}" for name, value in times.items()}
    return Verdict(checks, figures, _charts(runs))


def _charts(runs: Runs) -> tuple[Chart, ...]:
    """Losses and, of the learned operator, what it becomes, against the steps."""
    steps = [step for step, _ in runs[LEARNED][0]["curve"]]

    def mean(name: str) -> list[tuple[float, float]]:
        values = zip(*([reading[name] for reading in result["readings"]] for result in runs[LEARNED]), strict=True)
        return [(step, sum(v) / len(v)) for step, v in zip(steps, values, strict=True)]

    names = {"rows of A, share that differs": "share", "G over prompts, relative spread": "spread"}
    given = {"own G": "own", "G of one prompt": "first", "identity": "identity", "random": "random"}
    return (
        Chart("Held-out loss while training", "step", "nats a byte", runs.curves()),
        Chart("What becomes of A and G", "step", "share", {k: mean(v) for k, v in names.items()}, log_y=True),
        Chart(
            "Loss of the learned model with another G", "step", "nats a byte", {k: mean(v) for k, v in given.items()}
        ),
    )


RECIPE = Recipe(
    name="pldr-llm",
    paper="arXiv:2502.13502, sections 3 and 4",
    claim="training makes the operator G the same for every input; kept in a cache it replaces the net that made it, "
    "at the price of softmax attention",
    run=_run,
    needs=("transformers",),
    minutes=25,
)
