"""Run the authors' PLDR-LLM: `python -m tests.golden.record_pldr FOLDER`, with their src/pldr_model_v510_dag in it.

Their rotary positions are torchtune's, for which a stand-in takes its place; everything is float64. Widths are squares,
because their two square roots are in float32.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.golden.drawn import HERE, summaries, uniform, weighed, weights

SIZES = {"num_layers": 2, "d_model": 64, "num_heads": 4, "dff": 24, "A_dff": 10, "num_reslayerA": 3, "num_denseA": 2}
VOCABULARY, PROMPT = 11, 5


class Rotary(nn.Module):
    """Neighbouring channels turned by their positions; a stand-in of the same call."""

    def __init__(self, dim: int, max_seq_len: int = 4096, base: int = 10_000) -> None:
        super().__init__()
        self.frequencies = float(base) ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def forward(self, x: Tensor, *, input_pos: int | None = None) -> Tensor:
        """[B, T, H, D] to the same."""
        places = torch.arange(x.shape[1], dtype=torch.float64) + (input_pos or 0)
        turns = torch.polar(torch.ones(()).double(), places[:, None] * self.frequencies)[:, None]
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns).flatten(-2)


def main(folder: str) -> None:
    """Write the two files."""
    _stand_in(folder)
    theirs = importlib.import_module("pldr_model_v510_dag")
    model = theirs.PLDR_Model(input_vocab_size=VOCABULARY, max_seq_len=64, **SIZES).double()
    shapes = {name: list(x.shape) for name, x in model.state_dict().items()}
    model.load_state_dict({name: x.clone() for name, x in weights(shapes).items()})
    rows = rows_of_tokens()
    mask = torch.ones(7, 7, dtype=torch.float64).triu(1)
    logits, _, deductive, caches = model([rows, mask])
    weighed(logits).backward()
    numbers = {"logits": logits, "dp": summaries({n: p.grad for n, p in model.named_parameters()})}
    numbers["dag"] = torch.stack(_dag(folder)(deductive, device="cpu")).double()
    for i, (layer, cache) in enumerate(zip(deductive, caches, strict=True)):
        for name, x in (("tensor", cache[2]), ("metric", layer[0]), ("potential", layer[-1]), ("operator", layer[4])):
            numbers[f"{name}.{i}"] = x[0]
    with torch.no_grad():
        numbers["cached.kv"], numbers["cached.kvg"] = (_cached(model, rows, keep) for keep in (False, True))
    save_file({name: x.detach().contiguous() for name, x in numbers.items()}, HERE / "pldr-llm.safetensors")
    (HERE / "pldr-llm.json").write_text(json.dumps(shapes) + "\n", "utf-8")


def rows_of_tokens() -> Tensor:
    """[2, 7], none of them padding, whose row of the embedding has no gradient here."""
    return 1 + ((uniform("tokens", 2, 7) + 1) / 2 * (VOCABULARY - 1)).long()


def _cached(model: Any, rows: Tensor, keeps_operators: bool) -> Tensor:
    """Logits of a prompt and, token by token, of what follows."""
    mask = torch.ones(PROMPT, PROMPT, dtype=torch.float64).triu(1)
    logits, _, deductive, past = model([rows[:, :PROMPT], mask])
    found = [logits]
    for place in range(PROMPT, rows.shape[1]):
        held = [[layer[0], layer[4], layer[-1]] for layer in deductive] if keeps_operators else None
        logits, _, deductive, past = model([rows[:, place : place + 1], None], kvcachelst=past, Gcachelst=held)
        found.append(logits)
    return torch.cat(found, 1)


def _dag(folder: str) -> Any:
    """Their regulariser, alone: what it stands among needs other libraries."""
    tree = ast.parse((Path(folder) / "pldr_run_model_v510_dag.py").read_text("utf-8"))
    (function,) = (part for part in tree.body if getattr(part, "name", "") == "dag_regularizer")
    words: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([function], []), "theirs", "exec"), words)
    return words["dag_regularizer"]


def _stand_in(folder: str) -> None:
    for name in ("torchtune", "torchtune.modules"):
        sys.modules[name] = ModuleType(name)
    vars(sys.modules["torchtune.modules"])["RotaryPositionalEmbeddings"] = Rotary
    sys.path.insert(0, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
