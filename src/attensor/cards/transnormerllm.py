"""The card of TransNormerLLM's attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="transnormerllm",
    aliases=("transnormer", "transnormer-llm"),
    title="TransNormer attention (lightning attention, linear gate, LRPE)",
    paper=Paper(
        "2307.14995", 2023, "TransNormerLLM: A Faster and Better Large Language Model with Improved TransNormer"
    ),
    use="language models on very long sequences at constant training speed and with a constant decode state",
    avoid="deciding from the content what to keep, or exact recall: its rates of forgetting are fixed",
    equation=r"S_i = \lambda_h e^{i \theta} S_{i-1} + k_i v_i^\top , \quad o_i = S_i^\top q_i",
    terms={
        r"\lambda_h": "the decay of head h, fixed by head and layer",
        r"\theta": "a learned turn of each key channel, in the first layer",
    },
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
    shown_options={"layer_index": 0, "num_layers": 12},
    commands={"edit swap": "attensor.commands.edit_swap:EditSwap"},
    swaps_into=("transformers",),
)
