"""The card of halo attention and HaloNet."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="halonet",
    title="Halo attention (blocks that see beyond their border)",
    paper=Paper("2103.12731", 2021, "Scaling Local Self-Attention for Parameter Efficient Visual Backbones"),
    use="large images in place of convolutions: local attention in matrix products, with positions by row and column",
    avoid="reach beyond a block and its halo in one layer, and shifts by less than a block",
    equation=(
        r"o_i = \sum_{j \in W(i)} \mathrm{softmax}_j \left( q_i^\top k_j / \sqrt{K} + q_i^\top "
        r"(R_{y(j) - y(i)} + C_{x(j) - x(i)}) \right) v_j"
    ),
    terms={
        "W(i)": "the cells of i's block and of the halo around it",
        "R": "a learned vector for each distance of rows",
        "C": "a learned vector for each distance of columns",
    },
    operator="attensor.ops:halo_attention",
    layer="attensor.nn.halo:HaloAttention",
    models=("attensor.models.vision.halonet:HaloNet",),
    presets={
        "halonet_h0": 5_502_248,
        "halonet_h1": 8_101_352,
        "halonet_h2": 9_405_608,
        "halonet_h3": 11_842_792,
        "halonet_h4": 19_103_464,
        "halonet_h5": 30_718_952,
        "halonet_h6": 43_458_280,
        "halonet_h7": 67_434_728,
        "halonet26t": 12_480_288,
        "halonet50ts": 22_733_280,
        "sehalonet33ts": 13_691_712,
        "eca_halonext26ts": 10_756_885,
    },
    recipe="attensor.recipes.halonet",
    domain=Domain.GRID,
    is_causal=False,
    flops="2*B*Q*W**2*H*(K + V + 2*W) + 4*B*Q*H*K*W",
    state_bytes="0",
    symbols={
        "Q": "cells, those that fill up blocks at the border included",
        "W": "cells along a side of a window",
    },
    grid_options={"block_size": 4, "halo_size": 1},
    example_options={"block_size": 4, "halo_size": 1},
    shown_options={"block_size": 8, "halo_size": 3},
    variants={
        "as timm, no projection": {"as_timm": True, "output_projection": False},
        "wide values": {"value_size": 24},
    },
)
