"""The card of TransNormerLLM's attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="transnormerllm",
    title="TransNormer attention (lightning attention, linear gate, LRPE)",
    paper=Paper(
        arxiv="2307.14995",
        year=2023,
        title="TransNormerLLM: A Faster and Better Large Language Model with Improved TransNormer",
    ),
    use="language models on very long sequences at constant training speed and with a constant decode state",
    avoid="deciding from the content what to keep, or exact recall: its rates of forgetting are fixed",
    operator="attensor.ops:linear_attention",
    layer="attensor.nn.transnormer:TransNormerAttention",
    models=("attensor.models.language.transnormer:TransNormerForCausalLM",),
    presets={
        "transnormer_385M": 384_974_848,
        "transnormer_1B": 992_165_888,
        "transnormer_3B": 2_876_006_400,
        "transnormer_7B": 6_780_547_072,
        "transnormer_15B": 14_830_000_000,
    },
    recipe="attensor.recipes.transnormerllm",
    domain=Domain.SEQUENCE,
    is_causal=True,
    flops="4*B*T*H*K*V",
    state_bytes="4*B*H*K*V",
    variants={"lrpe everywhere": {"use_lrpe": True}},
    example="""
import torch; from attensor import nn
layer = nn.TransNormerAttention(hidden_size=64, num_heads=4, layer_index=0, num_layers=12)
out = layer(torch.randn(2, 1000, 64))
""",
)
