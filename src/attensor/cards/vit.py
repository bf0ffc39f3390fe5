"""The card of the plain vision transformer."""

from attensor.catalogue import Card, Paper

CARD = Card(
    name="vit",
    title="Vision transformer",
    paper=Paper(
        arxiv="2010.11929",
        year=2020,
        title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
    ),
    use="classifying images, and as the body of other systems: published weights in timm's names load as they are",
    avoid="large images: attention among all patches grows with the fourth power of the side",
    models=("attensor.models.vision.vit:VisionTransformer",),
    presets={
        "vit_tiny_patch16_224": 5_717_416,
        "vit_small_patch16_224": 22_050_664,
        "vit_base_patch16_224": 86_567_656,
    },
    example="""
import torch; from attensor import models
model = models.create("vit_tiny_patch16_224", num_classes=10, features_only=True, out_indices=(5, 11))
maps = model(torch.randn(1, 3, 96, 128))
""",
)
