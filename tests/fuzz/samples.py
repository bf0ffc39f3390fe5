"""Models, folders and groups that calls of the table need, made when they are first asked for."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from attensor import edit, nn, sites
from attensor.edit.align import transfer

__all__ = ["alone", "original_folder", "place", "small_llama", "swapped_folder", "transferred", "written"]

_FOLDERS = tempfile.TemporaryDirectory(prefix="attensor-fuzz-")


def place(name: str) -> str:
    """A folder of this process that need not be there."""
    return str(Path(_FOLDERS.name, name))


def small_llama() -> Any:
    """A model of transformers."""
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 13, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1}
    transformers.logging.disable_progress_bar()
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=3))


@functools.cache
def original_folder() -> str:
    """A folder with that model."""
    small_llama().save_pretrained(place("original"))
    return place("original")


@functools.cache
def swapped_folder() -> str:
    """A folder with it swapped."""
    model = edit.swap(small_llama(), "linear")
    edit.save_swapped(model, place("swapped"), [{"to": "linear"}], source=original_folder())
    return place("swapped")


def written(save: Callable[..., None]) -> Callable[..., None]:
    """`save_swapped` to a folder of this process, by its other arguments."""
    return lambda **options: save(folder=place("written"), **options)


def transferred(**options: Any) -> Any:
    """`transfer` of one attention to one layer; `options` are its other arguments."""
    model = torch.nn.Sequential(nn.SoftmaxAttention(12, 3))
    found = sites.find_sites(model)
    students = {"": {site.name: nn.LinearAttention(12, 3) for site in found}}
    return transfer(model, found, students, **options)


def alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, in a group of this process and no other, which is gone afterwards."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            return function(*arguments, **options)
        finally:
            dist.destroy_process_group()

    return call
