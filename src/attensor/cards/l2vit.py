"""The card of global linear attention with local concentration."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="l2vit",
    aliases=("l2-vit",),
    title="Global linear attention with local concentration",
    paper=Paper("2501.16182", 2025, "The Linear Attention Resurrection in Vision Transformer"),
    use="large images at linear cost, when the mixer may convolve: what attention spreads, 7 x 7 convolutions gather",
    avoid="batches of one image in training, whose batch norm has little to average; sequences: it is not causal",
    equation=(
        r"o_i = \tau_h \frac{\mathrm{ReLU}(q_i)^\top \sum_j \mathrm{ReLU}(k_j) \, v_j^\top}{\max \left( m, \, "
        r"\mathrm{ReLU}(q_i)^\top \sum_j \mathrm{ReLU}(k_j) \right)}"
    ),
    terms={r"\tau_h": "a learned temperature", "m": "the least denominator"},
    operator="attensor.ops:kernel_attention",
    layer="attensor.nn.l2vit:GlobalLinearAttention",
    models=("attensor.models.vision.l2vit:L2ViT",),
    presets={
        "l2vit_tiny": 28_596_781,
        "l2vit_small": 50_199_157,
        "l2vit_base": 88_577_188,
        "l2vit_base_384": 88_577_188,
    },
    recipe="attensor.recipes.l2vit",
    domain=Domain.GRID,
    is_causal=False,
    flops="4*B*T*H*K*(V + 1)",
    state_bytes="0",
    # the published minimum of 100 is for maps of thousands of cells: on a few dozen no row would be normalised
    grid_options={"local_concentration": True, "denominator_minimum": 1.0},
    breaks={"batch": "batch norm in training takes its statistics over all images of the batch"},
    shown_options={"local_concentration": True},
    swaps_into=("timm", "transformers"),
)
