"""`attensor bench relative`: kernelised attention with relative positions against softmax attention with such a bias.

`options` says what can be chosen, `problem` what is computed and by whom, `run` times the contestants against each
other, and `tables` shows the figures.
"""

from __future__ import annotations
