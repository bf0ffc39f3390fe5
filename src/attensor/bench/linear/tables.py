"""The figures of `attensor bench linear` as tables: who takes part, each variant by length, decoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attensor.bench.linear.decode import POSITIONS
from attensor.bench.linear.measure import Check, Row
from attensor.bench.linear.measure_decode import DecodeRow
from attensor.bench.linear.options import MODES, VARIANTS, BenchLinearOptions
from attensor.bench.linear.registry import OURS, PEERS
from attensor.bench.machine import version_of
from attensor.bench.table import Table

__all__ = ["check_table", "decode_tables", "measure_tables", "summary_table"]

BASE_LENGTH = 2048
NOTHING = "-"
HOW_TO_READ = (
    "'against ours' is the time over that of ours, 'to T' the time of a token over that at this length. "
    "'of matrix rate' is the rate of useful operations over that of a square matrix product in the same run. Useful, a "
    "token and head: 4 K V + 64 (K + V) for chunked algorithms, whatever their chunk; 4 K V for recurrent ones; "
    "T (K + V) for those quadratic in the length T: the causal half alone counts. A layer adds 10 C^2 a token; the "
    "backward pass counts twice the forward pass; what is recomputed does not count. 'of q, k, v' is the peak over the "
    "size of these three inputs; it holds outputs and gradients too."
)
HOW_TO_DECODE = (
    "Milliseconds a token. Operators have K 128 and V 256, lightning layers K 256 and V 256. Recurrent states hold "
    "random numbers; softmax attention's keys and values are kept for as many layers as fit in 1 GiB and its time is "
    f"scaled to all layers. State: at position {POSITIONS[-1]}."
)


def check_table(checks: Sequence[Check]) -> Table:
    """Who computes what, and how far from ours it is."""
    table = Table(
        "contestants",
        ("name", "version", "variants", "computes", "largest error"),
        note="Largest error on 2 x 128 tokens over the largest value, against ours; of ours and of softmax attention "
        f"against their references. {HOW_TO_READ}",
    )
    alike: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        alike.setdefault((check.peer, check.computes, check.reason), []).append(check)
    for (peer, computes, reason), group in alike.items():
        error = f"left out: {reason}" if reason else f"{max(check.max_error or 0.0 for check in group):.0e}"
        variants = ", ".join(check.variant for check in group)
        table.rows.append((peer, _versions(peer), variants, computes, error))
    return table


def measure_tables(rows: Sequence[Row], options: BenchLinearOptions) -> Iterator[Table]:
    """One table a mode, variant and number of tokens."""
    for mode in MODES:
        for variant in VARIANTS:
            for tokens in sorted({row.tokens for row in rows}):
                chosen = [row for row in rows if (row.mode, row.variant, row.tokens) == (mode, variant, tokens)]
                if chosen:
                    yield _one_table(chosen, options)


def summary_table(rows: Sequence[Row]) -> Table:
    """Time of every peer over that of ours, by length, at the largest number of tokens where it was timed."""
    lengths = sorted({row.length for row in rows})
    table = Table(
        "time of a peer over that of ours (above 1: ours is faster)",
        ("peer", "variant", "mode", *(f"T {length}" for length in lengths)),
        note="Each at the largest number of tokens where it was timed; '-': left out, the other tables say why.",
    )
    ratios: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in sorted(rows, key=lambda row: row.tokens):
        if row.peer != OURS and row.against_ours is not None:
            ratios.setdefault((row.peer, row.variant, row.mode), {})[row.length] = row.against_ours
    order = list(PEERS)
    for (peer, variant, mode), found in sorted(ratios.items(), key=lambda item: order.index(item[0][0])):
        cells = (f"{found[length]:.2f}x" if length in found else NOTHING for length in lengths)
        table.rows.append((peer, variant, MODES[mode], *cells))
    return table


def decode_tables(rows: Sequence[DecodeRow]) -> Iterator[Table]:
    """One table a task, with a row a contestant; what they have in common is said below the last one."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    for task in tasks:
        yield _decode_table([row for row in rows if row.task == task], HOW_TO_DECODE if task == tasks[-1] else "")


def _decode_table(rows: Sequence[DecodeRow], note: str) -> Table:
    first, last = POSITIONS[0], POSITIONS[-1]
    table = Table(
        f"decode, B1, {rows[0].layers} layers of width 1024 with 4 heads: {rows[0].task}",
        ("contestant", f"ms at {first}", f"at {last}", "growth", "against ours", "state MiB", "largest error"),
        note=" ".join(filter(None, (_left_out((row.peer, "", row.skipped) for row in rows), note))),
    )
    for row in rows:
        if row.seconds:
            error = NOTHING if row.max_error is None else f"{row.max_error:.0e}"
            times = (f"{1e3 * row.seconds[position]:.1f}" for position in (first, last))
            growth, ratio = f"{row.growth:.2f}", NOTHING if row.against_ours is None else f"{row.against_ours:.2f}x"
            state = f"{row.state_bytes[last] / 2**20:.1f}"
            table.rows.append((row.peer, *times, growth, ratio, state, error))
    return table


def _one_table(rows: Sequence[Row], options: BenchLinearOptions) -> Table:
    mode, variant, tokens = rows[0].mode, rows[0].variant, rows[0].tokens
    lengths = [row.length for row in rows]
    base = BASE_LENGTH if BASE_LENGTH in lengths else min(lengths)
    per_call = {(row.peer, row.length): row.seconds for row in rows}
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    sizes = f"H{options.num_heads} K{options.head_dim} V{options.head_dim}"
    table = Table(
        f"{MODES[mode]}, {VARIANTS[variant]}: {tokens} tokens a call, {sizes}, {dtype}",
        (
            "contestant",
            "B x T",
            "against ours",
            "tokens/s",
            f"to T {base}",
            "of matrix rate",
            "peak MiB",
            "of q, k, v",
        ),
        note=_left_out((row.peer, f"T {row.length}", row.skipped) for row in rows),
    )
    for row in sorted(rows, key=lambda row: row.length):
        if row.seconds is not None:
            table.rows.append(_cells(row, per_call.get((row.peer, base)), options))
    return table


def _cells(row: Row, base_seconds: float | None, options: BenchLinearOptions) -> tuple[str, ...]:
    seconds, peak = row.seconds or float("nan"), row.peak_bytes or 0
    inputs = 3 * row.tokens * options.num_heads * options.head_dim * (4 if options.device == "cpu" else 2)
    name = f"{row.peer} (softmax)" if row.computes.startswith("softmax") else row.peer
    return (
        name,
        f"{row.tokens // row.length} x {row.length}",
        NOTHING if row.against_ours is None else f"{row.against_ours:.2f}x",
        f"{row.tokens / seconds:,.0f}",
        NOTHING if base_seconds is None else f"{seconds / base_seconds:.2f}",
        f"{row.of_matrix_rate or 0.0:.1%}",
        f"{peak / 2**20:.1f}",
        f"{peak / inputs:.1f}x",
    )


def _left_out(entries: Iterable[tuple[str, str, str]]) -> str:
    """What was not timed, where and why, for the note of a table.

    Args:
        entries: peer, where (may be empty), and the reason, which is empty for what was timed.
    """
    skipped = [
        f"{peer} ({where}): {reason}" if where else f"{peer}: {reason}" for peer, where, reason in entries if reason
    ]
    return f"Left out: {'; '.join(skipped)}." if skipped else ""


def _versions(peer: str) -> str:
    found: Mapping[str, str | None] = {package: version_of(package) for package in PEERS[peer].packages}
    return ", ".join(f"{package} {version}" for package, version in found.items() if version) or NOTHING
