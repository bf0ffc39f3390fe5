"""An operator in the place of transformers' attention kernels: projections, positions and caches stay the model's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Container
from typing import Any, Self

from torch import Tensor, nn

from attensor.errors import require
from attensor.ops._checks import checked

__all__ = ["AttentionFunction", "attention_function"]

_OPTIONS = ("dropout_p", "module")  # that a function may take besides those which every one gets


class AttentionFunction:
    """A function at work in a model; ends with `remove`, or with the block that it is the context of.

    Attributes:
        name: of the implementation, as `model.config._attn_implementation` has it.
    """

    def __init__(self, model: Any, name: str, before: str | dict[str, Any]) -> None:
        self.name, self._model, self._before = name, model, before

    def remove(self) -> None:
        """Give the model back the implementation that it had, and forget the name; nothing if that is done."""
        functions, masks = _interfaces()
        if self.name in functions:
            self._model.set_attn_implementation(self._before)
            for known in (functions, masks):
                type(known)._global_mapping.pop(self.name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


@checked
def attention_function(
    model: nn.Module, name: str, f: Callable[..., Tensor], *, part: str | None = None
) -> AttentionFunction:
    """Let a function compute all attention of a model of transformers, from its own queries, keys and values.

    Function and mask are registered with transformers under one name: a function without a mask of its own would be
    called without any, padding and windows forgotten. Rotary positions, caches, `generate` and beams stay the model's.
    Any operator of attensor with the arguments of `softmax_attention` is such a function.

    Args:
        model: of transformers; its modules are left alone, and `find_sites` and `capture` go on.
        name: of the implementation, not yet taken.
        f: `f(q, k, v, *, scale, is_causal, attn_mask)` -> [B, Tq, H, V]; q [B, Tq, H, K], k [B, Tk, Hkv, K] and v with
            those of the cache before the new ones, mask [B or 1, 1, Tq, Tk] true where a query sees a key or None;
            causal is counted from the last key. One with `dropout_p` gets the model's in training, one with `module`
            the module that calls, whose `layer_idx` says where it is.
        part: a model inside a larger one, as its configuration names it (`"text_config"`: not the images'); None: all.
    Returns:
        A handle: `remove()` it, or use it in `with`; the model then computes bit for bit what it did.
    Raises:
        ValueError: a model that is none of transformers', or without such a part; a name that is taken or has other
            signs than letters, digits, `-` and `_`. MissingExtraError: transformers is not installed.
    """
    if not hasattr(model, "set_attn_implementation"):
        raise ValueError(
            f"attention_function: model must be one of transformers, got {type(model).__name__}; in models of timm, "
            "torch and attensor put a layer in the attention's place: sites.replace, edit.swap."
        )
    whole: Any = model
    functions, masks = _interfaces()
    _check_words(name, part, functions, whole.config.sub_configs)
    handle = AttentionFunction(whole, name, _implementations(whole.config))
    functions.register(name, _called(f))
    masks.register(name, masks["sdpa"])
    try:
        whole.set_attn_implementation(name if part is None else {part: name})
    except Exception:
        handle.remove()
        raise
    return handle


def _check_words(name: str, part: str | None, taken: Container[str], parts: Collection[str]) -> None:
    if name in taken or name == "eager" or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"attention_function: name must be a new word, got {name!r}; choose another.")
    if part is not None and part not in parts:
        there = ", ".join(parts) or "none"
        raise ValueError(f"attention_function: part must be among the model's parts ({there}), got {part!r}.")


def _called(f: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """`f` under the call of transformers: heads before tokens, masks, and what there is no place for."""
    known = inspect.signature(f).parameters
    takes = {name for name in _OPTIONS if name in known}

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        refused = [one for one in ("softcap", "position_bias", "s_aux") if others.get(one) is not None]
        if dropout and "dropout_p" not in takes:
            refused.append("dropout of weights")
        if refused:
            raise ValueError(
                f"attention_function: {type(module).__name__} asks for {', '.join(refused)}, which the function does "
                "not know; keep the model's own implementation."
            )
        tokens, keys = query.shape[2], key.shape[2]
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        causal = bool(causal) and attention_mask is None and tokens > 1
        if causal and keys > tokens:  # a cache that is larger than what it holds: its first keys are the new ones
            key, value = key[:, :, :tokens], value[:, :, :tokens]
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        given = {"dropout_p": dropout, "module": module}
        options = {name: given[name] for name in takes}
        return f(q, k, v, scale=scaling, is_causal=causal, attn_mask=attention_mask, **options), None

    return attend


def _interfaces() -> tuple[Any, Any]:
    """transformers' attention functions, and what makes their masks."""
    require("transformers", purpose="an attention implementation")
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS


def _implementations(config: Any) -> str | dict[str, Any]:
    """Names at work in a configuration and its parts, as `set_attn_implementation` takes them."""
    own: str = config._attn_implementation
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    inner = {name: _implementations(part) for name, part in parts.items() if part is not None}
    return {"": own, **inner} if inner else own
