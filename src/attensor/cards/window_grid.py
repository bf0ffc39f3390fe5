"""The card of window and grid attention by turns."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="window-grid",
    title="Window and grid attention by turns",
    system="maxvit",
    paper=Paper(arxiv="2204.01697", year=2022, title="MaxViT: Multi-Axis Vision Transformer"),
    use="images of any size at linear cost: near cells in one layer, a coarse sample of the whole map in the next",
    avoid="single layers: only the pair of them sees everything, and cells at a window's border see one side",
    operator="attensor.ops:block_attention",
    layer="attensor.nn.window_grid:WindowGridAttention",
    domain=Domain.GRID,
    is_causal=False,
    flops="2*B*T*M*H*(K + V)",
    state_bytes="0",
    symbols={
        "M": "keys of a block for each query, those that fill up the border included, on average",
    },
    grid_options={"block_size": 4},
    example_options={"block_size": 4},
    example="""
import torch; from attensor import nn
layer = nn.WindowGridAttention(hidden_size=64, num_heads=4, block_size=8, layer_index=1)
out = layer(torch.randn(2, 32, 32, 64))
""",
)
