"""Retention: fixed rates of forgetting do better than never forgetting.

Source: arXiv:2307.08621, section 3.5 (the ablation: without the decay gamma, perplexity rises).
"""

from __future__ import annotations

from attensor.recipes._recipe import Recipe, RecipeConfig, Verdict, ablation

__all__ = ["RECIPE"]


def _run(config: RecipeConfig) -> Verdict:
    bits = ablation(("linear", "retnet"), config)
    figures = {"no decay (linear)": bits["linear"], "fixed decays (retnet)": bits["retnet"]}
    return Verdict(bits["retnet"] < bits["linear"], {label: f"{v:.3f} bits per byte" for label, v in figures.items()})


RECIPE = Recipe(
    name="retnet",
    paper="arXiv:2307.08621, section 3.5",
    claim="fixed decays per head < no decay, in held-out bits per byte",
    run=_run,
)
