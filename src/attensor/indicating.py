"""The command `attensor lens indicators`: a model and a text in, a table out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attensor.edit.checkpoint import load_original
from attensor.errors import need, require
from attensor.files import write_text
from attensor.lens.indicators import Indicators, model_indicators
from attensor.models.language import import_families

if TYPE_CHECKING:
    from attensor.commands.lens_indicators import LensIndicators

__all__ = ["indicators_command"]


def indicators_command(asked: LensIndicators) -> int:
    """Run the command; see `LensIndicators`."""
    need("transformers", purpose="lens indicators")
    import_families()
    text = Path(asked.text).read_bytes()
    model = load_original(asked.model)
    tokens = _tokens(asked, text, model.config.vocab_size)
    uncached = {"use_cache": False} if model.can_generate() else {}
    found = model_indicators(model, {"input_ids": tokens, **uncached})
    facts = f"{tokens.shape[0]} passages of {tokens.shape[1]} tokens"
    Console().print(_table(found, tokens.shape[1], facts))
    if asked.out is not None:
        numbers = {name: {key: x.tolist() for key, x in asdict(one).items()} for name, one in found.items()}
        write_text(Path(asked.out), json.dumps({"model": asked.model, "tokens": facts, "layers": numbers}) + "\n")
    return 0


def _tokens(asked: LensIndicators, text: bytes, vocab_size: int) -> Tensor:
    """[passages, length]."""
    folder = Path(asked.model)
    ids: list[int] = list(text)
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        transformers: Any = require("transformers", purpose="lens indicators")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer(text.decode(errors="replace"))["input_ids"]
    elif ids and max(ids) >= vocab_size:
        raise ValueError(
            f"{asked.text}: byte {max(ids)} is no token of {asked.model}, which has {vocab_size} and no tokenizer "
            "beside it; save the tokenizer in the folder."
        )
    passages = min(asked.passages, len(ids) // asked.length)
    if not passages:
        raise ValueError(
            f"--length {asked.length}: {asked.text} has {len(ids)} tokens, less than a passage; ask for fewer."
        )
    return torch.tensor(ids[: passages * asked.length]).view(passages, asked.length)


def _table(found: dict[str, Indicators], length: int, facts: str) -> Table:
    table = Table(title=f"Mean over heads and {facts}; entropy in nats a token")
    table.add_column("attention")
    for name in ("entropy", "concentration", "head diversity", "sink", *(f"local {n}" for n in range(4))):
        table.add_column(name, justify="right")
    for name, one in found.items():
        local = one.local_focus.mean(0).tolist()
        means = [float(x.mean()) for x in (one.entropy / length, one.concentration, one.head_diversity, one.sink)]
        table.add_row(name, *(f"{x:.3g}" for x in (*means, *local)))
    return table
