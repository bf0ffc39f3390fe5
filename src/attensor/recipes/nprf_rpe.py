"""Kernelised attention with relative positions: stable, sharp by distance, and O(n log n).

Claims of arXiv:2106.12566 at a small size: random features are accurate on unit vectors and useless on long ones
(section 3.1); a bias of every offset gives back the sharpness that unit vectors cost, so that training from scratch is
stable and near softmax attention (section 4); Fourier transforms make it O(n log n), faster than softmax attention with
the same bias at thousands of tokens (section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.bench.timing import alternate
from attensor.compare.fits import growth
from attensor.nn import Heads, RelativeKernelAttention, SoftmaxAttention
from attensor.ops import PositiveRandomFeatures, relative_kernel_attention, softmax_attention
from attensor.ops.feature_maps import random_projection
from attensor.recipes._language import decoder, fit
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict
from attensor.recipes._runs import Runs, measure, trained
from attensor.train import Diverged, TrainConfig

__all__ = ["RECIPE"]

HIDDEN_SIZE, NUM_HEADS, NUM_FEATURES = 64, 2, 32
TEXT_LENGTH, TEXT_BATCH, TEXT_RATE = 128, 12, 3e-3
SHIFT, SHIFT_LENGTH, SHIFT_BATCH, SHIFT_VOCAB, SHIFT_RATE = 11, 256, 4, 32, 2e-2
RADII = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
LENGTHS, COMPARED_LENGTHS = tuple(2**i for i in range(11, 17)), (2048, 4096, 8192)


class AbsolutePositions(nn.Module):
    """Positive random features without relative positions, as Performers have them: learned absolute positions.

    Args:
        normalize: unit queries and keys.
        length: tokens that have a position.
    """

    def __init__(self, *, normalize: bool, length: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(length, HIDDEN_SIZE))
        self.mixer = RelativeKernelAttention(
            HIDDEN_SIZE, NUM_HEADS, num_features=NUM_FEATURES, max_distance=1, normalize=normalize
        )
        self.mixer.relative_bias.requires_grad_(False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        out: Tensor = self.mixer(hidden_states + self.positions[: hidden_states.shape[1]])
        return out


class BiasedSoftmax(SoftmaxAttention):
    """Softmax attention with a learned bias of every offset, clipped at `TEXT_LENGTH`."""

    def __init__(self) -> None:
        super().__init__(HIDDEN_SIZE, NUM_HEADS, rotary_base=None)
        self.relative_bias = nn.Parameter(torch.zeros(NUM_HEADS, TEXT_LENGTH))

    def attend(self, heads: Heads, **_: Any) -> Tensor:
        """Softmax attention with the bias of every offset: [B, T, H, K]."""
        position = torch.arange(heads.q.shape[1])
        bias = self.relative_bias[:, (position[:, None] - position).clamp(0, TEXT_LENGTH - 1)]
        out: Tensor = softmax_attention(heads.q, heads.k, heads.v, is_causal=True, attn_mask=bias)
        return out


def _with_bias() -> nn.Module:
    return RelativeKernelAttention(HIDDEN_SIZE, NUM_HEADS, num_features=NUM_FEATURES, max_distance=TEXT_LENGTH)


TEXT: dict[str, Callable[[], nn.Module]] = {
    "PRF without bias": lambda: AbsolutePositions(normalize=False, length=TEXT_LENGTH),
    "NPRF + bias": _with_bias,
    "softmax + bias": BiasedSoftmax,
}
PRF, NPRF, SOFTMAX = TEXT
SHIFTS: dict[str, Callable[[], nn.Module]] = {
    "NPRF without bias": lambda: AbsolutePositions(normalize=True, length=SHIFT_LENGTH),
    "NPRF + bias": _with_bias,
}


def measure_error(radius: float, seed: int) -> float:
    """Mean L1 distance between attention rows of 64 features and of softmax; all vectors have length `radius`."""
    torch.manual_seed(seed)
    q, k = radius * F.normalize(torch.randn(2, 1, 128, 1, 32), dim=-1)
    phi = PositiveRandomFeatures(random_projection(1, 64, 32, is_orthogonal=False), scale=1.0)
    weights = (phi.queries(q)[0, :, 0] @ phi(k)[0, :, 0].T).clamp(min=1e-30)
    exact = (q[0, :, 0] @ k[0, :, 0].T).softmax(-1)
    return float((weights / weights.sum(-1, keepdim=True) - exact).abs().sum(-1).mean())


def train_text(mixer: str, seed: int, steps: int) -> dict[str, Any]:
    """A small byte-level language model: held-out loss, and steps whose gradient is 10 times the median.

    The loss of a run that diverged is None.
    """
    model = decoder(lambda i: TEXT[mixer](), seed=seed)
    norms = _watch_gradients(model)
    factors = (1, 4) if mixer == NPRF else (1,)
    try:
        data: dict[str, Any] = {"length": TEXT_LENGTH, "batch_size": TEXT_BATCH, "factors": factors}
        result = fit(model, seed=seed, steps=steps, learning_rate=TEXT_RATE, **data)
    except Diverged:
        result = {"loss": None, "curve": []}
    return result | {"spikes": sum(norm > 10 * median(norms) for norm in norms)}


def train_shift(mixer: str, seed: int, steps: int) -> dict[str, Any]:
    """One layer that is to say which random token stood `SHIFT` places before: share of right answers."""
    model = decoder(
        lambda i: SHIFTS[mixer](), seed=seed, vocab_size=SHIFT_VOCAB, num_layers=1, mlp_hidden_size=HIDDEN_SIZE
    )

    def batch(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step + 1)
        return torch.randint(SHIFT_VOCAB, (SHIFT_BATCH, SHIFT_LENGTH), generator=generator)

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens)[:, SHIFT:].flatten(0, 1), tokens[:, :-SHIFT].flatten())

    unseen = torch.cat([batch(-1 - i) for i in range(4)])

    def accuracy(model: nn.Module) -> float:
        return float((model(unseen)[:, SHIFT:].argmax(-1) == unseen[:, :-SHIFT]).float().mean())

    result = trained(model, batch, loss, accuracy, TrainConfig(steps, SHIFT_RATE))
    return {"accuracy": result["score"], "curve": result["curve"]}


@torch.no_grad()
def measure_time(length: int, seed: int) -> dict[str, float]:
    """Least seconds of one head of width 32 among a few calls that take turns; softmax where its bias fits."""
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 1, length, 1, 32)
    bias = torch.randn(1, 2 * length - 1)
    phi = PositiveRandomFeatures(random_projection(1, NUM_FEATURES, 32), normalize=True)
    calls: dict[str, Callable[[], Any]] = {
        "fft": lambda: relative_kernel_attention(q, k, v, relative_bias=bias, feature_map=phi, algorithm="fft")
    }
    if length in COMPARED_LENGTHS:
        position = torch.arange(length)
        dense = bias[:, position - position[:, None] + length - 1][None]
        calls["softmax"] = lambda: softmax_attention(q, k, v, attn_mask=dense)
    return {name: min(seconds) for name, seconds in alternate(calls, rounds=3).items()}


def _watch_gradients(model: nn.Module) -> list[float]:
    """A list that receives the norm of the gradient, before clipping, at each step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    norms: list[float] = []
    parts: list[Tensor] = []

    def collect(parameter: Tensor) -> None:
        parts.append(parameter.grad.square().sum() if parameter.grad is not None else parameter.new_zeros(()))
        if len(parts) == len(parameters):
            norms.append(float(torch.stack(parts).sum().sqrt()))
            parts.clear()

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
    return norms


