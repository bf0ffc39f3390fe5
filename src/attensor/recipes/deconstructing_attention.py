"""Attention taken apart: what a small language model needs of it, and what one standard layer in two gives back.

Byte-level models whose layers give up one principle of attention each, all of them (uniform) or every second (hybrid),
hybrids without those layers (skip), and the recall of pairs, which needs maps that depend on what was read.
Source: arXiv:2510.11602, sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from math import isnan
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.lens.indicators import Indicators, model_indicators
from attensor.nn import KeyScoredAttention
from attensor.recipes._language import fit, held_out_loss, text
from attensor.recipes._recall import RECALL_VOCAB, fit_recall
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict
from attensor.recipes._runs import Runs, measure
from attensor.sites import capture, find_sites

__all__ = ["RECIPE"]

STANDARD, UNIFORM, HYBRID, SKIP = "standard", "uniform", "hybrid", "skip"
# ours -> the paper's names
VARIANTS = {
    "random-sequence": "RndEmbQK", "fixed-sequence": "FixedSeqQK", "static-embedding": "StaticEmbQK",
    "taylor": "Approx.", "key-scored": "Non-apx.", "no-mixing": "MLP",
}  # fmt: skip
MODELS = [*(f"{layout} {variant}" for variant in VARIANTS for layout in (UNIFORM, HYBRID)), STANDARD]
RECALLING = ("random-sequence", "fixed-sequence", STANDARD, "static-embedding", "no-mixing")
UNAWARE = ("random-sequence", "fixed-sequence", "no-mixing")  # maps that no text changes, or none
HIDDEN_SIZE, LENGTH, BATCH_SIZE, LEARNING_RATE, RECALL_RATE, LOSS = 64, 96, 12, 2e-3, 5e-3, "loss.1"
SIZES = {
    "hidden_size": HIDDEN_SIZE, "intermediate_size": 170, "num_attention_heads": 4, "stream_length": LENGTH,
    "tie_word_embeddings": True, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


class Logits(nn.Module):
    """Tokens to logits of a model of attention taken apart, without caches."""

    def __init__(self, seed: int, **options: Any) -> None:
        from attensor.models.language.deconstructed import DeconstructedConfig, DeconstructedForCausalLM

        super().__init__()
        torch.manual_seed(seed)
        self.language_model = DeconstructedForCausalLM(DeconstructedConfig(**{**SIZES, **options}))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] to [B, T, V]."""
        logits: Tensor = self.language_model(tokens, use_cache=False).logits
        return logits


class PairLogits(Logits):
    """The same of embeddings behind a short convolution, which joins a value with the key before it."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.convolution = nn.Conv1d(HIDDEN_SIZE, HIDDEN_SIZE, 3, groups=HIDDEN_SIZE, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] to [B, T, V]."""
        embedded = self.language_model.model.embed_tokens(tokens)
        joined = embedded + self.convolution(F.pad(embedded.mT, (2, 0))).mT
        logits: Tensor = self.language_model(inputs_embeds=joined, use_cache=False).logits
        return logits


def train_text(name: str, seed: int, steps: int) -> dict[str, Any]:
    """A byte-level model of 213,824 parameters: its loss, without its variant's blocks too, and what its maps do."""
    layout, variant = name.split() if " " in name else (UNIFORM, name)
    fixed = text().batch(-1, seed=0, batch_size=1, length=LENGTH)[0, :LENGTH].tolist()
    model = Logits(seed, vocab_size=256, num_hidden_layers=4, variant=variant, layout=layout, fixed_tokens=fixed)
    result = fit(model, seed=seed, steps=steps, learning_rate=LEARNING_RATE, length=LENGTH, batch_size=BATCH_SIZE)
    result["layers"] = look(model)
    if layout == HYBRID:
        model.language_model = model.language_model.skipped()
        result[SKIP] = held_out_loss(model, length=LENGTH)
    return result


@torch.no_grad()
def look(model: Logits) -> dict[str, dict[str, Any]]:
    """Of every layer that mixes tokens: indicators, the mean over heads and 16 windows, and the largest score."""
    tokens = text().selection(LENGTH, limit=16)[:16, :LENGTH]
    sites = [site for site in find_sites(model.language_model) if site.has_map]
    if not sites:
        return {}
    with capture(sites, ["q", "k"]) as seen:
        found = model_indicators(model.language_model, {"input_ids": tokens, "use_cache": False})
    layers: dict[str, dict[str, Any]] = {}
    for site in sites:
        q, k = cast("Tensor", seen[site.name].q), cast("Tensor", seen[site.name].k)
        pairs = "bihc,bihc->bhi" if isinstance(site.original, KeyScoredAttention) else "bihc,bjhc->bhij"
        values = {f.name: getattr(found[site.name], f.name).mean(0).tolist() for f in fields(Indicators)}
        if isnan(values["entropy"]):  # of weights below 0
            values["entropy"] = None
        score = float(torch.einsum(pairs, q, k).abs().max()) * q.shape[-1] ** -0.5
        layers[site.name.split(".")[2]] = {**values, "score": score}
    return layers


