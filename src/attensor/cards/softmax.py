"""The card of softmax attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="softmax",
    aliases=("mha", "attention", "sdpa", "full-attention", "flash-attention", "softmax-attention"),
    title="Softmax attention",
    paper=Paper("1706.03762", 2017, "Attention Is All You Need"),
    use="exact recall of anything in the context, and contexts up to a few thousand tokens: the measure of all others",
    avoid="long contexts: time grows with the square of the length, and decoding keeps every key and value",
    equation=(
        r"o_i = \sum_{j \le i} \frac{\exp(q_i^\top k_j / \sqrt{K})}{\sum_{l \le i} \exp(q_i^\top k_l / "
        r"\sqrt{K})} \, v_j"
    ),
    operator="attensor.ops:softmax_attention",
    operators=("attensor.ops:merge_attention",),
    layer="attensor.nn.softmax_attention:SoftmaxAttention",
    domain=Domain.SEQUENCE | Domain.GRID,
    is_causal=True,
    flops="2*B*T**2*H*(K + V)",
    state_bytes="4*B*T*H*(K + V)",
    grid_options={"is_causal": False, "rotary_base": None},
    commands={
        "edit swap": "attensor.commands.edit_swap:EditSwap",
        "bench softmax": "attensor.commands.bench_softmax:BenchSoftmax",
        "bench decode": "attensor.commands.bench_decode:BenchDecode",
    },
    shown_options={"num_kv_heads": 2},
    swaps_into=("transformers", "timm", "torch"),
)
