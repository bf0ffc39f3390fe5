"""Causal language models over any sequence mixer."""

import importlib
import pkgutil

from attensor.models.language.decoder import Decoder as Decoder
from attensor.models.language.decoder import DecoderConfig as DecoderConfig
from attensor.models.language.generate import generate as generate


def import_families() -> None:
    """Import every family, so that transformers' Auto classes know it.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}")
