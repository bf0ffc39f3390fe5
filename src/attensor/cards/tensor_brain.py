"""The card of the Tensor Brain and of scorers of triples."""

from attensor.catalogue import Card, Paper

CARD = Card(
    name="tensor-brain",
    aliases=("tb", "bilayer-tensor-network", "knowledge-graph", "distmult", "complex", "rescal", "tucker"),
    title="Tensor Brain (symbols and a state, for perception and memory)",
    paper=Paper("2109.13392", 2021, "The Tensor Brain: A Unified Theory of Perception, Memory and Semantic Decoding"),
    use="completing knowledge graphs, and decoding features, episodes or concepts into sentences of known symbols",
    avoid="graphs of millions of entities, whose softmax over all needs sampling, and free text",
    operators=("attensor.ops:softmax_attention",),
    models=(
        "attensor.models.knowledge.tensor_brain:TensorBrain",
        "attensor.models.knowledge.scorers:DistMult",
        "attensor.models.knowledge.scorers:CP",
        "attensor.models.knowledge.scorers:ComplEx",
        "attensor.models.knowledge.scorers:RESCAL",
        "attensor.models.knowledge.scorers:Tucker",
    ),
    commands={
        "train triples": "attensor.commands.train_triples:TrainTriples",
        "solve recall": "attensor.commands.solve_recall:SolveRecall",
        "lens decode": "attensor.commands.lens_decode:LensDecode",
        "bench triples": "attensor.commands.bench_triples:BenchTriples",
    },
    recipe="attensor.recipes.tensor_brain",
    example="""
import torch; from attensor import models
brain = models.TensorBrain(models.TensorBrain.tiny)
sentence = brain.remember(torch.tensor([2]))["predicate"].chosen
""",
)
