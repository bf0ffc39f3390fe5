"""The card of axial attention and of the Axial Transformer, a model of images that it makes."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="axial",
    aliases=("axial-attention",),
    title="Axial attention (rows and columns by turns)",
    system="axial-transformer",
    paper=Paper("1912.12180", 2019, "Axial Attention in Multidimensional Transformers"),
    use="images and volumes in which whole rows and columns belong together: two layers connect every pair of cells",
    avoid="fine local structure across diagonals, and very long sides, as cost still grows with the side",
    equation=(
        r"o_i = \sum_{j \in A(i)} \frac{\exp(q_i^\top k_j / \sqrt{K})}{\sum_{l \in A(i)} \exp(q_i^\top k_l / "
        r"\sqrt{K})} \, v_j"
    ),
    terms={"A(i)": "the cells of i's row, in the next layer those of its column"},
    operator="attensor.ops:block_attention",
    layer="attensor.nn.axial:AxialAttention",
    models=("attensor.models.vision.axial_transformer:AxialTransformer",),
    presets={"axial_imagenet32": 341_178_112, "axial_imagenet64": 606_161_152, "axial_digits": 88_337},
    commands={"solve complete": "attensor.commands.complete:SolveComplete"},
    recipe="attensor.recipes.axial_transformer",
    domain=Domain.GRID,
    is_causal=False,
    flops="2*B*T*X*H*(K + V)",
    state_bytes="0",
    symbols={"X": "length of the attended axis"},
    shown_options={"layer_index": 0},
    swaps_into=("timm",),
)
