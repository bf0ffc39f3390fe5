"""Models whose output is a place in their input."""

from attensor.models.pointing.oat import OAT as OAT
from attensor.models.pointing.oat import OATConfig as OATConfig
from attensor.models.pointing.scenes import Scenes as Scenes
