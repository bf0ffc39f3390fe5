"""`attensor bench decode`: one more token at a context, in every causal mechanism and in transformers' own layers.

The cache holds a short prompt that is really read. For longer contexts its tokens are repeated: what a key is worth
does not change what reading it costs, and a recurrent state is as large after any number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attensor.bench.apart import LeftOut
from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem, Row
from attensor.bench.contestants.decode_peers import PEERS_OF, Theirs
from attensor.bench.hold import Bench
from attensor.bench.layout import Table
from attensor.bench.tables import NOTHING, digits
from attensor.bench.timing import own_seconds_of
from attensor.catalogue import Domain, build_mixer, find_name, load, mechanisms

if TYPE_CHECKING:
    from attensor.commands.bench_decode import BenchDecode

__all__ = ["PEERS", "PROMPT", "DecodeProblem", "bench", "causal"]

PROMPT = 48  # tokens that are read
NOTE = (
    "One layer with its cache; each timed call reads one token a sequence and adds it. The time that others had the "
    "processor is taken off. Contexts are reached by repeating what is kept of a prompt of 48 tokens. "
    "transformers' layers have the same weights, and caches that grow by concatenation, as its generate() makes them. "
    "'state MiB' is what the next token needs."
)


@dataclass(frozen=True)
class DecodeProblem(Problem):
    """The token after `context` others of each sequence."""

    mechanism: str
    context: int
    batch_size: int
    hidden_size: int
    num_heads: int

    kind = property(lambda self: self.mechanism)
    title = property(
        lambda self: f"a layer of width {self.hidden_size} with {self.num_heads} heads, batch {self.batch_size}"
    )
    label = property(lambda self: f"{self.mechanism}, context {self.context}")
    size = property(lambda self: (self.context,))
    tokens = property(lambda self: self.batch_size)

    @property
    def layer(self) -> Any:
        """Of the mechanism, the same weights each time."""
        card = mechanisms()[self.mechanism]
        options = {**card.mixer_options(Domain.SEQUENCE), "device": self.device, "dtype": self.dtype}
        state = torch.get_rng_state()
        torch.manual_seed(0)
        try:
            return build_mixer(
                load(card.layer), self.hidden_size, self.num_heads, layer_index=0, num_layers=1, **options
            ).eval()
        finally:
            torch.set_rng_state(state)

    def hidden_states(self, tokens: int, seed: int) -> Tensor:
        """[B, tokens, C]."""
        return self.draw(self.batch_size, tokens, self.hidden_size, seed=seed)


@torch.no_grad()
def _ours(problem: DecodeProblem) -> Contestant:
    layer = problem.layer
    if not hasattr(layer, "new_cache"):
        raise LeftOut(f"{type(layer).__name__} has no new_cache(), so it cannot decode token by token")
    cache, token = layer.new_cache(problem.batch_size), problem.hidden_states(1, seed=2)
    layer(problem.hidden_states(PROMPT, seed=1), cache=cache)
    if problem.context > PROMPT:
        _stretch(cache, problem.context)
    state_bytes = cache.nbytes

    def step() -> Tensor:
        out: Tensor = layer(token, cache=cache)
        return out

    return Contestant(step, state_bytes=state_bytes)


def _stretch(cache: Any, context: int) -> None:
    """As if so many tokens had come: those that are held, again and again."""
    held, sizes = cache.state_dict(), cache.sizes(context)
    for name, size in sizes.items():
        tensor = held[name]
        if list(tensor.shape[1:]) != size:
            held[name] = tensor[:, torch.arange(context - size[0], context, device=tensor.device) % tensor.shape[1]]
    cache.load_state_dict({**held, "length": torch.tensor(context)})


@torch.no_grad()
def _theirs(problem: DecodeProblem) -> Contestant:
    theirs: Theirs = PEERS_OF[problem.mechanism](problem.layer, problem.device)
    theirs.read(problem.hidden_states(PROMPT, seed=1), 0)
    if problem.context > PROMPT:
        theirs.stretch(problem.context)
    token, state_bytes = problem.hidden_states(1, seed=2), theirs.nbytes
    angles = theirs.angles(token, problem.context)  # once for all layers of a model

    def step() -> Tensor:
        return theirs.call(token, angles)

    return Contestant(step, state_bytes=state_bytes)


PEERS = (
    Peer(OURS, _ours, packages=("attensor",)),
    Peer("transformers", _theirs, kinds=tuple(PEERS_OF), packages=("transformers",)),
)


def causal() -> list[str]:
    """Mechanisms of sequences that decode."""
    return [name for name, card in mechanisms().items() if card.is_causal and Domain.SEQUENCE in card.domain]


def bench(options: BenchDecode) -> Bench:
    """The contest of the options."""
    sizes = options.batch_size, options.hidden_size, options.num_heads
    names = list(dict.fromkeys(name for given in options.mechanisms for name in _named(given)))
    if min(options.contexts) < PROMPT:
        raise ValueError(f"bench decode: --contexts must be at least {PROMPT}, a prompt, got {min(options.contexts)}.")
    cells = [
        Cell("decode", [DecodeProblem(name, context, *sizes, device=options.device) for name in names])
        for context in sorted(set(options.contexts))
    ]
    small = [DecodeProblem(name, PROMPT, *sizes, device=options.device) for name in names]
    suffix = "" if sizes == (1, 512, 8) else "-b{}-c{}-h{}".format(*sizes)
    return Bench(PEERS, small, cells, NOTE, suffix, _by_context, own_seconds_of)


def _named(given: str) -> list[str]:
    if given == "all":
        return causal()
    name = given if given in causal() else find_name(given)
    if name not in causal():
        raise ValueError(f"bench decode: --mechanisms: {given!r} is none of {', '.join(causal())}.")
    return [name]


def _by_context(rows: Sequence[Row]) -> Iterable[Table]:
    """Time of a token, and state, of every contestant side by side."""
    contexts = sorted({row.problem.context for row in rows})
    places: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        places.setdefault((row.problem.mechanism, row.peer), {})[row.problem.context] = row
    shown = {place: found for place, found in places.items() if any(row.seconds for row in found.values())}
    columns = "mechanism", "by", *(f"context {context}" for context in contexts)

    def table(title: str, note: str, figure: Any) -> Table:
        made = Table(title, columns, note=note)
        made.rows += [
            (*place, *(figure(found[context]) if context in found else NOTHING for context in contexts))
            for place, found in shown.items()
        ]
        return made

    if shown:
        yield table(
            "milliseconds a token",
            "Medians; all contestants of one context took turns. Of one layer: times the layers of a model.",
            lambda row: digits(1e3 * row.seconds) if row.seconds else NOTHING,
        )
        yield table("state, KiB", "What one layer keeps of all sequences.", lambda row: digits(row.state_bytes / 2**10))
