"""The card of sliding-window attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="sliding-window",
    title="Sliding-window attention",
    paper=Paper(arxiv="2004.05150", year=2020, title="Longformer: The Long-Document Transformer"),
    use="long streams in which what matters is near: exact attention to the last tokens at a constant cost per token",
    avoid="recall from further back than the layers times the window; mix with layers that see everything",
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
    sequence_options={"window_size": 64},
    example="""
import torch; from attensor import nn
layer = nn.SlidingWindowAttention(hidden_size=64, num_heads=4, window_size=32)
out = layer(torch.randn(2, 1000, 64))
""",
)
