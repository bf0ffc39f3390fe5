"""`attensor edit rotate-latent`: what it can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tyro.conf import Positional, arg

from attensor.errors import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from attensor.nn import Slicing

__all__ = ["EditRotateLatent"]

_TEXT = (
    "The committee will meet again on Thursday to discuss the budget for the coming year. def mean(values):\n    "
    "return sum(values) / len(values)\n\nprint(mean([1, 2, 3]))\nOnce upon a time there was a miller who had three "
    "sons."
)
_SHOWN = 12  # layers in the table; a file has all


@dataclass(frozen=True)
class EditRotateLatent:
    """Turn the latents of a DeepSeek-like model into another basis, shard by shard: the same model, ready to be sliced.

    The new folder's logits are compared with the old one's before it gets its name. Its latent_slicing.json has the
    constants of every layer's slices, which `attensor.edit.load_slicings` reads. Ctrl-C loses nothing: the same command
    goes on. The two comparisons and the calibration hold the whole model in memory, all else one shard.
    """

    model: Positional[Annotated[str, arg(metavar="DIR")]]
    """Folder of the model, as save_pretrained writes it: DeepSeek-V2, V3 or a stack of attensor with mla layers."""
    out: Annotated[str, arg(metavar="DIR2")]
    """Folder for the new model; must not be there."""
    how: Literal["identity", "hadamard", "pca"] = "pca"
    """identity only moves the norm's weight; hadamard spreads every channel evenly; pca has most energy in the first
    slice, of all three the least loss when sliced."""
    calibration: Annotated[str | None, arg(metavar="FILE")] = None
    """Text of the model's use, or a .safetensors file with what attensor.edit.latent_moments gave. pca needs it."""
    groups: int = 2
    """Slices of a latent, one for each device."""
    gains: Literal["one", "reciprocal", "fitted"] = "one"
    """What scores of a slice are multiplied with: 1, the reciprocal of its share of the energy, or by least squares."""
    seed: int = 0
    """Of the signs of hadamard."""
    tokens: int = 16_384
    """Of the calibration text that are read."""
    length: int = 512
    """Tokens of a passage."""
    check: Literal["float32", "float64", "none"] = "float32"
    """Number format of the comparison; none for a model that does not fit into memory: nothing is proved then."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: the message names the option, its value and the repair.
        """
        for option in ("groups", "tokens", "length"):
            if getattr(self, option) < 1:
                raise ValueError(f"--{option} {getattr(self, option)}: must be at least 1.")
        if self.how == "pca" and self.calibration is None:
            raise ValueError("--how pca needs --calibration FILE, a text of the model's use.")
        if self.gains == "fitted" and (self.calibration is None or self._has_moments):
            raise ValueError("--gains fitted needs --calibration FILE, a text of the model's use.")

    @property
    def _has_moments(self) -> bool:
        return self.calibration is not None and self.calibration.endswith(".safetensors")

    def run(self) -> int:
        """Turn, compare, rename.

        Raises:
            ValueError, OSError: found before anything is written: the model, its weights, the text, the new folder.
        """
        from attensor.edit.rotate_folder import Rotation, check_folder, partial_of, rotate_folder
        from attensor.files import user_path

        need("transformers", purpose="edit rotate-latent")
        console, source, out = Console(), user_path(self.model, "DIR"), user_path(self.out, "--out")
        if out.exists():
            raise ValueError(f"--out {out}: is there already; nothing is overwritten, give another name.")
        shards = check_folder(source, self.groups)
        read = _Reading(self, source)
        asked = Rotation(self.how, self.groups, self.seed, self.gains)
        try:
            with (
                _progress(console, len(shards)) as tick,
                rotate_folder(source, out, asked, lambda: read.moments, read.gains, tick=tick) as (partial, slicings),
            ):
                console.print(_table(slicings))
                said = "Nothing is proved of it: --check none."
                if self.check != "none":
                    said = read.compare(partial, source, shards)
        except KeyboardInterrupt:
            _say(console, f"Kept what is finished in {partial_of(out)}; the same command goes on from there.")
            raise
        _say(console, f"{said}\nModel: {out}")
        return 0


