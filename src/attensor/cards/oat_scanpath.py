"""The card of OAT, which says where people look who search an object."""

from attensor.catalogue import Card, Paper

CARD = Card(
    name="oat-scanpath",
    aliases=("oat", "scanpath"),
    title="OAT (paths of gaze as a pointer over the objects of a scene)",
    paper=Paper("2407.13335", 2024, "OAT: Object-Level Attention Transformer for Gaze Scanpath Prediction"),
    use="predicting where people look who search a product on a shelf or an object on a page of any number of objects",
    avoid="scenes that are not cut into objects, and people who look around without searching anything",
    example="""
import torch; from attensor.models.pointing import OAT, Scenes
scene = Scenes(torch.rand(1, 3, 8), torch.tensor([[[0, 0], [0, 1], [1, 0]]]),
               torch.tensor([2]), torch.tensor([[2, 2]]))
paths, lengths = OAT(OAT.presets["oat_generated"]).generate(scene)
""",
    operators=("attensor.ops:pointer_scores",),
    models=("attensor.models.pointing.oat:OAT",),
    presets={"oat_amazon": 18_255_843, "oat_shelves": 18_255_843, "oat_generated": 134_187, "oat_reading": 728_803},
    commands={
        "train scanpaths": "attensor.commands.train_scanpaths:TrainScanpaths",
        "solve scanpath": "attensor.commands.scanpath:SolveScanpath",
        "bench pointing": "attensor.commands.bench_pointing:BenchPointing",
    },
    recipe="attensor.recipes.oat_scanpath",
)
