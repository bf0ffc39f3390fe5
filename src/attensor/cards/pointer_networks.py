"""The card of pointer networks."""

from attensor.catalogue import Card, Paper

CARD = Card(
    name="pointer-networks",
    aliases=("pointer-network", "ptr-net", "ptrnet"),
    title="Pointer networks (answers that are places of the input)",
    paper=Paper("1506.03134", 2015, "Pointer Networks"),
    use="answers that are sequences of places of an input of any length: hulls, tours, orders, spans",
    avoid="hulls, triangulations and tours themselves: solvers are exact and faster at every size that was measured",
    example="""
import torch; from attensor.models.pointing import PointerNetwork
model = PointerNetwork(128)
tours = model.decode(torch.rand(4, 9, 2), width=3, constraint="tsp").best
""",
    operators=("attensor.ops:pointer_scores",),
    commands={
        "train points": "attensor.commands.train_points:TrainPoints",
        "solve hull": "attensor.commands.points:SolveHull",
        "solve tsp": "attensor.commands.points:SolveTsp",
        "solve delaunay": "attensor.commands.points:SolveDelaunay",
        "bench pointing": "attensor.commands.bench_pointing:BenchPointing",
    },
    recipe="attensor.recipes.pointer_networks",
)
