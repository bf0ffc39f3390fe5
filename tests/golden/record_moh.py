"""Run the authors' modules of MoH: `python -m tests.golden.record_moh REPOSITORY` (a checkout of theirs).

Everything is float64, the tables of positions and of lengths too, which the authors keep in float32.
"""

from __future__ import annotations

import json
import sys
import textwrap
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.bench.contestants.timm_peer import load_timm
from tests.golden.drawn import HERE, fingerprint, summaries, uniform, weighed, weights

_EXACT = {"torch.float32": "torch.float64", ".float()": ".double()"}
VIT = {"shared and routed": (2, 1), "one shared": (1, 2), "none shared": (0, 3), "all shared": (4, 0)}
DIT = {"shared and routed": (2, 1), "none shared": (0, 3), "all shared": (4, 0)}
TRANSNEXT = {
    "img_size": 64, "window_size": [3, 3, 3, None], "patch_size": 4, "embed_dims": [4, 6, 8, 12],
    "num_heads": [2, 3, 4, 4], "mlp_ratios": [3, 3, 2, 2], "qkv_bias": True, "num_classes": 5, "depths": [1, 2, 1, 1],
    "sr_ratios": [8, 4, 2, 1], "shared_head": [2, 1, 2, 2], "routed_head": [0, 1, 1, 1],
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}  # fmt: skip


def main(repository: str) -> None:
    """Write `moh.safetensors` and `moh.json`."""
    load_timm()
    vit, dit = _vit(Path(repository) / "MoH-ViT"), _module(Path(repository) / "MoH-DiT" / "models.py", _EXACT)
    numbers = {**_attention(vit), **_aggregated(vit), **_dit_attention(dit), **_llama(Path(repository))}
    listed = {}
    model = _filled(vit.transnext.TransNeXt(**TRANSNEXT), "transnext")
    numbers |= _run(model.eval(), uniform("image", 2, 3, 64, 64), "transnext", model)
    small = _filled(_dit_small(dit), "dit")
    small.pos_embed.data = torch.from_numpy(dit.get_2d_sincos_pos_embed(12, 3))[None]
    t, y = torch.tensor([3, 700]), torch.tensor([1, 4])
    numbers |= _run(small.eval(), uniform("latent", 2, 4, 6, 6), "dit", lambda x: small(x, t, y))
    for name in ("base_75", "base_50", "small_80", "small_75"):
        listed[f"moh_vit_{name[0]}_{name[-2:]}"] = _listed(getattr(vit.transnext, f"moh_transnext_{name}")())
    for name, build in dit.DiT_models.items():
        with torch.device("meta"):
            listed[name.lower().replace("-", "_").replace("/", "_")] = _listed(build())
    save_file({name: x.detach().contiguous() for name, x in numbers.items()}, HERE / "moh.safetensors")
    (HERE / "moh.json").write_text(json.dumps(listed, indent=1) + "\n", "utf-8")


def _vit(folder: Path) -> Any:
    """Their three files, with tables in float64."""
    registry = {"register_model": lambda build: build}
    stand_ins = {"timm.models.registry": registry, "pkg_resources": {"get_distribution": _absent,
                 "DistributionNotFound": LookupError}}  # fmt: skip
    for name, members in stand_ins.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(members)
    layers = ModuleType("timm.models.layers")
    made = {"DropPath": nn.Identity, "trunc_normal_": nn.init.trunc_normal_, "to_2tuple": lambda n: (n, n)}
    vars(layers).update(made)
    sys.modules["timm.models.layers"] = layers
    attention = sys.modules["attention"] = _module(folder / "attention.py", _EXACT)
    native = sys.modules["attention_native"] = _module(
        folder / "attention_native.py", {"local_seq_length.numpy()": "local_seq_length.double().numpy()"}
    )
    on_cpu = {"'cuda' if torch.cuda.is_available() else 'cpu'": "'cpu'"}
    transnext = _module(folder / "transnext.py", {**_EXACT, **on_cpu})
    return SimpleNamespace(attention=attention, native=native, transnext=transnext)


def _absent(name: str) -> None:
    raise LookupError(name)


