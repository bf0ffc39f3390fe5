"""What `attensor bench linear` can be asked for. No torch here: the command line reads it for `--help`."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["MODES", "VARIANTS", "BenchLinearOptions"]

VARIANTS = {
    "none": "no decay",
    "constant": "constant decay, one a head",
    "scalar": "gates, one a head and token",
    "channel": "gates, one a head, token and key channel",
    "denominator": "positive features and a denominator, no decay",
    "layer": "the whole lightning layer with its projections",
}
MODES = {"forward": "forward", "training": "forward + backward", "decode": "decode"}


@dataclass(frozen=True)
class BenchLinearOptions:
    """Speed and memory of linear attention against every peer that is installed, by length and while decoding.

    The default run takes some minutes on one idle thread. Ctrl-C keeps what is measured.
    """

    lengths: tuple[int, ...] = (512, 2048, 8192, 65536)
    """Tokens in a sequence."""
    tokens: tuple[int, ...] = (4096, 65536)
    """Tokens in a call, shared out to as many sequences as they make; each with all the lengths that divide it."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Out of none, constant, scalar, channel, denominator and layer."""
    modes: tuple[str, ...] = tuple(MODES)
    """Out of forward, training (forward + backward) and decode."""
    peers: tuple[str, ...] = ("all",)
    """Names of contestants as the first table gives them; ours is always among them."""
    num_heads: int = 2
    """Heads."""
    head_dim: int = 64
    """Key and value channels of a head (decoding is measured at the sizes of GLA 340M)."""
    device: str = "cpu"
    """cpu (float32) or cuda (bfloat16)."""
    threads: int = 1
    """Threads for PyTorch on a CPU."""
    rounds: int = 5
    """Timed calls of each contestant; the median counts."""
    budget: float = 2.0
    """Seconds a call of a peer may take; where more is expected it is left out, and the tables say so."""
    quick: bool = False
    """A look in under two minutes: 4096 tokens a call in sequences of 512 and 2048, two layers of decoding."""
    save: bool = False
    """Also write benchmarks/results/<date>-linear-<device>.md and .json."""

    def settled(self) -> BenchLinearOptions:
        """The options with `quick` applied.

        Raises:
            ValueError: an unknown name, a number below 1, or no length that divides a number of tokens.
        """
        chosen = replace(self, lengths=(512, 2048), tokens=(4096,)) if self.quick else self
        _check_names("variants", chosen.variants, VARIANTS)
        _check_names("modes", chosen.modes, MODES)
        for name in ("num_heads", "head_dim", "threads", "rounds"):
            if getattr(chosen, name) < 1:
                raise ValueError(f"bench linear: {name} must be at least 1, got {getattr(chosen, name)}.")
        if chosen.device not in ("cpu", "cuda"):
            raise ValueError(f"bench linear: device must be cpu or cuda, got {chosen.device!r}.")
        if min(chosen.lengths, default=0) < 1 or chosen.budget <= 0:
            raise ValueError("bench linear: lengths and budget must be positive.")
        for tokens in chosen.tokens:
            if not chosen.lengths_of(tokens):
                raise ValueError(
                    f"bench linear: none of the lengths {list(chosen.lengths)} divides {tokens} tokens; "
                    "choose --tokens that are a multiple of a length."
                )
        return chosen

    def lengths_of(self, tokens: int) -> tuple[int, ...]:
        """The lengths, ascending, into which so many tokens can be cut."""
        return tuple(length for length in sorted(set(self.lengths)) if tokens > 0 and tokens % length == 0)


def _check_names(option: str, given: tuple[str, ...], known: dict[str, str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        what = f"unknown {', '.join(map(repr, unknown))}" if unknown else "nothing chosen"
        raise ValueError(f"bench linear: --{option}: {what}; choose from {', '.join(known)}.")
