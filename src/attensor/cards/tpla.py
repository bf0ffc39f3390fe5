"""The card of tensor-parallel latent attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="tpla",
    system="mla-tpla",
    aliases=("tensor-parallel-latent-attention", "sliced-latent-attention"),
    title="Tensor-parallel latent attention (MLA in slices)",
    paper=Paper(
        "2508.15881",
        2025,
        "TPLA: Tensor Parallel Latent Attention for Efficient Disaggregated Prefill & Decode Inference",
    ),
    use="decoding long contexts with trained MLA on several devices: each keeps and reads a slice of the latent",
    avoid="training, one device, and short contexts: the same queries and output projections are computed once a slice",
    equation=(
        r"o_{hi} = \sum_g U_{hg} \sum_{j \le i} \mathrm{softmax}_j \left( \frac{(W_{hg}^\top q_{hi})^\top c_{gj} + "
        r"r_{hi}^\top r_j}{\sqrt{K + D}} \right) c_{gj}"
    ),
    terms={
        "c_{gj}": "slice g of the latent of token j, by a norm of its own",
        "W_{hg}, U_{hg}": "columns of that slice, of what makes keys and values of head h of a latent",
        "r": "the part of a query, and the one key for all heads, that turn with their positions; D numbers",
    },
    operator="attensor.ops:latent_attention",
    layer="attensor.nn.latent:LatentAttention",
    domain=Domain.SEQUENCE,
    is_causal=True,
    is_compared=False,  # an approximation of mla for decoding, no mechanism to train
    flops="2*B*T*R*H*(K + V) + 2*B*T**2*G*H*(K + D + V)",
    state_bytes="4*B*T*(R + D)",
    symbols={
        "G": "slices of a latent",
        "R": "width of a latent",
        "D": "width of the part that turns with the position",
    },
    options={"slicing": {"groups": 2, "norms": (2.0, 2.0), "when": "always"}},
    commands={"bench parallel": "attensor.commands.bench_parallel:BenchParallel"},
    recipe="attensor.recipes.mla_tpla",
    example="""
import torch; from attensor import nn
layer = nn.LatentAttention(
    64, 4, kv_rank=16, slicing=nn.Slicing(groups=2, norms=(2.0, 2.0))
)
out = layer(torch.randn(2, 1000, 64))
""",
)
