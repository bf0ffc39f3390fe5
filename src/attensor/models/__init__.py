"""Architectures that take their mixer as an argument, and `create`, which builds published models by their names."""

from attensor.models import language as language
from attensor.models import vision as vision
from attensor.models.create import create as create
from attensor.models.create import model_names as model_names
from attensor.models.create import register_with_timm as register_with_timm
