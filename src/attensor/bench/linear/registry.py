"""The registry of contestants, and how other people's modules are found.

@peer("name", variants=("constant",), work="chunked")
def _name(problem: Problem) -> Contestant | str: ...
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from attensor.bench.linear.problem import Contestant, Problem

__all__ = ["OPERATOR_VARIANTS", "OURS", "PEERS", "Peer", "fla_naive", "load", "load_for_gpu", "peer"]

OURS = "ours"
OPERATOR_VARIANTS = ("none", "constant", "scalar", "channel")
Build = Callable[[Problem], Contestant | str]


@dataclass(frozen=True)
class Peer:
    """One entry of the registry.

    Attributes:
        name: as `--peers` takes it.
        build: problem -> contestant, or the reason why there is none here.
        variants: the problems it solves, or stands beside.
        work: its algorithm, for `useful_flops`.
        packages: distributions whose versions belong beside the figures.
        is_softmax: it computes softmax attention at the same sizes, not the function of the variant; it is timed once
            for all variants.
        compiles: its first call at each size compiles.
        no_backward: why it does not train on a CPU.
        kept_states: states [K, V] in float32 that its backward pass keeps a token and head.
    """

    name: str
    build: Build
    variants: tuple[str, ...]
    work: str
    packages: tuple[str, ...] = ()
    is_softmax: bool = False
    compiles: bool = False
    no_backward: str = ""
    kept_states: int = 0

    @property
    def computes(self) -> str:
        """What it computes, in the tables' words."""
        return "softmax attention, same sizes" if self.is_softmax else "the same function"


PEERS: dict[str, Peer] = {}


def peer(
    name: str, *, variants: tuple[str, ...], work: str, packages: tuple[str, ...] = (), **traits: Any
) -> Callable[[Build], Build]:
    """Enter the decorated function into `PEERS`; see `Peer` for the arguments."""

    def enter(build: Build) -> Build:
        PEERS[name] = Peer(name, build, variants, work, packages, **traits)
        return build

    return enter


def load(module: str, package: str) -> ModuleType | str:
    """A module, or why it cannot be imported, whatever its import does.

    Args:
        module: dotted name.
        package: what to install for it.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return f"{package} is not installed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations
        try:
            return importlib.import_module(module)
        except Exception as error:  # a broken installation of a peer must not end the benchmark
            return f"{module} cannot be imported: {type(error).__name__}: {error}"


def load_for_gpu(device: str, module: str, package: str) -> ModuleType | str:
    """The same for a module whose kernels need a GPU."""
    if importlib.util.find_spec(module.partition(".")[0]) is not None and device == "cpu":
        return "needs a GPU"
    return load(module, package)


def fla_naive(family: str) -> ModuleType | str:
    """`fla/ops/<family>/naive.py` alone, as importing its package would need triton; or why not."""
    package = importlib.util.find_spec("fla")
    if package is None or not package.submodule_search_locations:
        return "fla-core is not installed"
    path = Path(package.submodule_search_locations[0], "ops", family, "naive.py")
    spec = importlib.util.spec_from_file_location(f"attensor_peer_{family}", path)
    if spec is None or spec.loader is None or not path.exists():
        return f"this fla-core has no ops/{family}/naive.py"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
