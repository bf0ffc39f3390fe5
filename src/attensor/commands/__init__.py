"""What `attensor` can be told to do: one torch-free dataclass a command, whose `run` imports what it needs."""

from __future__ import annotations
