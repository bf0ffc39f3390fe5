"""Causal language models over any sequence mixer."""

from attensor.models.language.counted import CountedDecoder as CountedDecoder
from attensor.models.language.decoder import Decoder as Decoder
from attensor.models.language.decoder import DecoderConfig as DecoderConfig
from attensor.models.language.generate import generate as generate
from attensor.models.language.generate import import_families as import_families
