"""Models with their vocabulary in a folder, since the order of rows and columns is their meaning; PyKEEN's names.

config.json   model.safetensors   vocabulary.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from attensor.files import atomic_path, read_json, write_json
from attensor.models.convert import Rule, convert, load_weights, read_weights
from attensor.models.knowledge.scorers import KINDS, Scorer, ScorerConfig
from attensor.models.knowledge.tensor_brain import TensorBrain, TensorBrainConfig
from attensor.ops._checks import checked

__all__ = ["Vocabulary", "check_names", "from_pykeen", "load_knowledge", "number_of", "save_knowledge"]

Vocabulary = Mapping[str, Sequence[str]]
"""Group -> names in the order of rows or columns: entities, relations, times, and unary groups."""

_EMBEDDINGS = r"\._embeddings\.weight"
_PYKEEN = (
    Rule(rf"entity_representations\.0{_EMBEDDINGS}", ("entities.weight",)),
    Rule(rf"relation_representations\.0{_EMBEDDINGS}", ("relations.weight",), lambda x: (x.flatten(1),)),
    Rule(r"interaction\.core(_tensor)?", ("core",)),
)
_PYKEEN_CP = (
    Rule(rf"entity_representations\.0{_EMBEDDINGS}", ("subjects.weight",), lambda x: (x.flatten(1),)),
    Rule(rf"entity_representations\.1{_EMBEDDINGS}", ("objects.weight",), lambda x: (x.flatten(1),)),
    Rule(rf"relation_representations\.0{_EMBEDDINGS}", ("relations.weight",), lambda x: (x.flatten(1),)),
)


@checked
def save_knowledge(
    folder: str | Path, model: Scorer | TensorBrain, vocabulary: Vocabulary, notes: Mapping[str, Any] | None = None
) -> None:
    """Write the three files, each whole or not at all.

    Args:
        folder: made when it is not there.
        model: scorer, or brain with the usual encoder.
        vocabulary: names of its rows or columns.
        notes: how it was trained, for instance; not read again.
    Raises:
        ValueError: a group has more or fewer names than the model has rows.
    """
    check_names(model, vocabulary, source="save_knowledge: vocabulary")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file({name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}, temporary)
    write_json(folder / "vocabulary.json", {group: list(names) for group, names in vocabulary.items()})
    config = {key: dict(x) if isinstance(x, Mapping) else x for key, x in asdict(model.config).items()}
    write_json(folder / "config.json", {"model": type(model).__name__, "config": config, "notes": dict(notes or {})})


@checked
def load_knowledge(folder: str | Path) -> tuple[Scorer | TensorBrain, dict[str, list[str]]]:
    """Model, on the CPU in evaluation mode, and vocabulary, as `save_knowledge` wrote them.

    Raises:
        FileNotFoundError: no such files. ValueError: another model's, or damaged.
    """
    folder = Path(folder)
    told, names = read_json(folder / "config.json"), read_json(folder / "vocabulary.json")
    if told is None or names is None:
        absent = "config.json" if told is None else "vocabulary.json"
        raise FileNotFoundError(f"{folder} holds no model: there is no {absent} in it; `attensor train triples` writes one.")  # noqa: E501  # fmt: skip
    classes = {kind.__name__: (kind, ScorerConfig) for kind in KINDS.values()}
    classes["TensorBrain"] = (TensorBrain, TensorBrainConfig)  # type: ignore[assignment]
    if not isinstance(told, dict) or told.get("model") not in classes:
        raise ValueError(f"{folder} holds another model than {', '.join(classes)}; see its config.json.")
    kind, config_class = classes[told["model"]]
    try:
        config = config_class(**told["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} is no configuration of a {told['model']}: {error}.") from error
    with torch.device("meta"):
        model = kind(config)
    weights = read_weights(folder)
    model = model.to_empty(device="cpu").to(next(iter(weights.values())).dtype)
    load_weights(model, weights, source=str(folder))
    check_names(model, names, source=str(folder / "vocabulary.json"))
    return model.eval(), names


@checked
def from_pykeen(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of PyKEEN's DistMult, ComplEx, RESCAL, TuckER or CP under our names.

    Relations of ours are twice as many with `inverse`: build the model with `inverse=False`, or with PyKEEN's
    `create_inverse_triples` and its relations put behind each other.

    Raises:
        ValueError: names of another model.
    """
    is_cp = any(name.startswith("entity_representations.1.") for name in weights)
    return convert("from_pykeen", weights, _PYKEEN_CP if is_cp else _PYKEEN)


@checked
def number_of(vocabulary: Vocabulary, group: str, name: str, *, option: str) -> int:
    """The number of a name.

    Raises:
        ValueError: there is none of that name; the message has the nearest.
    """
    import difflib

    names = list(vocabulary.get(group, ()))
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = (
        f" Did you mean {' or '.join(near)}?"
        if near
        else f" It has {', '.join(names[:5])} and others."
        if names
        else ""
    )
    raise ValueError(f"{option} {name!r}: the model knows no such name among its {len(names)} {group}.{hint}")


def check_names(model: Scorer | TensorBrain, vocabulary: Vocabulary, *, source: str) -> None:
    """Refuse names of which a group has not as many as the model has rows or columns.

    Raises:
        ValueError: begins with `source`.
    """
    config = model.config
    if isinstance(config, ScorerConfig):
        sizes = {"entities": config.num_entities, "relations": config.num_relations}
    else:
        sizes = {"entities": config.num_entities, "relations": config.num_predicates, **config.unary}
    for group, size in {**sizes, "times": config.num_times}.items():
        if len(vocabulary.get(group, ())) != size:
            raise ValueError(
                f"{source}: must have {size} names of {group}, got {len(vocabulary.get(group, ()))}; give one for each."
            )
