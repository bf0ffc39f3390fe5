"""`attensor bench linear`: our linear attention against everyone else's that is installed.

`options` says what can be chosen, `problem` what is computed, `peers` and `gpu_peers` who computes it, `measure` times
them against each other, `decode` times one token at a time, `tables` shows the figures and `run` is the command.
"""

from __future__ import annotations
