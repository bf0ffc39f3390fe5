"""The card of sliding-window attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="sliding-window",
    aliases=("swa", "sliding-window-attention", "local-attention"),
    title="Sliding-window attention",
    paper=Paper("2004.05150", 2020, "Longformer: The Long-Document Transformer"),
    use="long streams in which what matters is near: exact attention to the last tokens at a constant cost per token",
    avoid="recall from further back than the layers times the window; mix with layers that see everything",
    equation=(
        r"o_i = \sum_{j = i - W + 1}^{i} \frac{\exp(q_i^\top k_j / \sqrt{K})}{\sum_{l = i - W + 1}^{i} "
        r"\exp(q_i^\top k_l / \sqrt{K})} \, v_j"
    ),
    terms={"W": "the width of the window"},
    operator="attensor.ops:neighborhood_attention",
    layer="attensor.nn.sliding_window:SlidingWindowAttention",
    domain=Domain.SEQUENCE,
    is_causal=True,
    flops="2*B*T*M*H*(K + V)",
    state_bytes="4*B*W*H*(K + V)",
    symbols={
        "W": "keys a query sees (product of the window over the axes)",
        "M": "keys a query sees, on average",
    },
    options={"window_size": 64},
    example_options={"window_size": 6},
    shown_options={"window_size": 32},
    commands={"edit swap": "attensor.commands.edit_swap:EditSwap"},
    swaps_into=("transformers", "torch"),
)
