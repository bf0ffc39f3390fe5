"""The variables of MaxViT's TensorFlow checkpoints (google-research/maxvit), under the names that timm and we have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from attensor.models.convert import Rule, convert, join

__all__ = ["from_tensorflow"]

_AVERAGE = "/ExponentialMovingAverage"


def from_tensorflow(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by our names from variables by theirs, `block_00_00/mbconv/pre_norm/gamma` for instance.

    `maxvit/` in front and `:0` behind may be there. Where there is a moving average of a variable, it is taken, as the
    authors' evaluation does.

    Args:
        variables: as `tf.train.load_checkpoint(path)` gives them, made tensors.
    Raises:
        ValueError: a name that is not of this layout.
    Source: the names in the graph of maxvit/models/maxvit.py; the choice of averages is that of eval_ckpt.py there.
    """
    latest, averages = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in variables.items():
        plain = name.removesuffix(":0").removeprefix("maxvit/")
        (averages if plain.endswith(_AVERAGE) else latest)[plain.removesuffix(_AVERAGE)] = tensor
    latest.pop("global_step", None)
    weights = join(convert("MaxViT", latest | averages, _RULES), ("q", "k", "v"), "qkv")
    # TensorFlow's norms do not count what they have seen
    norms = (name.removesuffix("running_mean") for name in weights if name.endswith("running_mean"))
    return weights | {f"{norm}num_batches_tracked": torch.zeros((), dtype=torch.long) for norm in norms}


_STEM = {"stem/conv_0": "stem.conv1", "stem/norm_0": "stem.norm1", "stem/conv_1": "stem.conv2"}
_HEAD = {
    "final_layer_norm": "head.norm",
    "cls_head/inner_dense": "head.pre_logits.fc",
    "cls_head/logit_dense": "head.fc",
}
_MBCONV = {
    "shortcut_conv": "shortcut.expand",
    "pre_norm": "pre_norm",
    "expand_conv": "conv1_1x1",
    "expand_norm": "norm1",
    "depthwise_conv": "conv2_kxk",
    "depthwise_norm": "norm2",
    "se/reduce_conv2d": "se.fc1",
    "se/expand_conv2d": "se.fc2",
    "shrink_conv": "conv3_1x1",
}
# `%s` is empty for windows and "_1" for the grid
_ATTENTION = {
    "attn_layer_norm%s": "norm1",
    "attention%s/q": "attn.q",
    "attention%s/k": "attn.k",
    "attention%s/v": "attn.v",
    "attention%s/o": "attn.proj",
    "ffn_layer_norm%s": "norm2",
    "ffn%s/expand_dense": "mlp.fc1",
    "ffn%s/shrink_dense": "mlp.fc2",
}


def _as_it_is(tensor: Tensor) -> Sequence[Tensor]:
    return (tensor,)


# a variable's name to ours, and how the one becomes the other
_LEAVES: dict[str, tuple[str, Callable[[Tensor], Sequence[Tensor]]]] = {
    "kernel": ("weight", lambda kernel: (kernel.permute(3, 2, 0, 1),)),  # [rows, columns, C, C']
    "depthwise_kernel": ("weight", lambda kernel: (kernel.permute(2, 3, 0, 1),)),  # [rows, columns, C, 1]
    "weight": ("weight", lambda weight: (weight.flatten(1).mT,)),  # [C, C'], or [C, H, D]
    "bias": ("bias", lambda bias: (bias.flatten(),)),  # [C'], or [H, D]
    "gamma": ("weight", _as_it_is),
    "beta": ("bias", _as_it_is),
    "moving_mean": ("running_mean", _as_it_is),
    "moving_variance": ("running_var", _as_it_is),
}


def _rules() -> list[Rule]:
    block, stage = r"block_0?(\d+)_0?(\d+)/", r"stages.\1.blocks.\2."
    modules = {**_STEM, **_HEAD, **{f"{block}mbconv/{old}": f"{stage}conv.{new}" for old, new in _MBCONV.items()}}
    rules = []
    for suffix, part in (("", "attn_block"), ("_1", "attn_grid")):
        modules |= {block + old % suffix: f"{stage}{part}.{new}" for old, new in _ATTENTION.items()}
        attention, ours = f"{block}attention{suffix}/", f"{stage}{part}.attn."
        rules += [
            # [H, D, C], the only weight whose inputs are two axes
            Rule(f"{attention}o/weight", (f"{ours}proj.weight",), lambda weight: (weight.flatten(0, 1).mT,)),
            Rule(f"{attention}relative_bias", (f"{ours}rel_pos.relative_position_bias_table",)),
        ]
    for old, new in modules.items():
        rules += [Rule(f"{old}/{leaf}", (f"{new}.{name}",), cut) for leaf, (name, cut) in _LEAVES.items()]
    return rules


_RULES = _rules()