def _run(config: RecipeConfig) -> Verdict:
    seeds, text_steps, shift_steps = (2, 60, 250) if config.quick else (3, 500, 300)
    lengths = LENGTHS[:4] if config.quick else LENGTHS
    return judge(
        measure(config, measure_error, "radius", RADII, seeds=seeds),
        measure(config, train_text, "mixer", TEXT, seeds=seeds, steps=text_steps),
        measure(config, train_shift, "mixer", SHIFTS, seeds=seeds, steps=shift_steps),
        measure(config, measure_time, "length", lengths, seeds=seeds, at_once=1),
    )


def judge(errors: Runs, text: Runs, shift: Runs, seconds: Runs) -> Verdict:
    """The verdict on results of the four measurements, one a seed."""
    near, far = (errors.interval(radius, float) for radius in (1.0, 4.0))
    to_prf, to_softmax = (text.margin(NPRF, mixer, _loss) for mixer in (PRF, SOFTMAX))
    finite = sum(r["loss"] is not None for r in text[NPRF])
    longer = text.interval(NPRF, lambda r: r["loss"]["4"] - r["loss"]["1"] if r["loss"] else math.log(256))
    hits = {mixer: shift.interval(mixer, lambda r: 100 * r["accuracy"]) for mixer in shift}
    slope, quadratic = (Interval.of(_powers(seconds, name)) for name in ("fft", "softmax"))
    ratio = seconds.interval(8192, lambda row: row["softmax"] / row["fft"])
    checks = (
        Check(f"error of attention rows (L1) below 0.3 at length 1: {near}", near.mean < 0.3, near, (0.3,)),
        Check(f"error of attention rows above 1.2 at length 4: {far}", far.mean > 1.2, far, (1.2,)),
        Check(f"NPRF + bias stays finite with every seed: {finite} of {len(text[NPRF])}", finite == len(text[NPRF])),
        Check(f"loss, NPRF + bias less PRF at most -0.1 nats a byte: {to_prf}", to_prf.mean <= -0.1, to_prf, (-0.1,)),
        Check(
            f"loss, NPRF + bias less softmax + bias at most 0.15: {to_softmax}",
            to_softmax.mean <= 0.15,
            to_softmax,
            (0.15,),
        ),
        Check(
            f"read at 4 times the training length, the loss rises by less than 0.2: {longer}",
            longer.mean < 0.2,
            longer,
            (0.2,),
        ),
        Check(f"shift task with bias above 95 %: {hits[NPRF]}", hits[NPRF].mean > 95, hits[NPRF], (95,)),
        Check(
            f"shift task without bias below 50 %: {hits['NPRF without bias']}",
            hits["NPRF without bias"].mean < 50,
            hits["NPRF without bias"],
            (50,),
        ),
        Check(f"time grows with a power of the length of at most 1.2: {slope}", slope.mean <= 1.2, slope, (1.2,)),
        Check(f"at 8192 tokens faster than softmax with bias, ratio above 1: {ratio}", ratio.mean > 1, ratio, (1,)),
    )
    figures = text.figures("loss, {}, nats a byte", _loss)
    figures |= text.figures("steps of a gradient 10 times the median, {}", "spikes")
    figures["power of the length in softmax's time"] = str(quadratic)
    return Verdict(checks, figures, _charts(errors, text, shift, seconds))


