"""Checkpoints of other projects for models that point at their input."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from attensor.models.convert import Rule, convert

__all__ = ["oat_from_official"]

_KEPT = "(?:transformer_encoder|transformer_decoder|cnn_embedding|cross_attentions|readout)"


def oat_from_official(state_dict: Mapping[str, Tensor], *, places: Tensor | None = None) -> dict[str, Tensor]:
    """Weights of OAT from the authors' code, bare or as its training saves them (`model.` before each name).

    Left out are two layers that nothing reads (`generator`, `LinearEmbedding`) and the sines of the steps.

    Args:
        state_dict: theirs.
        places: [K, width], their table of places, which lies in a file of its own; its first `config.max_places` rows
            must be codes. Without it the model keeps its own, which is equal but for a rotation: right for a model
            that is trained anew, wrong for one that was trained with the table.
    Raises:
        ValueError: a name that their model does not have.
    """
    rules = [
        Rule(rf"(?:model\.)?({_KEPT}\..*)", (r"\1",)),
        Rule(r"(?:model\.)?(?:generator|LinearEmbedding|onedpositional_encoding)\..*", (), lambda _: ()),
    ]
    found = convert("oat_from_official", state_dict, rules)
    return found if places is None else {**found, "places": places}
