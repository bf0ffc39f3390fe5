"""The card of rank-augmented linear attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="rala",
    aliases=("rank-augmented-linear-attention", "ravlt"),
    title="Rank-augmented linear attention",
    paper=Paper("2411.07635", 2024, "Breaking the Low-Rank Dilemma of Linear Attention"),
    use="large images: every cell sees all cells at linear cost, with outputs of high rank",
    avoid="sequences: the weights of its keys depend on all queries, so that it cannot be causal",
    equation=(
        r"o_i = g_i \odot \left( \frac{(R_i \phi(q_i))^\top \sum_j w_j \, R_j \phi(k_j) \, v_j^\top}"
        r"{\phi(q_i)^\top \sum_j w_j \, \phi(k_j)} + (c * v)_i \right) , \quad "
        r"w_j = \mathrm{softmax}_j \left( \bar{\phi}(q)^\top \phi(k_j) / \sqrt{K} \right)"
    ),
    terms={
        r"\phi": "elu + 1",
        "R_i": "a rotation by row and column",
        "w_j": "agreement of a key with the mean query",
        "c": "a 5 x 5 convolution, channel by channel",
        "g_i": "a gate, linear in the input",
    },
    operator="attensor.ops:kernel_attention",
    operators=("attensor.ops:softmax_attention",),
    layer="attensor.nn.rank_augmented:RankAugmentedLinearAttention",
    models=("attensor.models.vision.ravlt:RAVLT",),
    presets={
        "ravlt_t": 14_897_768,
        "ravlt_s": 25_591_208,
        "ravlt_b": 48_241_288,
        "ravlt_l": 95_242_440,
        "ravlt_t_linear": 14_897_768,
        "ravlt_s_linear": 25_591_208,
        "ravlt_b_linear": 48_241_288,
        "ravlt_l_linear": 95_242_440,
    },
    recipe="attensor.recipes.rala",
    domain=Domain.GRID,
    is_causal=False,
    flops="4*B*T*H*K*(V + 1)",
    state_bytes="0",
    variants={"softmax twin": {"attention": "softmax"}},
)
