"""`attensor edit swap`: from a folder with a model to a folder with a swapped one and its report."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import platform
import shlex
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

import attensor
from attensor import catalogue
from attensor.data.text import open_text
from attensor.edit.checkpoint import load_original, save_swapped
from attensor.edit.swap import chosen, layer_for
from attensor.edit.task import NextToken, Passages, Task, byte_tokens, tokens_of
from attensor.edit.trial import Trial, TrialOptions, try_swap
from attensor.errors import Stopped, require
from attensor.files import locked, user_path, write_text
from attensor.lab.interruption import Interruption
from attensor.report.document import announce_report
from attensor.report.swapped import sentences, write_swap_report
from attensor.sites import find_sites
from attensor.swap_journal import SwapFolder, SwapJournal

if TYPE_CHECKING:
    from attensor.commands.edit_swap import EditSwap

__all__ = ["swap_command"]

INTERRUPTED = 130
_REPORT = "report.html"
_NO_NUMBERS = ("out", "resume")  # options that decide no number


def swap_command(asked: EditSwap) -> int:
    """Run the command; see `EditSwap`.

    Returns:
        0; 130 after Ctrl-C, when the same command with `--resume` goes on.
    """
    require("transformers", purpose="edit swap").logging.disable_progress_bar()  # ours is enough
    console = Console()
    to = catalogue.mechanism(asked.to).name
    options = TrialOptions(
        to=to,
        options=_options(to, asked.options),
        layers=asked.layers,
        minutes=asked.minutes,
        distill_minutes=asked.distill,
        window_size=asked.window_size,
        sinks=asked.sinks,
        context=asked.context,
    )
    folder = SwapFolder(user_path(asked.out, "--out"))
    folder.open(is_resumed=asked.resume)
    torch.manual_seed(asked.seed)
    model = load_original(user_path(asked.model, "DIR"))
    task = _task(asked, model)
    _check_layer(model, options)
    given = {name: value for name, value in vars(asked).items() if name not in _NO_NUMBERS}
    folder.prepare({**given, "model": _fingerprint(asked.model), "text": task.data.fingerprint})
    with locked(folder.path), Interruption().listening() as interruption:
        with SwapJournal(folder, console, interruption) as journal:
            try:
                trial = try_swap(model, task, options, journal=journal)
            except Stopped:
                journal.say("Stopped; the same command with --resume goes on.")
                return INTERRUPTED
        _keep(asked, options, folder, model, task, trial, console)
    return 0


def _keep(
    asked: EditSwap,
    options: TrialOptions,
    folder: SwapFolder,
    model: Any,
    task: Task,
    trial: Trial,
    console: Console,
) -> None:
    """The model, the numbers and the page."""
    to, out = options.to, folder.path
    save_swapped(model, out, _swaps(model, options), source=asked.model)
    name = user_path(asked.model, "DIR").resolve().name
    found = {
        "to": to,
        "model": name,
        "context": asked.context,
        "trial": trial.as_dict(),
        "facts": _facts(asked, task, trial),
    }
    _show(console, trial, to)
    announce_report(console, write_swap_report, found, out / _REPORT)
    write_text(folder.numbers, json.dumps(found, indent=2) + "\n")
    folder.finish()
    console.print(f"Model: {out}", highlight=False, markup=False, soft_wrap=True)


def _swaps(model: Any, options: TrialOptions) -> list[dict[str, Any]]:
    """Arguments of `edit.swap` that make the same layers of any weights; layer by layer where weights decided sizes."""
    layers = None if options.layers is None else list(options.layers)
    own = [
        (index, carried)
        for index, site in enumerate(find_sites(model))
        if (carried := getattr(site.layer, "carried_options", None))
    ]
    if not own:
        return [{"to": options.to, "layers": layers, **options.options}]
    return [{"to": options.to, "layers": [index], **options.options, **carried} for index, carried in own]


def _check_layer(model: Any, options: TrialOptions) -> None:
    """Refuse what no layer can be, before a folder is made.

    Raises:
        ValueError: as of `edit.swap`; an option of another kind, too.
    """
    found = find_sites(model)
    index = chosen(found, options.layers, "swap")[0]
    try:
        layer_for(options.to, found[index], index, len(found), dict(options.options))
    except TypeError as error:
        raise ValueError(f"--options: {error}") from error


def _fingerprint(model: str) -> list[Any]:
    """By which a folder's weights are known again without being read."""
    files = sorted(user_path(model, "DIR").glob("*.safetensors"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _options(to: str, given: tuple[str, ...]) -> dict[str, Any]:
    """Values as Python reads them; text where it cannot."""
    known = inspect.signature(catalogue.load(catalogue.mechanism(to).layer)).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    values: dict[str, Any] = {}
    for name, _, text in (one.partition("=") for one in given):
        key = name.replace("-", "_")
        if key not in known and not takes_all:
            raise ValueError(f"--options {name}: {to} has {', '.join(list(known)[2:])}; see `attensor show {to}`.")
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    return values


def _task(asked: EditSwap, model: Any) -> Task:
    """The score that fits the model, on text in tokens of its own."""
    data = open_text(asked.align, minimum_bytes=asked.length + 1)
    is_causal = hasattr(model, "generate") and model.can_generate()
    wanted = asked.task if asked.task != "auto" else "next-token" if is_causal else "passages"
    kind = NextToken if wanted == "next-token" else Passages
    most = getattr(model.config, "max_position_embeddings", None) or asked.length
    has_tokenizer = any(
        os.path.isfile(os.path.join(asked.model, name)) for name in ("tokenizer.json", "vocab.txt", "vocab.json")
    )
    if has_tokenizer:
        transformers = require("transformers", purpose="a tokenizer")
        tokenizer = transformers.AutoTokenizer.from_pretrained(asked.model, local_files_only=True)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenize = tokens_of(tokenizer, most)
    elif model.config.vocab_size >= 256:
        tokenize = byte_tokens
    else:
        raise ValueError(
            f"{asked.model}: no tokenizer.json, and a vocabulary of {model.config.vocab_size}, too small for bytes; "
            "put the tokenizer's files beside the model."
        )
    sizes = {"length": asked.length, "batch_size": asked.batch_size, "held_out": asked.held_out, "seed": asked.seed}
    return kind(data, tokenize, **sizes)


def _typed(asked: EditSwap) -> str:
    """The command as it can be typed again."""
    words = ["attensor", "edit", "swap", asked.model, "--to", asked.to]
    for field in dataclasses.fields(asked):
        value = getattr(asked, field.name)
        if field.name not in ("model", "to", "resume") and value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def _facts(asked: EditSwap, task: Task, trial: Trial) -> dict[str, str]:
    layers = "all" if asked.layers is None else ", ".join(map(str, asked.layers))
    return {
        "Command": _typed(asked),
        "Alignment": f"{trial.steps} steps in {trial.seconds:.0f} seconds, all arms side by side",
        "Layers": layers,
        "Text": f"{task.data.name}: {task.data.train_bytes:,} bytes to learn from; passages of {asked.length} bytes, "
        f"{len(task.passages)} of them held out",
        "Controls": f"windows of {asked.window_size} tokens, {asked.sinks} sinks; trained as long on the same batches",
        "Machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"attensor {attensor.__version__}",
    }


def _show(console: Console, trial: Trial, to: str) -> None:
    table = Table(title=f"{trial.task}: {trial.unit}")
    for heading in ("attention", "as carried", "aligned", "distilled", "worse by, aligned"):
        table.add_column(heading, justify="left" if heading == "attention" else "right")
    table.add_row("original", f"{trial.original.value:.3f}", "", "", "")
    for arm in trial.carried:
        distilled = trial.distilled.get(arm)
        aligned = trial.aligned[arm]
        table.add_row(
            arm,
            f"{trial.carried[arm].value:.3f}",
            f"{aligned.value:.3f}",
            f"{distilled.value:.3f}" if distilled else "",
            f"{aligned.worse:.3f} ± {aligned.interval:.3f}",
        )
    console.print(table)
    for sentence in sentences(trial.as_dict(), to):
        console.print(f"- {sentence}", highlight=False, markup=False)