class _Reading:
    """What is read of the original, loaded once: logits, moments, and what scores are made of."""

    def __init__(self, asked: EditRotateLatent, source: Path) -> None:
        from attensor.edit.rotate import latent_moments
        from attensor.edit.tpla import score_moments

        self.asked = asked
        self.moments: Mapping[str, Tensor] | None = None
        self.scores: dict[str, Any] = {}
        text = _TEXT
        if asked.calibration is not None and not asked._has_moments:
            text = Path(asked.calibration).expanduser().read_text("utf-8", "replace")
        elif asked._has_moments:
            self.moments = _moments(Path(str(asked.calibration)).expanduser())
        if asked.check == "none" and text is _TEXT:
            return
        model, encode = self._load(source)
        self.batches = self._batches(encode(text))
        if text is not _TEXT:
            self.moments = latent_moments(model, self.batches)
        if asked.gains == "fitted":
            self.scores = dict(score_moments(model, self.batches))
        if asked.check != "none":
            self.logits = _logits(model, self.batches[0])

    def _load(self, folder: Path) -> tuple[Any, Callable[[str], list[int]]]:
        import torch

        from attensor.models.language.generate import load_text_model

        model, encode, _, _ = load_text_model(folder)
        return model.to(torch.float64 if self.asked.check == "float64" else torch.float32), encode

    def _batches(self, tokens: list[int]) -> list[Tensor]:
        import torch

        if not tokens:
            raise ValueError(f"--calibration {self.asked.calibration}: has no tokens; give a text of the model's use.")
        read = torch.tensor(tokens[: self.asked.tokens])
        return [piece[None] for piece in torch.split(read, self.asked.length)]

    def gains(self, layer: str, slicing: Slicing, basis: Tensor) -> tuple[float, ...] | None:
        """mu of a layer's slices."""
        from attensor.edit.tpla import fitted_gains

        if self.asked.gains == "reciprocal":
            return slicing.norms
        return fitted_gains(self.scores[layer], basis, slicing.groups) if self.scores else None

    def compare(self, folder: Path, source: Path, shards: Mapping[str, list[str]]) -> str:
        """What may be said of a folder beside the original.

        Raises:
            ValueError: its logits are others.
        """
        import torch

        from attensor.edit.rotate_folder import lowest_precision

        found, before = _logits(self._load(folder)[0], self.batches[0]), self.logits
        kind = lowest_precision(source, shards)
        allowed = max(1e-4, 4 * torch.finfo(kind).eps)
        apart = float((found - before).abs().max() / before.abs().max())
        same = float((found.argmax(-1) == before.argmax(-1)).double().mean())
        numbers = (
            f"largest difference {apart:.1e} of the largest logit over {found.shape[1]} tokens in {self.asked.check}"
        )
        if not apart <= allowed:
            raise ValueError(
                f"the turned model is another one: {numbers}, more than {allowed:.0e}. It is kept as {folder} and has "
                "not got its name; please report this."
            )
        kept = str(kind).removeprefix("torch.")
        rounding = "" if torch.finfo(kind).eps < 1e-6 else f" but for rounding the turned weights to {kept}"
        tokens = f"{same:.1%} of the next tokens the same"
        return f"Logits are unchanged{rounding}: {numbers} (at most {allowed:.0e}); {tokens}."


def _moments(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"--calibration {path}: is no safetensors file ({error}); give moments, or a text.") from error


def _logits(model: Any, tokens: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        logits: Tensor = model(tokens, use_cache=False).logits
    return logits.double()


@contextmanager
def _progress(console: Console, shards: int) -> Iterator[Callable[[str, int, int], None]]:
    if not console.is_terminal:
        yield lambda file, done, total: _say(console, f"{done}/{total} {file}")
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("turning", total=shards)
        yield lambda file, done, total: bar.update(task, completed=done, description=file)


def _table(slicings: Mapping[str, Slicing]) -> Table:
    table = Table(title="Energy of each slice", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("layer", "share of all energy", "norms a", "gains mu"):
        table.add_column(column)
    for name, slicing in list(slicings.items())[:_SHOWN]:
        norms = slicing.norms or ()
        shares = " ".join(f"{1 / norm:.1%}" if norm else "0" for norm in norms)
        gains = slicing.gains or (1.0,) * slicing.groups
        table.add_row(name.removesuffix("."), shares, *(" ".join(f"{x:.3g}" for x in xs) for xs in (norms, gains)))
    if len(slicings) > _SHOWN:
        table.add_row(f"and {len(slicings) - _SHOWN} more", "", "", "")
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
