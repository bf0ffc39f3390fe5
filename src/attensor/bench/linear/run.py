"""The command: choose, check, measure, show, keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from attensor.bench.linear.decode import LAYERS, Workload
from attensor.bench.linear.measure import Check, Row, Tick, check_peers, choose_peers, measure
from attensor.bench.linear.measure_decode import DecodeRow, measure_decode
from attensor.bench.linear.options import BenchLinearOptions
from attensor.bench.linear.registry import Peer
from attensor.bench.linear.tables import check_table, decode_tables, measure_tables, summary_table
from attensor.bench.machine import describe, torch_threads
from attensor.bench.progress import Display
from attensor.bench.table import Table, publish
from attensor.errors import BackendError

__all__ = ["run"]

QUICK_LAYERS = 2


@dataclass
class _Findings:
    """What is known so far, and whether it was cut short."""

    checks: list[Check] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    decode: list[DecodeRow] = field(default_factory=list)
    interruption: KeyboardInterrupt | None = None

    def tables(self, options: BenchLinearOptions) -> list[Table]:
        """The overview comes last, where a terminal shows it."""
        tables = [check_table(self.checks)] if self.checks else []
        tables += [*measure_tables(self.rows, options), *decode_tables(self.decode)]
        overview = summary_table(self.rows)
        return [*tables, overview] if overview.rows else tables

    def data(self, options: BenchLinearOptions) -> dict[str, Any]:
        """The same for programs."""
        rates = [row.tokens / row.seconds if row.seconds else None for row in self.rows]
        return {
            "options": asdict(options),
            "checks": [asdict(check) for check in self.checks],
            "rows": [asdict(row) | {"tokens_per_second": rate} for row, rate in zip(self.rows, rates)],
            "decode": [asdict(row) for row in self.decode],
        }


def run(console: Console, options: BenchLinearOptions, *, folder: Path = Path("benchmarks/results")) -> None:
    """Measure, print and optionally save the tables.

    Args:
        console: where progress and tables are shown.
        options: what to measure.
        folder: for `options.save`.
    Raises:
        ValueError: options that make no sense.
        BackendError: `--device cuda` without a GPU.
        KeyboardInterrupt: again, after what was measured until then has been printed and saved.
    """
    options = options.settled()
    peers = choose_peers(options.peers)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise BackendError("bench linear: PyTorch sees no GPU here; use --device cpu.")
    with torch_threads(options.threads), Display(console, _count_cells(options)) as display:
        machine = describe(*_packages(peers)) | _device_name(options)
        found = _measure(options, peers, display.tick)
    publish(
        _file_name(options, complete=found.interruption is None),
        found.tables(options),
        machine | {"complete": "no, interrupted" if found.interruption else "yes"},
        save=options.save,
        folder=folder,
        console=console,
        device=options.device,
        data=found.data(options),
    )
    if found.interruption is not None:
        raise found.interruption


def _measure(options: BenchLinearOptions, peers: Mapping[str, Peer], tick: Tick) -> _Findings:
    found = _Findings()
    try:
        if {"forward", "training"} & set(options.modes):
            tick("comparing each peer with ours", 0.0)
            found.checks += check_peers(options, peers)
            for rows in measure(options, peers, found.checks, tick):
                found.rows += rows
        if "decode" in options.modes:
            work = Workload(options.device, QUICK_LAYERS if options.quick else LAYERS)
            found.decode += measure_decode(work, peers, options.rounds, tick)
    except KeyboardInterrupt as error:
        found.interruption = error
    return found


def _packages(peers: Mapping[str, Peer]) -> list[str]:
    """Distributions whose versions belong into the header, those in every header left out."""
    named = dict.fromkeys(package for entry in peers.values() for package in entry.packages)
    return [package for package in named if package not in ("attensor", "torch")]


def _file_name(options: BenchLinearOptions, *, complete: bool) -> str:
    """Other sizes than the default ones, a quick look and an interrupted run do not replace the full tables."""
    usual = BenchLinearOptions()
    name = "linear" + "-quick" * options.quick + "-partial" * (not complete)
    same = (options.num_heads, options.head_dim) == (usual.num_heads, usual.head_dim)
    return name if same else f"{name}-h{options.num_heads}-d{options.head_dim}"


def _device_name(options: BenchLinearOptions) -> dict[str, str]:
    return {"device": torch.cuda.get_device_name()} if options.device == "cuda" else {}


def _count_cells(options: BenchLinearOptions) -> int:
    sizes = sum(len(options.lengths_of(tokens)) for tokens in options.tokens)
    return sizes * len({"forward", "training"} & set(options.modes)) + ("decode" in options.modes)
