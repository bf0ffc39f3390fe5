"""`attensor lens operator`: what it can be asked for."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from attensor.errors import need

if TYPE_CHECKING:
    from torch import Tensor

    from attensor.lens.operator import LayerReading

__all__ = ["LensOperator"]

_PROMPTS = (
    "The committee will meet again on Thursday to discuss the budget for the coming year.",
    "def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([1, 2, 3]))",
    "Once upon a time there was a miller who had three sons, a mill, an ass and a cat.",
    "Water boils at one hundred degrees, and lower where the air is thin.",
)
_COLUMNS = ("layer", "head", "log10 |det G|", "rank G", "rank A", "norm G", "spread", "RMSE", "row share A")


@dataclass(frozen=True)
class LensOperator:
    """Read the operators of a PLDR-LLM: determinant, rank, singular values, and how they differ between prompts."""

    model: Path
    """Folder of a PLDR-LLM that save_pretrained wrote; without a tokenizer in it tokens are bytes."""
    text: Path | None = None
    """Text file that prompts are cut from, one after the other. Left out: four short texts."""
    prompts: int = 8
    """Prompts that are cut."""
    length: int = 64
    """Tokens of each of them."""
    out: Path | None = None
    """Page to write, .html, with the singular values and a picture of every operator."""

    def __post_init__(self) -> None:
        """Refuse what could not be done in the end.

        Raises:
            ValueError: another suffix, or a number below 1.
        """
        if self.out is not None and self.out.suffix.lower() != ".html":
            raise ValueError(f"--out must end in .html, got {str(self.out)!r}")
        for option in ("prompts", "length"):
            if getattr(self, option) < 1:
                raise ValueError(f"--{option} must be at least 1, got {getattr(self, option)}")

    def run(self) -> None:
        """Read, print and write.

        Raises:
            ValueError: no model of this family, a text that is too short, or no folder to write to.
            FileNotFoundError: there is no such text.
        """
        need("transformers", purpose="a model in transformers' format")
        if self.out is not None:
            need("jinja2", "PIL", purpose="a page with pictures")
            if not self.out.absolute().parent.is_dir():
                raise ValueError(f"--out {self.out}: there is no folder {self.out.parent}; make it first.")
        from attensor.lens.operator import read_operators
        from attensor.models.language.generate import load_text_model

        model, encode, _, _ = load_text_model(self.model)
        prompts = self._prompts(encode)
        readings = read_operators(model, prompts)
        console = Console()
        console.print(_table(readings))
        console.print(_sentence(readings, len(prompts)), highlight=False, markup=False, soft_wrap=True)
        if self.out is not None:
            self._write(self.out, readings, len(prompts))
            console.print(f"Written: {self.out}", highlight=False, markup=False, soft_wrap=True)

    def _prompts(self, encode: Any) -> list[Tensor]:
        import torch

        if self.text is None:
            return [torch.tensor(encode(text)) for text in _PROMPTS]
        tokens = torch.tensor(encode(self.text.read_text("utf-8", "replace")))
        found = [piece for piece in torch.split(tokens, self.length) if len(piece) == self.length][: self.prompts]
        if not found:
            raise ValueError(f"--text {self.text}: has {len(tokens)} tokens, fewer than --length {self.length}.")
        return found

    def _write(self, out: Path, readings: list[LayerReading], prompts: int) -> None:
        from attensor.report.document import write_document
        from attensor.report.operator import singular_value_charts

        write_document(
            out,
            "attensor.report:operator.html",
            charts=singular_value_charts([[head.singular_values for head in one.heads] for one in readings]),
            columns=_COLUMNS,
            rows=_rows(readings),
            pictures=[[base64.b64encode(_picture(head)).decode() for head in one.operator] for one in readings],
            said=_sentence(readings, prompts),
            facts={"model": str(self.model), "text": "built in" if self.text is None else str(self.text)},
        )


def _rows(readings: list[LayerReading]) -> list[list[str]]:
    rows = []
    for index, layer in enumerate(readings):
        for number, one in enumerate(layer.heads):
            tensor = "-" if one.tensor_rank is None else str(one.tensor_rank)
            numbers = (one.norm, one.spread, one.rmse, one.row_share)
            shown = ["-" if value != value else f"{value:.3g}" for value in numbers]
            rows.append([str(index), str(number), f"{one.log10_determinant:.1f}", str(one.rank), tensor, *shown])
    return rows


def _table(readings: list[LayerReading]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for row in _rows(readings):
        table.add_row(*row)
    return table


def _sentence(readings: list[LayerReading], prompts: int) -> str:
    spreads = [head.spread for layer in readings for head in layer.heads]
    if spreads[0] != spreads[0]:
        return "The operators are fixed, or there is one prompt: nothing differs."
    return (
        f"Over {prompts} prompts G differs from its mean by {min(spreads):.2g} to {max(spreads):.2g} of its norm; at 0 "
        "it is the same for every input, and can stand for the net."
    )


def _picture(matrix: Tensor) -> bytes:
    """Entries from blue (negative) over white to red, by the largest size."""
    import torch

    from attensor.data.pictures import png

    share = matrix / matrix.abs().max().clamp(min=1e-30)
    fade = 1 - share.abs()
    red, blue = torch.where(share >= 0, 1.0, fade), torch.where(share <= 0, 1.0, fade)
    pixels = (255 * torch.stack([red, fade, blue])).round().to(torch.uint8)
    return png(pixels, scale=max(1, 192 // matrix.shape[0]))
