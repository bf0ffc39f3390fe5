"""`attensor generate`: text from a model that a comparison trained, byte by byte with its decode cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attensor.catalogue import find_name
from attensor.compare.artefacts import Balance
from attensor.compare.config import GenerateConfig
from attensor.compare.folder import check_file
from attensor.compare.plan import Plan
from attensor.compare.subjects import Subject
from attensor.files import user_path

if TYPE_CHECKING:
    from torch import nn

    from attensor.data.ngram import NGram
    from attensor.models.language.generate import Pace

__all__ = ["generate_text", "trained_model"]


def generate_text(config: GenerateConfig, pace: Pace | None = None) -> Iterator[str]:
    """Continue `config.prompt`; pieces of text as they are decided, bytes that are not UTF-8 as U+FFFD.

    Args:
        config: which model, prompt and how to choose.
        pace: receives how fast the tokens come.
    Yields:
        Text, one or a few characters at a time; the prompt is not repeated.
    Raises:
        ValueError: no such run or mechanism, a run on images, or a model that is damaged or not trained yet.
    """
    choice: dict[str, Any] = {
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "static": config.static,
        "compiled": config.compile,
        "pace": pace,
    }
    if config.model is not None:
        from attensor.models.language.generate import continue_text

        yield from continue_text(config.model, config.prompt, config.tokens, seed=config.seed, **choice)
    else:
        yield from _from_run(config, user_path(config.folder or "", "--run"), config.mechanism or "", choice)


def _from_run(config: GenerateConfig, run: Path, mechanism: str, choice: dict[str, Any]) -> Iterator[str]:
    """Continue with a model of a comparison."""
    plan = Plan.load(run)
    if all(mechanism != subject.name for subject in plan.subjects):
        mechanism = find_name(mechanism) or mechanism
    checkpoint = _checkpoint(run, plan, mechanism, config.seed_index)

    import torch

    from attensor.models.language import generate
    from attensor.models.language._streaming import whole_bytes

    model: Any = trained_model(run, plan, plan.subject(mechanism), checkpoint)
    prompt = torch.tensor([list(config.prompt.encode() or b"\n")])
    generator = torch.Generator().manual_seed(config.seed)
    yield from whole_bytes(map(int, generate(model, prompt, config.tokens, generator=generator, **choice)))


def trained_model(
    run: Path, plan: Plan, subject: Subject, checkpoint: Path, *, counts: NGram | None = None
) -> nn.Module:
    """A model of a run in eval mode, with the weights of `checkpoint`, and the counts that it corrects.

    Args:
        run, plan, subject, checkpoint: whose.
        counts: of the run, where they have been loaded before; loaded if None.
    Raises:
        ValueError: its sizes are not known, or the counts are damaged or not there.
    """
    from safetensors.torch import load_model

    from attensor.compare.counts import load_counts
    from attensor.models.language import CountedDecoder

    balance = Balance.load(subject.folder(run) / "balance.json")
    if balance is None:
        raise ValueError(f"{subject.folder(run)} has no balance.json, without which its models cannot be built again.")
    model = plan.task.build(plan, plan.mixers(subject), balance.mlp_hidden_size)
    load_model(model, checkpoint)
    if isinstance(model, CountedDecoder):
        counts = counts or load_counts(run)
        model.counts, model.context = counts.log_probabilities, counts.order - 1
    return model.eval()


def _checkpoint(run: Path, plan: Plan, mechanism: str, seed_index: int) -> Path:
    if not plan.task.decodes:
        raise ValueError(f"--run {run}: was trained on images, which cannot be continued as text.")
    names = [subject.name for subject in plan.subjects]
    if mechanism not in names:
        raise ValueError(f"--mechanism {mechanism}: the run {run} has {', '.join(names)}.")
    if not 0 <= seed_index < len(plan.seeds):
        raise ValueError(f"--seed-index {seed_index}: the run has {len(plan.seeds)} seeds, 0 is the first.")
    checkpoint = plan.subject(mechanism).checkpoint(run, plan.seeds[seed_index])
    if not checkpoint.exists():
        raise ValueError(
            f"{checkpoint} does not exist: not trained to the end. Continue: attensor compare --resume {run}"
        )
    check_file(checkpoint)
    return checkpoint
