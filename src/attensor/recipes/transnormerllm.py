"""TransNormerLLM: each part earns its place; generation costs the same at any position, training at any length.

Source: arXiv:2307.14995, section 4.2 (385M parameters, loss after 100,000 updates: 2.248, a Transformer 2.362;
positions: LRPE with decay and decay alone below absolute ones; SimpleRMSNorm as good as LayerNorm) and 4.3 (speed).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.bench.timing import paired
from attensor.compare.balance import balanced_mlp_size, parameter_count
from attensor.models.language import Decoder, DecoderConfig
from attensor.models.language.decoder import GatedMLP
from attensor.nn import SoftmaxAttention, TransNormerAttention
from attensor.recipes._language import fit
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict, run_cells
from attensor.recipes._runs import Runs, measure

__all__ = ["RECIPE"]

HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, MLP_HIDDEN_SIZE = 128, 4, 4, 256
LENGTH, BATCH_SIZE, LEARNING_RATE = 256, 4, 3e-3
TNL, TRANSFORMER, WITHOUT_DECAY, ABSOLUTE, LAYER_NORM = (
    "TransNormerLLM",
    "Transformer (RoPE, SwiGLU)",
    "without decay",
    "absolute positions instead of decay",
    "LayerNorm instead of SimpleRMSNorm",
)
VARIANTS = (TRANSFORMER, TNL, ABSOLUTE, LAYER_NORM, WITHOUT_DECAY)
EARLY, LATE, SHORT, LONG = 64, 4096, 512, 8192


class WithoutDecay(TransNormerAttention):
    """The mixer that forgets nothing."""

    def log_decay(self, hidden_states: Tensor) -> None:  # type: ignore[override]
        """None: every token weighs the same however old it is."""
        return None


class ScaledEmbedding(nn.Embedding):
    """Embedded tokens times the root of their width, plus learned absolute positions if there are any."""

    def __init__(self, vocab_size: int, hidden_size: int, num_positions: int = 0) -> None:
        super().__init__(vocab_size, hidden_size)
        nn.init.normal_(self.weight, std=hidden_size**-0.5)
        self.positions = nn.Parameter(torch.zeros(num_positions, hidden_size)) if num_positions else None

    def forward(self, input: Tensor) -> Tensor:
        """[B, T] to [B, T, C]."""
        embedded: Tensor = super().forward(input) * self.embedding_dim**0.5
        return embedded if self.positions is None else embedded + self.positions[: input.shape[1]]


def model_of(variant: str) -> Decoder:
    """The language model of a variant; the Transformer has as many parameters as TransNormerLLM."""
    if variant == TRANSFORMER:
        target = parameter_count(model_of(TNL))
        return _transformer(balanced_mlp_size(_transformer, target)[0])
    layer = {
        WITHOUT_DECAY: lambda i: WithoutDecay(HIDDEN_SIZE, NUM_HEADS, layer_index=i, num_layers=NUM_LAYERS),
        ABSOLUTE: lambda i: WithoutDecay(HIDDEN_SIZE, NUM_HEADS, layer_index=i, num_layers=NUM_LAYERS, use_lrpe=False),
    }.get(variant, lambda i: TransNormerAttention(HIDDEN_SIZE, NUM_HEADS, layer_index=i, num_layers=NUM_LAYERS))
    norm = (lambda: nn.LayerNorm(HIDDEN_SIZE)) if variant == LAYER_NORM else _simple_norm
    return _transnormer(layer, norm, num_positions=LENGTH if variant == ABSOLUTE else 0)


def _simple_norm() -> nn.Module:
    """SimpleRMSNorm: no weight."""
    return nn.RMSNorm(HIDDEN_SIZE, eps=1e-6, elementwise_affine=False)


def _transformer(mlp_hidden_size: int) -> Decoder:
    config = DecoderConfig(256, HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, mlp_hidden_size)
    return Decoder(config, lambda i: SoftmaxAttention(HIDDEN_SIZE, NUM_HEADS))


def _transnormer(layer: Callable[[int], nn.Module], norm: Callable[[], nn.Module], *, num_positions: int) -> Decoder:
    """The decoder's body with TransNormerLLM's embedding, norms and MLP in the places of its own."""
    model = Decoder(DecoderConfig(256, HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, MLP_HIDDEN_SIZE), layer)
    model.embed_tokens = ScaledEmbedding(256, HIDDEN_SIZE, num_positions)
    model.norm = norm()
    for block in model.layers:
        block.input_layernorm, block.post_attention_layernorm = norm(), norm()
        block.attn.g_norm = norm()  # type: ignore[union-attr]
        block.mlp = GatedMLP(HIDDEN_SIZE, MLP_HIDDEN_SIZE, activation=None)
    return model


def train_text(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """A small byte-level language model of one variant: its held-out loss."""
    torch.manual_seed(seed)
    model = model_of(variant)
    return fit(model, seed=seed, steps=steps, learning_rate=LEARNING_RATE, length=LENGTH, batch_size=BATCH_SIZE)


def measure_times(seed: int, rounds: int) -> dict[str, Any]:
    """Seconds of one more token early and late in a text, and of a training step on short and long rows."""
    torch.manual_seed(seed)
    models = {name: model_of(name) for name in (TNL, TRANSFORMER)}
    tokens = torch.randint(256, (1, LONG + 1))
    decoding = {
        (name, place): _decoding(model, tokens[:, :place]) for name, model in models.items() for place in (EARLY, LATE)
    }
    training = {length: _training(models[TNL], tokens[0], length) for length in (SHORT, LONG)}
    # a decoding step takes a millisecond, so that there can be many
    decoded = paired({repr(key): call for key, call in decoding.items()}, rounds=10 * rounds, warmup=3)
    trained = paired({repr(key): call for key, call in training.items()}, rounds=rounds)
    return {
        "decode": [[*key, decoded[repr(key)]] for key in decoding],
        "train": {str(length): trained[repr(length)] / LONG for length in training},
    }


def _decoding(model: Decoder, context: Tensor) -> Callable[[], object]:
    """One more token after the context; the context grows by it at each call."""
    caches = model.new_caches(1, context.shape[1] + 1024)
    with torch.no_grad():
        model(context, caches=caches)
    token = context[:, -1:]

    def step() -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(token, caches=caches)
        return logits

    return step


def _training(model: Decoder, tokens: Tensor, length: int) -> Callable[[], object]:
    """Forward and backward pass over as many tokens, in rows of `length`."""
    rows = tokens[: LONG // length * length].view(-1, length)

    def step() -> object:
        loss = F.cross_entropy(model(rows).flatten(0, 1), rows.flatten())
        return torch.autograd.grad(loss, list(model.parameters()))

    return step


def _run(config: RecipeConfig) -> Verdict:
    seeds, rounds, steps = (1, 1, 40) if config.quick else (3, 3, 190)
    # alone on the machine, so that none disturbs the times of another
    times = run_cells(config, measure_times, [{"seed": s, "rounds": rounds} for s in range(seeds)], at_once=1)
    return judge(measure(config, train_text, "variant", VARIANTS, seeds=seeds, steps=steps), times)


def judge(texts: Runs, times: list[dict[str, Any]]) -> Verdict:
    """The verdict on results of `train_text`, one a seed, by variant, and of `measure_times`, one a seed."""
    rise = {variant: texts.margin(variant, TNL, "loss.1") for variant in texts}
    behind = texts.margin(TNL, TRANSFORMER, "loss.1")
    tables = [{(name, place): seconds for name, place, seconds in found["decode"]} for found in times]
    later, later_softmax = (
        Interval.of([table[name, LATE] / table[name, EARLY] for table in tables]) for name in (TNL, TRANSFORMER)
    )
    longer = Interval.of([found["train"][str(LONG)] / found["train"][str(SHORT)] for found in times])
    mark = Check.between
    checks = (
        mark("loss less that of an equally large Transformer at most +0.03 nats", behind, high=0.03),
        mark("without decay the loss rises by at least 0.02", rise[WITHOUT_DECAY], low=0.02),
        mark("absolute positions instead of decay raise the loss by", rise[ABSOLUTE], above=0.0),
        mark("LayerNorm changes the loss by at most 0.02", rise[LAYER_NORM], low=-0.02, high=0.02),
        mark(f"a token at position {LATE} takes at most 1.3 x one at {EARLY}", later, high=1.3),
        mark("with a Transformer's key-value cache more than 2 x", later_softmax, above=2.0),
        mark(f"training time per token, rows of {LONG} against {SHORT}, within 1.5 x", longer, low=1 / 1.5, high=1.5),
    )
    figures = texts.figures("loss, {}, nats a byte", "loss.1")
    for name, place in tables[0]:
        milliseconds = Interval.of([1e3 * table[name, place] for table in tables])
        figures[f"a token at position {place}, {name}, ms"] = str(milliseconds)
    return Verdict(checks, figures, _charts(texts, tables))


def _charts(texts: Runs, tables: list[dict[tuple[str, int], float]]) -> tuple[Chart, ...]:
    base = texts.of(TNL, "loss.1")
    against = {
        v: [(seed, a - b) for seed, (a, b) in enumerate(zip(texts.of(v, "loss.1"), base, strict=True))]
        for v in texts
        if v != TNL
    }
    decode = {
        name: [(place, 1e3 * Interval.of([table[name, place] for table in tables]).mean) for place in (EARLY, LATE)]
        for name in (TNL, TRANSFORMER)
    }
    return (
        Chart("Held-out loss while training", "step", "nats a byte", texts.curves()),
        Chart("Loss less TransNormerLLM's", "seed", "nats a byte", against, bars=True),
        Chart("One more token", "position", "milliseconds", decode, log_x=True, log_y=True),
    )


def _near(ratio: Interval, factor: float) -> bool:
    return 1 / factor <= ratio.mean <= factor


RECIPE = Recipe(
    name="transnormerllm",
    paper="arXiv:2307.14995, sections 4.2 and 4.3",
    claim="TransNormerLLM is as good as a Transformer of its size, needs its decays, loses nothing by the simpler "
    "norm, and takes the same time per token at any position and training length",
    run=_run,
)
