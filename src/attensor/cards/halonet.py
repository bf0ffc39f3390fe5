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
