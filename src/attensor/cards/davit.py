"""The card of DaViT."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="davit",
    title="Dual attention (windows and channels by turns)",
    paper=Paper("2204.03645", 2022, "DaViT: Dual Attention Vision Transformers"),
    use="images of any size at linear cost: cells of a window in one layer, channels over the whole map in the next",
    avoid="single layers, and maps whose layout matters: neither kind knows positions, convolutions bring them",
    equation=(r"o_{nc} = \sum_d \mathrm{softmax}_d \left( \frac{1}{\sqrt{D}} \sum_m q_{mc} k_{md} \right) v_{nd}"),
    terms={
        "n": "a cell, and m any other: this is every second layer, the others attend in windows",
        "c": "a channel of a group, and d any of its D channels",
    },
    operator="attensor.ops:channel_attention",
    operators=("attensor.ops:block_attention",),
    layer="attensor.nn.dual_attention:DualAttention",
    models=("attensor.models.vision.davit:DaViT",),
    presets={
        "davit_tiny": 28_360_168,
        "davit_small": 49_745_896,
        "davit_base": 87_954_408,
        "davit_large": 196_811_752,
        "davit_huge": 348_922_856,
        "davit_giant": 1_406_470_120,
        "davit_base_fl": 90_370_048,
        "davit_huge_fl": 360_636_416,
    },
    recipe="attensor.recipes.davit",
    domain=Domain.GRID,
    is_causal=False,
    flops="2*B*T*M*H*(K + V)",
    state_bytes="0",
    symbols={"M": "what the sums of a cell run over: cells of a window, or channels of a group"},
    grid_options={"window_size": 4},
    example_options={"window_size": 4},
    shown_options={"window_size": 7},
    variants={
        "channels of Florence-2": {"version": 2},
    },
    swaps_into=("timm",),
)
