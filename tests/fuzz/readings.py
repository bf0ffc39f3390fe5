"""Models that are asked, measured or converted, and steps of layers by themselves: legal calls, and their rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.fuzz.calls import need
from tests.fuzz.operator_rules import NOTHING
from tests.fuzz.rows import Row, row

__all__ = ["READINGS"]

Arguments = dict[str, Any]
BRAIN = "tensor_brain.TensorBrain(tensor_brain.TensorBrain.tiny)"
EPISODIC = "scorers.CP(scorers.ScorerConfig(7, 3, dim=4, num_times=3, inverse=False, nonnegative=True))"
COMPLEX = "scorers.ComplEx(scorers.ComplEx.tiny)"
OAT = "pointing.OAT(pointing.OAT.tiny)"
SCENES = (
    "pointing.Scenes(torch.rand(2, 4, 5), torch.tensor([[[0, 0], [0, 1], [1, 0], [1, 1]]] * 2), torch.tensor([0, 3]), "
    "torch.tensor([[2, 2]] * 2))"
)
POINTER = "pointing.PointerNetwork(8)"
DECODER = "language.Decoder(language.DecoderConfig(11, 12, 1, 3, 8), lambda index: nn.SoftmaxAttention(12, 3))"
NAMES_OF = "{'entities': list('abcde'), 'relations': list('xyz'), 'times': list('0123'), 'class': ['p', 'q']}"
PATHS = "torch.tensor([[0, 2, 1], [3, 3, -1]])"
SIX = "torch.randn(3, 6)"
HEADS = "nn.SoftmaxAttention(12, 3).project(torch.randn(2, 4, 12))"


def _index(name: str, index: torch.Tensor, bound: int, count: int | None = None) -> None:
    need(index.dtype == torch.int64, f"{name}: other numbers")
    need(index.ndim == 1 and (count is None or len(index) == count), f"{name}: shape")
    need(index.is_meta or not index.numel() or 0 <= int(index.min()) <= int(index.max()) < bound, f"{name}: outside")


def _triples(a: Arguments) -> str | None:
    count = len(next(iter(a.values()))) if next(iter(a.values())).ndim else None
    for name, index in a.items():
        bound = 7 if name in ("s", "o") else 6 if "s" in a else 3
        _index(name, index, bound, count)
    if any(index.is_meta for index in a.values()):
        return "s, p, o: without numbers"
    return None if count else NOTHING


def _times(size: int) -> Callable[[Arguments], str | None]:
    def rule(a: Arguments) -> str | None:
        weights = a["weights"]
        need(list(weights.shape) == [size] and not weights.is_meta, "weights: shape")
        if "scorer" in a:
            sums = abs(float(weights.sum()) - 1) <= 1e-5
            need(bool((weights >= 0).all()) and sums, "weights: no probabilities")
        return None

    return rule


def _concept(a: Arguments) -> str | None:
    need(list(a["state"].shape) == [8] and not a["state"].is_meta, "state: shape")
    need(a.get("group", "times") in ("entities", "predicates", "times", "class"), "group: unknown")
    return None


def _curve(a: Arguments) -> str | None:
    columns, sizes = a["columns"], a["sizes"]
    need(columns.ndim == 2 and columns.numel() and not columns.is_meta, "columns: shape")
    need(all(1 <= size <= columns.shape[1] for size in sizes), "sizes: range")
    return "trials: very many" if a.get("trials", 200) > 10**4 else None


def _perceived(a: Arguments) -> str | None:
    scene = a["scene"]
    need(scene.ndim == 2 and scene.shape[1] == 6, "scene: shape")
    for name in ("subject", "object_", "union"):
        need(a[name].shape == scene.shape, f"{name}, scene: shape")
    for name in ("scene", "subject", "object_", "union"):
        need(a[name].dtype == torch.float32 and not a[name].is_meta, f"{name}: dtype")
    is_finite = all(bool(a[name].isfinite().all()) for name in ("scene", "subject", "object_", "union"))
    return "scene: not finite" if not is_finite else None if scene.numel() else NOTHING


def _paths_of(a: Arguments) -> str | None:
    for name in ("paths", "others"):
        x = a.get(name, a["paths"])
        need(x.ndim == 2 and x.dtype == torch.int64 and not x.is_meta, f"{name}: shape or dtype")
        need(not bool(((x[:, :-1] < 0) & (x[:, 1:] >= 0)).any()), f"{name}: -1 before a fixation")
    if "others" in a and "target" not in a:
        need(len(a["paths"]) == len(a["others"]), "paths, others: pairs")
    for paths, target in (("paths", "target"), ("others", "others_target")):
        if target in a:
            x, to = a[paths], a[target]
            need(list(to.shape) == [len(x)] and to.dtype == torch.int64 and not to.is_meta, f"{target}, target: shape")
            need(bool((x >= 0).any(1).all()), f"{paths}, paths: an empty path")
    return None if all(x.numel() for x in a.values()) else NOTHING


def _probability(a: Arguments) -> str | None:
    logits, labels = a["logits"], a["labels"]
    need(logits.ndim >= 1 and labels.shape == logits.shape[:-1], "labels, logits: shape")
    need(labels.dtype in (torch.int32, torch.int64) and logits.device == labels.device, "labels, logits: dtype")
    need(not labels.is_meta, "labels, logits: without numbers")
    need(not labels.numel() or int(labels.max()) < logits.shape[-1], "labels: of no class")
    return None


def _matched(a: Arguments) -> str | None:
    for name in ("path", "other"):
        x = a[name]
        need(x.ndim == 2 and x.shape[1] == 2 and len(x) >= 3 and not x.is_meta, f"{name}: shape")
        need(bool(x.isfinite().all()), f"{name}: not finite")
    return None


def _corners(a: Arguments) -> str | None:
    x = a["corners"]
    need(x.ndim == 2 and x.shape[1] == 2 and not x.is_meta, "corners: shape")
    return None


def _row_of_integers(*names: str) -> Callable[[Arguments], str | None]:
    def rule(a: Arguments) -> str | None:
        for name in names:
            need(isinstance(a[name], (list, tuple)), f"{name}: no row")
            for n in a[name]:
                need(isinstance(n, int) and not isinstance(n, bool) and abs(n) < 2**63, f"{name}: no integers")
        return "count: very many" if a.get("count", 0) > 10**6 else None

    return rule


def _answers(a: Arguments) -> str | None:
    for name in ("answers", "targets"):
        need(isinstance(a[name], (list, tuple)) and len(a[name]) == len(a["points"]), f"{name}, points, answers: rows")
        for one in a[name]:
            need(isinstance(one, (list, tuple)) and all(type(n) is int for n in one), f"{name}: no places")
    return "points: others"


def _freedom(a: Arguments) -> str | None:
    """Infinity stands for the normal distribution."""
    freedom, t = a["freedom"], a.get("t", 0)
    for name, x in (("freedom", freedom), ("t", t)):
        need(isinstance(x, (int, float)) and not isinstance(x, bool) and x == x, f"{name}: no number")
    need(freedom > 0, "freedom: not positive")
    need(0.5 <= a.get("probability", 0.5) < 1, "probability: range")
    return "freedom: tiny" if freedom < 1e-3 or 1 - a.get("probability", 0.5) < 1e-12 else None


def _scenes(a: Arguments) -> str | None:
    looks, cells, target, grid = (a[name] for name in ("looks", "cells", "target", "grid"))
    need(looks.ndim == 3 or looks.ndim == 5, "looks: rank")
    batch, number = looks.shape[:2]
    for name, shape in (("cells", [batch, number, 2]), ("target", [batch]), ("grid", [batch, 2])):
        need(list(a[name].shape) == shape and a[name].dtype == torch.int64, f"{name}, looks: shape or dtype")
        need(a[name].device == looks.device, f"{name}, looks: device")
    if looks.is_meta or not batch:
        return "looks: without numbers"
    need(bool(((target >= 0) & (target < number)).all()), "target: outside")
    need(bool(((cells >= 0) & (cells < grid[:, None])).all()), "cells, grid: outside")
    return None


def _fixations(a: Arguments) -> str | None:
    x = a["fixations"]
    need(x.ndim == 2 and len(x) == 2 and x.dtype in (torch.int64, torch.int32), "fixations: shape or dtype")
    need(not x.is_meta, "fixations: device")
    need(not x.numel() or (int(x.max()) < 4 and int(x.min()) >= -1), "fixations: no objects")
    need(not bool(((x[:, :-1] < 0) & (x[:, 1:] >= 0)).any()), "fixations: behind the end")
    return "fixations: int32" if x.dtype == torch.int32 or not x.numel() else None


def _set_of_points(a: Arguments) -> str | None:
    points, counts, targets = a["points"], a.get("counts"), a.get("targets")
    need(points.ndim == 3 and points.shape[2] == 2 and points.shape[1] >= 1, "points: shape")
    need(points.dtype == torch.float32 and not points.is_meta, "points: dtype or device")
    for name, x in (("counts", counts), ("targets", targets)):
        need(x is None or x.dtype in (torch.int32, torch.int64), f"{name}: dtype")
        need(x is None or not x.is_meta, f"{name}: device")
    if counts is not None:
        need(list(counts.shape) == [len(points)], "counts, points: shape")
        need(not len(counts) or 1 <= int(counts.min()) <= int(counts.max()) <= points.shape[1], "counts: range")
    if targets is not None:
        need(targets.ndim == 2 and len(targets) == len(points), "targets, points: shape")
        need(not targets.numel() or int(targets.max()) <= points.shape[1], "targets: no places")
        need(
            not targets.numel() or int(targets.min()) >= 0 or bool((targets[targets < 0] == -100).all()),
            "targets: no places",
        )
    shape = a.get("constraint", "none")
    least = points.shape[1] if counts is None else int(counts.min()) if len(counts) else 3
    need("targets" in a or shape == "none" or least >= 3 or not len(points), "constraint, points, counts: fewer than 3")
    need(len(points) or "targets" in a, "points: none")
    large = max(a.get("width", 1), a.get("max_steps") or 1) > 100
    return "width, max_steps: many" if large else None if points.numel() else NOTHING


def _tokens(a: Arguments) -> str | None:
    tokens, mask = a["tokens"], a.get("attention_mask")
    need(tokens.ndim == 2 and tokens.dtype in (torch.int32, torch.int64), "tokens: shape or dtype")
    need(not tokens.is_meta, "tokens: device")
    need(not tokens.numel() or 0 <= int(tokens.min()) <= int(tokens.max()) < 11, "tokens: outside the vocabulary")
    if mask is not None:
        need(mask.shape == tokens.shape and not mask.is_meta, "attention_mask, tokens: shape")
        return "attention_mask: of any kind"
    return None if tokens.numel() else NOTHING


def _ids(a: Arguments) -> str | None:
    return _tokens({"tokens": a["input_ids"]} | {k: v for k, v in a.items() if k == "attention_mask"})


def _joined(a: Arguments) -> str | None:
    need(isinstance(a["parts"], (list, tuple)) and all(isinstance(part, str) for part in a["parts"]), "parts: no names")
    held = a["weights"]
    for part, other in (("q", "k"), ("k", "q")):
        need(f"x.{part}.weight" not in held or f"x.{other}.weight" in held, "weights, parts: one without another")
    both = [held.get("x.q.weight"), held.get("x.k.weight")]
    if all(x is not None for x in both):
        first, second = both
        need(first.ndim == second.ndim and first.shape[1:] == second.shape[1:] and first.ndim, "weights: sizes")
        need(first.device == second.device, "weights: devices")
    return "parts: others" if list(a["parts"]) != ["q", "k"] else None


def _options(a: Arguments) -> str | None:
    need(isinstance(a["config"], Mapping), "config: no mapping")
    if "published" in a:
        need(isinstance(a["published"], Mapping), "published: no mapping")
        return "config, published: others"
    return None


def _converted(a: Arguments) -> str | None:
    need(not any(name for name in a["state_dict"]), "state_dict, names: of another layout")
    return None


def _is_needed(*names: str) -> Callable[[Arguments], str | None]:
    def rule(a: Arguments) -> str | None:
        config = a["config"]
        need(isinstance(config, Mapping), "config: no mapping")
        need(all(name in config for name in names), "config: a size is missing")
        return "config: values"

    return rule


def _mapped(a: Arguments) -> str | None:
    return None if a["x"].numel() else NOTHING


def _heads(a: Arguments) -> str | None:
    need(type(a["heads"]).__name__ == "Heads", "heads: no Heads")
    return None


def _read(a: Arguments) -> str | None:
    names = a["names"]
    need(isinstance(names, Mapping) and len(names) == 4, "names: no mapping")
    for name, bound in (("subject", 5), ("object_", 5), ("time", 4)):
        need(a.get(name) is None or 0 <= a[name] < bound, f"{name}: outside")
    need(a.get("count", 8) >= 1, "count: below 1")
    return None


def _loss(a: Arguments) -> str | None:
    logits, targets = a["logits"], a["targets"]
    need(logits.ndim == 3 and targets.shape == logits.shape[:2], "targets, logits: shape")
    need(targets.dtype in (torch.int32, torch.int64), "targets: dtype")
    need(logits.device == targets.device and not targets.is_meta, "targets, logits: device")
    inside = (targets == -100) | ((targets >= 0) & (targets < logits.shape[-1]))
    need(bool(inside.all()), "targets: no choice")
    return None


def _weights(a: Arguments) -> str | None:
    need(not len(a["weights"]), "weights, names: of another layout")
    return None


ONE_PATH = {"paths": ("*tensor", PATHS), "target": ("*tensor", "torch.tensor([1, 3])")}
TWO_PATHS = {"paths": ("*tensor", PATHS), "others": ("*tensor", "torch.tensor([[0, 1], [3, -1]])")}
CORNERS = {"corners": ("*tensor:float", "torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])")}
WEIGHTS = ("*tensor:float", "torch.tensor([0.2, 0.3, 0.5])")
STATE = ("*mapping", "{'x.q.weight': torch.ones(2, 3), 'x.k.weight': torch.ones(1, 3), 'y.bias': torch.ones(2)}")
READINGS: dict[str, Row] = {
    "Scorer.subject_scores": row(
        f"{COMPLEX}.subject_scores", _triples, says=("ComplEx",), p=("*tensor", "torch.tensor([0, 2])"),
        o=("*tensor", "torch.tensor([6, 1])"),
    ),
    "Scorer.triple_scores": row(
        f"{COMPLEX}.triple_scores", _triples, says=("ComplEx",), s=("*tensor", "torch.tensor([0, 2])"),
        p=("*tensor", "torch.tensor([5, 1])"), o=("*tensor", "torch.tensor([6, 1])"),
    ),
    "write_concept": row(
        "memory.write_concept", _concept, says=("TensorBrain",), brain=("*instance:TensorBrain", BRAIN),
        state=("*tensor:float", "torch.randn(8)"), group=("text", "'times'", "'class'"),
    ),
    "mean_time": row(
        "memory.mean_time", _times(4), brain=("*instance:TensorBrain", BRAIN),
        weights=("*tensor:float", "torch.rand(4)")
    ),
    "marginalise": row("memory.marginalise", _times(3), scorer=("*instance:CP", EPISODIC), weights=WEIGHTS),
    "superposition_curve": row(
        "memory.superposition_curve", _curve, columns=("*tensor:float", "torch.randn(6, 9)"),
        sizes=("*sizes:1", "(1, 3)"),
        trials=("count:1", "5"), generator=("instance?:Generator", "torch.Generator()"),
    ),
    "TensorBrain.perceive": row(
        f"{BRAIN}.perceive", _perceived, says=("TensorBrain",), scene=("*tensor:float", SIX),
        subject=("*tensor:float", SIX), object_=("*tensor:float", SIX), union=("*tensor:float", SIX),
        feedback=("choice?:attention|sample", "'sample'"), with_time=("bool", "True"),
    ),
    "read_decodes": row(
        "decode.read_decodes", _read, weight=0.5, brain=("*instance:TensorBrain", BRAIN),
        names=("*anything", NAMES_OF),
        subject=("int?", "None", "2"), object_=("int?", "None"), time=("int", "3"), count=("int:1", "2"),
        seed=("int", "1"),
    ),
    "sequence_score": row("scanpath.sequence_score", _paths_of, **TWO_PATHS),
    "edit_distance": row("scanpath.edit_distance", _paths_of, **TWO_PATHS),
    "behaviour": row("scanpath.behaviour", _paths_of, **ONE_PATH),
    "delta": row(
        "scanpath.delta", _paths_of, says=("behaviour",), **ONE_PATH, others=("*tensor", PATHS),
        others_target=("*tensor", "torch.tensor([1, 0])"),
    ),
    "true_probability": row(
        "scanpath.true_probability", _probability, logits=("*tensor:float", "torch.randn(2, 3, 5)"),
        labels=("*tensor", "torch.tensor([[0, 4, -1], [2, 2, 2]])"),
    ),
    "multimatch": row(
        "scanpath.multimatch", _matched, path=("*tensor:float", "torch.rand(4, 2)"),
        other=("*tensor:float", "torch.rand(3, 2)"),
        width=("*float:above 0", "1"), height=("*float:above 0", "2.5"),
    ),
    "polygon_area": row("polygons.polygon_area", _corners, **CORNERS),
    "ring_length": row("polygons.ring_length", _corners, **CORNERS),
    "is_simple": row("polygons.is_simple", _corners, **CORNERS),
    "places_of": row("polygons.places_of", _row_of_integers("answer"), answer=("*anything", "[1, 2, 3, 0]")),
    "triangles_of": row("polygons.triangles_of", _row_of_integers("answer"), answer=("*anything", "[1, 2, 3, 0]")),
    "answer_scores": row(
        "polygons.answer_scores", _answers, task=("*choice:hull|tsp|delaunay", "'hull'", "'tsp'", "'delaunay'"),
        points=("*tensors:float", "[torch.rand(4, 2)]"), answers=("*anything", "[[1, 2, 3, 4, 1, 0]]"),
        targets=("*anything", "[[1, 2, 3, 4, 1, 0]]"),
    ),
    "is_tour": row(
        "polygons.is_tour", _row_of_integers("answer"), answer=("*anything", "[1, 2, 3, 0]"), count=("*int", "3")
    ),
    "same_ring": row(
        "polygons.same_ring", _row_of_integers("found", "wanted"), found=("*anything", "[1, 2, 3]"),
        wanted=("*anything", "(2, 3, 1)"),
    ),
    "two_sided_p": row(
        "student.two_sided_p", _freedom, t=("*anything", "0", "1.5"), freedom=("*anything", "3", "2.5")
    ),
    "t_quantile": row(
        "student.t_quantile", _freedom, probability=("*float", "0.5", "0.975"), freedom=("*anything", "3", "2.5")
    ),
    "Scenes": row(
        "pointing.Scenes", _scenes, looks=("*tensor:float", "torch.rand(2, 3, 5)"),
        cells=("*tensor", "torch.tensor([[[0, 0], [0, 1], [1, 0]]] * 2)"), target=("*tensor", "torch.tensor([0, 2])"),
        grid=("*tensor", "torch.tensor([[2, 2]] * 2)"),
    ),
    "OAT.forward": row(
        OAT, _fixations, says=("OAT",), scenes=("*instance:Scenes", SCENES),
        fixations=("*tensor:whole", "torch.tensor([[0, 1, 3], [2, -1, -1]])"),
    ),
    "OAT.generate": row(
        f"{OAT}.generate", lambda a: "samples: many" if a.get("samples", 1) > 100 else None, says=("OAT",),
        scenes=("*instance:Scenes", SCENES), samples=("count:1", "2"), temperature=("float:from 0", "0", "0.5"),
        generator=("instance?:Generator", "torch.Generator()"),
    ),
    "PointerNetwork.forward": row(
        POINTER, _set_of_points, says=("PointerNetwork", "Pointing"), points=("*tensor:float", "torch.rand(2, 5, 2)"),
        targets=("*tensor:whole", "torch.tensor([[1, 5, 0], [2, 0, -100]])"),
        counts=("tensor?:whole", "torch.tensor([5, 3])"),
    ),
    "PointerNetwork.decode": row(
        f"{POINTER}.decode", _set_of_points, says=("PointerNetwork", "beam_search"),
        points=("*tensor:float", "torch.rand(2, 5, 2)"), counts=("tensor?:whole", "torch.tensor([5, 3])"),
        width=("count:1", "1", "3"), constraint=("choice:none|hull|tsp|delaunay", "'hull'"),
        renormalise=("bool", "False"),
        max_steps=("count?:1", "None", "4"),
    ),
    "pointing_loss": row(
        "pointing_base.pointing_loss", _loss, logits=("*tensor:float", "torch.randn(2, 3, 4)"),
        targets=("*tensor:whole", "torch.tensor([[0, 3, 1], [2, -100, -100]])"),
    ),
    "Decoder.forward": row(
        DECODER, _tokens, says=("Decoder", "attention_mask"), tokens=("*tensor", "torch.randint(11, (2, 4))"),
        attention_mask=("tensor?", "torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])"),
    ),
    "GLAForCausalLM.forward": row(
        "gla.GLAForCausalLM(gla.GLAForCausalLM.tiny)", _ids, says=("GLAModel", "GLAForCausalLM", "attention_mask"),
        weight=0.7, input_ids=("*tensor", "torch.randint(11, (2, 4))"),
        attention_mask=("tensor?", "torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])"),
    ),
    "join": row(
        "convert.join", _joined, weights=STATE, parts=("*anything", "['q', 'k']"),
        whole=("*text", "'both'"),
    ),
    "require_options": row(
        "convert.require_options", _options, name=("*text", "'require_options'"),
        config=("*anything", "{'bias': False}"),
        published=("*anything", "{'bias': False}"),
    ),
    "kept_options": row(
        "convert.kept_options", _options, config=("*anything", "{'bias': False}"),
        names=("*instance:list|tuple", "['bias']")
    ),
    "from_pykeen": row("saved.from_pykeen", _weights, says=("from_pykeen",), weights=("*mapping", "{}")),
    "gla_from_fla": row("language_convert.gla_from_fla", _converted, state_dict=("*mapping", "{}")),
    "gla_config_from_fla": row(
        "language_convert.gla_config_from_fla", _is_needed("hidden_size", "num_heads"),
        config=("*anything", "{'hidden_size': 8, 'num_heads': 2}"),
    ),
    "transnormer_config_from_official": row(
        "language_convert.transnormer_config_from_official",
        _is_needed("decoder_embed_dim", "decoder_layers", "decoder_attention_heads"),
        config=("*anything", "{'decoder_embed_dim': 8, 'decoder_layers': 2, 'decoder_attention_heads': 2}"),
    ),
    "gla_config_from_first_code": row(
        "language_convert.gla_config_from_first_code", _is_needed("d_model", "n_layer", "n_head"),
        config=("*anything", "{'d_model': 8, 'n_layer': 2, 'n_head': 2}"),
    ),
    "latent_from_transformers": row(
        "deepseek.latent_from_transformers", _is_needed("hidden_size", "kv_lora_rank"),
        config=("*anything", "{'hidden_size': 8, 'num_attention_heads': 2, 'kv_lora_rank': 4, 'qk_nope_head_dim': 4, "
                "'qk_rope_head_dim': 2, 'v_head_dim': 4}"),
    ),
    "FEATURE_MAPS": row(
        "ops.FEATURE_MAPS['silu']", _mapped, says=("FEATURE_MAPS",), x=("*tensor:float", "torch.randn(2, 3)")
    ),
    "FEATURE_MAPS of elu": row(
        "ops.FEATURE_MAPS['elu+1']", _mapped, says=("FEATURE_MAPS",), x=("*tensor:float", "torch.randn(2, 3)")
    ),
    "Mixer.attend": row(
        "nn.SoftmaxAttention(12, 3).attend", _heads, says=("SoftmaxAttention",), heads=("*anything", HEADS)
    ),
}  # fmt: skip
