"""Who takes part: small functions that turn a problem into a contestant, or say why they cannot.

Peers that need a GPU are in `gpu_peers`.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.bench.linear.problem import Contestant, Problem
from attensor.bench.linear.registry import OPERATOR_VARIANTS, OURS, fla_naive, load, peer
from attensor.bench.peers import FLEX_HAS_NO_BACKWARD, causal_blocks
from attensor.nn import LightningAttention
from attensor.ops import Denominator, linear_attention
from attensor.ops.linear_attention.backends import Algorithm

__all__ = ["MINIMAX", "minimax_layer", "sdpa"]

MINIMAX = "transformers.models.minimax.modeling_minimax"


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's causal softmax attention, heads last."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def _operator(problem: Problem, *, algorithm: Algorithm = "la2", backend: str | None = None) -> Contestant:
    decay = problem.log_decay
    divide = Denominator() if problem.variant == "denominator" else None

    def attend(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
        return linear_attention(q, k, v, log_decay=decay, denominator=divide, algorithm=algorithm, backend=backend)[0]

    return Contestant.of(problem, attend)


@peer(OURS, variants=(*OPERATOR_VARIANTS, "denominator", "layer"), work="chunked", packages=("attensor",))
def _ours(problem: Problem) -> Contestant | str:
    if problem.variant == "layer":
        return Contestant.of_layer(problem, problem.layer, problem.layer)
    return _operator(problem)


@peer("ours-torch", variants=(*OPERATOR_VARIANTS, "denominator"), work="chunked")
def _ours_torch(problem: Problem) -> Contestant | str:
    if problem.device == "cpu":
        return "ours is the torch back-end on a CPU"
    return _operator(problem, backend="torch")


@peer("ours-la1", variants=("none", "constant"), work="quadratic")
def _ours_la1(problem: Problem) -> Contestant | str:
    return _operator(problem, algorithm="la1")


@peer("sdpa", variants=OPERATOR_VARIANTS, work="quadratic", packages=("torch",), is_softmax=True)
def _sdpa(problem: Problem) -> Contestant | str:
    return Contestant.of(problem, sdpa, *problem.qkv)


@peer(
    "flex",
    variants=OPERATOR_VARIANTS,
    work="quadratic",
    packages=("torch",),
    is_softmax=True,
    compiles=True,
    no_backward=FLEX_HAS_NO_BACKWARD,
)
def _flex(problem: Problem) -> Contestant | str:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, fullgraph=True)
    mask = causal_blocks(problem.length, problem.device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out: Tensor = compiled(q, k, v, block_mask=mask)
        return out.transpose(1, 2)

    # on a CPU it refuses whatever could be differentiated, even where nothing is
    inputs = (x.detach() for x in problem.qkv) if problem.device == "cpu" else problem.qkv
    return Contestant.of(problem, attend, *inputs)


@peer("fla-chunk-naive", variants=("none", "constant", "scalar"), work="chunked", packages=("fla-core",))
def _fla_chunk_naive(problem: Problem) -> Contestant | str:
    module = fla_naive("linear_attn" if problem.variant == "none" else "simple_gla")
    if isinstance(module, str):
        return module
    if problem.variant == "none":
        if problem.length % 64:
            return "fla's naive chunks want a multiple of 64 tokens"
        return Contestant.of(problem, module.naive_chunk_linear_attn)
    gates = _per_token(problem)
    return Contestant.of(problem, lambda q, k, v, *_: module.naive_chunk_simple_gla(q, k, v, gates)[0])


@peer(
    "fla-recurrent-naive",
    variants=("constant", "channel"),  # the loop costs the same whatever the decay
    work="recurrent",
    packages=("fla-core",),
    kept_states=4,
)
def _fla_recurrent_naive(problem: Problem) -> Contestant | str:
    family = "gla" if problem.variant == "channel" else "simple_gla"
    module = fla_naive(family)
    if isinstance(module, str):
        return module
    function, gates = getattr(module, f"naive_recurrent_{family}"), _per_token(problem)
    return Contestant.of(problem, lambda q, k, v, *_: function(q, k, v, gates)[0])


def _per_token(problem: Problem) -> Tensor:
    """The decay as [B, T, H] or [B, T, H, K], which is how fla takes a constant one too."""
    decay = problem.log_decay
    if decay is None:
        raise ValueError(f"bench linear: the variant {problem.variant!r} has no decay.")
    return decay.expand(problem.batch, problem.length, -1) if decay.dim() == 1 else decay


@peer("performer", variants=("denominator",), work="recurrent", packages=("performer-pytorch",), kept_states=4)
def _performer(problem: Problem) -> Contestant | str:
    module = load("performer_pytorch.performer_pytorch", "performer-pytorch")
    if isinstance(module, str):
        return module
    causal = module.causal_linear_attention_noncuda

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = causal(*(x.transpose(1, 2) for x in (q, k, v)))
        return out.transpose(1, 2)

    return Contestant.of(problem, attend)


@peer("minimax", variants=("layer",), work="chunked", packages=("transformers",))
def _minimax(problem: Problem) -> Contestant | str:
    module = load(MINIMAX, "transformers")
    if isinstance(module, str):
        return module
    layer = minimax_layer(module, problem.layer)
    return Contestant.of_layer(problem, layer, lambda hidden: layer(hidden, None, None)[0])


def minimax_layer(module: ModuleType, ours: LightningAttention) -> nn.Module:
    """transformers' MiniMax lightning layer with the weights of ours.

    Args:
        module: the one named `MINIMAX`.
        ours: the only layer of its stack.
    """
    config = module.MiniMaxConfig(
        hidden_size=ours.hidden_size,
        num_attention_heads=ours.num_heads,
        num_key_value_heads=ours.num_heads,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    weight = ours.q_proj.weight
    layer: nn.Module = module.MiniMaxLightningAttention(config, 0).to(weight.device, weight.dtype)
    heads = (ours.num_heads, -1, ours.hidden_size)
    by_head = [project.weight.detach().view(heads) for project in (ours.q_proj, ours.k_proj, ours.v_proj)]
    weights = {
        "qkv_proj.weight": torch.cat(by_head, 1).flatten(0, 1),  # q, k, v of head 0, then of head 1
        "out_proj.weight": ours.o_proj.weight.detach(),
        "output_gate.weight": ours.g_proj.weight.detach(),
    }
    layer.load_state_dict(weights, strict=False)  # its norm has weight 1, as ours
    return layer
