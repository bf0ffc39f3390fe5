"""Edits of trained models and their checkpoints."""

from attensor.edit.rotate import latent_moments as latent_moments
from attensor.edit.rotate import rotate_latent as rotate_latent
from attensor.edit.rotate import rotation as rotation
from attensor.edit.swap import restore as restore
from attensor.edit.swap import swap as swap
