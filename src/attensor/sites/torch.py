"""Sites in models of `torch.nn.MultiheadAttention`, that of `nn.TransformerEncoderLayer` for instance."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn import Heads, SequenceMixer, pad, unpad
from attensor.sites.site import AttentionSite, Call
from attensor.sites.weights import AttentionWeights, read, thirds

__all__ = ["HouseMultihead", "TorchSite"]


class HouseMultihead(nn.Module):
    """A layer of attensor under the call of `nn.MultiheadAttention`; self-attention only, without weights returned.

    Args:
        layer: a mixer of sequences.
        batch_first: layout of query, key and value.
    """

    in_proj_bias: None = None  # by which nn.TransformerEncoder sees that it cannot take its fused path around this
    _qkv_same_embed_dim = False

    def __init__(self, layer: nn.Module, num_heads: int, *, batch_first: bool) -> None:
        super().__init__()
        self.layer, self.num_heads, self.batch_first = layer, num_heads, batch_first

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """As `nn.MultiheadAttention`, but for the weights, which are None.

        Raises:
            ValueError: keys of other tokens, or a mask that is not the causal one of a causal layer.
        """
        name = f"{type(self.layer).__name__} in the place of nn.MultiheadAttention"
        if key is not query or value is not query:
            raise ValueError(f"{name}: key and value must be the query itself; cross-attention cannot be swapped.")
        if attn_mask is not None or is_causal:
            self._check_mask(name, attn_mask, query.shape[1 if self.batch_first else 0])
        x = query if self.batch_first else query.transpose(0, 1)
        if key_padding_mask is None:
            out = self.layer(x)
        else:
            hidden = key_padding_mask if key_padding_mask.dtype == torch.bool else key_padding_mask < 0
            packed, cu_seqlens, index = unpad(x, ~hidden)
            out = pad(self.layer(packed, cu_seqlens=cu_seqlens), index, x.shape[0], x.shape[1])
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _check_mask(self, name: str, attn_mask: Tensor | None, tokens: int) -> None:
        hidden = None
        if attn_mask is not None:
            hidden = attn_mask if attn_mask.dtype == torch.bool else attn_mask < 0
            causal = torch.ones(tokens, tokens, dtype=torch.bool, device=attn_mask.device).triu(1)
        if not getattr(self.layer, "is_causal", False) or (
            hidden is not None and (hidden.shape != causal.shape or not torch.equal(hidden, causal))
        ):
            raise ValueError(
                f"{name}: attn_mask must be the causal one and the layer causal; swap with is_causal=True, or leave "
                "the mask out."
            )


class TorchSite(AttentionSite):
    """An `nn.MultiheadAttention` whose queries, keys and values have the same width.

    The module does not say whether it is called causally: `weights()` has is_causal False; swap with `is_causal=True`.
    """

    kind = "torch"

    @classmethod
    def fits(cls, model: nn.Module, module: nn.Module) -> bool:
        """Whether a module is one of these, in its own shape or replaced."""
        if isinstance(module, HouseMultihead):
            return True
        is_one = isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim
        return is_one and not _is_cross(model, module)

    @property
    def _module(self) -> nn.MultiheadAttention:
        return cast("nn.MultiheadAttention", self.original)

    def _read(self) -> AttentionWeights:
        m = self._module
        if m.bias_k is not None or m.add_zero_attn:
            raise ValueError(
                f"{self.name}: nn.MultiheadAttention has add_bias_kv or add_zero_attn, which weights do not say; no "
                "layer can take its place exactly."
            )
        pairs = [*thirds(cast("Tensor", m.in_proj_weight), m.in_proj_bias), (m.out_proj.weight, m.out_proj.bias)]
        sizes = {"num_heads": m.num_heads, "num_kv_heads": m.num_heads, "head_dim": m.head_dim}
        return read(pairs, **sizes, rotary_base=None, is_causal=False)

    def _parts(self, layer: nn.Module) -> dict[str, nn.Module]:
        if not isinstance(layer, SequenceMixer):
            raise ValueError(
                f"{self.name}: layer must be a mixer of sequences, got {type(layer).__name__}; see `attensor list`."
            )
        return {"": HouseMultihead(layer, self._module.num_heads, batch_first=self._module.batch_first)}

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Sort the arguments of the module."""
        order = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average", "is_causal")
        named = dict(zip(order, args)) | kwargs
        query = named.pop("query")
        first = getattr(self.module, "batch_first", True)
        return Call(query if first else query.transpose(0, 1), named)

    def heads(self, call: Call) -> Heads:
        """Queries, keys and values of a call."""
        if self.layer is not None:
            return cast("Any", self.layer).project(call.hidden_states)  # type: ignore[no-any-return]
        m = self._module
        joint = F.linear(call.hidden_states, cast("Tensor", m.in_proj_weight), m.in_proj_bias)
        return Heads(*torch.unflatten(joint, -1, (3, m.num_heads, m.head_dim)).unbind(-3))

    def scores(self, call: Call) -> tuple[float, Tensor | None, bool]:
        """Scale, mask and causality of a call."""
        padding, mask = call.options.get("key_padding_mask"), call.options.get("attn_mask")
        shown = None
        if mask is not None:
            shown = ~mask if mask.dtype == torch.bool else mask
            shown = shown[None, None] if shown.dim() == 2 else torch.unflatten(shown, 0, (-1, self._module.num_heads))
        if padding is not None:
            keys = (~padding if padding.dtype == torch.bool else padding >= 0)[:, None, None]
            if shown is None or shown.dtype == torch.bool:
                shown = keys if shown is None else shown & keys
            else:
                shown = shown.masked_fill(~keys, float("-inf"))
        return self._module.head_dim**-0.5, shown, False

    @property
    def projection(self) -> nn.Module | None:
        """None: torch computes the projection without calling its module."""
        return None if self.layer is None else getattr(self.layer, "o_proj", None)


def _is_cross(model: nn.Module, module: nn.Module) -> bool:
    """Whether it is the attention to the memory of one of torch's decoder layers."""
    return any(isinstance(m, nn.TransformerDecoderLayer) and m.multihead_attn is module for m in model.modules())
