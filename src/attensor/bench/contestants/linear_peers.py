"""Who takes part: small functions that turn a problem into a contestant, or say why they cannot.

Peers that need a GPU are in `linear_gpu_peers`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.bench.apart import LeftOut
from attensor.bench.contest import OURS, Contestant, reference
from attensor.bench.contestants.left_product import left_product
from attensor.bench.contestants.linear_problem import (
    OPERATOR_VARIANTS,
    VARIANTS,
    LinearProblem,
    chunked,
    enter,
    quadratic,
    recurrent,
)
from attensor.bench.contestants.packages import FLEX_HAS_NO_BACKWARD, causal_blocks, fla_naive, heads_first, load
from attensor.nn import LightningAttention
from attensor.ops import Denominator, backend, kernel_attention, linear_attention, softmax_attention

__all__ = ["MINIMAX", "SOFTMAX", "minimax_layer", "sdpa"]

MINIMAX = "transformers.models.minimax.modeling_minimax"


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's causal softmax attention, heads last."""
    return heads_first(partial(F.scaled_dot_product_attention, is_causal=True))(q, k, v)


def _softmax_reference(problem: LinearProblem) -> Tensor:
    with backend("reference"), torch.no_grad():
        out: Tensor = softmax_attention(*problem.qkv, is_causal=True)
    return out


SOFTMAX: dict[str, Any] = {"computes": "softmax attention, same sizes", "reference": _softmax_reference}


def _ours(problem: LinearProblem) -> Contestant:
    if problem.variant == "layer":
        return problem.layer_contestant(problem.layer, problem.layer)
    decay = problem.log_decay
    divide = Denominator() if problem.variant == "denominator" else None
    if divide is not None:
        return problem.contestant(lambda q, k, v, *_: kernel_attention(q, k, v, log_decay=decay, denominator=divide)[0])
    return problem.contestant(lambda q, k, v, *_: linear_attention(q, k, v, log_decay=decay)[0])


enter(OURS, chunked, tuple(VARIANTS), packages=("attensor",), reference=reference(_ours))(_ours)


@enter("ours-torch", chunked, (*OPERATOR_VARIANTS, "denominator"))
def _ours_torch(problem: LinearProblem) -> Contestant:
    ours = _ours(problem)

    def forward() -> Tensor:
        with backend("torch"):
            return ours.forward()

    return replace(ours, forward=forward)


@enter("ours-la1", quadratic, ("none", "constant"))
def _ours_la1(problem: LinearProblem) -> Contestant:
    decay, scale = problem.log_decay, problem.head_dim**-0.5
    return problem.contestant(lambda q, k, v: left_product(q * scale, k, v, decay))


@enter("sdpa", quadratic, OPERATOR_VARIANTS, packages=("torch",), **SOFTMAX)
def _sdpa(problem: LinearProblem) -> Contestant:
    return problem.contestant(sdpa, problem.qkv)


@enter(
    "flex",
    quadratic,
    OPERATOR_VARIANTS,
    packages=("torch",),
    **SOFTMAX,
    compiles=True,
    no_backward=FLEX_HAS_NO_BACKWARD,
)
def _flex(problem: LinearProblem) -> Contestant:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, fullgraph=True)
    mask = causal_blocks(problem.length, problem.device)
    # on a CPU it refuses whatever could be differentiated, even where nothing is
    inputs = (x.detach() for x in problem.qkv) if problem.device == "cpu" else problem.qkv
    return problem.contestant(heads_first(partial(compiled, block_mask=mask)), inputs)


@enter("fla-chunk-naive", chunked, ("none", "constant", "scalar"), packages=("fla-core",))
def _fla_chunk_naive(problem: LinearProblem) -> Contestant:
    module = fla_naive("linear_attn" if problem.variant == "none" else "simple_gla")
    if problem.variant == "none":
        if problem.length % 64:
            raise LeftOut("fla's naive chunks want a multiple of 64 tokens")
        return problem.contestant(module.naive_chunk_linear_attn)
    gates = _per_token(problem)
    return problem.contestant(lambda q, k, v, *_: module.naive_chunk_simple_gla(q, k, v, gates)[0])


# the loop costs the same whatever the decay
@enter("fla-recurrent-naive", recurrent, ("constant", "channel"), packages=("fla-core",))
def _fla_recurrent_naive(problem: LinearProblem) -> Contestant:
    family = "gla" if problem.variant == "channel" else "simple_gla"
    module = fla_naive(family)
    function, gates = getattr(module, f"naive_recurrent_{family}"), _per_token(problem)
    return problem.contestant(lambda q, k, v, *_: function(q, k, v, gates)[0])


def _per_token(problem: LinearProblem) -> Tensor:
    """The decay as [B, T, H] or [B, T, H, K], which is how fla takes a constant one too."""
    decay = problem.log_decay
    if decay is None:
        raise ValueError(f"bench linear: the variant {problem.variant!r} has no decay.")
    return decay.expand(problem.batch, problem.length, -1) if decay.dim() == 1 else decay


@enter("performer", recurrent, ("denominator",), packages=("performer-pytorch",))
def _performer(problem: LinearProblem) -> Contestant:
    module = load("performer_pytorch.performer_pytorch", "performer-pytorch")
    return problem.contestant(heads_first(module.causal_linear_attention_noncuda))


@enter("minimax", chunked, ("layer",), packages=("transformers",))
def _minimax(problem: LinearProblem) -> Contestant:
    module = load(MINIMAX, "transformers")
    layer = minimax_layer(module, problem.layer)
    return problem.layer_contestant(layer, lambda hidden: layer(hidden, None, None)[0])


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
