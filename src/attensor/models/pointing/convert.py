"""Checkpoints of other projects for models that point at their input."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from attensor.models.convert import Rule, convert

__all__ = ["oat_from_official"]

_KEPT = "transformer_encoder|transformer_decoder|cnn_embedding|cross_attentions|readout"
_UNREAD = "LinearEmbedding|onedpositional_encoding"


def oat_from_official(state_dict: Mapping[str, Tensor], *, places: Tensor | None = None) -> dict[str, Tensor]:
    """Weights of OAT from the authors' code, bare or as its training saves them (`model.` before each name).

    Left out are layers that nothing reads (`LinearEmbedding`, and `generator` of a model that points) and the sines of
    the steps.

    Args:
        state_dict: theirs.
        places: [K, width], their table of places, which lies in a file of its own; its first `config.max_places` rows
            must be codes. Without it the model keeps its own, which is equal but for a rotation: right for a model
            that is trained anew, wrong for one that was trained with the table.
    Raises:
        ValueError: a name that their model does not have.
    """
    points = any("cross_attentions." in name for name in state_dict)
    kept, left = (_KEPT, f"{_UNREAD}|generator") if points else (f"{_KEPT}|generator", _UNREAD)
    rules = [
        Rule(rf"(?:model\.)?((?:{kept})\..*)", (r"\1",)),
        Rule(rf"(?:model\.)?(?:{left})\..*", (), lambda _: ()),
    ]
    found = convert("oat_from_official", state_dict, rules)
    return found if places is None else {**found, "places": places}
