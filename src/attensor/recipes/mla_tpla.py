"""TPLA: a trained latent attention cut into slices that attend for themselves, with nothing trained after the cut.

Byte-level models with two layers of latent attention are trained, then rewritten in another basis of their latents and
cut in two: the norm, the softmax, both, or both after an exact prompt. Beside them the cut that leaves each half of the
heads its own half of the latent, as grouped latent attention has it. Source: arXiv:2508.15881, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor import edit
from attensor.compare.tasks.text import cut
from attensor.edit.align import transfer
from attensor.edit.rotate import How
from attensor.models.language import Decoder
from attensor.nn import LatentAttention, Slicing
from attensor.recipes._language import decoder, fit, held_out_loss, text
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict, run_cells
from attensor.recipes._runs import Runs
from attensor.sites import find_sites

__all__ = ["RECIPE"]

HEADS, RANK, WIDTH, GROUPS = 4, 32, 8, 2
LENGTH, PROMPT, BATCH_SIZE, LEARNING_RATE, ALIGNING_RATE = 96, 48, 12, 3e-3, 1e-3
WINDOWS, CALIBRATION = 256, 16  # that are decoded, and batches that moments are taken of
DRAWS = 3  # of the signs of a Hadamard basis, for each model
SEEDS, STEPS = 8, 500  # models differ more than windows do: what decides is their number
ORIGINAL, HADAMARD, PCA = "original", "Hadamard", "PCA"
BASES: dict[str, How] = {ORIGINAL: "identity", HADAMARD: "hadamard", PCA: "pca"}
NORM, SOFTMAX, BOTH, GAINS = "norm", "softmax", "both", "both, gains"
MLA, GLA = "MLA", "GLA"

State = dict[str, Tensor]
Slicings = Mapping[str, Slicing | None]


def train_and_convert(seed: int, steps: int, aligning: int) -> dict[str, Any]:
    """A trained model and what becomes of it: losses of every cut, also after prompts, and energies of slices.

    Of the basis that is drawn at random the losses are means over `DRAWS` of it, of the same model.
    """
    model = _model({}, seed=seed)
    sizes: dict[str, Any] = {"length": LENGTH, "batch_size": BATCH_SIZE}
    curve = fit(model, seed=seed, steps=steps, learning_rate=LEARNING_RATE, **sizes)["curve"]
    moments = edit.latent_moments(model, (tokens[:, :-1] for tokens in _batches(seed + 100, CALIBRATION)))
    losses, decoded = {MLA: held_out_loss(model, length=LENGTH)}, {MLA: decoded_loss(model)}
    energies, aligned = {}, {}
    for name, how in BASES.items():
        draws = [
            edit.rotate_latent(model.state_dict(), how, groups=GROUPS, moments=moments, seed=seed + 1000 * draw)
            for draw in range(DRAWS if name == HADAMARD else 1)
        ]
        exact = [_loss(state, {}) for state, _ in draws]
        losses[f"exact, {name}"] = max(exact, key=lambda loss: abs(loss - losses[MLA]))
        for kind, change in CUTS.items():
            losses[f"{name}, {kind}"] = fmean(_cut_loss(*one, change) for one in draws)
        state, slicings = draws[0]
        energies[name] = _shares(slicings)
        for kind in (BOTH, GAINS):
            cuts = {layer: CUTS[kind](slicing) for layer, slicing in slicings.items()}
            decoded[f"{name}, {kind}"] = decoded_loss(_model(cuts, state))
        if name != HADAMARD:
            cuts = {layer: replace(slicing, when="always") for layer, slicing in slicings.items()}
            aligned[name] = _aligned_loss(model, _model(cuts, state), seed=seed + 200, steps=aligning)
        if name == ORIGINAL:
            even = dict.fromkeys(slicings, Slicing(GROUPS, (float(GROUPS),) * GROUPS, when="always"))
            losses[GLA] = _loss(own_halves(state), even)
    return {"loss": losses, "decoded": decoded, "aligned": aligned, "energy": energies, "curve": curve}


def _cut_loss(state: State, slicings: Mapping[str, Slicing], change: Callable[[Slicing], Slicing]) -> float:
    return _loss(state, {layer: replace(change(slicing), when="always") for layer, slicing in slicings.items()})


# what is sliced: a layer's norms by energy stay, or go, and so does the softmax of each slice
CUTS: dict[str, Callable[[Slicing], Slicing]] = {
    NORM: lambda slicing: replace(slicing, softmax=False),
    SOFTMAX: lambda slicing: replace(slicing, norms=None),
    BOTH: lambda slicing: slicing,
    GAINS: lambda slicing: replace(slicing, gains=slicing.norms),
}


def _model(slicings: Slicings, state: State | None = None, *, seed: int = 0) -> Decoder:
    """A decoder whose layers are cut so, those that are not named not at all; with these weights."""

    def mixer(index: int) -> LatentAttention:
        sizes: dict[str, Any] = {"kv_rank": RANK, "nope_dim": WIDTH, "rotary_dim": WIDTH, "value_dim": WIDTH}
        return LatentAttention(64, HEADS, slicing=slicings.get(f"layers.{index}.attn."), **sizes)

    model = decoder(mixer, seed=seed)
    if state is not None:
        model.load_state_dict(state)
    return model.eval()


def _batches(seed: int, count: int) -> Iterator[Tensor]:
    """[B, T + 1] of the training text."""
    data = text()
    return (data.batch(step, seed=seed, batch_size=BATCH_SIZE, length=LENGTH) for step in range(count))


def _loss(state: State, slicings: Slicings) -> float:
    return held_out_loss(_model(slicings, state), length=LENGTH)


def own_halves(state: State) -> State:
    """Each of the halves of the heads reads only its own half of the latent: what a grouped latent attention keeps."""
    kept = dict(state)
    for name in (name for name in state if name.endswith("kv_b_proj.weight")):
        by_half = state[name].view(GROUPS, -1, GROUPS, RANK // GROUPS)  # halves of heads, rows, halves of the latent
        kept[name] = (by_half * torch.eye(GROUPS).view(GROUPS, 1, GROUPS, 1)).view_as(state[name])
    return kept


@torch.no_grad()
def decoded_loss(model: Decoder) -> float:
    """Nats a byte of what is decoded one by one after a prompt, the prompt itself not counted."""
    windows = cut(text().selection(LENGTH, limit=WINDOWS), LENGTH)[:WINDOWS]  # [W, T + 1]
    caches = model.new_caches(len(windows), LENGTH)
    model(windows[:, :PROMPT], caches=caches)
    steps = [model(windows[:, place : place + 1], caches=caches) for place in range(PROMPT, LENGTH)]
    logits = torch.cat(steps, 1)  # [W, T - PROMPT, 256]
    return float(F.cross_entropy(logits.flatten(0, 1), windows[:, PROMPT + 1 :].flatten()))


def _aligned_loss(model: Decoder, sliced: Decoder, *, seed: int, steps: int) -> float:
    """After every sliced layer has learned, by itself, to give what the whole one gives of its input."""
    sites = find_sites(model)
    students: dict[str, Any] = {site.name: layer.attn for site, layer in zip(sites, sliced.layers, strict=True)}
    inputs = ({"tokens": tokens[:, :-1]} for tokens in _batches(seed, steps))
    transfer(model, sites, {"": students}, inputs, steps=steps, learning_rate=ALIGNING_RATE)
    return held_out_loss(sliced, length=LENGTH)


def _shares(slicings: Mapping[str, Slicing]) -> list[float]:
    """Of the energy of each slice, the mean over layers; norms are its inverse."""
    by_layer = [[1 / norm if norm else 0.0 for norm in slicing.norms or ()] for slicing in slicings.values()]
    return [sum(shares) / len(by_layer) for shares in zip(*by_layer, strict=True)]


def judge(results: list[dict[str, Any]]) -> Verdict:
    """The verdict on results of `train_and_convert`, one a seed.

    "a at most m times b" is judged on a - m b of every model, by the interval of its mean: a ratio of two small noisy
    numbers is far from normal, and its mean is not the ratio of the means.
    """

    def gaps(name: str, key: str = "loss") -> list[float]:
        return [result[key][name] - result[key][MLA] for result in results]

    def beyond(name: str, to: str, times: float) -> Interval:
        return Interval.of([1000 * (a - times * b) for a, b in zip(gaps(name), gaps(to), strict=True)])

    def against(said: str, name: str, to: str, times: float, **side: float) -> Check:
        ratio = fmean(gaps(name)) / fmean(gaps(to))
        text = f"loss over MLA's, {said} {times:g} times (means: {ratio:.3g}); in thousandths beyond {times:g} times"
        return Check.between(text, beyond(name, to, times), **side)

    mark, both = Check.between, {name: f"{name}, {BOTH}" for name in BASES}
    norm, softmax = f"{ORIGINAL}, {NORM}", f"{ORIGINAL}, {SOFTMAX}"
    worst = max(abs(gap) for name in BASES for gap in gaps(f"exact, {name}"))
    checks = (
        Check(f"another basis alone changes the loss by at most 1e-5: {worst:.0e}", worst <= 1e-5),
        against("GLA to the original split, at least", GLA, both[ORIGINAL], 5, low=0),
        against("PCA to the original split, at most", both[PCA], both[ORIGINAL], 0.5, high=0),
        mark("loss over MLA's, PCA, at most 0.02 nats a byte", Interval.of(gaps(both[PCA])), high=0.02),
        against("original split, the norm's to the softmax's, at most", norm, softmax, 0.3, high=0),
        mark("order: PCA at least MLA, by thousandths", beyond(both[PCA], both[PCA], 0), low=0),
        mark("order: Hadamard at least PCA, by thousandths", beyond(both[HADAMARD], both[PCA], 1), low=0),
        mark(
            "order: the original split at least Hadamard, by thousandths",
            beyond(both[ORIGINAL], both[HADAMARD], 1),
            low=0,
        ),
    )
    return Verdict(checks, _figures(results, gaps), _charts(results, gaps))


Gaps = Callable[..., list[float]]


def _figures(results: list[dict[str, Any]], gaps: Gaps) -> dict[str, str]:
    """The grid of losses, as distances from the model that was trained."""

    def thousandths(values: list[float]) -> str:
        return str(Interval.of([1000 * value for value in values]))

    figures = {f"loss, {MLA}, nats a byte": str(Interval.of([result["loss"][MLA] for result in results]))}
    for name in (n for n in results[0]["loss"] if n != MLA and "exact" not in n):
        figures[f"over it in thousandths, {name}"] = thousandths(gaps(name))
    for name in results[0]["aligned"]:
        over = [result["aligned"][name] - result["loss"][MLA] for result in results]
        figures[f"over it in thousandths, {name}, {BOTH}, layers aligned"] = thousandths(over)
    figures[f"loss of decoded bytes, {MLA}"] = str(Interval.of([result["decoded"][MLA] for result in results]))
    for name in (n for n in results[0]["decoded"] if n != MLA):
        figures[f"over it in thousandths, prompt exact, {name}"] = thousandths(gaps(name, "decoded"))
    for name in results[0]["energy"]:
        figures[f"energy of the first slice, {name}"] = str(Interval.of([r["energy"][name][0] for r in results]))
    return figures


def _charts(results: list[dict[str, Any]], gaps: Gaps) -> tuple[Chart, ...]:
    def means(name: str, key: str, kinds: tuple[str, ...]) -> list[tuple[float, float]]:
        return [(x, Interval.of(gaps(f"{name}, {kind}", key)).mean) for x, kind in enumerate(kinds, 1)]

    always = {name: means(name, "loss", (NORM, SOFTMAX, BOTH, GAINS)) for name in BASES}
    after = {name: means(name, "decoded", (BOTH, GAINS)) for name in BASES}
    energies = {
        name: [(x, sum(values) / len(values)) for x, values in enumerate(zip(*(r["energy"][name] for r in results)), 1)]
        for name in BASES
    }
    cut_by = "1 norm, 2 softmax, 3 both, 4 both with gains"
    return (
        Chart("Loss over the whole latent's, all tokens sliced", cut_by, "nats a byte", always, bars=True),
        Chart(
            "Loss over the whole latent's, decoded after an exact prompt",
            "1 both, 2 both with gains",
            "nats a byte",
            after,
            bars=True,
        ),
        Chart("Energy by slice", "slice", "share", energies, bars=True),
        Chart("Held-out loss while training", "step", "nats a byte", Runs({MLA: results}).curves()),
    )


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps, aligning = (1, 120, 10) if config.quick else (SEEDS, STEPS, 100)
    cells = [{"seed": seed, "steps": steps, "aligning": aligning} for seed in range(seeds)]
    return judge(run_cells(config, train_and_convert, cells))


RECIPE = Recipe(
    name="mla-tpla",
    paper="arXiv:2508.15881, sections 3 and 4",
    claim="a trained latent turned to its principal directions can be cut in two slices with a softmax each at almost "
    "no loss, far less than the same cut of the heads costs; what is lost, the softmax loses, and not the norm",
    run=_run,
    minutes=40,
)
