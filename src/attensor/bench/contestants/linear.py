"""`attensor bench linear`: linear attention by variant and length, and while decoding, against everyone installed.

A peer is a small function that turns a problem into a contestant, or says why it cannot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attensor.bench.apart import LeftOut
from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem
from attensor.bench.contestants import linear_decode as decode
from attensor.bench.contestants.left_product import left_product
from attensor.bench.contestants.linear_problem import (
    OPERATOR_VARIANTS,
    VARIANTS,
    LinearProblem,
    chunked,
    quadratic,
    recurrent,
)
from attensor.bench.contestants.packages import FLEX, causal_blocks, fla_naive, flex, heads_first, load, sdpa
from attensor.bench.hold import Bench
from attensor.ops import Denominator, backend, kernel_attention, linear_attention, softmax_attention

if TYPE_CHECKING:
    from attensor.commands.bench_linear import BenchLinear

__all__ = ["PEERS", "bench"]

QUICK_LAYERS = 2
HOW_TO_READ = (
    "Useful operations, a token and head: 4 K V + 64 (K + V) for chunked algorithms, whatever their chunk; 4 K V for "
    "recurrent ones; T (K + V) for those quadratic in the length T: the causal half alone counts. A layer adds 10 C^2 "
    f"a token. 'of inputs': peak over the size of q, k, v. {decode.HOW_TO_READ}"
)


def _ours(problem: LinearProblem) -> Contestant:
    if problem.variant == "layer":
        return problem.layer_contestant(problem.layer, problem.layer)
    decay = problem.log_decay
    if problem.variant == "denominator":
        divide = Denominator()
        return problem.contestant(lambda q, k, v: kernel_attention(q, k, v, denominator=divide)[0])
    return problem.contestant(lambda q, k, v, *_: linear_attention(q, k, v, log_decay=decay)[0])


def _ours_torch(problem: LinearProblem) -> Contestant:
    ours = _ours(problem)
    return replace(ours, function=backend("torch")(ours.function))


def _ours_la1(problem: LinearProblem) -> Contestant:
    decay, scale = problem.log_decay, problem.head_dim**-0.5
    return problem.contestant(lambda q, k, v: left_product(q * scale, k, v, decay))


def _softmax_reference(problem: LinearProblem) -> Tensor:
    with backend("reference"), torch.no_grad():
        return problem.contestant(partial(softmax_attention, is_causal=True)).forward()


def _sdpa(problem: LinearProblem) -> Contestant:
    return problem.contestant(partial(sdpa, is_causal=True))


def _sdpa_flash(problem: LinearProblem) -> Contestant:
    if problem.device == "cpu":
        raise LeftOut("needs a GPU")
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return problem.contestant(sdpa_kernel(SDPBackend.FLASH_ATTENTION)(partial(sdpa, is_causal=True)))


def _flash_attn(problem: LinearProblem) -> Contestant:
    module = load("flash_attn", "flash-attn", problem.device)
    return problem.contestant(partial(module.flash_attn_func, causal=True))


def _flex(problem: LinearProblem) -> Contestant:
    return problem.contestant(flex(block_mask=causal_blocks(problem.length, problem.device)))


def _fla_chunk_naive(problem: LinearProblem) -> Contestant:
    module = fla_naive("linear_attn" if problem.variant == "none" else "simple_gla")
    if problem.variant == "none":
        if problem.length % 64:
            raise LeftOut("fla's naive chunks want a multiple of 64 tokens")
        return problem.contestant(module.naive_chunk_linear_attn)
    gates = _per_token(problem)
    return problem.contestant(lambda q, k, v, *_: module.naive_chunk_simple_gla(q, k, v, gates)[0])


def _fla_recurrent_naive(problem: LinearProblem) -> Contestant:
    family = "gla" if problem.variant == "channel" else "simple_gla"
    function, gates = getattr(fla_naive(family), f"naive_recurrent_{family}"), _per_token(problem)
    return problem.contestant(lambda q, k, v, *_: function(q, k, v, gates)[0])


def _decay(problem: LinearProblem) -> Tensor:
    if problem.log_decay is None:
        raise LeftOut("wants a decay")
    return problem.log_decay


def _per_token(problem: LinearProblem) -> Tensor:
    """The decay as [B, T, H] or [B, T, H, K], which is how fla takes a constant one too."""
    decay = _decay(problem)
    return decay.expand(problem.batch, problem.length, -1) if decay.dim() == 1 else decay


def _fla(problem: LinearProblem, schedule: str) -> Contestant:
    """fla's kernel of that schedule for the variant."""
    family = {"none": "linear_attn", "channel": "gla"}.get(problem.variant, "simple_gla")
    kernel = getattr(load(f"fla.ops.{family}", "fla-core", problem.device), f"{schedule}_{family}")
    constant: dict[str, Any] = {"none": {"normalize": False}, "constant": {"g_gamma": problem.log_decay}}
    options = constant.get(problem.variant, {})
    return problem.contestant(lambda *tensors: kernel(*tensors, **options)[0])


def _lightning_attn(problem: LinearProblem) -> Contestant:
    kernel = load("lightning_attn.ops", "lightning-attn", problem.device).lightning_attn_func
    slopes, scale = -_decay(problem).view(-1, 1, 1), problem.head_dim**-0.5

    def attend(*tensors: Tensor) -> Tensor:
        # its kernels want dense [B, H, T, D]
        out: Tensor = kernel(*(x.contiguous() for x in tensors), slopes)
        return out

    # it has no scale of its own
    return problem.contestant(lambda q, k, v: heads_first(attend)(q * scale, k, v))


