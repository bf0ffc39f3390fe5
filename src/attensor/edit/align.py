"""Training of layers that stand in for attention: each to give what the original gave of what the original was given.

Attention transfer: every layer sees the stream of the original model, so that all layers learn at once and none pays
for another's errors. Distillation afterwards: the whole model to give what the original gives.
Source: arXiv:2410.10254, section 3.1 (attention transfer), 3.2 there and arXiv:2408.10189 (distillation).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.edit.journal import Journal
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked
from attensor.sites import AttentionSite, find_sites

__all__ = ["Alignment", "align", "distill", "originals", "transfer"]

Batch = Mapping[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)
Layers = Mapping[str, nn.Module]  # by the name of the site


@dataclass
class Alignment:
    """How far a training came.

    Attributes:
        steps: of the optimizer.
        seconds: that it took.
        errors: arm -> site -> at each step, the squared error over the square of the original's output.
    """

    steps: int = 0
    seconds: float = 0.0
    errors: dict[str, dict[str, list[float]]] = field(default_factory=dict)


@contextmanager
def originals(model: nn.Module) -> Iterator[list[tuple[AttentionSite, nn.Module]]]:
    """The model as it was before `swap`, for a while; yields what stands in its places otherwise."""
    held = [(site, site.layer) for site in find_sites(model)]
    stand_ins = [(site, layer) for site, layer in held if layer is not None]
    try:
        for site, _ in stand_ins:
            site.restore()
        yield stand_ins
    finally:
        for site, layer in stand_ins:
            site.replace(layer)


@checked
def align(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    minutes: float | None = None,
    steps: int | None = None,
    learning_rate: float = 5e-4,
) -> Alignment:
    """Train every layer that `swap` has put in, by itself, to do what the original does. In place.

    Args:
        model: a swapped one.
        batches: keyword arguments of the model; `attention_mask` [B, T] says which tokens count.
        minutes, steps: when to end; with the batches if neither is given.
        learning_rate: peak, of AdamW; it falls linearly to zero.
    Returns:
        Errors of each layer at each step, under the arm `""`.
    Raises:
        ValueError: nothing was swapped, or there was no batch.
    Cost: a forward pass of the original without attention weights kept, and forward and backward passes of the layers.
    """
    _check_pace("align", minutes, steps, learning_rate)
    with originals(model) as stand_ins:
        if not stand_ins:
            raise ValueError("align: model must have layers that edit.swap has put in, got none; swap first.")
        students = {"": {site.name: layer for site, layer in stand_ins}}
        sites = [site for site, _ in stand_ins]
        pace = _Pace("align", Alignment(), learning_rate, minutes, steps)
        return _transferred(model, sites, students, batches, pace, Journal())


@checked
def transfer(
    model: nn.Module,
    sites: Sequence[AttentionSite],
    students: Mapping[str, Layers],
    batches: Iterable[Batch],
    *,
    minutes: float | None = None,
    steps: int | None = None,
    learning_rate: float = 5e-4,
    journal: Journal | None = None,
) -> Alignment:
    """Train layers beside the original that they shall replace; several arms see the same steps.

    Args:
        model: with its own attention.
        sites: those that are to be replaced.
        students: arm -> name of a site -> layer.
        batches, minutes, steps, learning_rate: see `align`.
        journal: is told of each step, and may know an interrupted alignment that goes on: its steps and seconds count.
    """
    _check_pace("transfer", minutes, steps, learning_rate)
    pace = _Pace("transfer", Alignment(), learning_rate, minutes, steps)
    return _transferred(model, sites, students, batches, pace, journal or Journal())


def _transferred(
    model: nn.Module,
    sites: Sequence[AttentionSite],
    students: Mapping[str, Layers],
    batches: Iterable[Batch],
    pace: _Pace,
    journal: Journal,
) -> Alignment:
    found = pace.found
    found.errors = {arm: {name: [] for name in layers} for arm, layers in students.items()}
    trained = nn.ModuleList([layer for layers in students.values() for layer in layers.values()])
    optimizer = torch.optim.AdamW(trained.parameters(), lr=pace.peak, weight_decay=0.0)
    journal.recall(trained, optimizer, found)
    pace.begin(optimizer)
    was_training = model.training
    model.eval()
    try:
        for batch in pace.batches(batches):
            with torch.no_grad(), _taught(sites, students, batch.get("attention_mask"), found):
                model(**batch, **({"use_cache": False} if _has_cache(model) else {}))
            optimizer.step()
            optimizer.zero_grad()
            share = pace.step()
            journal.stepped(f"step {found.steps}", share, trained, optimizer, found)
        journal.stepped(f"step {found.steps}", 1.0, trained, optimizer, found)
    finally:
        model.train(was_training)
    return found


@checked
def distill(
    model: Model,
    batches: Iterable[Batch],
    *,
    minutes: float | None = None,
    steps: int | None = None,
    learning_rate: float = 2e-4,
    journal: Journal | None = None,
) -> Model:
    """Train the layers that `swap` has put in so that the whole model gives what the original gives. In place.

    Logits are compared by the Kullback-Leibler divergence from the original's, models without logits by the relative
    squared error of their last hidden states. All other parameters stay as they are.

    Args:
        model, batches, minutes, steps, learning_rate: see `align`.
        journal: see `transfer`.
    Raises:
        ValueError: nothing was swapped, or there was no batch.
    """
    _check_pace("distill", minutes, steps, learning_rate)
    trained = nn.ModuleList([site.layer for site in find_sites(model) if site.layer is not None])
    if not trained:
        raise ValueError("distill: model must have layers that edit.swap has put in, got none; swap first.")
    parameters = list(trained.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    frozen = [p for p in model.parameters() if p.requires_grad and all(p is not own for own in parameters)]
    found, journal = Alignment(), journal or Journal()
    journal.recall(trained, optimizer, found)
    pace = _Pace("distill", found, learning_rate, minutes, steps)
    pace.begin(optimizer)
    with _still(model, frozen):
        for batch in pace.batches(batches):
            torch.autograd.backward(_apart_from_original(model, batch))
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            share = pace.step()
            journal.stepped(f"step {found.steps}", share, trained, optimizer, found)
        journal.stepped(f"step {found.steps}", 1.0, trained, optimizer, found)
    return model


def _apart_from_original(model: nn.Module, batch: Batch) -> Tensor:
    options: dict[str, Any] = {"use_cache": False} if _has_cache(model) else {}
    with originals(model), torch.no_grad():
        target = _output(model(**batch, **options))
    return _divergence(model(**batch, **options), target, batch.get("attention_mask"))


@contextmanager
def _still(model: nn.Module, frozen: Sequence[nn.Parameter]) -> Iterator[None]:
    """In evaluation, and without gradients of these parameters."""
    was_training = model.training
    model.eval()
    for p in frozen:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(True)
        model.train(was_training)


def _check_pace(name: str, minutes: float | None, steps: int | None, learning_rate: float) -> None:
    check_range(name, above=0, minutes=minutes, learning_rate=learning_rate)
    check_range(name, 1, steps=steps)


@dataclass
class _Pace:
    """When a training ends, and its learning rate until then; steps that `found` has already are not done again.

    Attributes:
        name: whose training it is, for messages.
        found: what the steps and seconds are counted in.
        peak: of the learning rate, which falls to zero at the end.
        minutes, steps: when to end.
    """

    name: str
    found: Alignment
    peak: float
    minutes: float | None
    steps: int | None

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Now, with the optimizer whose learning rate falls; what `found` has spent already counts."""
        self._optimizer, self._start = optimizer, time.monotonic() - self.found.seconds

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Those until the time or the steps are over; `step` is to be called after each."""
        for batch in itertools.islice(batches, self.found.steps, None):
            if not isinstance(batch, Mapping):
                raise TypeError(
                    f"{self.name}: batches must hold mappings from names to tensors, got {type(batch).__name__}."
                )
            gone = self._share()
            if gone >= 1:
                self.found.seconds = time.monotonic() - self._start  # so that it is over when it is taken up again, too
                break
            warm = min(1.0, (self.found.steps + 1) / 10)
            self._optimizer.param_groups[0]["lr"] = self.peak * warm * (1 - gone)
            yield batch
        if not self.found.steps:
            raise ValueError(f"{self.name}: batches must hold one, and minutes or steps allow one; got none.")

    def step(self) -> float:
        """Count a step; the share of the training that is done, from 0 to 1."""
        self.found.steps += 1
        self.found.seconds = time.monotonic() - self._start
        return min(1.0, self._share())

    def _share(self) -> float:
        spent = (time.monotonic() - self._start) / (60 * self.minutes) if self.minutes else 0.0
        return max(spent, self.found.steps / self.steps if self.steps else 0.0)


Compare = Callable[[tuple[Any, ...], dict[str, Any], Tensor], None]


@contextmanager
def _taught(
    sites: Sequence[AttentionSite], students: Mapping[str, Layers], mask: Tensor | None, found: Alignment
) -> Iterator[None]:
    """While the original runs, layers run beside it on what it receives, and gradients of their errors add up."""
    hooks: list[Any] = []
    try:
        for site in sites:
            hooks += _taught_at(site, students, mask, found)
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _taught_at(site: AttentionSite, students: Mapping[str, Layers], mask: Tensor | None, found: Alignment) -> list[Any]:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    stand_ins = {arm: site.stand_in(layers[site.name]) for arm, layers in students.items() if site.name in layers}
    for layers in students.values():
        if site.name in layers:
            layers[
                site.name
            ].train()  # and not what is around it: dropout belongs to the original, which is not trained

    def compare(args: tuple[Any, ...], kwargs: dict[str, Any], target: Tensor) -> None:
        kwargs = {name: value for name, value in kwargs.items() if name != "past_key_values"}
        for arm, stand_in in stand_ins.items():
            with torch.enable_grad():
                output = stand_in(*args, **kwargs)
                error = _relative_error(output[0] if isinstance(output, tuple) else output, target, mask)
                if error.requires_grad:
                    torch.autograd.backward(error)
            found.errors[arm][site.name].append(error.item())

    def at_attention(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if site.slot:
            calls.append((args, kwargs))
        else:
            compare(args, kwargs, output[0] if isinstance(output, tuple) else output)

    def at_projection(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        compare(*calls.pop(), output)

    hooks = [site.model.get_submodule(site.path).register_forward_hook(at_attention, with_kwargs=True)]
    if site.slot and site.projection is not None:
        hooks.append(site.projection.register_forward_hook(at_projection))
    return hooks


def _relative_error(output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Squared error over the target's square, over the tokens that count."""
    wide = torch.promote_types(target.dtype, torch.float32)
    output, target = output.to(wide), target.to(wide)
    if mask is not None and mask.shape == target.shape[:2]:
        output, target = output[mask.bool()], target[mask.bool()]
    return (output - target).square().sum() / target.square().sum().clamp(min=1e-12)


def _divergence(output: Any, target: Tensor, mask: Tensor | None) -> Tensor:
    found = _output(output)
    if getattr(output, "logits", None) is None:
        return _relative_error(found, target, mask)
    if mask is not None and mask.shape == target.shape[:2]:
        found, target = found[mask.bool()], target[mask.bool()]
    mine, theirs = (F.log_softmax(x.float().flatten(0, -2), -1) for x in (found, target))
    return F.kl_div(mine, theirs, reduction="batchmean", log_target=True)


def _output(output: Any) -> Tensor:
    """Logits, or the last hidden state."""
    if isinstance(output, Tensor):
        return output
    logits: Tensor | None = getattr(output, "logits", None)
    return logits if logits is not None else output.last_hidden_state


def _has_cache(model: nn.Module) -> bool:
    return hasattr(getattr(model, "config", None), "use_cache")
