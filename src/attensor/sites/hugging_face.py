"""Sites in models of transformers: attention with Llama's projections, GPT-2's and BERT's.

A layer of attensor takes their place inside a `HouseAttention`, which is called as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

from torch import Tensor, nn

from attensor.nn import Frequencies, Heads, SequenceMixer, token_positions
from attensor.sites.house_attention import (
    HouseAttention,
    projection_of,
    real_tokens,
    turned,
    turns_whole_heads,
)
from attensor.sites.site import AttentionSite, Call
from attensor.sites.weights import AttentionWeights, read, thirds

__all__ = ["BertSite", "GPT2Site", "LlamaSite"]

# rotary positions of the whole head, halves against each other, and nothing between projections and scores
_PLAIN = frozenset(
    {
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "gpt2",
        "bert",
        "roberta",
        "xlm-roberta",
        "electra",
        "camembert",
    }
)
_EXTRAS = ("q_norm", "k_norm", "sinks", "attn_logit_softcapping")  # of modules, which projections do not say


class _HuggingFaceSite(AttentionSite):
    kind = "transformers"

    @property
    def _module(self) -> Any:
        return self.original

    @property
    def config(self) -> Any:
        """The configuration that the module was made from."""
        return self._module.config

    def _refuse_extras(self) -> None:
        kind, m = getattr(self.config, "model_type", None), self._module
        extras = [name for name in _EXTRAS if getattr(m, name, None) is not None]
        if kind not in _PLAIN:
            extras.append(f"the conventions of model_type {kind!r}, which are not known here")
        if not abs(self._scale() * self._head_dim() ** 0.5 - 1) < 1e-6:
            extras.append("scores of another scale")
        if extras:
            raise ValueError(
                f"{self.name}: {type(m).__name__} has {', '.join(extras)}: its projections alone do not say what it "
                "computes; its weights cannot be carried."
            )

    def _scale(self) -> float:
        return float(self._module.scaling)

    @abstractmethod
    def _head_dim(self) -> int: ...

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Sort the arguments of the module."""
        named = dict(zip(("hidden_states", "attention_mask"), args)) | kwargs  # Llama and GPT-2 name all but the first
        return Call(named.pop("hidden_states"), named)

    def heads(self, call: Call) -> Heads:
        """Queries, keys and values of a call."""
        return self._split(call) if self.layer is None else self._of_layer(call)

    def _of_layer(self, call: Call) -> Heads:
        layer, x = cast("Any", self.layer), call.hidden_states
        embeddings = call.options.get("position_embeddings")
        if not isinstance(layer, SequenceMixer):
            return layer.project(x)  # type: ignore[no-any-return]
        if embeddings is not None and turns_whole_heads(layer):
            return turned(layer.project(x), *embeddings)
        real = real_tokens(call.options.get("attention_mask"), x.shape[1])
        first = None if real is None else real.int().argmax(1)
        return layer.project(x, token_positions(x.shape[1], first=first, device=x.device))

    @abstractmethod
    def _split(self, call: Call) -> Heads: ...

    def scores(self, call: Call) -> tuple[float, Tensor | None, bool]:
        """Scale, mask and causality of a call."""
        mask = call.options.get("attention_mask")
        tokens = call.hidden_states.shape[1]
        past = call.options.get("past_key_values")
        if (mask is not None and mask.shape[-1] != tokens) or (mask is None and past is not None and tokens == 1):
            raise ValueError(f"{self.name}: weights are of whole rows; call the model with use_cache=False.")
        is_causal = bool(getattr(self._module, "is_causal", False))
        return self._scale(), cast("Tensor | None", mask), is_causal and mask is None


def _of_transformers(module: nn.Module, *children: str) -> bool:
    return type(module).__module__.startswith("transformers.") and all(hasattr(module, name) for name in children)


