"""The card of plain linear attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="linear",
    aliases=("linear-attention", "linear-transformer"),
    title="Linear attention",
    paper=Paper("2006.16236", 2020, "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention"),
    use="the baseline of its family, and sums over a whole sequence in which old tokens count as much as new ones",
    avoid="language: a state that never forgets fills up; the gated members of the family cost hardly more",
    equation=r"S_i = S_{i-1} + k_i v_i^\top , \quad o_i = S_i^\top q_i / \sqrt{K}",
    operator="attensor.ops:linear_attention",
    operators=("attensor.ops:kernel_attention",),
    layer="attensor.nn.linear_attention:LinearAttention",
    domain=Domain.SEQUENCE,
    is_causal=True,
    flops="4*B*T*H*K*V",
    state_bytes="4*B*H*K*V",
    variants={
        "elu+1 with denominator": {"feature_map": "elu+1", "normalize": True},
        "random features": {"feature_map": "positive-random", "normalize": True},
        "learned features": {"feature_map": "learned", "normalize": True},
        "relu": {"feature_map": "relu"},
    },
    commands={
        "edit swap": "attensor.commands.edit_swap:EditSwap",
        "bench linear": "attensor.commands.bench_linear:BenchLinear",
    },
    swaps_into=("transformers",),
)
