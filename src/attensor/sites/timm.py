"""Sites in timm's vision transformers: the module `Attention` with joint projections `qkv` and `proj`."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from attensor.nn import Heads, SequenceMixer
from attensor.sites.grid import TokenGrid, grid_of
from attensor.sites.site import AttentionSite, Call
from attensor.sites.weights import AttentionWeights, read, thirds

__all__ = ["TimmAttention", "TimmSite"]


class TimmAttention(nn.Module):
    """A layer of attensor under the call of timm's `Attention`."""

    def __init__(self, mixer: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.mixer, self.proj_drop = mixer, dropout

    @property
    def layer(self) -> nn.Module:
        """The layer itself."""
        return self.mixer.layer if isinstance(self.mixer, TokenGrid) else self.mixer

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, T, C] to the same.

        Raises:
            ValueError: a mask, which layers of attensor do not take.
        """
        if attn_mask is not None or is_causal:
            raise ValueError(
                f"{type(self.layer).__name__} in the place of timm's Attention: attn_mask and is_causal must be left "
                "out; restore the original for masked attention."
            )
        out: Tensor = self.proj_drop(self.mixer(x))
        return out


class TimmSite(AttentionSite):
    """An `Attention` of timm's vision transformers."""

    kind = "timm"

    @classmethod
    def fits(cls, model: nn.Module, module: nn.Module) -> bool:
        """Whether a module is one of these, in its own shape or replaced."""
        of_timm = type(module).__module__.startswith("timm.") and type(module).__name__ == "Attention"
        return isinstance(module, TimmAttention) or (of_timm and hasattr(module, "qkv") and hasattr(module, "proj"))

    @property
    def _module(self) -> Any:
        return self.original

    def _read(self) -> AttentionWeights:
        self._refuse_extras()
        m = self._module
        pairs = [*thirds(m.qkv.weight, m.qkv.bias), (m.proj.weight, m.proj.bias)]
        sizes = {"num_heads": m.num_heads, "num_kv_heads": m.num_heads, "head_dim": m.head_dim}
        return read(pairs, **sizes, rotary_base=None, is_causal=False)

    def _refuse_extras(self) -> None:
        m = self._module
        norms = [name for name in ("q_norm", "k_norm", "norm") if getattr(m, name, None) is not None]
        extras = [name for name in norms if not isinstance(getattr(m, name), nn.Identity)]
        extras += ["gate"] * (getattr(m, "gate", None) is not None)
        if extras or m.proj.weight.shape[0] != m.qkv.weight.shape[1]:
            raise ValueError(
                f"{self.name}: timm's Attention has {', '.join(extras) or 'an output of another width'}, which "
                "projections alone do not say; no layer can take its place exactly."
            )

    def _parts(self, layer: nn.Module) -> dict[str, nn.Module]:
        if isinstance(layer, SequenceMixer):
            return {"": TimmAttention(layer, self._module.proj_drop)}
        grid = grid_of(self.model)
        if grid is None:
            raise ValueError(
                f"{self.name}: {type(layer).__name__} needs the grid of patches, but the model has no "
                "patch_embed.grid_size; pass the whole vision transformer."
            )
        return {"": TimmAttention(TokenGrid(layer, *grid), self._module.proj_drop)}

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Sort the arguments of the module."""
        named = dict(zip(("x", "attn_mask", "is_causal"), args)) | kwargs
        return Call(named.pop("x"), named)

    def heads(self, call: Call) -> Heads:
        """Queries, keys and values of a call."""
        m, layer = self._module, self.layer
        if layer is not None:
            return cast("Any", layer).project(call.hidden_states)  # type: ignore[no-any-return]
        q, k, v = m.qkv(call.hidden_states).unflatten(-1, (3, m.num_heads, m.head_dim)).unbind(-3)
        return Heads(m.q_norm(q), m.k_norm(k), v)

    def scores(self, call: Call) -> tuple[float, Tensor | None, bool]:
        """Scale, mask and causality of a call."""
        mask = call.options.get("attn_mask")
        if isinstance(mask, Tensor) and mask.dim() < 4:
            mask = mask[(None,) * (4 - mask.dim())]
        return self._module.scale, cast("Tensor | None", mask), bool(call.options.get("is_causal", False))

    @property
    def projection(self) -> nn.Module | None:
        """The module of the output projection."""
        layer = self.layer
        if layer is not None:
            return getattr(layer, "o_proj", None) or getattr(layer, "proj", None)
        return cast("nn.Module", self._module.proj)
