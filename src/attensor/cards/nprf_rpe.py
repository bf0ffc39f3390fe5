"""The card of kernelised attention with relative positions."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="nprf-rpe",
    aliases=("nprf", "kernel-attention", "relative-kernel-attention"),
    title="Kernelised attention with relative positions",
    paper=Paper(
        "2106.12566", 2021, "Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding"
    ),
    use="sequences and images of thousands of tokens where what matters is how far away a token is",
    avoid="sharp attention by content: unit vectors bound the ratio of two weights without bias to e^2",
    equation=(
        r"o_i = \frac{\sum_j e^{b_{j-i}} \, \phi(q_i)^\top \phi(k_j) \, v_j}{\sum_j e^{b_{j-i}} \, "
        r"\phi(q_i)^\top \phi(k_j)}"
    ),
    terms={"b_{j - i}": "a learned number for each distance", r"\phi": "positive random features"},
    operator="attensor.ops:relative_kernel_attention",
    operators=("attensor.ops:toeplitz",),
    recipe="attensor.recipes.nprf_rpe",
    layer="attensor.nn.relative_kernel_attention:RelativeKernelAttention",
    domain=Domain.SEQUENCE | Domain.GRID,
    is_causal=True,
    # the Fourier transforms of long sequences count as the products that would cost as much (`M`)
    flops="B*H*T*(4*K*F + 2*M*(F + V + 1))",
    state_bytes="4*B*T*H*(F + V)",
    symbols={
        "F": "features of a query or key",
        "M": "keys a query sees, on average; of long sequences as many as cost what their transforms do",
    },
    grid_options={"is_causal": False, "space_dims": 2, "max_distance": 16},
    example_options={"num_features": 11, "max_distance": 5},
    variants={"not normalised": {"normalize": False}},
    commands={"bench relative": "attensor.commands.bench_relative:BenchRelative"},
    shown_options={"num_features": 32, "max_distance": 128},
)
