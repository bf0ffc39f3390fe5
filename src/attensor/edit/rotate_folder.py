"""A checkpoint's folder with its latents in another basis, one shard in memory, and nothing lost when it is cut short.

The new folder is written as `OUT.partial` and renamed when it is whole. A second call with the same arguments goes on
after the last shard that was finished; bases are drawn once and kept beside the shards until then.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from attensor.edit.rotate import How, check_layer, moment_of, rotation, slice_norms, turned_tensor
from attensor.files import atomic_path, locked, read_json, write_json
from attensor.models.language.deepseek import refuse_packed
from attensor.nn.latent import Slicing
from attensor.ops._checks import checked

__all__ = ["SLICINGS", "Rotation", "check_folder", "load_slicings", "partial_of", "rotate_folder"]

SLICINGS = "latent_slicing.json"
_INDEX, _ONE = "model.safetensors.index.json", "model.safetensors"
_BASES, _ASKED, _LOCK = ".bases.safetensors", ".rotation.json", ".lock"
_DOWN = "kv_a_proj_with_mqa.weight"
_FLOATS = ("F64", "F32", "F16", "BF16")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True)
class Rotation:
    """Which basis and how many slices; see `rotate_latent` and, of gains, `to_tpla`."""

    how: How = "pca"
    groups: int = 2
    seed: int = 0
    gains: str = "one"


def check_folder(folder: Path, groups: int) -> dict[str, list[str]]:
    """Shards of a checkpoint and the tensors in each, after everything that would be refused later.

    Args:
        folder: config.json and safetensors, one file or several with their index.
        groups: slices of each latent.
    Raises:
        FileNotFoundError: no such folder or no safetensors.
        ValueError: weights of 8 bits, quantised or with an adapter, no latent layer, one that cannot be cut, or a
            damaged file.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: there is no config.json; give a folder that save_pretrained wrote.")
    shards = _shards(folder)
    names = {name: shard for shard, inside in shards.items() for name in inside}
    refuse_packed("rotate-latent", names)
    if read_json(folder / "config.json").get("quantization_config") is not None:
        raise ValueError(
            f"{folder}: config.json has a quantization_config; turn the latents of the checkpoint in 16 or 32 bits, "
            "then quantise what comes out."
        )
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder}: holds an adapter; merge it into the weights first.")
    layers = _layers(folder, names)
    if not layers:
        raise ValueError(f"{folder}: no tensor ends in {_DOWN}; the model has no multi-head latent attention.")
    for layer in layers:
        for part in (_DOWN, "kv_a_layernorm.weight", "kv_b_proj.weight"):
            _check_tensor(folder, names, f"{layer}{part}")
        check_layer(layer, _read(folder, names, f"{layer}kv_a_layernorm.weight"), groups)
    return shards


def _layers(folder: Path, names: Mapping[str, str]) -> list[str]:
    """Names of the latent layers, without those behind the model's last one, which predict further tokens."""
    count = read_json(folder / "config.json").get("num_hidden_layers")
    found = [name.removesuffix(_DOWN) for name in names if name.endswith(_DOWN)]
    numbers = {name: re.search(r"\blayers\.(\d+)\.", name) for name in found}
    return [name for name, at in numbers.items() if at is None or count is None or int(at[1]) < count]


def _shards(folder: Path) -> dict[str, list[str]]:
    index = read_json(folder / _INDEX)
    files = sorted(set(index["weight_map"].values())) if index else [_ONE]
    found = {}
    for file in files:
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{folder}: there is no {file}"
                + (f", which {_INDEX} names; fetch it again." if index else "; safetensors are needed, write them with "
                   "save_pretrained.")
            )  # fmt: skip
        try:
            with safe_open(folder / file, framework="pt") as opened:
                found[file] = list(opened.keys())
        except SafetensorError as error:
            raise ValueError(f"{folder / file}: is damaged ({error}); fetch it again.") from error
    return found


