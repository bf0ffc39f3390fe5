"""Image classifiers over any grid mixer."""

from attensor.models.vision.encoder import Encoder as Encoder
from attensor.models.vision.encoder import EncoderConfig as EncoderConfig
