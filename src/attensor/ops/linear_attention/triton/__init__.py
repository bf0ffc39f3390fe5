"""The `triton` back-end of `linear_attention` and `linear_attention_step`.

Importing this package imports triton. On a machine without a GPU the kernels run in Triton's interpreter, for tests:
set TRITON_INTERPRET=1 before Python starts.

    device      what one chunk is made of: tiles, decays, scores           (shared by all kernels below)
    scan        states at the borders of chunks, in both directions of time
    read        outputs from those states, all chunks at once
    on_chip     both in one kernel, the state kept in registers
    recurrent   token by token: decoding, paged states, short sequences
    scores      decayed scores for a decay per key channel, by secondary chunking
    inside      gradients of those scores
    gates       gradients of log decays
    plan, tuning, launch, passes       sizes, tile sizes, and which kernel runs when
    entry       the operators as torch sees them
"""

from attensor.ops.linear_attention.triton.entry import chunked as chunked
from attensor.ops.linear_attention.triton.entry import step as step

__all__ = ["chunked", "step"]
