"""The card of the plain vision transformer."""

from attensor.catalogue import Card, Paper

CARD = Card(
    name="vit",
    aliases=("vision-transformer",),
    title="Vision transformer",
    paper=Paper("2010.11929", 2020, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale"),
    use="classifying images with weights in timm's layout, and as a body that takes any mixer of tokens",
    avoid="large images, whose patches all look at each other, and small data without weights to start from",
    models=("attensor.models.vision.vit:VisionTransformer",),
    presets={
        "vit_tiny_patch16_224": 5_717_416,
        "vit_small_patch16_224": 22_050_664,
        "vit_base_patch16_224": 86_567_656,
    },
    example="""
import torch; from attensor import models
model = models.create("vit_tiny_patch16_224", num_classes=10, img_size=64)
out = model(torch.randn(2, 3, 64, 64))
""",
)
