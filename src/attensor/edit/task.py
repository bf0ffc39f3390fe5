"""Uses of a model, measured on text that is held out: the next token, or the passage that belongs to another."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.data.text import TextData
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked

__all__ = ["NextToken", "Passages", "Task", "byte_tokens", "tokens_of"]

Tokenize = Callable[[Sequence[bytes]], dict[str, Tensor]]


@checked
def byte_tokens(texts: Sequence[bytes]) -> dict[str, Tensor]:
    """Bytes are the tokens; all texts have the same length.

    Raises:
        ValueError: texts of different lengths.
    """
    if len(lengths := {len(text) for text in texts}) > 1:
        raise ValueError(f"byte_tokens: texts must have one length, got {sorted(lengths)}; cut them, or pad them.")
    return {"input_ids": torch.tensor([list(text) for text in texts])}


@checked
def tokens_of(tokenizer: Any, most: int) -> Tokenize:
    """By a tokenizer of transformers, padded to the longest and cut to `most` tokens."""

    def tokenize(texts: Sequence[bytes]) -> dict[str, Tensor]:
        readable = [text.decode(errors="replace") for text in texts]
        found = tokenizer(readable, padding=True, truncation=True, max_length=most, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    return tokenize


class Task(ABC):
    """Text to learn from, and a score on text that is apart.

    Args:
        data: the text.
        tokenize: texts to keyword arguments of the model.
        length: bytes of a passage.
        batch_size: passages of a batch.
        held_out: passages that are scored.
        seed: of the batches.
    Attributes:
        higher_is_better: of the score.
    """

    higher_is_better: bool
    name: str
    unit: str

    @checked
    def __init__(
        self,
        data: TextData,
        tokenize: Tokenize,
        *,
        length: int = 256,
        batch_size: int = 16,
        held_out: int = 96,
        seed: int = 0,
    ) -> None:
        check_range(self, 1, length=length, batch_size=batch_size, held_out=held_out)
        self.data, self.tokenize, self.length, self.batch_size, self.seed = data, tokenize, length, batch_size, seed
        windows, _ = data.test(length, limit=held_out)
        self.passages = [bytes(window.tolist()) for window in windows[:, :length]]

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Batches without end, the same in every call."""
        for step in itertools.count():
            windows = self.data.batch(step, seed=self.seed, batch_size=self.batch_size, length=self.length)
            yield self.tokenize([bytes(window.tolist()) for window in windows[:, : self.length]])

    def facts(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"task": self.name, "unit": self.unit, "higher_is_better": self.higher_is_better}

    def _by_length(self, texts: Sequence[bytes]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Batches of texts of like length, with their places: padding costs as much as tokens."""
        whole = self.tokenize(texts)
        real = whole.get("attention_mask", torch.ones_like(whole["input_ids"]))
        order = real.sum(1).argsort(stable=True).tolist()
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            yield places, self.tokenize([texts[place] for place in places])

    @abstractmethod
    def score(self, model: nn.Module) -> Tensor:
        """[units], one number for each held-out passage; their mean is the score. The model stays in its mode."""


class NextToken(Task):
    """Bits that a causal model needs for each byte of held-out text."""

    higher_is_better = False
    name, unit = "next token of held-out text", "bits per byte"

    @torch.no_grad()
    def score(self, model: nn.Module) -> Tensor:
        """Bits per byte of each passage."""
        was_training, scores = model.training, torch.zeros(len(self.passages))
        model.eval()
        for places, batch in self._by_length(self.passages):
            logits = model(**batch, use_cache=False).logits[:, :-1]
            tokens, real = batch["input_ids"][:, 1:], batch.get("attention_mask")
            loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)
            loss = loss if real is None else loss * real[:, 1:]
            sizes = torch.tensor([len(self.passages[place]) for place in places])
            scores[places] = loss.sum(1) / torch.log(torch.tensor(2.0)) / sizes
        model.train(was_training)
        return scores


class Passages(Task):
    """How often the first half of a passage finds its second half among all, by the mean of the hidden states."""

    higher_is_better = True
    name, unit = "second halves of held-out passages found by their first halves", "recall at 1"

    @torch.no_grad()
    def score(self, model: nn.Module) -> Tensor:
        """1 where the right half is the nearest, else 0."""
        was_training = model.training
        model.eval()
        half = self.length // 2
        first, second = (self._embed(model, [p[i : i + half] for p in self.passages]) for i in (0, half))
        model.train(was_training)
        nearest = (first @ second.mT).argmax(1)
        return (nearest == torch.arange(len(nearest), device=nearest.device)).float()

    def _embed(self, model: nn.Module, texts: Sequence[bytes]) -> Tensor:
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for places, batch in self._by_length(texts):
            hidden = model(**batch).last_hidden_state
            real = batch.get("attention_mask", torch.ones(hidden.shape[:2]))[..., None].to(hidden)
            means = F.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
            for place, mean in zip(places, means):
                found[place] = mean
        return torch.stack(found)
