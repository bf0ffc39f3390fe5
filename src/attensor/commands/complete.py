"""`attensor solve complete`: what it can be asked for."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from attensor.errors import need

if TYPE_CHECKING:
    from torch import Tensor

    from attensor.models.vision.axial_transformer import AxialTransformer

__all__ = ["SolveComplete"]


@dataclass(frozen=True)
class SolveComplete:
    """Draw what is missing of an image with a trained Axial Transformer.

    Missing are transparent pixels, and rows below an image that is shorter than the model's. A pixel is drawn from
    those before it, row by row from the top: what is given below a missing one is kept, but not known to it.
    """

    model: Path
    """Folder with config.json and model.safetensors, as AxialTransformer.save writes them."""
    image: Path
    """Image file, as wide as the model's images."""
    out: Path
    """File to write: .png for a sheet with the image and its completions, .html for a page with each of them."""
    rows: int | None = None
    """Take only so many rows from the top as given, and draw all below."""
    count: int = 4
    """Completions."""
    temperature: float = 1.0
    """Of the choices; 1 draws from the model, 0 takes the most likely level each time."""
    seed: int = 0
    """Of the choices."""
    scale: int = 8
    """Side of a pixel in the sheet and on the page."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model runs."""

    def __post_init__(self) -> None:
        """Refuse what could not be written in the end.

        Raises:
            ValueError: another suffix, or a number out of range.
        """
        if self.out.suffix.lower() not in (".png", ".html"):
            raise ValueError(f"--out must end in .png or .html, got {str(self.out)!r}")
        for option, least in (("count", 1), ("scale", 1), ("rows", 0), ("temperature", 0)):
            value = getattr(self, option)
            if value is not None and not value >= least:
                raise ValueError(f"--{option} must be at least {least}, got {value}")

    def run(self) -> None:
        """Read, draw and write.

        Raises:
            ValueError, DataError: another model, another size of image, nothing missing, or no folder to write to.
            FileNotFoundError: no model or image.
        """
        need("PIL", purpose="reading and writing images")
        if self.out.suffix.lower() == ".html":
            need("jinja2", purpose="a page")
        if not self.out.absolute().parent.is_dir():
            raise ValueError(f"--out {self.out}: there is no folder {self.out.parent}; make it first.")
        import torch

        from attensor.models.vision.axial_pictures import levels_of_file, pixels_of
        from attensor.models.vision.axial_transformer import AxialTransformer

        model = AxialTransformer.load(self.model).to(self.device)
        given = levels_of_file(self.image, model.config, rows=self.rows)
        missing = int((given < 0).sum())
        if not missing:
            raise ValueError(
                f"--image {self.image}: nothing is missing; make pixels transparent, cut rows off, or use --rows."
            )
        levels = self._drawn(model, given)
        bits = model.bits_per_dim(levels).tolist()
        sheet = pixels_of(torch.cat([given[None], levels.cpu()]), model.config)
        self._write(sheet, bits)
        Console().print(
            f"{missing} of {given.numel()} values drawn, {self.count} times; the images take {min(bits):.3f} to "
            f"{max(bits):.3f} bits a dimension. Written: {self.out}",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip

    def _drawn(self, model: AxialTransformer, given: Tensor) -> Tensor:
        """Completions [count, C, H, W], with a bar while they are drawn."""
        import torch

        from attensor.lab.display import Display

        generator = torch.Generator().manual_seed(self.seed)
        with Display("completing") as display:
            total = given.shape[0] * given.shape[1]
            work, before = display.expect(dict.fromkeys(range(1, total + 1)), 1), time.monotonic()

            def row_is_done(done: int, total: int) -> None:
                nonlocal before
                now = time.monotonic()
                work.finished(done, now - before)
                before, display.done = now, done
                display.tick()

            try:
                return model.sample(
                    self.count, temperature=self.temperature, generator=generator, given=given, on_row=row_is_done
                )
            except KeyboardInterrupt:
                Console(stderr=True).print(f"Interrupted after {display.done} of {total} rows; nothing was written.")
                raise

    def _write(self, pictures: Tensor, bits: Sequence[float]) -> None:
        """The given image [1 + count, C, H, W] and its completions, as a sheet or as a page."""
        from attensor.data.pictures import png, tiled
        from attensor.files import atomic_path

        if self.out.suffix.lower() == ".png":
            columns = min(len(pictures), math.isqrt(len(pictures) - 1) + 1)
            with atomic_path(self.out) as temporary:
                temporary.write_bytes(png(tiled(pictures, columns=columns), scale=self.scale))
            return
        from attensor.report.document import write_document

        shown = [base64.b64encode(png(picture, scale=self.scale)).decode() for picture in pictures]
        names = ["given", *(f"{number}: {value:.3f} bits a dimension" for number, value in enumerate(bits, 1))]
        facts = {"image": str(self.image), "model": str(self.model), "seed": self.seed, "temperature": self.temperature}
        write_document(self.out, "attensor.report:completion.html", pictures=list(zip(names, shown)), facts=facts)
