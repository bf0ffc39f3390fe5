"""The card of retention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="retnet",
    aliases=("retention",),
    title="Retention (fixed decay per head)",
    paper=Paper("2307.08621", 2023, "Retentive Network: A Successor to Transformer for Large Language Models"),
    use="constant decode state and cheap training on long sequences, with wide values and positions by rotation",
    avoid="deciding from the content what to keep: the rates of forgetting are fixed",
    equation=(
        r"S_i = \gamma_h S_{i-1} + k_i v_i^\top , \quad o_i = S_i^\top q_i / \sqrt{K} , \quad \gamma_h = 1 - "
        r"2^{-5-h}"
    ),
    terms={r"\gamma_h": "the decay of head h"},
    operator="attensor.ops:linear_attention",
    layer="attensor.nn.retention:Retention",
    recipe="attensor.recipes.retnet",
    domain=Domain.SEQUENCE,
    is_causal=True,
    flops="4*B*T*H*K*V",
    state_bytes="4*B*H*K*V",
    commands={"edit swap": "attensor.commands.edit_swap:EditSwap"},
    swaps_into=("transformers",),
)
