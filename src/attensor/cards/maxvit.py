"""The card of MaxViT; its mixer is `window-grid`."""

from attensor.catalogue import Card, Paper

CARD = Card(
    name="maxvit",
    title="MaxViT",
    paper=Paper("2204.01697", 2022, "MaxViT: Multi-Axis Vision Transformer"),
    use="classifying, and feature maps for detectors: every block sees the whole image at linear cost",
    avoid="the smallest budgets: its convolutions are four times as wide inside as its maps",
    layers=("attensor.nn.window_grid:WindowGridAttention",),
    models=("attensor.models.vision.maxvit:MaxViT",),
    presets={
        "maxvit_tiny_tf_224": 30_916_528,
        "maxvit_tiny_tf_384": 30_977_008,
        "maxvit_tiny_tf_512": 31_049_584,
        "maxvit_small_tf_224": 68_927_956,
        "maxvit_small_tf_384": 69_018_676,
        "maxvit_small_tf_512": 69_127_540,
        "maxvit_base_tf_224": 119_467_708,
        "maxvit_base_tf_384": 119_653_468,
        "maxvit_base_tf_512": 119_876_380,
        "maxvit_large_tf_224": 211_785_560,
        "maxvit_large_tf_384": 212_033_240,
        "maxvit_large_tf_512": 212_330_456,
        "maxvit_xlarge_tf_224": 474_951_952,
        "maxvit_xlarge_tf_384": 475_323_472,
        "maxvit_xlarge_tf_512": 475_769_296,
    },
    recipe="attensor.recipes.maxvit",
    example="""
import torch; from attensor import models
model = models.create("maxvit_tiny_tf_224", num_classes=10, img_size=64)
out = model(torch.randn(2, 3, 64, 64))
""",
    swaps_into=("timm",),
)
