"""The card of grouped latent attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="grouped-latent",
    aliases=("grouped-latent-attention",),
    title="Grouped latent attention (several latents a token)",
    paper=Paper("2505.21487", 2025, "Hardware-Efficient Attention for Fast Decoding"),
    use="serving long contexts over several devices: each keeps one of the latents and the heads that read it",
    avoid="converting trained latent attention, whose heads all read the whole latent",
    equation=(
        r"o_{hi} = U_h \sum_{j \le i} \mathrm{softmax}_j \left( \frac{(W_h^\top q_{hi})^\top c_{gj} + r_{hi}^\top r_j}"
        r"{\sqrt{K + D}} \right) c_{gj}"
    ),
    terms={
        "c_{gj}": "the latent of token j that head h reads with others of its group g",
        "W_h, U_h": "what makes keys and values of head h of a latent",
        "r": "the part of a query, and the one key for all heads, that turn with their positions; D numbers",
    },
    operator="attensor.ops:latent_attention",
    layer="attensor.nn.grouped_latent:GroupedLatentAttention",
    domain=Domain.SEQUENCE,
    is_causal=True,
    is_compared=False,  # softmax attention in quality, by its cache another
    flops="2*B*T*R*H*(K + V) + 2*B*T**2*H*(K + D + V)",
    state_bytes="4*B*T*(G*R + D)",
    symbols={
        "G": "latents a token",
        "R": "width of a latent",
        "D": "width of the part that turns with the position",
    },
    shown_options={"kv_rank": 16},
)
