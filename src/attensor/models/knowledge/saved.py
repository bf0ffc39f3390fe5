"""Models with their vocabulary in a folder, since the order of rows and columns is their meaning; PyKEEN's names.

config.json   model.safetensors   vocabulary.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from attensor.files import read_json, write_json
from attensor.models.convert import Rule, convert
from attensor.models.folder import configured, load_model, read_config, save_model
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
_VOCABULARY = "vocabulary.json"
_WRITER = "attensor train triples"
_SCORERS = {kind.__name__: kind for kind in KINDS.values()}


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
    write_json(folder / _VOCABULARY, {group: list(names) for group, names in vocabulary.items()})
    config = {key: dict(x) if isinstance(x, Mapping) else x for key, x in asdict(model.config).items()}
    save_model(folder, model, {"config": config, "notes": dict(notes or {})})


@checked
def load_knowledge(folder: str | Path) -> tuple[Scorer | TensorBrain, dict[str, list[str]]]:
    """Model, on the CPU in evaluation mode, and vocabulary, as `save_knowledge` wrote them.

    Raises:
        FileNotFoundError: no such files. ValueError: another model's, or damaged.
    """
    folder = Path(folder)
    told = read_config(folder, [TensorBrain.__name__, *_SCORERS], writer=_WRITER)
    names = read_json(folder / _VOCABULARY)
    if names is None:
        raise FileNotFoundError(f"{folder} holds no names: there is no {_VOCABULARY} in it; `{_WRITER}` writes one.")
    model = _built(told["model"], told, folder)
    check_names(model, names, source=str(folder / _VOCABULARY))
    return model, names


def _built(name: str, told: Mapping[str, Any], folder: Path) -> Scorer | TensorBrain:
    if name in _SCORERS:
        sizes = configured(lambda: ScorerConfig(**told["config"]), folder, name)
        return load_model(lambda: _SCORERS[name](sizes), folder)
    choices = configured(lambda: TensorBrainConfig(**told["config"]), folder, name)
    return load_model(lambda: TensorBrain(choices), folder)


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


@checked
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
