"""Peers that need a GPU: fla's kernels, lightning_attn, FlashAttention and mamba-ssm."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from attensor.bench.apart import LeftOut
from attensor.bench.contest import Contestant
from attensor.bench.contestants.linear_peers import SOFTMAX, sdpa
from attensor.bench.contestants.linear_problem import (
    OPERATOR_VARIANTS,
    LinearProblem,
    chunked,
    enter,
    quadratic,
    recurrent,
)
from attensor.bench.contestants.packages import load_for_gpu


@enter("sdpa-flash", quadratic, OPERATOR_VARIANTS, packages=("torch",), **SOFTMAX)
def _sdpa_flash(problem: LinearProblem) -> Contestant:
    if problem.device == "cpu":
        raise LeftOut("needs a GPU")
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return sdpa(q, k, v)

    return problem.contestant(attend, problem.qkv)


@enter("flash-attn", quadratic, OPERATOR_VARIANTS, packages=("flash-attn",), **SOFTMAX)
def _flash_attn(problem: LinearProblem) -> Contestant:
    module = load_for_gpu(problem.device, "flash_attn", "flash-attn")
    attend = module.flash_attn_func
    return problem.contestant(lambda q, k, v: attend(q, k, v, causal=True), problem.qkv)


def _fla(problem: LinearProblem, schedule: str) -> Contestant:
    """fla's kernel of that schedule for the variant."""
    family = {"none": "linear_attn", "channel": "gla"}.get(problem.variant, "simple_gla")
    module = load_for_gpu(problem.device, f"fla.ops.{family}", "fla-core")
    kernel = getattr(module, f"{schedule}_{family}")
    if problem.variant == "none":
        return problem.contestant(lambda q, k, v: kernel(q, k, v, normalize=False)[0])
    if problem.variant == "constant":
        constant = problem.log_decay
        return problem.contestant(lambda q, k, v: kernel(q, k, v, g_gamma=constant)[0])
    return problem.contestant(lambda q, k, v, gates: kernel(q, k, v, gates)[0])


for _name, _schedule, _work in (("fla-chunk", "chunk", chunked), ("fla-recurrent", "fused_recurrent", recurrent)):
    enter(_name, _work, OPERATOR_VARIANTS, packages=("fla-core", "triton"))(partial(_fla, schedule=_schedule))


@enter("lightning-attn", chunked, ("constant",), packages=("lightning-attn", "triton"))
def _lightning_attn(problem: LinearProblem) -> Contestant:
    module = load_for_gpu(problem.device, "lightning_attn.ops", "lightning-attn")
    kernel, decay = module.lightning_attn_func, problem.log_decay
    if decay is None:
        raise LeftOut("wants a decay")
    slopes, scale = -decay.view(-1, 1, 1), problem.head_dim**-0.5

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # it has no scale of its own, and its kernels want dense [B, H, T, D]
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q * scale, k, v))
        out: Tensor = kernel(q, k, v, slopes)
        return out.transpose(1, 2)

    return problem.contestant(attend)


@enter("mamba-ssm", chunked, ("constant", "scalar"), packages=("mamba-ssm", "triton"))
def _mamba_ssm(problem: LinearProblem) -> Contestant:
    """Mamba-2's scan with A = -1 and dt = -log decay, which also multiplies its input: that is divided by dt before."""
    module = load_for_gpu(problem.device, "mamba_ssm.ops.triton.ssd_combined", "mamba-ssm")
    scan, decay = module.mamba_chunk_scan_combined, problem.log_decay
    if decay is None:
        raise LeftOut("wants a decay")
    q, k, v = (x.detach() for x in problem.qkv)
    step = -decay.detach().expand(problem.batch, problem.length, -1)
    rate = -torch.ones(problem.num_heads, device=problem.device)
    leaves = [(v / step[..., None]).to(v.dtype), step.contiguous(), k, q * problem.head_dim**-0.5]

    def attend(x: Tensor, step: Tensor, k: Tensor, q: Tensor) -> Tensor:
        out: Tensor = scan(x, step, rate, k, q, chunk_size=128)
        return out

    trained = [leaf.requires_grad_() for leaf in leaves]
    if problem.variant == "constant":
        trained[1].requires_grad_(False)  # a constant decay is not differentiated anywhere
        return Contestant(lambda: attend(*trained), (trained[0], *trained[2:]), problem.upstream)
    return problem.contestant(attend, trained)