class LlamaSite(_HuggingFaceSite):
    """Attention with `{q,k,v,o}_proj`: Llama, Mistral, Mixtral, Qwen2; others to look at only.

    Layers with a window take over Mistral's; another layer that takes its place sees what the layer sees.
    """

    @classmethod
    def fits(cls, model: nn.Module, module: nn.Module) -> bool:
        """Whether a module is one of these, in its own shape or replaced."""
        if isinstance(module, HouseAttention):
            return module.kind == "llama"
        return _of_transformers(module, "q_proj", "k_proj", "v_proj", "o_proj", "config", "head_dim")

    def _head_dim(self) -> int:
        return int(self._module.head_dim)

    def _read(self) -> AttentionWeights:
        self._refuse_extras()
        m, width = self._module, self._head_dim()
        projections = (m.q_proj, m.k_proj, m.v_proj, m.o_proj)
        rotary = getattr(self.config, "rope_parameters", None) or {}
        base = rotary.get("rope_theta", getattr(self.config, "rope_theta", None))
        return read(
            [(p.weight, p.bias) for p in projections],
            num_heads=m.q_proj.out_features // width,
            num_kv_heads=m.k_proj.out_features // width,
            head_dim=width,
            rotary_base=None if base is None else float(base),
            is_causal=bool(m.is_causal),
            window_size=self._window(),
            frequencies=self._frequencies(),
        )

    def _frequencies(self) -> Frequencies | None:
        """Those of the model's table, which may be stretched for long contexts."""
        table: Any = next((one for one in self.model.modules() if hasattr(one, "inv_freq")), None)
        if table is None:
            return None
        return Frequencies(tuple(table.inv_freq.tolist()), float(getattr(table, "attention_scaling", 1.0)))

    def _window(self) -> int | None:
        """Qwen2 says it of each layer, Mistral of all."""
        whole = getattr(self.config, "sliding_window", None) if "layer_types" not in vars(self.config) else None
        window = getattr(self._module, "sliding_window", whole)
        return None if window is None else int(window)

    def _parts(self, layer: nn.Module) -> dict[str, nn.Module]:
        return {"": HouseAttention(layer, self._module.layer_idx, "llama")}

    def _split(self, call: Call) -> Heads:
        m, x = self._module, call.hidden_states
        q, k, v = (p(x).unflatten(-1, (-1, m.head_dim)) for p in (m.q_proj, m.k_proj, m.v_proj))
        q = m.q_norm(q) if getattr(m, "q_norm", None) is not None else q
        k = m.k_norm(k) if getattr(m, "k_norm", None) is not None else k
        embeddings = call.options.get("position_embeddings")
        return Heads(q, k, v) if embeddings is None else turned(Heads(q, k, v), *embeddings)

    @property
    def projection(self) -> nn.Module | None:
        """The module of the output projection."""
        return self._module.o_proj if self.layer is None else projection_of(self.layer)


class GPT2Site(_HuggingFaceSite):
    """GPT-2's attention: joint projections `c_attn` and `c_proj`, whose weights are [in, out]."""

    @classmethod
    def fits(cls, model: nn.Module, module: nn.Module) -> bool:
        """Whether a module is one of these, in its own shape or replaced."""
        if isinstance(module, HouseAttention):
            return module.kind == "gpt2"
        return _of_transformers(module, "c_attn", "c_proj", "config") and not getattr(
            module, "is_cross_attention", False
        )

    def _head_dim(self) -> int:
        return int(self._module.head_dim)

    def _read(self) -> AttentionWeights:
        self._refuse_extras()
        m = self._module
        parts = [(weight.mT, bias) for weight, bias in thirds(m.c_attn.weight, m.c_attn.bias, 1)]
        return read(
            [*parts, (m.c_proj.weight.mT, m.c_proj.bias)],
            num_heads=m.num_heads,
            num_kv_heads=m.num_heads,
            head_dim=m.head_dim,
            rotary_base=None,
            is_causal=True,
        )

    def _parts(self, layer: nn.Module) -> dict[str, nn.Module]:
        return {"": HouseAttention(layer, self._module.layer_idx, "gpt2", after=self._module.resid_dropout)}

    def _split(self, call: Call) -> Heads:
        m = self._module
        return Heads(*m.c_attn(call.hidden_states).unflatten(-1, (3, m.num_heads, m.head_dim)).unbind(-3))

    @property
    def projection(self) -> nn.Module | None:
        """The module of the output projection."""
        return self._module.c_proj if self.layer is None else projection_of(self.layer)


class BertSite(_HuggingFaceSite):
    """BERT's attention: `self` with `query`, `key`, `value`, and `output` with the projection `dense` before its norm.

    A layer takes the place of `self` and of `output.dense`; dropout, residual sum and norm stay.
    """

    slot = "self"

    @classmethod
    def fits(cls, model: nn.Module, module: nn.Module) -> bool:
        """Whether a module is one of these, in its own shape or replaced."""
        inner = getattr(module, "self", None)
        if isinstance(inner, HouseAttention):
            return True
        if not _of_transformers(module, "self", "output") or not isinstance(inner, nn.Module):
            return False
        return not getattr(module, "is_cross_attention", False) and all(
            hasattr(inner, name) for name in ("query", "key", "value", "attention_head_size")
        )

    @property
    def _dense(self) -> nn.Linear:
        return cast("nn.Linear", self._original("output.dense"))

    def _head_dim(self) -> int:
        return int(self._module.attention_head_size)

    def _scale(self) -> float:
        return float(getattr(self._module, "scaling", self._head_dim() ** -0.5))

    def _read(self) -> AttentionWeights:
        self._refuse_extras()
        m = self._module
        projections = (m.query, m.key, m.value, self._dense)
        return read(
            [(p.weight, p.bias) for p in projections],
            num_heads=m.num_attention_heads,
            num_kv_heads=m.num_attention_heads,
            head_dim=self._head_dim(),
            rotary_base=None,
            is_causal=bool(getattr(m, "is_causal", False)),
        )

    def _parts(self, layer: nn.Module) -> dict[str, nn.Module]:
        return {"self": HouseAttention(layer, self._module.layer_idx, "bert"), "output.dense": nn.Identity()}

    def _split(self, call: Call) -> Heads:
        m, x = self._module, call.hidden_states
        return Heads(*(p(x).unflatten(-1, (-1, self._head_dim())) for p in (m.query, m.key, m.value)))

    @property
    def projection(self) -> nn.Module | None:
        """The module of the output projection."""
        return self._dense if self.layer is None else projection_of(self.layer)
