"""What a stream of tokens needs besides a model: text as soon as its characters are whole, and how fast it came."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Pace", "bytes_of", "whole_bytes", "whole_characters"]


@dataclass
class Pace:
    """How writing went; filled while the tokens come, so that it is true also after Ctrl-C.

    Attributes:
        prompt: tokens read.
        prefill_seconds: until the first new token was chosen.
        tokens: written.
        step_seconds: for all of them but the first, and but the one whose step was compiled.
        steps: how many those are.
        compile_seconds: of the step that was compiled.
        state_bytes: what the next token needs of the past.
    """

    prompt: int = 0
    prefill_seconds: float = 0.0
    tokens: int = 0
    step_seconds: float = 0.0
    steps: int = 0
    compile_seconds: float = 0.0
    state_bytes: Callable[[], int] = lambda: 0

    def timed(self, choose: Callable[[Tensor], Tensor], unread: Tensor, *, compiles: bool) -> Tensor:
        """What is chosen after the unread tokens, for every row; the first of all reads the prompt."""
        started = time.perf_counter()
        chosen = choose(unread)
        chosen.flatten()[:1].tolist()  # waits for a GPU
        took = time.perf_counter() - started
        if not self.tokens:
            self.prefill_seconds = took
        elif self.tokens == 1 and compiles:
            self.compile_seconds = took
        else:
            self.step_seconds += took
            self.steps += 1
        self.tokens += 1
        return chosen


def bytes_of(past: Any) -> int:
    """What a cache holds, ours or one of transformers' own."""
    if past is None:
        return 0
    if hasattr(past, "nbytes"):
        return int(past.nbytes)
    held = {id(tensor): tensor for tensor in _tensors(past)}  # counters of a cache have no dimensions
    return sum(tensor.nbytes for tensor in held.values() if tensor.dim())


def _tensors(held: Any) -> Iterator[Tensor]:
    """All that a cache of transformers holds, in layers, lists and dictionaries."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, (list, tuple, dict)) or type(held).__module__.startswith("transformers."):
        inside = vars(held) if hasattr(held, "__dict__") else held
        for value in inside.values() if isinstance(inside, dict) else inside:
            yield from _tensors(value)


def whole_bytes(tokens: Iterable[int]) -> Iterator[str]:
    """Characters of UTF-8, as soon as all their bytes are there; others as U+FFFD."""
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield utf8.decode(bytes([token]))
    yield utf8.decode(b"", final=True)


def whole_characters(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Text of a tokenizer's tokens, as soon as its characters are whole.

    Only the tokens since the last whole piece and the piece before it are decoded, which tells whether a space belongs
    between them.
    """
    recent: list[int] = []
    shown = 0  # of the recent tokens
    for token in tokens:
        recent.append(token)
        before, text = decode(recent[:shown]), decode(recent)
        if len(text) > len(before) and not text.endswith("\ufffd"):  # the rest of a character may follow
            yield text[len(before) :]
            recent, shown = recent[shown:], len(recent) - shown
    yield decode(recent)[len(decode(recent[:shown])) :]
