"""What can be typed after `attensor`: one file a verb or system, each command a frozen dataclass with `run()`.

Importing a command loads neither torch nor anything that trains, so that `--help` is quick; what it needs is imported
by `run()`. Those below are always there; all others are named by the cards of the systems that bring them.
"""

from __future__ import annotations

__all__ = ["GENERAL", "GROUPS"]

GENERAL = {
    "list": "attensor.commands.list:ListCards",
    "show": "attensor.commands.show:ShowCard",
    "compare": "attensor.commands.compare:Compare",
    "generate": "attensor.commands.generate:Generate",
    "doctor": "attensor.commands.doctor:Doctor",
    "reproduce": "attensor.commands.reproduce:Reproduce",
}
# what the first of two words means; a group is shown when a card has a command in it
GROUPS = {
    "train": "Train a model of a system.",
    "solve": "Give a problem to a trained model.",
    "lens": "Look into a model.",
    "edit": "Change a model that is trained.",
    "bench": "Measure what operators and layers cost on this machine.",
}
