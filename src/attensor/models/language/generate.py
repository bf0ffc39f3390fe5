"""Sampling from a decoder, one token at a time, with decode caches where the mixers have them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attensor.models.language.decoder import Decoder

__all__ = ["generate"]


@torch.no_grad()
def generate(
    decoder: Decoder,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Continue every row of a prompt.

    Each new token costs one decode step; with mixers that have no cache, one pass over everything so far.

    Args:
        decoder: the model, in the mode (train or eval) it shall run in.
        tokens: [B, T] prompt, T >= 1.
        max_new_tokens: how many to add.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample among the k most likely only.
        generator: source of randomness on the tokens' device.
    Yields:
        [B], the next token of each row.
    Raises:
        ValueError: an empty prompt, a negative temperature, or top_k below 1.
    """
    if tokens.dim() != 2 or not tokens.shape[1]:
        raise ValueError(f"generate: tokens must be [B, T] with at least one token, got {list(tokens.shape)}.")
    if temperature < 0:
        raise ValueError(f"generate: temperature must be at least 0, got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k must be at least 1, got {top_k}; None samples among all tokens.")
    caches = None
    if decoder.can_decode:
        caches = decoder.new_caches(tokens.shape[0], tokens.shape[1] + max_new_tokens)
    unread = tokens
    for _ in range(max_new_tokens):
        logits = decoder(unread, caches=caches)[:, -1]  # [B, vocab]
        chosen = _choose(logits, temperature, top_k, generator)
        yield chosen
        unread = chosen[:, None] if caches is not None else torch.cat([unread, chosen[:, None]], 1)


def _choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
