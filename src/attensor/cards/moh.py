"""The card of mixture-of-head attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="moh",
    aliases=("mixture-of-heads", "mixture-of-head-attention", "moe-attention"),
    title="Mixture-of-head attention (MoH)",
    paper=Paper("2410.11842", 2024, "MoH: Multi-Head Attention as Mixture-of-Head Attention"),
    use="softmax attention with a quarter to half of its heads saved, from scratch or from a trained model",
    avoid="few heads and short inputs, where skipped rows save less than gathering them costs",
    equation=(
        r"o_i = \sum_{h} g_{hi} \sum_{j \le i} \mathrm{softmax}_j \left( q_{hi}^\top k_{hj} / \sqrt{K} \right) v_{hj} "
        r", \quad g_{hi} = 0 \text{ unless } h \text{ is shared or among the best of } i"
    ),
    terms={"g_{hi}": "weight of head h for token i, by a router"},
    operator="attensor.ops:routed_attention",
    layer="attensor.nn.mixture_of_heads:MixtureOfHeads",
    layers=("attensor.nn.aggregated:AggregatedAttention", "attensor.nn.aggregated:CosineAttention"),
    models=("attensor.models.vision.transnext:TransNeXt", "attensor.models.vision.dit:DiT"),
    presets={
        "transnext_micro": 12_809_304,
        "transnext_tiny": 28_258_960,
        "transnext_small": 49_741_564,
        "transnext_base": 89_721_496,
        "moh_vit_s_80": 49_910_548,
        "moh_vit_s_75": 49_910_548,
        "moh_vit_b_75": 90_020_632,
        "moh_vit_b_50": 90_023_512,
        "dit_s_2": 32_865_056,
        "dit_b_2": 130_315_808,
        "dit_l_2": 457_840_672,
        "dit_xl_2": 674_834_720,
        "moh_dit_s_2_90": 32_898_848,
        "moh_dit_s_2_75": 32_900_384,
        "moh_dit_b_2_90": 130_441_760,
        "moh_dit_b_2_75": 130_441_760,
        "moh_dit_l_2_90": 458_250_272,
        "moh_dit_l_2_75": 458_266_656,
        "moh_dit_xl_2_90": 675_371_552,
        "moh_dit_xl_2_75": 675_394_592,
    },
    commands={"edit swap": "attensor.commands.edit_swap:EditSwap"},
    recipe="attensor.recipes.moh",
    domain=Domain.SEQUENCE | Domain.GRID,
    is_causal=True,
    is_compared=False,  # softmax attention in quality; its cost in training is read from the table of costs
    flops="2*B*T*M*A*(K + V)",
    state_bytes="4*B*T*G*(K + V)",
    symbols={"A": "heads that are on for a token", "M": "keys that a row reads", "G": "key/value heads"},
    grid_options={"is_causal": False, "rotary_base": None},
    shown_options={"num_active": 0.75},
    swaps_into=("transformers", "timm"),
    variants={
        "weights of the paper": {"gate_scale": "paper", "num_shared": 0},
        "all shared": {"num_shared": 0.9, "num_active": 0.9},
    },
)
