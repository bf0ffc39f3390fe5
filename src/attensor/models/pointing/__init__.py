"""Models whose answers are places of their input."""

from attensor.data.object_scenes import Scenes as Scenes
from attensor.models.pointing.beam import Beams as Beams
from attensor.models.pointing.beam import beam_search as beam_search
from attensor.models.pointing.oat import OAT as OAT
from attensor.models.pointing.oat import OATConfig as OATConfig
from attensor.models.pointing.pointer_network import PointerNetwork as PointerNetwork
from attensor.models.pointing.pointer_network import Seq2SeqBaselines as Seq2SeqBaselines
