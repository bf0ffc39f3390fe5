"""What `attensor compare` and `attensor generate` can be told. No torch here, so that `--help` is quick."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

__all__ = ["SIZE_NAMES", "CompareConfig", "GenerateConfig", "parse_budget"]

SIZE_NAMES = ("tiny", "small", "base")
_MOST_SEEDS = 1000
_LAST_SEED = 2**31
_MOST_SECONDS = 366 * 24 * 3600.0


@dataclass(frozen=True)
class CompareConfig:
    """Train the same small model with each mechanism on your data, measure its cost, and say what to pick."""

    data: str = "stdlib"
    """A text file, a folder of text or code, a folder of images with a sub-folder for each class, or a bundled source:
    stdlib (the source code of Python's standard library) or digits (images)."""
    mechanisms: str | None = None
    """Names from `attensor list`, or what others call them (mamba2, swa), and your own modules:
    softmax,gla,my_file.py:MyMixer. Cards whose layers take turns are one: gla+softmax, 3*gla+softmax; all models are
    then as deep as the longest of them. sweep:gla+softmax stands for both alone, the ratios 1:1, 3:1 and 7:1, and one
    softmax layer first and in the middle of eight; sweep:3*gla+softmax goes up to 3:1 in four layers. Left out: the
    usual mechanisms that fit the data; all: every one in the catalogue that does."""
    budget: str | None = None
    """Time for all training: 90s, 3m, 1h. From it follows one number of steps for all mechanisms. Left out: 2m30s for
    text, 1m for images."""
    skills: str | None = None
    """Time for the skills panel on top of the budget, such as 5m: small tasks of recall, copying, state tracking and
    search for every mechanism. Left out: none. For text alone."""
    steps: int | None = None
    """Train each mechanism for this many steps a seed, however long that takes; not together with --budget."""
    seeds: int = 3
    """Runs of each mechanism, with different initial weights and data order, the same for all; at least 2."""
    first_seed: int = 0
    """The first of them; on a second machine as many more, so that `attensor merge` can pool the runs of both."""
    size: str = "tiny"
    """Size of the model: tiny (64 wide, 2 layers) for a CPU, small (256, 6) and base (768, 12) for a GPU; or several
    with commas: a run a size. The budget is that of the largest, whose steps and batches all take."""
    fit: bool = False
    """With several sizes: fit a power law of the score in the parameters for each mechanism."""
    length: int | None = None
    """Tokens in a training sequence, or the side of the images in pixels. Left out: chosen by the size."""
    batch_size: int | None = None
    """Sequences or images in a batch. Left out: chosen by the size."""
    counts: bool = True
    """Text: models correct a back-off n-gram that was counted on the training text, so that they differ in what
    counting cannot do. With --no-counts they begin with nothing."""
    learning_rates: tuple[float, ...] = (2e-3, 6e-3, 1.8e-2)
    """Tried for each mechanism in the beginning of a run; where the smallest or largest is best, more are tried beyond
    it. The best one goes on and trains the seeds."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes a GPU when there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the matrix products; auto is bfloat16 on a GPU, float32 elsewhere."""
    max_length: int = 16384
    """Longest sequence (cells of the largest grid) in the cost measurement."""
    jobs: int | None = None
    """Mechanisms trained at the same time. Left out: one a core on a CPU, 4 at most; 1 on a GPU."""
    out: str = "runs"
    """Folder that receives a new folder for the run."""
    resume: str | None = None
    """Continue the run in this folder. Its configuration is taken from there."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: the message names the option, its value and the repair.
        """
        if self.seeds < 2:
            raise ValueError(
                f"--seeds {self.seeds}: at least 2 are needed. One run cannot show whether a difference between two "
                "mechanisms is larger than the difference between two runs of the same one."
            )
        if not 0 <= self.first_seed <= _LAST_SEED:
            raise ValueError(f"--first-seed {self.first_seed}: must be from 0 to {_LAST_SEED}.")
        if self.seeds > _MOST_SEEDS:
            raise ValueError(f"--seeds {self.seeds}: at most {_MOST_SEEDS}.")
        if self.steps is not None and self.budget is not None:
            raise ValueError("--steps and --budget exclude each other: give the steps of a run, or the time.")
        if self.budget is not None:
            parse_budget(self.budget)
        if self.skills is not None:
            parse_budget(self.skills, "--skills")
        if not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            raise ValueError(f"--learning-rates {self.learning_rates}: give one or more positive numbers.")
        if not self.sizes or set(self.sizes) - set(SIZE_NAMES):
            raise ValueError(f"--size {self.size!r}: give one of {', '.join(SIZE_NAMES)}, or several with commas.")
        if self.fit and len(self.sizes) < 2:
            raise ValueError(f"--fit needs at least two sizes, for instance --size tiny,small; --size is {self.size}.")
        for option in ("steps", "length", "batch_size", "max_length", "jobs"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"--{option.replace('_', '-')} {value}: must be at least 1.")

    @property
    def sizes(self) -> tuple[str, ...]:
        """The sizes, the smallest first, each once; what is no size last."""
        given = dict.fromkeys(part.strip() for part in self.size.split(",") if part.strip())
        return tuple(sorted(given, key=(*SIZE_NAMES, *given).index))


@dataclass(frozen=True)
class GenerateConfig:
    """Write text with a model that `attensor compare` trained, or with one in transformers' format."""

    folder: Annotated[str | None, arg(name="run")] = None
    """Folder of the run, runs/<time>; together with --mechanism."""
    mechanism: str | None = None
    """Name of the mechanism, as in the run's table."""
    model: str | None = None
    """Folder of a model in transformers' format, instead of --run. Without a tokenizer in it, tokens are bytes."""
    prompt: str = "\n"
    """Text to continue."""
    tokens: int = 200
    """Tokens to write; those of a run are bytes."""
    temperature: float = 0.8
    """Below 1 sharpens the distribution, 0 always takes the most likely token."""
    top_k: int | None = None
    """Choose among this many most likely tokens only."""
    top_p: float | None = None
    """Choose among the most likely tokens only that together have this probability."""
    static: bool = False
    """Keep the past in memory of fixed size, prompt and --tokens together."""
    compile: bool = False
    """Compile the step from token to token, which takes a minute at first; with --static."""
    seed: int = 0
    """Seed of the choices."""
    seed_index: int = 0
    """Which of the mechanism's trained runs to use."""

    def __post_init__(self) -> None:
        """Refuse anything but one model.

        Raises:
            ValueError: neither or both of --run and --model, --mechanism without --run or the other way round, or
                --compile without --static.
        """
        if self.compile and not self.static:
            raise ValueError("--compile needs --static: a past that grows would be compiled anew at every token.")
        if (self.folder is None) == (self.model is None) or (self.folder is None) != (self.mechanism is None):
            raise ValueError("give --run and --mechanism, or --model, but not both.")


def parse_budget(text: str, option: str = "--budget") -> float:
    """Seconds of a text like `90s`, `3m`, `1h`, `2m30s` or `90`, that was given to `option`.

    Raises:
        ValueError: not of that form, nothing, or more than a year.
    """
    number = r"([0-9]+(?:\.[0-9]+)?)"
    match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s?)?", text.strip())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not 0 < total <= _MOST_SECONDS:
        raise ValueError(f"{option} {text[:40]!r}: write a time such as 90s, 3m or 1h, of a year at most.")
    return total
