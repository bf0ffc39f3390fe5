"""`models.create(name, ...)`: a published model by its name, with local weights if there are any."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from attensor.catalogue import cards, load, named
from attensor.errors import MissingExtraError
from attensor.models.convert import load_weights, read_weights
from attensor.models.vision.image_model import FeatureExtractor, ImageModel
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked

__all__ = ["create", "model_names", "register_with_timm"]


@partial(checked, owner="models.create")
def create(
    name: str,
    *,
    pretrained: str | Path | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    drop_path_rate: float | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A model of the catalogue, in evaluation or training mode as it is built.

    Args:
        name: one of `model_names()`.
        pretrained: a safetensors file or a folder with `model.safetensors`, ours or published; random weights if None.
        num_classes: logits; when given, a classifier of another size in the file is left out. 0 gives pooled features.
        img_size: side, or height and width, in pixels for which the model is built; the preset's if None.
        drop_path_rate: stochastic depth of the last block; the preset's if None.
        features_only: return a `FeatureExtractor`: images to a list of maps.
        out_indices: which maps, as in `forward_intermediates`; all if None.
        device: of the parameters.
        dtype: of the parameters; weights are converted.
    Raises:
        ValueError: an unknown name, an option that this model does not have, or weights that do not fit, by name.
        FileNotFoundError: there are no weights at `pretrained`.
    """
    _check_options(num_classes, img_size, features_only or out_indices is None)
    check_range("models.create", 0, 1, drop_path_rate=drop_path_rate)
    model_class, config = _find(name)
    config = _changed(name, config, num_classes=num_classes, image_size=_pair(img_size), drop_path_rate=drop_path_rate)
    weights = None if pretrained is None else read_weights(pretrained)
    if weights is not None and issubclass(model_class, ImageModel):
        config = model_class.fitted(config, weights)
    with torch.device(torch.get_default_device() if device is None else device):
        model: nn.Module = model_class(config).to(dtype)
    if weights is not None:
        _load(model, weights, source=f"models.create: {pretrained}", fresh_classifier=num_classes is not None)
    return _maps_of(model, name, out_indices) if features_only else model


def _maps_of(model: nn.Module, name: str, indices: int | Sequence[int] | None) -> FeatureExtractor:
    if not isinstance(model, ImageModel):
        raise ValueError(f"models.create: features_only is for image models, {name} is a {type(model).__name__}.")
    return FeatureExtractor(model, indices)


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return size if size is None or isinstance(size, tuple) else (int(size), int(size))


def _check_options(num_classes: int | None, img_size: int | tuple[int, int] | None, has_maps: bool) -> None:
    if not has_maps:
        raise ValueError("models.create: out_indices are of the maps that features_only=True returns; set it.")
    for option, value, least in (("num_classes", num_classes, 0), ("img_size", img_size, 1)):
        if value is not None and min(value if isinstance(value, tuple) else (value,)) < least:
            raise ValueError(f"models.create: {option} must be at least {least}, got {value}.")


def model_names() -> list[str]:
    """Names that `create` knows, from the cards alone: no model is imported."""
    return sorted(_presets())


def register_with_timm() -> list[str]:
    """Make every image model known to timm as `attensor_<name>`; returns those names.

    Afterwards `timm.create_model("attensor_vit_tiny_patch16_224", num_classes=10, checkpoint_path=...)` works, with
    `features_only` too. Local weights of a published layout: `pretrained_cfg_overlay={"file": path}, pretrained=True`.

    Raises:
        MissingExtraError: timm is not installed.
    """
    try:
        register = importlib.import_module("timm.models").register_model
    except ModuleNotFoundError as error:
        raise MissingExtraError("register_with_timm needs timm: pip install timm", name="timm") from error
    # timm adds the names to the module that a model comes from, and warns of a name that it has already
    home = sys.modules.setdefault(_TIMM_HOME, ModuleType(_TIMM_HOME))
    for_images = [name for name, paths in _presets().items() if any(".vision." in path for path in paths)]
    entries = [_entry(name) for name in sorted(for_images) if issubclass(_find(name)[0], ImageModel)]
    for entry in entries:
        if not hasattr(home, entry.__name__):
            setattr(home, entry.__name__, register(entry))
    return [entry.__name__ for entry in entries]


_TIMM_HOME = "attensor.models.timm_registry"


def _entry(name: str) -> FunctionType:
    """What timm calls to build `name`: no weights are hosted, a file of the user's is read."""

    def build(
        pretrained: bool = False,
        *,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
        cache_dir: Any = None,
        **options: Any,
    ) -> nn.Module:
        file = (pretrained_cfg_overlay or {}).get("file")
        if pretrained and file is None:
            raise ValueError(f'{name}: no weights are hosted; pass pretrained_cfg_overlay={{"file": "x.safetensors"}}.')
        return create(name, pretrained=file if pretrained else None, **options)

    build.__name__, build.__module__ = f"attensor_{name}", _TIMM_HOME
    return cast("FunctionType", build)


def _presets() -> dict[str, tuple[str, ...]]:
    """Name of a model -> import paths of the classes of its card, one of which has it among its `presets`."""
    return {name: card.models for card in cards().values() for name in card.presets}


def _find(name: str) -> tuple[Any, Any]:
    try:
        paths = named("model", name, _presets())
    except ValueError as error:
        raise ValueError(f"models.create: name must be of the catalogue, got {name!r}: {error}") from None
    classes = (load(path) for path in paths)
    return next((one, one.presets[name]) for one in classes if name in one.presets)


def _changed(name: str, config: Any, **changes: Any) -> Any:
    changes = {option: value for option, value in changes.items() if value is not None}
    absent = changes.keys() - {field.name for field in dataclasses.fields(config)}
    if absent:
        raise ValueError(f"models.create: {name} has no {', '.join(sorted(absent))}; leave it out.")
    return dataclasses.replace(config, **changes)


def _load(model: nn.Module, weights: dict[str, Tensor], *, source: str, fresh_classifier: bool) -> None:
    own_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = getattr(model, "convert_state_dict", None)
    if own_names is not None:
        weights = own_names(weights)
    if isinstance(model, ImageModel):
        own = model.state_dict()
        for name in (f"{model.classifier}.weight", f"{model.classifier}.bias"):
            if fresh_classifier and name in weights and (name not in own or weights[name].shape != own[name].shape):
                weights.pop(name)
                weights.update({name: own[name]} if name in own else {})
    load_weights(model, weights, source=source)