def _loss(result: dict[str, Any]) -> float:
    """A run that diverged counts as one that learned nothing."""
    return float(result["loss"]["1"]) if result["loss"] else math.log(256)


def _powers(seconds: Runs, name: str) -> list[float]:
    """With which the time grows with the length, one a seed."""
    measured = [length for length, rows in seconds.items() if name in rows[0]]
    times = zip(*(seconds.of(length, name) for length in measured), strict=True)
    return [growth(list(zip(measured, of_seed, strict=True))) for of_seed in times]


def _charts(errors: Runs, text: Runs, shift: Runs, seconds: Runs) -> tuple[Chart, ...]:
    times = {
        label: [(n, 1e3 * median(row[name] for row in rows)) for n, rows in seconds.items() if name in rows[0]]
        for label, name in (("Fourier transforms", "fft"), ("softmax with bias", "softmax"))
    }
    error = {"64 features, width 32": [(radius, errors.interval(radius, float).mean) for radius in errors]}
    return (
        Chart(
            "Error of positive random features", "length of queries and keys", "L1 distance of attention rows", error
        ),
        Chart("Held-out loss while training", "step", "nats a byte", text.curves()),
        Chart(f"The token {SHIFT} places before", "step", "share of right answers", shift.curves()),
        Chart("Time of one head, one thread", "tokens", "milliseconds", times, log_x=True, log_y=True),
    )


RECIPE = Recipe(
    name="nprf-rpe",
    paper="arXiv:2106.12566, sections 3 and 4",
    claim="on unit vectors random features are accurate; with a bias of every offset they train stably from scratch, "
    "near softmax attention and better than without; and they cost O(n log n)",
    run=_run,
)
