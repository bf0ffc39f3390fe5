"""The card of key-scored attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="key-scored",
    aliases=("key-scored-attention", "non-approximate"),
    title="Key-scored attention (one weight a token, whoever reads it)",
    system="deconstructing-attention",
    paper=Paper(
        "2510.11602",
        2025,
        "Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
    ),
    use="every other layer of a language model, where it takes the cache of one token in the place of all",
    avoid="a whole model of it: no token can ask for anything, and its scores grow without bound in training",
    equation=(
        r"o_i = \frac{\sum_{j \le i} e^{z_j} v_j}{\sum_{j \le i} e^{z_j}} , \quad "
        r"z_j = \frac{\mathrm{silu}(q_j)^\top k_j}{\sqrt{K}}"
    ),
    terms={"z_j": "the score of token j, the same for all readers"},
    operator="attensor.ops:linear_attention",
    layer="attensor.nn.key_scored:KeyScoredAttention",
    domain=Domain.SEQUENCE,
    is_causal=True,
    is_compared=False,  # it stands beside softmax attention in models, not alone
    flops="4*B*T*H*V",
    state_bytes="4*B*H*(V + 1)",
    variants={"biases": {"qkv_bias": True}, "norms": {"qk_norm": True}},
    commands={"edit swap": "attensor.commands.edit_swap:EditSwap"},
    swaps_into=("transformers",),
)