def _check_tensor(folder: Path, names: Mapping[str, str], name: str) -> None:
    if name not in names:
        raise ValueError(f"{folder}: {name} is missing beside {_DOWN}; the checkpoint is not whole, or quantised.")
    with safe_open(folder / names[name], framework="pt") as opened:
        kind = opened.get_slice(name).get_dtype()
    if kind not in _FLOATS:
        raise ValueError(
            f"{folder}: {name} must be of 16 bits or more, got {kind}; convert the checkpoint to bfloat16 first."
        )


def _read(folder: Path, names: Mapping[str, str], name: str) -> Tensor:
    with safe_open(folder / names[name], framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor


def partial_of(out: Path) -> Path:
    """Where a folder lies until it is whole."""
    return out.with_name(f"{out.name}.partial")


@contextmanager
def rotate_folder(
    source: Path,
    out: Path,
    asked: Rotation,
    moments: Callable[[], Mapping[str, Tensor] | None],
    gains: Callable[[str, Slicing, Tensor], tuple[float, ...] | None],
    *,
    tick: Callable[[str, int, int], None] = lambda file, done, total: None,
) -> Iterator[tuple[Path, dict[str, Slicing]]]:
    """Write the folder under another name; when the block ends without an error, it gets its own.

    Args:
        source: a folder that `check_folder` takes.
        out: must not be there.
        asked: the basis and the slices.
        moments: of each layer, asked for once, if the bases are not drawn yet.
        gains: name of a layer, its slices, its basis -> mu.
        tick: called after each file with its name, how many are done, and how many there are.
    Yields:
        The folder as long as it is not renamed, and the slices of each layer.
    Raises:
        ValueError: out is there, or an unfinished one was begun with other arguments. OSError: no room.
    """
    shards, partial = check_folder(source, asked.groups), partial_of(out)
    _refuse_taken(source, out)
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, name=_LOCK):
        _check_same(partial, {**asdict(asked), **_stamp(source, shards)})
        _check_room(partial, sum((source / file).stat().st_size for file in shards if not (partial / file).exists()))
        bases, slicings = _bases(source, partial, shards, asked, moments, gains)
        for done, (file, inside) in enumerate(shards.items(), 1):
            if not (partial / file).exists():
                _write_shard(source / file, partial / file, inside, bases)
            tick(file, done, len(shards))
        _copy_others(source, partial)
        _write_slicings(partial / SLICINGS, asked, slicings)
        yield partial, slicings
    for name in (_BASES, _ASKED, _LOCK):
        (partial / name).unlink(missing_ok=True)
    partial.rename(out)


def _refuse_taken(source: Path, out: Path) -> None:
    if os.path.lexists(out):
        raise ValueError(f"{out}: is there already; nothing is overwritten, give another --out.")
    if source.resolve() in (out.resolve(), partial_of(out).resolve()):
        raise ValueError(f"{out}: is the folder that is read; give another --out.")


def _stamp(source: Path, shards: Mapping[str, Any]) -> dict[str, Any]:
    files = {file: (source / file).stat() for file in shards}
    return {
        "source": str(source.resolve()),
        "files": {file: [stat.st_size, stat.st_mtime_ns] for file, stat in files.items()},
    }


def _check_same(partial: Path, now: dict[str, Any]) -> None:
    before = read_json(partial / _ASKED)
    if before is None:
        return write_json(partial / _ASKED, now)
    if differing := [name for name, value in now.items() if before.get(name) != value]:
        shown = ", ".join(f"{name} {before.get(name)}" for name in differing if name != "files") or "other files"
        raise ValueError(
            f"{partial}: was begun otherwise ({shown}); go on with the same arguments, or delete the folder to begin "
            "again."
        )
    return None


def _check_room(folder: Path, needed: int) -> None:
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; make room and go on.")


