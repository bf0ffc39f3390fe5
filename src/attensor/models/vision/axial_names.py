"""Names of the official TensorFlow code of the Axial Transformer, in ours.

Weights of dense layers are [in, out] there, of convolutions [rows, columns, in, out]; queries, keys and values are
three. Read from the code: no checkpoint was opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from attensor.models.convert import Rule, convert

__all__ = ["from_tensorflow"]

_AVERAGE = "/ExponentialMovingAverage"
# of the optimizer, and counters
_LEFT_OUT = re.compile(r".*/Adam(_\d+)?|(.*/)?(beta[12]_power|global_step)")


def from_tensorflow(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by our names; moving averages where the checkpoint has them, as the paper evaluates.

    Args:
        state_dict: names of TensorFlow variables, with slashes, and their values.
    Raises:
        ValueError: a name that the official model has not, or queries without keys and values.
    """
    averages = {n.removesuffix(_AVERAGE): x for n, x in state_dict.items() if n.endswith(_AVERAGE)}
    plain = {n: x for n, x in state_dict.items() if not n.endswith(_AVERAGE) and not _LEFT_OUT.fullmatch(n)}
    found = convert("AxialTransformer", plain | averages, _RULES)
    for name in [name for name in found if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        absent = [part for part in parts if part not in found]
        if absent:
            raise ValueError(f"AxialTransformer: {name} is there without {absent[0]}; the checkpoint is not whole.")
        found[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([found.pop(part) for part in parts])
    return found


def _transposed(weight: Tensor) -> tuple[Tensor]:
    return (weight.mT.contiguous(),)


def _convolution(weight: Tensor) -> tuple[Tensor]:
    return (weight.permute(3, 2, 0, 1).contiguous(),)


def _rules() -> tuple[Rule, ...]:
    top, plane = r"(?:\w+/)?", r"(?:\w+/)*transformer2d/"
    rules = [
        Rule(rf"{plane}embs", ("plane.embed.weight",)),
        Rule(rf"{plane}pos_embs_([hw])", (r"plane.pos_\1",)),
        Rule(rf"{plane}final_ln/g", ("plane.norm.weight",)),
        Rule(rf"{plane}final_ln/b", ("plane.norm.bias",)),
        Rule(rf"{plane}final_dense/w", ("plane.head.weight",), _transposed),
        Rule(rf"{plane}final_dense/b", ("plane.head.bias",)),
        Rule(rf"{top}pos_embs_([hw])", (r"exterior.pos_\1",)),
        Rule(rf"{top}exterior_input_conv/w", ("exterior.conv.weight",), _convolution),
        Rule(rf"{top}exterior_input_conv/b", ("exterior.conv.bias",)),
    ]
    stacks = {rf"{top}exterior": "exterior.blocks", rf"{plane}outer": "plane.outer", rf"{plane}inner": "plane.inner"}
    parts = {r"attn/([qkv])": r"attn.\2", "attn/(proj)_out": r"attn.\2", "mlp/(proj_in)": "mlp.fc1"}
    parts |= {"mlp/(proj_out)": "mlp.fc2", "layernorm_(attn)": "norm1", "layernorm_(mlp)": "norm2"}
    for old_stack, new_stack in stacks.items():
        for old_axis, new_axis in (("row", "rows"), ("col", "columns")):
            for old_part, new_part in parts.items():
                old, new = rf"{old_stack}_{old_axis}_(\d+)/{old_part}", rf"{new_stack}.{new_axis}.\1.{new_part}"
                rules += [Rule(f"{old}/w", (f"{new}.weight",), _transposed), Rule(f"{old}/g", (f"{new}.weight",))]
                rules.append(Rule(f"{old}/b", (f"{new}.bias",)))
    return tuple(rules)


_RULES = _rules()
