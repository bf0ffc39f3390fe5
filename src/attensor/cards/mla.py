"""The card of multi-head latent attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="mla",
    aliases=("latent-attention", "multi-head-latent-attention", "deepseek-attention"),
    title="Multi-head latent attention (MLA), whole or sliced (TPLA)",
    paper=Paper(
        "2405.04434", 2024, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model"
    ),
    use="serving long contexts: exact recall as softmax attention, from one short vector a token for all heads",
    avoid="short contexts and training cost: a prompt costs as softmax attention, and more parameters",
    equation=(
        r"o_{hi} = U_h \sum_{j \le i} \mathrm{softmax}_j \left( \frac{(W_h^\top q_{hi})^\top c_j + r_{hi}^\top r_j}"
        r"{\sqrt{K + D}} \right) c_j"
    ),
    terms={
        "c_j": "the latent of token j, all that is kept of its keys and values",
        "W_h, U_h": "what makes keys and values of head h of a latent",
        "r": "the part of a query, and the one key for all heads, that turn with their positions; D numbers",
    },
    operator="attensor.ops:latent_attention",
    layer="attensor.nn.latent:LatentAttention",
    domain=Domain.SEQUENCE,
    is_causal=True,
    is_compared=False,  # softmax attention in quality, by its cache another
    flops="2*B*T*R*H*(K + V) + 2*B*T**2*H*(K + D + V)",
    state_bytes="4*B*T*(R + D)",
    symbols={"R": "width of a latent", "D": "width of the part that turns with the position"},
    variants={"queries from a latent": {"q_rank": 32}},
    shown_options={"kv_rank": 16},
    swaps_into=("transformers",),
    commands={
        "edit rotate-latent": "attensor.commands.edit_rotate_latent:EditRotateLatent",
        "bench latent": "attensor.commands.bench_latent:BenchLatent",
    },
)
