"""Image classifiers and backbones over any mixer."""

from attensor.models.vision.backbone import Backbone as Backbone
from attensor.models.vision.encoder import Encoder as Encoder
from attensor.models.vision.encoder import EncoderConfig as EncoderConfig
from attensor.models.vision.image_model import FeatureExtractor as FeatureExtractor
from attensor.models.vision.vit import VisionTransformer as VisionTransformer
from attensor.models.vision.vit import ViTConfig as ViTConfig
