"""The card of Taylor attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="taylor",
    aliases=("taylor-attention", "based", "approximate"),
    title="Taylor attention (the first three terms of the exponential)",
    system="deconstructing-attention",
    paper=Paper(
        "2510.11602",
        2025,
        "Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
    ),
    use="softmax's sharpness to second order at constant cost a token, between layers of softmax attention",
    avoid="a whole model of it: exact recall of many tokens, and full second orders of wide heads (K^2 / 2 features)",
    equation=(
        r"o_i = \frac{\sum_{j \le i} w_{ij} v_j}{\sum_{j \le i} w_{ij}} , \quad w_{ij} = 1 + s_{ij} + "
        r"\tfrac{1}{2} s_{ij}^2 , \quad s_{ij} = \frac{q_i^\top k_j}{\sqrt{K}}"
    ),
    terms={"s_{ij}^2": "diagonal: the sum of the squares of its K terms"},
    operator="attensor.ops:kernel_attention",
    layer="attensor.nn.taylor_attention:TaylorAttention",
    domain=Domain.SEQUENCE,
    is_causal=True,
    is_compared=False,  # it stands beside softmax attention in models, not alone
    flops="4*B*T*H*M*(V + 1)",
    state_bytes="4*B*H*(M*(V + 1) - 1)",
    symbols={"M": "features of a key: 1 + 2 K, or full (K + 1) (K + 2) / 2"},
    variants={
        "full, rotary": {"second_order": "full", "rotary_base": 100.0},
        "one key/value head": {"num_kv_heads": 1, "qkv_bias": True, "qk_norm": True},
    },
    commands={"edit swap": "attensor.commands.edit_swap:EditSwap"},
    swaps_into=("transformers",),
)