def _bases(
    source: Path,
    partial: Path,
    shards: Mapping[str, list[str]],
    asked: Rotation,
    moments: Callable[[], Mapping[str, Tensor] | None],
    gains: Callable[[str, Slicing, Tensor], tuple[float, ...] | None],
) -> tuple[dict[str, Tensor], dict[str, Slicing]]:
    """Basis and norm of each layer, kept: what is drawn anew could be another one of as good bases."""
    if (partial / _BASES).exists():
        return load_file(partial / _BASES), load_slicings(partial)
    names = {name: shard for shard, inside in shards.items() for name in inside}
    known = moments()
    found: dict[str, Tensor] = {}
    slicings: dict[str, Slicing] = {}
    for layer in _layers(source, names):
        gain = _read(source, names, f"{layer}kv_a_layernorm.weight")
        moment = moment_of(known, layer, len(gain), is_needed=asked.how == "pca")
        matrix = rotation(asked.how, len(gain), moment=moment, seed=asked.seed)
        found |= {f"{layer}basis": matrix, f"{layer}gain": gain}
        slicing = Slicing(asked.groups, slice_norms(moment, matrix, asked.groups))
        slicings[layer] = Slicing(asked.groups, slicing.norms, gains(layer, slicing, matrix))
    _write_slicings(partial / SLICINGS, asked, slicings)
    with atomic_path(partial / _BASES) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, temporary)
    return found, slicings


def _copy_others(source: Path, partial: Path) -> None:
    """Everything beside the weights: configuration, tokenizer, licence."""
    for path in source.iterdir():
        if path.is_file() and path.suffix not in _WEIGHTS and path.name != SLICINGS and path.name[0] != ".":
            shutil.copyfile(path, partial / path.name)


def _write_shard(source: Path, target: Path, inside: list[str], bases: Mapping[str, Tensor]) -> None:
    with safe_open(source, framework="pt") as opened:
        metadata = opened.metadata() or {"format": "pt"}
        turned = {}
        for name in inside:
            tensor: Tensor = opened.get_tensor(name)
            layer = next((name[: -len(part)] for part in _PARTS if name.endswith(part)), None)
            if layer is not None and f"{layer}basis" in bases:
                tensor = turned_tensor(name, tensor, bases[f"{layer}basis"], bases[f"{layer}gain"])
            turned[name] = tensor.contiguous()
    with atomic_path(target) as temporary:
        save_file(turned, temporary, metadata=metadata)


_PARTS = (_DOWN, "kv_a_proj_with_mqa.bias", "kv_a_layernorm.weight", "kv_b_proj.weight")


def _write_slicings(path: Path, asked: Rotation, slicings: Mapping[str, Slicing]) -> None:
    layers = {
        name.removesuffix("."): {"norms": slicing.norms, "gains": slicing.gains} for name, slicing in slicings.items()
    }
    write_json(path, {**asdict(asked), "layers": layers})


@checked
def load_slicings(folder: str | os.PathLike[str]) -> dict[str, Slicing]:
    """Slices of each latent layer of a folder that `attensor edit rotate-latent` wrote, for `apply_slicings`.

    Raises:
        FileNotFoundError: no such folder, or one without slices.
        DamagedFileError: the file holds something else.
    """
    path = Path(folder) / SLICINGS
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: there is no {SLICINGS}; give what `attensor edit rotate-latent` wrote.")
    held = read_json(path)
    return {
        f"{name}." if name else name: Slicing(held["groups"], one["norms"], one["gains"])
        for name, one in held["layers"].items()
    }


def lowest_precision(folder: Path, shards: Mapping[str, list[str]]) -> torch.dtype:
    """The coarsest dtype among the tensors that are turned."""
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    found = []
    for file, inside in shards.items():
        with safe_open(folder / file, framework="pt") as opened:
            found += [kinds[opened.get_slice(name).get_dtype()] for name in inside if name.endswith(_PARTS)]
    return max(found, key=lambda kind: torch.finfo(kind).eps)
