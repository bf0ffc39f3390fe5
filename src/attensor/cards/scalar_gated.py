"""The card of scalar-gated linear attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="scalar-gated",
    aliases=("mamba2", "mamba-2", "ssd", "scalar-gated-linear-attention"),
    title="Linear attention with a scalar gate",
    paper=Paper(
        "2405.21060",
        2024,
        "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
    ),
    use="long contexts at nearly the speed of a fixed decay: each head decides from each token how much to forget",
    avoid="exact recall over long distances; where memory is short, a gate per channel keeps more in the same state",
    equation=(
        r"S_i = \alpha_i S_{i-1} + k_i v_i^\top , \quad o_i = S_i^\top q_i / \sqrt{K} , \quad \alpha_i = "
        r"\sigma(w^\top x_i)^{1/16}"
    ),
    terms={r"\alpha_i": "what head h keeps of its state, decided from the token", "x_i": "the input of the layer"},
    operator="attensor.ops:linear_attention",
    layer="attensor.nn.gated_linear:ScalarGatedLinearAttention",
    domain=Domain.SEQUENCE,
    is_causal=True,
    flops="4*B*T*H*K*V",
    state_bytes="4*B*H*K*V",
    commands={"edit swap": "attensor.commands.edit_swap:EditSwap"},
    swaps_into=("transformers",),
)
