"""A decoder that corrects an n-gram: it learns what counting the last few bytes does not say.

    logits = decoder(tokens) + scale * log p(next | the last few)        scale: one parameter, 1 at first

The decoder's final norm begins with a small gain, so that training begins where the n-gram is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attensor.models.language.decoder import Decoder
from attensor.ops._checks import checked

__all__ = ["CountedDecoder"]

# of the final norm: 1 would drown the counts in noise, 0 would give the layers below no gradient
_FIRST_GAIN = 0.1


class CountedDecoder(nn.Module):
    """A decoder whose logits are added to given log-probabilities.

    Args:
        decoder: the model that learns.

    Attributes:
        scale: [], the weight of the log-probabilities.
        counts: tokens [B, T] -> log-probabilities [B, T, vocab_size] of the next token; asked where none are given,
            so that text can be generated. Neither a parameter nor a buffer: checkpoints do not hold it.
        context: tokens that `counts` looks back, the last one counted.
    """

    @checked
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.scale = nn.Parameter(torch.ones(()))
        self.counts: Callable[[Tensor], Tensor] | None = None
        self.context = 1
        nn.init.constant_(decoder.norm.weight, _FIRST_GAIN)  # type: ignore[arg-type]

    @property
    def embed_tokens(self) -> nn.Embedding:
        """That of the decoder."""
        return self.decoder.embed_tokens

    @property
    def can_decode(self) -> bool:
        """Whether every mixer has a cache to decode with."""
        return self.decoder.can_decode

    def new_caches(self, batch_size: int, max_length: int | None = None) -> list[Any]:
        """One empty cache for each layer, and one for the counts; see `Decoder.new_caches`."""
        return [*self.decoder.new_caches(batch_size, max_length), _LastTokens()]

    def forward(
        self, tokens: Tensor, *, log_probabilities: Tensor | None = None, caches: Sequence[Any] | None = None
    ) -> Tensor:
        """Logits of the token after each token.

        Args:
            tokens: [B, T], integers.
            log_probabilities: [B, T, vocab_size], what is corrected; from `counts` if None.
            caches: from `new_caches`.
        Returns:
            [B, T, vocab_size].
        Raises:
            ValueError: neither log-probabilities nor counts.
        """
        if log_probabilities is None:
            if self.counts is None:
                raise ValueError(
                    "CountedDecoder: has no counts; give log_probabilities [B, T, vocab_size], or set counts."
                )
            seen = tokens if caches is None else caches[-1].with_new(tokens, self.context)
            log_probabilities = self.counts(seen)[:, seen.shape[1] - tokens.shape[1] :]
        logits: Tensor = self.decoder(tokens, caches=None if caches is None else caches[:-1])
        return logits + self.scale * log_probabilities


class _LastTokens:
    """The end of what has been read."""

    def __init__(self) -> None:
        self._tokens: Tensor | None = None

    def with_new(self, tokens: Tensor, context: int) -> Tensor:
        """What the counts of the new tokens look at: those before them that matter, and the new ones."""
        seen = tokens if self._tokens is None else torch.cat([self._tokens, tokens], 1)
        self._tokens = seen[:, max(0, seen.shape[1] - context) :]
        return seen
