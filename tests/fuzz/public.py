"""What of attensor is public, and which of it the fuzzer calls."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import attensor
from tests.fuzz.calls import NAMES
from tests.fuzz.helpers import HELPERS
from tests.fuzz.layers import LAYERS, draw_layer
from tests.fuzz.operators import OPERATORS, draw_operator
from tests.fuzz.subjects import ROWS

__all__ = ["APART", "EXCEPTED", "called", "public"]

_PROGRAM = "a program, which is given text, files and folders: tests/test_command_line.py, tests/compare and others"
# package or module -> why nothing in it is called
APART = {
    **dict.fromkeys(
        ("bench", "cards", "cli", "commands", "compare", "doctor", "image_training", "indicating"), _PROGRAM
    ),
    **dict.fromkeys(
        ("knowledge_training", "lab", "listing", "recipes", "report", "swap_journal", "swapping"), _PROGRAM
    ),
    **dict.fromkeys(("__main__", "processes", "files", "errors"), "what programs and checks are made of"),
    "catalogue": "reads names, which tests/test_catalogue.py misspells",
    "data": "stands apart from the checks and has its own: tests/data",
}
_BY_KIND = "its kinds are tried in tests/test_refusals_by_kind.py; a call trains, writes or needs a folder"
_RESULT = "a result or a protocol: users read it, or derive from it"
_NOTHING = "takes no argument"
# name -> why it is not called
EXCEPTED = {
    **dict.fromkeys(
        ("train", "run_training", "load_checkpoint", "save_checkpoint", "load_slicings", "on_ranks"), _BY_KIND
    ),
    **dict.fromkeys(("Encoder", "VisionTransformer", "FeatureExtractor", "CountedDecoder", "beam_search"), _BY_KIND),
    **dict.fromkeys(
        ("merge_over", "attention_function", "ControlAttention", "AttentionWeights", "JointCache", "Backbone"), _BY_KIND
    ),
    **dict.fromkeys(
        ("AttentionSite", "AttentionFunction", "Captured", "Cache", "Heads", "Mixer", "SequenceMixer"), _RESULT
    ),
    **dict.fromkeys(("Implementation", "Operator", "Point", "Progress", "Beams"), _RESULT),
    **dict.fromkeys(("Interval", "SignFlip", "ReceptiveField", "Indicators", "HeadReading", "LayerReading"), _RESULT),
    **dict.fromkeys(("StepReading", "DecodeReading", "Training"), _RESULT),
    **dict.fromkeys(("model_names", "register_with_timm", "import_families", "kernels_form"), _NOTHING),
    "Diverged": "an error",
    "Stopped": "an error",
}


def public() -> Iterator[tuple[str, str, Any]]:
    """Module, name and object of every public function and class that is not apart.

    What a package exports is public, and its modules are its own, but for the packages of models; one that exports
    nothing has public modules.
    """
    exporting: list[str] = []
    for info in pkgutil.walk_packages(attensor.__path__, "attensor."):
        parts = info.name.split(".")[1:]
        if parts[0] in APART or any(part.startswith("_") for part in parts):
            continue
        is_inside = any(info.name.startswith(f"{package}.") for package in exporting)
        if is_inside and not (info.ispkg and parts[0] == "models"):
            continue
        module = importlib.import_module(info.name)
        found = [(info.name, name, getattr(module, name)) for name in _exported(module)]
        found = [one for one in found if callable(one[2]) and not name_of_type(one[2])]
        if info.ispkg and found:
            exporting.append(info.name)
        yield from found


def _exported(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [name for name in dir(module) if not name.startswith("_")]


def name_of_type(made: Any) -> bool:
    """Whether it only names a type: `Any`, an alias, a constant of typing."""
    return made is Any or not (inspect.isclass(made) or inspect.isroutine(made) or hasattr(made, "__wrapped__"))


def called(draws: int = 30) -> set[int]:
    """Identities of the objects that targets of the tables name."""
    rng, targets = random.Random(0), set[str]()
    for name in OPERATORS:
        targets |= {draw_operator(rng, name, of_reference=is_reference).target for is_reference in (False, True)}
    targets |= {draw_layer(rng).target for _ in range(draws * len(LAYERS))}
    for draw, _, _ in HELPERS.values():
        targets |= {draw(rng)[0] for _ in range(draws)}
    targets |= {row.draw(rng).target for row in ROWS.values()}
    paths = {path for target in targets for path in re.findall(r"[A-Za-z_]\w*(?:\.\w+)*", target)}
    return {id(made) for path in paths for made in _along(path)}


def _along(path: str) -> Iterator[Any]:
    """The object of each beginning of a path, as far as there is one."""
    first, *rest = path.split(".")
    if first not in NAMES:
        return
    made = NAMES[first]
    yield made
    for name in rest:
        try:
            made = getattr(made, name)
        except AttributeError:
            return
        yield made