def _attention(vit: Any) -> dict[str, Tensor]:
    numbers = {}
    index, table = vit.transnext.get_relative_position_cpb((5, 6), (5, 6), (5, 6))
    for name, (shared, routed) in VIT.items():
        layer = vit.attention.Attention(12, (5, 6), num_heads=4, shared_head=shared, routed_head=routed)
        _filled(layer, "vit").train()
        x = uniform("cells", 2, 30, 12)
        vit.attention.Attention.LOAD_BALANCING_LOSSES.clear()
        numbers |= _run(layer, x, f"vit.{name}", lambda x, layer=layer: layer(x, 5, 6, index, table))
        if routed:
            numbers[f"vit.{name}.load"] = vit.attention.Attention.LOAD_BALANCING_LOSSES[0]
    return numbers


def _aggregated(vit: Any) -> dict[str, Tensor]:
    index, table = vit.transnext.get_relative_position_cpb((6, 8), (3, 4), (7, 9))
    layer = vit.native.AggregatedAttention(12, (6, 8), num_heads=4, sr_ratio=2, shared_head=2, routed_head=1)
    _filled(layer, "vit")
    return _run(layer, uniform("cells", 2, 48, 12), "aggregated", lambda x: layer(x, 6, 8, index, table))


def _dit_attention(dit: Any) -> dict[str, Tensor]:
    numbers = {}
    for name, (shared, routed) in DIT.items():
        layer = dit.MoHAttention(12, num_heads=4, qkv_bias=True, shared_head=shared, routed_head=routed, head_dim=5)
        _filled(layer, "dit").train()
        dit.MoHAttention.LOAD_BALANCING_LOSSES.clear()
        numbers |= _run(layer, uniform("tokens", 2, 9, 12), f"dit.{name}", layer)
        if routed:
            numbers[f"dit.{name}.load"] = dit.MoHAttention.LOAD_BALANCING_LOSSES[0]
    return numbers


def _dit_small(dit: Any) -> nn.Module:
    model: nn.Module = dit.DiT(
        input_size=6, patch_size=2, in_channels=4, hidden_size=12, depth=2, num_heads=[4, 2], mlp_ratio=2.0,
        num_classes=5, moh=True, shared_head=[2, 2], routed_head=[1, 0], head_dim=5,
    )  # fmt: skip
    return model


def _llama(repository: Path) -> dict[str, Tensor]:
    """The lines of the router, on queries of 8 heads."""
    lines = (repository / "MoH-LLaMA3" / "Inference_code" / "modeling_llama.py").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if i > 740 and line.strip().startswith("gate = query_states"))
    stop = next(i for i, line in enumerate(lines) if i > start and "torch.cat([torch.ones_like(mask)" in line)
    queries = uniform("queries", 2, 9, 8 * 3)
    given = {
        "torch": torch, "F": F, "query_states": queries, "bsz": 2, "q_len": 9,
        "self": SimpleNamespace(num_heads=8, head_dim=3, shared_head=4, routed_head=2),
    }  # fmt: skip
    exec(textwrap.dedent("\n".join(lines[start : stop + 1])), given)
    return {"llama.gates": given["gates"], "llama.mask": given["mask"]}


def _run(module: nn.Module, x: Tensor, name: str, call: Any) -> dict[str, Tensor]:
    module.zero_grad()
    x = x.requires_grad_()
    out = call(x)
    weighed(out).backward()
    gradients = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
    return {f"{name}.out": out, f"{name}.dx": x.grad, f"{name}.dp": summaries(gradients)}


def _filled(module: nn.Module, prefix: str) -> nn.Module:
    own = {f"{prefix}.{key}": x for key, x in module.double().named_parameters() if x.requires_grad}
    drawn = weights({key: x.shape for key, x in own.items()})
    with torch.no_grad():
        for key, x in own.items():
            x.copy_(drawn[key])
    return module


def _listed(model: nn.Module) -> dict[str, Any]:
    shapes = {name: x.shape for name, x in model.named_parameters() if x.requires_grad}
    return {
        "tensors": len(shapes),
        "parameters": sum(x.numel() for x in shapes.values()),
        "fingerprint": fingerprint(shapes),
    }


def _module(path: Path, changed: dict[str, str]) -> Any:
    text = path.read_text()
    for old, new in changed.items():
        text = text.replace(old, new)
    module = ModuleType(path.stem)
    exec(compile(text, str(path), "exec"), vars(module))
    return module


if __name__ == "__main__":
    main(*sys.argv[1:])