def train_recall(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """Two layers that recall eight pairs."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.1}
    model = PairLogits(seed, vocab_size=RECALL_VOCAB, variant=variant, **sizes)
    return fit_recall(model, seed=seed, steps=steps, learning_rate=RECALL_RATE, pairs=(8,))


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps, recall_steps = (2, 40, 60) if config.quick else (3, 350, 200)
    trained = measure(config, train_text, "name", MODELS, seeds=seeds, steps=steps)
    recall = measure(config, train_recall, "variant", RECALLING, seeds=seeds, steps=recall_steps)
    return judge(trained, recall)


def judge(text: Runs, recall: Runs) -> Verdict:
    """The verdict on results of `train_text`, by layout and variant, and of `train_recall`, one a seed."""
    mark = Check.between

    def over(name: str, other: str = STANDARD) -> Interval:
        return text.margin(name, other, LOSS)

    def skipped(name: str) -> Interval:
        return text.interval(name, lambda result: result[SKIP] - result["loss"]["1"])

    checks = [mark("loss, uniform MLP over standard at least 0.2 nats a byte", over("uniform no-mixing"), low=0.2)]
    for variant, name in VARIANTS.items():
        hybrid = f"{HYBRID} {variant}"
        checks.append(mark(f"loss, hybrid {name} over standard at most 0.12", over(hybrid), high=0.12))
        if variant in ("no-mixing", "taylor", "key-scored"):
            gain = over(f"{UNIFORM} {variant}", hybrid)
            checks.append(mark(f"loss, uniform {name} over hybrid more than 0.1", gain, above=0.1))
        checks.append(mark(f"loss, skip over hybrid {name} at least 0.4", skipped(hybrid), low=0.4))
    for variant in UNAWARE:
        gap = recall.margin(STANDARD, variant, _percent)
        checks.append(mark(f"recall, standard over {VARIANTS[variant]} at least 30 points", gap, low=30.0))
    return Verdict(tuple(checks), _figures(text, recall), tuple(_charts(text, recall)))


def _figures(text: Runs, recall: Runs) -> dict[str, str]:
    titled = Runs({_title(name): text[name] for name in text})
    figures = titled.figures("loss, {}, nats a byte", LOSS) | titled.figures(f"loss, {SKIP} of {{}}", SKIP)
    figures |= Runs({_title(name): recall[name] for name in recall}).figures("recall, {}, % of 8 pairs", _percent)
    for name in (f"{UNIFORM} key-scored", f"{HYBRID} key-scored"):
        largest = text.interval(name, lambda result: max(layer["score"] for layer in result["layers"].values()))
        figures[f"largest score before a softmax, {_title(name)}"] = str(largest)
    return figures


def _charts(text: Runs, recall: Runs) -> Iterator[Chart]:
    looks: tuple[tuple[str, str, Callable[[dict[str, Any]], float | None]], ...] = (
        ("How widely a token looks", "nats a token", _entropy),
        ("What the first token gets", "share", lambda layer: layer["sink"]),
        ("What the token before gets", "share", lambda layer: layer["local_focus"][1]),
    )
    for layout in (UNIFORM, HYBRID):
        names = {STANDARD: STANDARD} | {f"{layout} {variant}": name for variant, name in VARIANTS.items()}
        runs = Runs({title: text[name] for name, title in names.items()})
        yield Chart(f"Held-out loss while training, {layout} layouts", "step", "nats a byte", runs.curves())
        for title, unit, key in looks:
            points = {name: line for name in runs if (line := by_layer(runs[name], key))}
            yield Chart(f"{title}, {layout} layouts", "layer", unit, points)
    named = Runs({_title(name): recall[name] for name in recall})
    yield Chart("Recall of 8 pairs while training", "step", "share of right values", named.curves())


def by_layer(results: list[dict[str, Any]], key: Callable[[dict[str, Any]], float | None]) -> list[tuple[float, float]]:
    """(number of a layer from 1, the mean over seeds), of the layers of which it is known in every seed."""
    found = []
    for layer in results[0]["layers"]:
        values = [key(result["layers"][layer]) for result in results]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            found.append((int(layer) + 1.0, fmean(known)))
    return found


def _entropy(layer: dict[str, Any]) -> float | None:
    return None if layer["entropy"] is None else layer["entropy"] / LENGTH


def _title(name: str) -> str:
    """`uniform key-scored` as the paper calls it."""
    layout, _, variant = name.rpartition(" ")
    return f"{layout} {VARIANTS.get(variant, variant)}".strip()


def _percent(result: dict[str, Any]) -> float:
    return float(100 * result["accuracy"])


RECIPE = Recipe(
    name="deconstructing-attention",
    paper="arXiv:2510.11602, sections 4 and 5",
    claim="without mixing a language model fails, layers that give up one principle of attention are nearly as good "
    "as standard ones when every second layer is standard, which alone are worth little; recall needs maps of the text",
    run=_run,
    needs=("transformers",),
    minutes=73,
)