def _mamba_ssm(problem: LinearProblem) -> Contestant:
    """Mamba-2's scan with A = -1 and dt = -log decay, which also multiplies its input: that is divided by dt before."""
    module = load("mamba_ssm.ops.triton.ssd_combined", "mamba-ssm", problem.device)
    usual = problem.contestant(left_product)
    q, k, v = (x.detach() for x in usual.leaves[:3])
    step = -_decay(problem).detach().expand(problem.batch, problem.length, -1).contiguous()
    rate = -torch.ones(problem.num_heads, device=problem.device)
    inputs = (v / step[..., None]).to(v.dtype), k, q * problem.head_dim**-0.5
    # a constant decay is not differentiated anywhere
    steps = () if problem.variant == "constant" else (step,)

    def attend(x: Tensor, k: Tensor, q: Tensor, step: Tensor = step) -> Tensor:
        out: Tensor = module.mamba_chunk_scan_combined(x, step, rate, k, q, chunk_size=128)
        return out

    return replace(usual, function=attend, leaves=tuple(leaf.requires_grad_() for leaf in (*inputs, *steps)))


def _performer(problem: LinearProblem) -> Contestant:
    module = load("performer_pytorch.performer_pytorch", "performer-pytorch")
    return problem.contestant(heads_first(module.causal_linear_attention_noncuda))


def _minimax(problem: LinearProblem) -> Contestant:
    layer = decode.minimax_layer(load(decode.MINIMAX, "transformers"), problem.layer)
    return problem.layer_contestant(layer, lambda hidden: layer(hidden, None, None)[0])


_SOFTMAX: dict[str, Any] = {
    "flops": quadratic,
    "kinds": OPERATOR_VARIANTS,
    "computes": "softmax attention, same sizes",
    "reference": _softmax_reference,
}
_FLA: dict[str, Any] = {"kinds": OPERATOR_VARIANTS, "packages": ("fla-core", "triton")}
PEERS = (
    Peer(OURS, _ours, chunked, tuple(VARIANTS), packages=("attensor",)),
    Peer("ours-torch", _ours_torch, chunked, (*OPERATOR_VARIANTS, "denominator")),
    Peer("ours-la1", _ours_la1, quadratic, ("none", "constant")),
    Peer("sdpa", _sdpa, packages=("torch",), **_SOFTMAX),
    Peer("flex", _flex, packages=("torch",), **FLEX, **_SOFTMAX),
    Peer("fla-chunk-naive", _fla_chunk_naive, chunked, ("none", "constant", "scalar"), packages=("fla-core",)),
    # the loop costs the same whatever the decay
    Peer("fla-recurrent-naive", _fla_recurrent_naive, recurrent, ("constant", "channel"), packages=("fla-core",)),
    Peer("performer", _performer, recurrent, ("denominator",), packages=("performer-pytorch",)),
    Peer("minimax", _minimax, chunked, ("layer",), packages=("transformers",)),
    Peer("sdpa-flash", _sdpa_flash, packages=("torch",), **_SOFTMAX),
    Peer("flash-attn", _flash_attn, packages=("flash-attn",), **_SOFTMAX),
    Peer("fla-chunk", partial(_fla, schedule="chunk"), chunked, **_FLA),
    Peer("fla-recurrent", partial(_fla, schedule="fused_recurrent"), recurrent, **_FLA),
    Peer("lightning-attn", _lightning_attn, chunked, ("constant",), packages=("lightning-attn", "triton")),
    Peer("mamba-ssm", _mamba_ssm, chunked, ("constant", "scalar"), packages=("mamba-ssm", "triton")),
)


def bench(options: BenchLinear) -> Bench:
    """The contest of the options.

    Raises:
        ValueError: no length divides a number of tokens.
    """
    cells, small = list(_cells(options)), list[Problem]()
    if {"forward", "training"} & set(options.modes):
        small += _variants(options, 2, 128)
    if "decode" in options.modes:
        layers = QUICK_LAYERS if options.quick else decode.LAYERS
        tokens = [
            decode.DecodeProblem(task, position, layers, device=options.device)
            for task in decode.TASKS
            for position in decode.POSITIONS
        ]
        small += tokens[:: len(decode.POSITIONS)]
        cells.append(Cell("decode", tokens))
    is_usual = (options.num_heads, options.head_dim) == (2, 64)
    suffix = "" if is_usual else f"-h{options.num_heads}-d{options.head_dim}"
    return Bench([*PEERS, *decode.PEERS], small, cells, HOW_TO_READ, suffix)


def _cells(options: BenchLinear) -> Iterator[Cell]:
    for tokens in sorted(options.tokens):
        lengths = [length for length in sorted(set(options.lengths)) if tokens % length == 0]
        if not lengths:
            raise ValueError(
                f"bench linear: none of the lengths {list(options.lengths)} divides {tokens} tokens; "
                "choose --tokens that are a multiple of a length."
            )
        for length in lengths:
            for mode in ("forward", "training"):
                if mode in options.modes:
                    yield Cell(mode, _variants(options, tokens // length, length))


def _variants(options: BenchLinear, batch: int, length: int) -> list[Problem]:
    sizes = (batch, length, options.num_heads, options.head_dim)
    return [LinearProblem(variant, *sizes, device=options.device) for variant in options.variants]
