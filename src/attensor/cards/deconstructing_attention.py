"""The card of attention taken apart."""

from attensor.catalogue import Card, Paper

CARD = Card(
    name="deconstructing-attention",
    aliases=("deconstructed", "attention-taken-apart"),
    title="Attention taken apart (language models that give up one principle of it)",
    paper=Paper(
        "2510.11602",
        2025,
        "Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
    ),
    use="asking what of attention a language model needs: mixing, its form, its dependence on the text, layer by layer",
    avoid="a model to use: standard attention in every layer is at least as good in the paper's tables of perplexity",
    example="""
import torch; from attensor.models.language.deconstructed import *
model = DeconstructedForCausalLM(DeconstructedForCausalLM.tiny)
loss = model(t := torch.randint(13, (2, 9)), labels=t).loss
""",
    commands={"lens indicators": "attensor.commands.lens_indicators:LensIndicators"},
    layers=("attensor.nn.no_mixing:NoMixing",),
    recipe="attensor.recipes.deconstructing_attention",
    models=("attensor.models.language.deconstructed:DeconstructedForCausalLM",),
    presets={
        "deconstructed_70M": 76_692_992,
        "deconstructed_160M": 190_560_000,
        "deconstructed_500M": 481_109_888,
        "deconstructed_1.7B": 1_732_895_744,
    },
)
