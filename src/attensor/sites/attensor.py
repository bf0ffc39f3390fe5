"""Sites in models of attensor: the mixers themselves."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from attensor.nn import Heads, LinearAttention, Mixer, SequenceMixer, token_positions
from attensor.nn.mixer import DecodingMixer
from attensor.sites.grid import TokenGrid, grid_of
from attensor.sites.site import AttentionSite, Call
from attensor.sites.weights import AttentionWeights

__all__ = ["HouseSite"]


class HouseSite(AttentionSite):
    """A mixer of attensor in any model; replaced ones too."""

    kind = "attensor"

    @classmethod
    def fits(cls, model: nn.Module, module: nn.Module) -> bool:
        """Whether a module is one of these, in its own shape or replaced."""
        return isinstance(module, Mixer | TokenGrid)

    def _read(self) -> AttentionWeights:
        mixer: Any = self.original
        if not hasattr(mixer, "to_attention"):
            raise ValueError(
                f"{self.name}: {type(mixer).__name__} has no weights of a softmax attention (to_attention); swap other "
                'layers, or with weights="fresh" options that say all sizes.'
            )
        return cast("AttentionWeights", mixer.to_attention())

    def _parts(self, layer: nn.Module) -> dict[str, nn.Module]:
        if isinstance(self.original, SequenceMixer) and not isinstance(layer, SequenceMixer):
            raise ValueError(
                f"{self.name}: layer must be a mixer of sequences, which the model calls with a cache or packed rows, "
                f"as {type(self.original).__name__} is, got {type(layer).__name__}; take one of `attensor list` that "
                "mixes sequences."
            )
        grid = grid_of(self.model)
        return {"": layer if grid is None or isinstance(layer, SequenceMixer) else TokenGrid(layer, *grid)}

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Sort the arguments of the module."""
        hidden_states = args[0] if args else kwargs["hidden_states"]
        return Call(hidden_states, {name: value for name, value in kwargs.items() if name != "hidden_states"})

    def heads(self, call: Call) -> Heads:
        """Queries, keys and values of a call."""
        mixer: Any = self.layer or self.original
        given: list[Tensor] = [call.hidden_states]
        if isinstance(mixer, SequenceMixer) and mixer.uses_positions:
            tokens = call.hidden_states.shape[1:-1].numel()
            packing = call.options.get("cu_seqlens")
            given.append(token_positions(tokens, cu_seqlens=packing, device=call.hidden_states.device))
        heads = cast("Heads", mixer.project(*given))
        source = call.options.get("qk_source")
        if source is None:
            return heads
        apart = cast("Heads", mixer.project(source.expand_as(call.hidden_states), *given[1:]))
        return heads._replace(q=apart.q, k=apart.k)

    def scores(self, call: Call) -> tuple[float, Tensor | None, bool]:
        """Scale, mask and causality of a call."""
        mixer: Any = self.layer or self.original
        if not _is_softmax(mixer):
            raise ValueError(f"{self.name}: {type(mixer).__name__} has no softmax over all tokens: no weights.")
        self._check_rows(call)
        is_causal, mask = isinstance(mixer, DecodingMixer) and mixer.is_causal, None
        if (window_size := getattr(mixer, "window_size", None)) is not None:
            place = torch.arange(call.hidden_states.shape[1:-1].numel(), device=call.hidden_states.device)
            mask = (place[:, None] - place < window_size)[None, None]
        return mixer.head_dim**-0.5, mask, is_causal

    @property
    def has_map(self) -> bool:
        """A softmax over all tokens, or a recurrence that divides by the sum of its weights."""
        mixer = self.layer or self.original
        return _is_softmax(mixer) or _is_average(mixer)

    def attention_map(self, call: Call, heads: Heads) -> Tensor:
        """Weights of a call; those of a recurrence are its outputs for values that name their token."""
        mixer: Any = self.layer or self.original
        if not _is_average(mixer):
            return super().attention_map(call, heads)
        self._check_rows(call)
        tokens = heads.v.shape[1]
        named = torch.eye(tokens, dtype=heads.v.dtype, device=heads.v.device)[None, :, None]
        out: Tensor = mixer.attend(heads._replace(v=named.expand(*heads.v.shape[:3], tokens)))
        return out.transpose(1, 2)

    def _check_rows(self, call: Call) -> None:
        cache, tokens = call.options.get("cache"), call.hidden_states.shape[1:-1].numel()
        begins = cache is None or (cache.length == tokens and cache.real(0, tokens) is None)
        if not begins or call.options.get("cu_seqlens") is not None:
            raise ValueError(f"{self.name}: weights are of whole rows; call the model without cache and padding.")

    @property
    def projection(self) -> nn.Module | None:
        """The module of the output projection."""
        mixer = self.layer or self.original
        return getattr(mixer, "o_proj", None) or getattr(mixer, "proj", None)


def _is_softmax(mixer: nn.Module) -> bool:
    return bool({"SoftmaxAttention", "TokenAttention"} & {base.__name__ for base in type(mixer).__mro__})


def _is_average(mixer: nn.Module) -> bool:
    return isinstance(mixer, LinearAttention) and mixer.is_average
