"""The card of power-law graph attention and PLDR-LLM."""

from attensor.catalogue import Domain, Mechanism, Paper

CARD = Mechanism(
    name="pldr-llm",
    aliases=("pldr", "power-law-graph-attention", "plga", "power-law-graph"),
    title="Power-law graph attention (a learned matrix between queries and keys)",
    paper=Paper(
        "2502.13502",
        2025,
        "PLDR-LLMs Learn A Generalizable Tensor Operator That Can Replace Its Own Deep Neural Net At Inference",
    ),
    use="studying what a learned operator between queries and keys concludes of its input, at softmax's decoding cost",
    avoid="cheap training: the net that makes the operator is paid for every block of tokens, and quality is softmax's",
    equation=(
        r"o_i = \sum_{j \le i} \mathrm{softmax}_j \left( q_i^\top G \, k_j / \sqrt{K} \right) v_j , \quad "
        r"G = f \left( \sum_{l < b(i)} q_l q_l^\top \right)"
    ),
    terms={
        "G": "a matrix for each head, made of the tokens in earlier blocks",
        "f": "a norm, residual gated layers, and a learned power of each entry",
        "b(i)": "the beginning of i's block",
    },
    operator="attensor.ops:power_law_operator",
    layer="attensor.nn.power_law_graph:PowerLawGraphAttention",
    models=("attensor.models.language.pldr:PLDRForCausalLM",),
    presets={
        "pldr_v51-110M": 109_689_362,
        "pldr_v51G-106M": 105_606_482,
        "pldr_v52": 109_689_362,
        "pldr_DAG": 109_689_362,
    },
    commands={"lens operator": "attensor.commands.lens_operator:LensOperator"},
    recipe="attensor.recipes.pldr_llm",
    domain=Domain.SEQUENCE,
    is_causal=True,
    is_compared=False,  # softmax attention in quality, at another price
    flops="2*B*T**2*H*(K + V) + 4*B*Q*H*K**2 + B*N*H*K**2*(6*R*S*F + 4*K)",
    state_bytes="4*B*T*H*(K + V) + 8*B*H*K**2",
    symbols={
        "Q": "tokens, those that fill up the last block included",
        "N": "blocks of tokens",
        "R": "residual units of the net",
        "S": "gated layers of each",
        "F": "channels inside of these",
    },
    options={"units": 2, "net_size": 32},
    example_options={"units": 2, "net_size": 6, "block_size": 4},
    shown_options={"block_size": 64},
    breaks={
        "precision": "a power of an entry near zero magnifies the rounding of the queries that it is made of; a "
        "negative exponent does so without bound",
    },
    variants={
        "halves": {"block_size": 3, "interleaved": False},
        "one unit": {"units": 1, "depth": 1, "block_size": 64},
    },
)
