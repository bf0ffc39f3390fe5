"""Architectures that take their mixer as an argument: `language.Decoder` and `vision.Encoder`."""

from attensor.models import language as language
from attensor.models import vision as vision
