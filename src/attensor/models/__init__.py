"""Architectures that take their mixer as an argument, and `create`, which builds published models by their names.

A whole model is found through its card in the catalogue, as layers are in `attensor.nn`. After `import attensor.models`
transformers' Auto classes know the language families, whether transformers is imported before or after.
"""

from __future__ import annotations

from typing import Any

from attensor import catalogue
from attensor.models import language as language
from attensor.models import vision as vision
from attensor.models._registration import register_when_imported
from attensor.models.create import create as create
from attensor.models.create import model_names as model_names
from attensor.models.create import register_with_timm as register_with_timm


def __getattr__(name: str) -> Any:
    models = catalogue.parts(__name__, "models")
    if name.startswith("_") or name not in models:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its models are {', '.join(models)}")
    return catalogue.load(models[name])


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if not name.startswith("_")), *catalogue.parts(__name__, "models")})


register_when_imported()
del register_when_imported
