"""The card of rank-augmented linear attention."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="rala",
    aliases=("rank-augmented-linear-attention", "ravlt"),
    title="Rank-augmented linear attention",
    paper=Paper("2411.07635", 2024, "Breaking the Low-Rank Dilemma of Linear Attention"),
    use="large images: every cell sees all cells at linear cost, with outputs of high rank",
    avoid="sequences: the weights of its keys depend on all queries, so that it cannot be causal",
    operator="attensor.ops:kernel_attention",
    layer="attensor.nn.rank_augmented:RankAugmentedLinearAttention",
    recipe="attensor.recipes.rala",
    domain=Domain.GRID,
    is_causal=False,
    flops="4*B*T*H*K*(V + 1)",
    state_bytes="0",
)
