"""The card of neighbourhood attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="neighborhood",
    aliases=("neighbourhood", "nat", "natten", "neighborhood-attention", "neighbourhood-attention"),
    title="Neighbourhood attention",
    system="neighborhood-attention",
    paper=Paper("2204.07143", 2022, "Neighborhood Attention Transformer"),
    use="large images and volumes: every cell sees the same number of nearest cells, like a convolution that looks",
    avoid="global context in few layers; add dilation, or layers that see the whole map",
    equation=(
        r"o_i = \sum_{j \in N(i)} \frac{\exp(q_i^\top k_j / \sqrt{K})}{\sum_{l \in N(i)} \exp(q_i^\top k_l / "
        r"\sqrt{K})} \, v_j"
    ),
    terms={"N(i)": "the nearest cells of i along each axis"},
    operator="attensor.ops:neighborhood_attention",
    layer="attensor.nn.neighborhood:NeighborhoodAttention",
    models=("attensor.models.vision.nat:NAT",),
    presets={
        "nat_mini": 19_984_174,
        "nat_tiny": 27_901_582,
        "nat_small": 50_743_297,
        "nat_base": 89_769_652,
        "dinat_mini": 19_984_174,
        "dinat_tiny": 27_901_582,
        "dinat_small": 50_719_681,
        "dinat_base": 89_769_652,
        "dinat_large": 200_943_514,
        "dinat_large_384": 200_943_514,
        "dinat_large_384_11x11": 201_144_250,
    },
    domain=Domain.GRID,
    is_causal=False,
    flops="2*B*T*M*H*(K + V)",
    state_bytes="0",
    symbols={
        "M": "keys a query sees, on average",
    },
    grid_options={"window_size": 5},
    example_options={"window_size": 3},
    commands={
        "edit swap": "attensor.commands.edit_swap:EditSwap",
        "bench neighborhood": "attensor.commands.bench_neighborhood:BenchNeighborhood",
    },
    recipe="attensor.recipes.neighborhood_attention",
    shown_options={"window_size": 7},
    variants={
        "relative biases": {"relative_bias": True, "dilation": 2, "padding": "visible"},
        "cut": {"relative_bias": True, "border": "truncate", "window_size": 4},
    },
    swaps_into=("timm", "transformers"),
)
