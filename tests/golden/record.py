"""Run the authors' modules of L2ViT and RALA: `python -m tests.golden.record l2vit.py RALA.py` (their model files).

Both import parts of timm and fvcore that numbers do not depend on; stand-ins take their place. Everything is float64,
the angles of the rotary tables too, which the authors keep in float32.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.golden.drawn import HERE, fingerprint, summaries, uniform, weighed, weights

IMAGE, STEP = (2, 3, 37, 45), 4
SMALL = {"in_chans": 3, "num_classes": 7, "drop_path_rate": 0.0}


def main(l2vit: str, rala: str) -> None:
    """Write the four files."""
    _stand_in()
    for sheet, (numbers, listed) in {"l2vit": _l2vit(_module(l2vit)), "rala": _rala(_module(rala))}.items():
        save_file({name: x.detach().contiguous() for name, x in numbers.items()}, HERE / f"{sheet}.safetensors")
        (HERE / f"{sheet}.json").write_text(json.dumps(listed, indent=1) + "\n", "utf-8")


def _l2vit(theirs: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    numbers: dict[str, Tensor] = {}
    layer = _filled(theirs.LinearAttention(12, num_heads=3, qkv_bias=True), "attention")
    for scale in (1, 30):
        x = (scale * uniform("cells", 2, 35, 12)).requires_grad_()
        numbers |= _run(layer, x, f"attention.{scale}", lambda x: layer(x))
    model = theirs.L2ViT(
        depths=[2, 2, 2, 3], dims=[8, 12, 16, 24], num_heads=[2, 3, 4, 3], mlp_ratio=[4.0] * 4, window_size=3,
        block_type="mix_local_enhanced_vit", conv_stem=True, **SMALL,
    )  # fmt: skip
    numbers |= _modes(model, "model")
    sizes = {"l2vit_tiny": "Tiny", "l2vit_small": "Small", "l2vit_base": "Base", "l2vit_base_384": "Base_384"}
    return numbers, {name: _listed(getattr(theirs, f"L2ViT_{size}")()) for name, size in sizes.items()}


def _rala(theirs: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    table = _precise(theirs.RoPE(24, 3))
    sin, cos = table((5, 7))
    numbers = {"sin": sin, "cos": cos}
    for kind, name in (("linear", "GateLinearAttentionNoSilu"), ("softmax", "VanillaSelfAttention")):
        layer = _filled(getattr(theirs, name)(24, 3), "attention")
        x = uniform("map", 2, 24, 5, 7).requires_grad_()
        numbers |= _run(layer, x, kind, lambda x, layer=layer: layer(x, sin, cos))
    for name, flags in (("released", "llvv"), ("all-linear", "llll")):
        model = theirs.RAVLT(
            depths=[1, 2, 1, 2], embed_dims=[8, 12, 16, 24], num_heads=[1, 3, 2, 3], mlp_ratios=[3.5] * 4,
            projection=17, layerscales=[True] * 4, flagss=[[flag] * 2 for flag in flags], **SMALL,
        )  # fmt: skip
        numbers |= _modes(model, name)
    return numbers, {f"ravlt_{size.lower()}": _listed(getattr(theirs, f"RAVLT_{size}")()) for size in "TSBL"}


def _modes(model: nn.Module, name: str) -> dict[str, Tensor]:
    """With fixed and with batch statistics; of the input's gradient every fourth row and column."""
    numbers = {}
    for mode in ("eval", "train"):
        _filled(model, "")
        numbers |= _run(
            model.train(mode == "train"), uniform("image", *IMAGE).requires_grad_(), f"{name}.{mode}", model
        )
        numbers[f"{name}.{mode}.dx"] = numbers[f"{name}.{mode}.dx"][..., ::STEP, ::STEP]
    return numbers


def _run(module: nn.Module, x: Tensor, name: str, call: Any) -> dict[str, Tensor]:
    module.zero_grad()
    out = call(x)
    weighed(out).backward()
    gradients = {key: parameter.grad for key, parameter in module.named_parameters()}
    return {f"{name}.out": out, f"{name}.dx": x.grad, f"{name}.dp": summaries(gradients)}


def _filled(module: nn.Module, prefix: str) -> nn.Module:
    shapes = {key: x.shape for key, x in module.state_dict().items() if not key.endswith("angle")}
    prefix = f"{prefix}." if prefix else ""
    drawn = weights({f"{prefix}{key}": shape for key, shape in shapes.items()})
    _precise(module).load_state_dict({key.removeprefix(prefix): x for key, x in drawn.items()}, strict=False)
    return module


def _precise(module: nn.Module) -> nn.Module:
    for part in module.double().modules():
        if hasattr(part, "angle"):
            exact = torch.linspace(0, 1, len(part.angle) // 2, dtype=torch.float64)
            part.angle = (10000.0**-exact).repeat_interleave(2)
    return module


def _listed(model: nn.Module) -> dict[str, Any]:
    shapes = {name: x.shape for name, x in model.state_dict().items()}
    parameters = sum(x.numel() for x in model.parameters())
    return {"tensors": len(shapes), "parameters": parameters, "fingerprint": fingerprint(shapes)}


def _stand_in() -> None:
    made = {
        "timm.models.layers": {
            "DropPath": nn.Identity, "trunc_normal_": nn.init.trunc_normal_, "to_2tuple": lambda n: (n, n),
        },
        "timm.models.registry": {"register_model": lambda build: build},
        "timm.models.vision_transformer": {"_cfg": dict},
        "fvcore.nn": {"FlopCountAnalysis": None, "flop_count_table": None},
    }  # fmt: skip
    for name, members in made.items():
        for parent in (name.partition(".")[0], name.rpartition(".")[0], name):
            sys.modules.setdefault(parent, ModuleType(parent))
        vars(sys.modules[name]).update(members)


def _module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("theirs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(*sys.argv[1:])
