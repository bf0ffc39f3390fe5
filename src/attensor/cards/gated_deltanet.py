"""The card of Gated DeltaNet."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="gated-deltanet",
    aliases=("gdn", "gated-delta-rule", "delta-rule", "deltanet"),
    title="Gated DeltaNet",
    paper=Paper("2412.06464", 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule"),
    use="long contexts with a constant decode state in which keys come again: what stood under a key is replaced",
    avoid="short sequences, where softmax attention is as fast and exact, and more keys than the state has rows",
    equation=(
        r"S_i = \alpha_i \left( I - \beta_i k_i k_i^\top \right) S_{i-1} + \beta_i k_i v_i^\top , \quad "
        r"o_i = S_i^\top q_i / \sqrt{K}"
    ),
    terms={
        r"\alpha_i": "what a head keeps of its state, decided from the token",
        r"\beta_i": "how far what the state says of the key is corrected, decided from the token",
    },
    operator="attensor.ops:gated_delta_rule",
    layer="attensor.nn.gated_delta:GatedDeltaNet",
    domain=Domain.SEQUENCE,
    is_causal=True,
    is_compared=False,  # one more recurrence with gates
    flops="6*B*T*H*K*V",
    state_bytes="4*B*(H*K*V + (W - 1)*(2*J*K + H*V))",
    commands={"edit swap": "attensor.commands.edit_swap:EditSwap"},
    swaps_into=("transformers",),
    symbols={"J": "heads of queries and keys", "W": "tokens that a convolution reads"},
    variants={
        "reflections, no convolution": {"allow_neg_eigval": True, "conv_size": None},
        "one query and key head, no gate": {"num_qk_heads": 1, "expand_v": 3.0, "use_gate": False, "conv_bias": True},
    },
)
