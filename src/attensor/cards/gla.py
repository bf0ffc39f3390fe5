"""The card of gated linear attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="gla",
    aliases=("gated-linear-attention", "gated-linear"),
    title="Gated linear attention",
    paper=Paper("2312.06635", 2023, "Gated Linear Attention Transformers with Hardware-Efficient Training"),
    use="long contexts with a constant decode state: each key channel decides from each token how much to forget",
    avoid="verbatim recall over long distances, and short sequences, where softmax attention is as fast",
    equation=(
        r"S_i = \mathrm{diag}(\alpha_i) \, S_{i-1} + k_i v_i^\top , \quad o_i = S_i^\top q_i / \sqrt{K} , "
        r"\quad \alpha_i = \sigma(W_2 W_1 x_i)^{1/16}"
    ),
    terms={
        r"\alpha_i": "what each key channel keeps of the state, decided from the token",
        "x_i": "the input of the layer",
    },
    operator="attensor.ops:linear_attention",
    layer="attensor.nn.gated_linear:GatedLinearAttention",
    models=("attensor.models.language.gla:GLAForCausalLM",),
    presets={"gla_340M": 374_475_776, "gla_1.3B": 1_365_514_240},
    recipe="attensor.recipes.gla",
    domain=Domain.SEQUENCE,
    is_causal=True,
    flops="4*B*T*H*K*V",
    state_bytes="4*B*H*K*V",
    variants={
        "layer norm, gate bias": {"norm": "layer", "gate_bias": True},
        "one key/value head": {"num_kv_heads": 1},
    },
    commands={"edit swap": "attensor.commands.edit_swap:EditSwap"},
    swaps_into=("transformers",),
)
