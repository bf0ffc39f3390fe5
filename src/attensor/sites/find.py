"""The attentions of a model, whatever library they are of."""

from __future__ import annotations

from torch import nn

from attensor.ops._checks import checked
from attensor.sites.attensor import HouseSite
from attensor.sites.hugging_face import BertSite, GPT2Site, LlamaSite
from attensor.sites.site import AttentionSite
from attensor.sites.timm import TimmSite
from attensor.sites.torch import TorchSite

__all__ = ["find_sites", "replace"]

KINDS: tuple[type[AttentionSite], ...] = (LlamaSite, GPT2Site, BertSite, TimmSite, TorchSite, HouseSite)


@checked
def find_sites(model: nn.Module) -> list[AttentionSite]:
    """The self-attentions of a model, in the order of its modules.

    Known are those of transformers with the projections of Llama (Mistral, Qwen2, ...), of GPT-2 and of BERT (RoBERTa,
    ELECTRA, ...), of timm's vision transformers, `torch.nn.MultiheadAttention`, and every mixer of attensor.
    Cross-attention is left out where a module says so.

    Args:
        model: any module; nothing in it is changed.
    Raises:
        ValueError: it has no attention that is known.
    """
    found: list[AttentionSite] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{site.name}.") for site in found):
            continue
        kind = next((kind for kind in KINDS if kind.fits(model, module)), None)
        if kind is not None and name:
            found.append(kind.at(model, name))
    if not found:
        raise ValueError(
            f"find_sites: model must have an attention of transformers (Llama-like, GPT-2, BERT-like), timm's "
            f"Attention, torch.nn.MultiheadAttention or a mixer of attensor, got {type(model).__name__} with none; "
            "pass the whole model, or put a layer of attensor.nn in its place by hand."
        )
    return found


@checked
def replace(site: AttentionSite, layer: nn.Module) -> None:
    """Let a layer of attensor stand in for an attention; `site.restore()` undoes it. See `AttentionSite.replace`."""
    site.replace(layer)
