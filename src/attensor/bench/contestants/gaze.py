"""Paths of OAT in `attensor bench pointing`: what is kept between fixations, against the authors' loop.

Their loop calls the whole model for each fixation: crops of all objects and of all fixated ones through the
convolutions, the encoder, the decoder over the whole path, both heads of the readout. Weights and paths are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.bench.apart import LeftOut
from attensor.bench.contest import OURS, Contestant, Peer, Problem
from attensor.data.object_scenes import Scenes
from attensor.models.pointing import OAT, OATConfig

__all__ = ["GAZE_PEERS", "HOW_TO_READ_PATHS", "ScanpathProblem"]

_KINDS = ("paths of gaze",)
_TRIES = 20
AUTHORS, PREFIX = "the authors' loop", "the path anew"
HOW_TO_READ_PATHS = (
    "Paths: one scene of book covers, each next object the most likely one, with the published sizes of OAT. 'the "
    "authors' loop' computes the whole model for each fixation (places without their Python loop over "
    "tokens), 'the path anew' reads the scene once and the whole path for each fixation."
)


@dataclass(frozen=True)
class ScanpathProblem(Problem):
    """A path of `fixations` over one scene of `objects`, random weights of a preset or, by "tiny", of a small model."""

    objects: int
    fixations: int
    preset: str = "oat_amazon"

    kind = property(lambda self: _KINDS[0])
    size = property(lambda self: (self.fixations, self.objects))
    label = property(lambda self: f"{self.objects} objects")
    title = property(lambda self: f"{self.fixations} fixations over a scene")

    @property
    def model(self) -> OAT:
        """The same weights for all, in evaluation mode; random ones that do not end the path early."""
        return _model(self)

    @property
    def scene(self) -> Scenes:
        """Objects in rows of 14, as on the page of covers."""
        config = _config(self)
        look = config.look
        size = (*look, 3) if len(look) == 2 else look
        place = torch.arange(self.objects, device=self.device)
        columns = min(config.max_places, self.objects)
        cells = torch.stack([place // columns, place % columns], -1)
        grid = place.new_tensor([[-(-self.objects // columns), columns]])
        looks = self.draw(1, self.objects, *size, seed=1).sigmoid()
        return Scenes(looks, cells[None], place[None, self.objects // 2], grid)

    def contestant(self, path: Callable[[], Tensor]) -> Contestant:
        """Who draws a path of all the fixations; one that ends early would be compared at less work than it says."""

        def numbers() -> Tensor:
            found = path()
            if found.numel() != self.fixations:
                raise LeftOut(f"these random weights end the path after {found.numel()} fixations")
            return found.flatten().float()

        return Contestant(numbers)


def _config(problem: ScanpathProblem) -> OATConfig:
    config = OAT.tiny if problem.preset == "tiny" else OAT.presets[problem.preset]
    return replace(config, max_length=problem.fixations)


@lru_cache(maxsize=1)
def _model(problem: ScanpathProblem) -> OAT:
    for seed in range(19, 19 + _TRIES):  # with the first the small model looks at the target and elsewhere
        model = _drawn(problem, seed)
        if model.generate(problem.scene, temperature=0.0)[0].numel() == problem.fixations:
            break
    return model


def _drawn(problem: ScanpathProblem, seed: int) -> OAT:
    config = _config(problem)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OAT(config)
    with torch.no_grad():
        # looks so large, and the scene in the decoder so small, that the objects of a path differ
        model.cnn_embedding.get_parameter("fc.weight" if len(config.look) == 2 else "weight").mul_(8)
        for layer in model.transformer_decoder.layers:
            layer.get_parameter("multihead_attn.out_proj.weight").mul_(0.3)
    return model.to(problem.device, problem.dtype).eval()


def _ours(problem: ScanpathProblem) -> Contestant:
    model, scene = problem.model, problem.scene
    return problem.contestant(lambda: model.generate(scene, temperature=0.0)[0])


def _authors(problem: ScanpathProblem) -> Contestant:
    model, scene = problem.model, problem.scene
    return problem.contestant(lambda: _loop(problem, partial(_whole_model, model, scene)))


def _prefix(problem: ScanpathProblem) -> Contestant:
    model, scene = problem.model, problem.scene

    def path() -> Tensor:
        encoded = model.encode(scene)
        keys, offsets = model.pointers(encoded)

        def scores(path: Tensor) -> Tensor:
            found = _decoded(model, model.steps(encoded, path), encoded.memory)
            return model.points(found[:, -1:], keys, offsets)[..., :-1]

        return _loop(problem, scores)

    return problem.contestant(path)


def _loop(problem: ScanpathProblem, scores: Callable[[Tensor], Tensor]) -> Tensor:
    """The most likely objects, [1, M]: a call for each of them; the first cannot be the end."""
    path = torch.empty(1, 0, dtype=torch.int64, device=problem.device)
    for step in range(problem.fixations):
        chosen = scores(path)[:, -1, : problem.objects + (step > 0)].argmax(-1, keepdim=True)
        if int(chosen) == problem.objects:
            break
        path = torch.cat([path, chosen], 1)
    return path


def _whole_model(model: OAT, scene: Scenes, path: Tensor) -> Tensor:
    """Scores of objects and end after each beginning of a path, [1, M + 1, N + 1]: nothing is known from before."""
    seen, target = path[0], scene.target
    looks = torch.cat([scene.looks, scene.looks[:, target]], 1)
    flags = F.one_hot(scene.target.new_tensor([scene.looks.shape[1]]))
    places = model.placed(torch.cat([scene.cells, scene.cells[:, target]], 1), flags)
    memory = model.transformer_encoder(torch.cat([model.cnn_embedding(looks), places], -1))
    looks = torch.cat([torch.ones_like(scene.looks[:, :1]), scene.looks[:, seen]], 1)
    centre = scene.grid.div(2, rounding_mode="floor")[:, None]
    places = model.placed(torch.cat([centre, scene.cells[:, seen]], 1), F.pad((path == target).long(), (1, 0)))
    steps = torch.cat([model.cnn_embedding(looks), places], -1)
    found = _decoded(model, steps + model.times(steps.shape[1]).to(steps), memory)
    heads = [head.decode_fc(found) @ head.encode_fc(memory).mT for head in model.pointer_heads]
    scores: Tensor = model.readout(torch.stack(heads, -1) / math.sqrt(model.config.hidden_size))[..., 0]
    return scores


def _decoded(model: OAT, steps: Tensor, memory: Tensor) -> Tensor:
    causal = torch.ones(steps.shape[1], steps.shape[1], dtype=torch.bool, device=steps.device).triu(1)
    found: Tensor = model.transformer_decoder(steps, memory, tgt_mask=causal, tgt_is_causal=True)
    return found


GAZE_PEERS = (
    Peer(OURS, _ours, kinds=_KINDS, packages=("attensor",)),
    Peer(AUTHORS, _authors, kinds=_KINDS, packages=("torch",), allowance=8.0),
    Peer(PREFIX, _prefix, kinds=_KINDS, packages=("torch",), allowance=8.0),
)
