"""The card of lightning attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="lightning",
    aliases=("lightning-attention", "lightning-attention-2"),
    title="Lightning attention (fixed decay per head)",
    system="lightning-attention",
    paper=Paper(
        "2401.04658",
        2024,
        "Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large Language Models",
    ),
    use="the cheapest training on very long sequences: constant time per token and a constant decode state",
    avoid="deciding from the content what to keep, or exact recall: MiniMax adds a softmax layer after every seven",
    equation=r"S_i = \lambda_h S_{i-1} + k_i v_i^\top , \quad o_i = S_i^\top q_i",
    terms={r"\lambda_h": "the decay of head h, fixed by head and layer"},
    operator="attensor.ops:linear_attention",
    layer="attensor.nn.lightning:LightningAttention",
    recipe="attensor.recipes.lightning_attention",
    domain=Domain.SEQUENCE,
    is_causal=True,
    flops="4*B*T*H*K*V",
    state_bytes="4*B*H*K*V",
    variants={"minimax slopes": {"slopes": "minimax"}, "linear slopes": {"slopes": "linear"}},
    shown_options={"layer_index": 0, "num_layers": 12},
    commands={"edit swap": "attensor.commands.edit_swap:EditSwap"},
    swaps_into=("transformers",),
)
