"""The card of window and grid attention by turns."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="window-grid",
    aliases=("multi-axis", "max-sa"),
    title="Window and grid attention by turns",
    system="maxvit",
    paper=Paper("2204.01697", 2022, "MaxViT: Multi-Axis Vision Transformer"),
    use="images of any size at linear cost: near cells in one layer, a coarse sample of the whole map in the next",
    avoid="single layers: only the pair of them sees everything, and cells at a window's border see one side",
    equation=(
        r"o_i = \sum_{j \in B(i)} \frac{\exp(q_i^\top k_j / \sqrt{K} + b_{j-i})}{\sum_{l \in B(i)} "
        r"\exp(q_i^\top k_l / \sqrt{K} + b_{l-i})} \, v_j"
    ),
    terms={
        "B(i)": "the cells of i's window, in the next layer those at its place in all windows",
        "b_{j - i}": "a learned number for each offset",
    },
    operator="attensor.ops:block_attention",
    layer="attensor.nn.window_grid:WindowGridAttention",
    recipe="attensor.recipes.maxvit",
    domain=Domain.GRID,
    is_causal=False,
    flops="2*B*T*M*H*(K + V)",
    state_bytes="0",
    symbols={
        "M": "keys of a block for each query, those that fill up the border included, on average",
    },
    grid_options={"block_size": 4},
    example_options={"block_size": 4},
    shown_options={"block_size": 8, "layer_index": 1},
    swaps_into=("timm",),
)
