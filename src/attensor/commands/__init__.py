"""What can be typed after `attensor`: a file of general verbs, and one a system; each a frozen dataclass with `run()`.

Importing a command loads neither torch nor anything that trains, so that `--help` is quick; what it needs is imported
by `run()`. Those below are always there; all others are named by the cards of the systems that bring them.
"""

from __future__ import annotations

__all__ = ["GENERAL", "GROUPS"]

GENERAL = {
    "list": "attensor.commands.general:ListCards",
    "show": "attensor.commands.general:ShowCard",
    "compare": "attensor.commands.general:Compare",
    "merge": "attensor.commands.merge:Merge",
    "generate": "attensor.commands.general:Generate",
    "doctor": "attensor.commands.general:Doctor",
    "reproduce": "attensor.commands.general:Reproduce",
}
# what the first of two words means; a group is shown when a card has a command in it
GROUPS = {
    "train": "Train a model of a system.",
    "solve": "Give a problem to a trained model.",
    "lens": "Look into a model.",
    "edit": "Change a model that is trained.",
    "bench": "Measure what operators and layers cost on this machine.",
}
