"""`attensor bench vision`: whole image models against timm's with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attensor import models
from attensor.bench.apart import LeftOut
from attensor.bench.contest import OURS, Cell, Contestant, Mode, Peer, Problem
from attensor.bench.contestants.timm_peer import load_timm, randomise
from attensor.bench.hold import Bench
from attensor.catalogue import cards, load, named
from attensor.models.convert import load_weights
from attensor.train.image_tasks import Classes, task_of

if TYPE_CHECKING:
    from attensor.commands.bench_vision import BenchVision

__all__ = ["PEERS", "VisionProblem", "bench", "usual"]

SWIN = "swin_tiny_patch4_window7_224"
# of the same size as Swin-T, and compared with it in their papers
BESIDE_SWIN = ("nat_tiny", "dinat_tiny", "l2vit_tiny")
SEED = 0


@dataclass(frozen=True)
class VisionProblem(Problem):
    """A batch of square images for one model."""

    model: str
    batch_size: int
    image_size: int
    parameters: int

    kind = property(lambda self: self.model)
    title = property(lambda self: f"batches of {self.batch_size}")
    series = property(lambda self: self.model)
    label = property(lambda self: f"{self.model}, {self.image_size} px")
    size = property(lambda self: (self.parameters, self.batch_size, self.image_size))
    images = property(lambda self: self.batch_size)


@dataclass(frozen=True, kw_only=True)
class ModelContestant(Contestant):
    """A model, which does in training what it does only there, norms over the batch for instance."""

    model: nn.Module = field(repr=False)

    def call(self, mode: str) -> Callable[[], object]:
        """What is timed."""
        self.model.train(mode == "training")
        return super().call(mode)


def _contestant(problem: VisionProblem, model: nn.Module) -> Contestant:
    """Of the model's parameters, which it has already."""
    model = model.to(problem.device, problem.dtype).eval()
    drawn = problem.draw(problem.batch_size, 3, problem.image_size, problem.image_size, seed=SEED)
    images, *_ = (task_of(type(model)) or Classes()).batch(model, drawn, drawn)
    own: Any = model
    # of logits: of classes, or of the levels of every dimension
    shape = (own.num_classes or own.num_features,) if images is drawn else (*images.shape[1:], own.config.num_levels)
    upstream = problem.draw(problem.batch_size, *shape, seed=SEED + 1)
    return ModelContestant(lambda *parameters: model(images), tuple(model.parameters()), upstream, model=model)


@lru_cache(maxsize=1)
def _pair(name: str, image_size: int) -> tuple[nn.Module, nn.Module | str]:
    """Ours, and timm's of the same name and weights, or the reason why there is none; kept for the next problem."""
    shell: Any = models.create(name, img_size=image_size, device="meta")
    torch.manual_seed(SEED)
    # stochastic depth would leave out work, and other work each time
    rates = {rate: 0.0 for rate in ("drop_path_rate", "dropout") if hasattr(shell.config, rate)}
    ours = type(shell)(replace(shell.config, **rates))
    try:
        theirs = _of_timm(name, image_size)
        load_weights(ours, ours.convert_state_dict(theirs.state_dict()), source=f"timm's {name}")
    except (LeftOut, ValueError) as error:  # the latter where timm calls another model so
        return ours, str(error)
    return ours, theirs


def _of_timm(name: str, image_size: int) -> nn.Module:
    timm = load_timm()
    if not timm.is_model(name):
        raise LeftOut(f"timm {timm.__version__} has no {name}")
    torch.manual_seed(SEED)
    try:
        model = timm.create_model(name, img_size=image_size)
    except TypeError:  # it takes images of any size
        model = timm.create_model(name)
    return randomise(model)


def _ours(problem: VisionProblem) -> Contestant:
    return _contestant(problem, _pair(problem.model, problem.image_size)[0])


def _twin(problem: VisionProblem) -> Contestant:
    _, theirs = _pair(problem.model, problem.image_size)
    if isinstance(theirs, str):
        raise LeftOut(theirs)
    return _contestant(problem, theirs)


def _swin(problem: VisionProblem) -> Contestant:
    return _contestant(problem, _of_timm(SWIN, problem.image_size))


# oneDNN compiles convolutions at the first call of a size, which is not to count as memory of whoever comes first
PEERS = (
    Peer(OURS, _ours, packages=("attensor",), compiles=True),
    Peer("timm", _twin, packages=("timm",), compiles=True),
    Peer("swin_tiny of timm", _swin, kinds=BESIDE_SWIN, packages=("timm",), computes="Swin-T", compiles=True),
)


def bench(options: BenchVision) -> Bench:
    """The contest of the options.

    Raises:
        ValueError: a name that is no image model.
    """
    sizes = _sizes()
    cells, small = list[Cell](), list[Problem]()
    for name in _names(options.models, sizes):
        parameters, side = sizes[name]
        side = options.image_size or side
        problem = VisionProblem(name, options.batch_size, side, parameters, device=options.device)
        small.append(replace(problem, batch_size=1))
        modes: tuple[Mode, ...] = ("forward", "training")
        cells += [Cell(mode, [problem]) for mode in modes]
    note = "Whole models without stochastic depth; a backward pass gives the gradients of all parameters."
    return Bench(PEERS, small, cells, note)


def _sizes() -> dict[str, tuple[int, int]]:
    """Image models by name: parameters, and side of the images that they are made for."""
    counts = {name: count for card in cards().values() for name, count in card.presets.items()}
    return {name: (counts[name], config.image_size[0]) for kind in _kinds() for name, config in kind.presets.items()}


def _kinds() -> list[Any]:
    """Classes of image models, of all cards that bring this command."""
    found = [load(path) for card in cards().values() if "bench vision" in card.commands for path in card.models]
    return [kind for kind in found if task_of(kind) is not None]


def usual() -> list[str]:
    """One of each family, as it names it."""
    return sorted(kind.usual for kind in _kinds() if getattr(kind, "usual", None))


def _names(asked: tuple[str, ...], sizes: dict[str, tuple[int, int]]) -> list[str]:
    names = [name for given in asked for name in (usual() if given == "usual" else (given,))]
    for name in names:
        try:
            named("image model", name, sizes)
        except ValueError as error:
            raise ValueError(f"bench vision: --models: {error}") from None
    return list(dict.fromkeys(names))
