"""Paths of OAT step by step: what was looked at before is kept, and all samples of a scene share what it is like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn.cache import TokenCache
from attensor.ops import softmax_attention

if TYPE_CHECKING:
    from attensor.models.pointing.oat import OAT, Encoded

__all__ = ["Decoding"]


class Decoding:
    """S paths over each of B scenes, drawn together.

    Args:
        model: in evaluation mode.
        encoded: the scenes.
        samples: S.
    """

    def __init__(self, model: OAT, encoded: Encoded, samples: int) -> None:
        self.model, self.encoded, self.samples = model, encoded, samples
        self.pointers = model.pointers(encoded)
        self.times = model.times(model.config.max_length).to(encoded.memory)
        hidden = encoded.hidden
        self.seen = None if hidden is None else ~hidden[:, None, None]
        self.layers = [Layer(layer, encoded.memory, samples) for layer in model.transformer_decoder.layers]

    def run(self, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Paths [B, S, L] and their lengths [B, S]."""
        batch, number = self.encoded.memory.shape[0], self.encoded.memory.shape[1] - 1
        last = self.encoded.memory.new_full((batch, self.samples), number, dtype=torch.int64)
        ended, path = torch.zeros_like(last, dtype=torch.bool), []
        for step in range(self.model.config.max_length):
            # the padding's score is cut, and at first the end's
            scores = self.scores(step, last)[..., : number + (step > 0)]
            chosen = _choose(scores, temperature, generator)
            ended |= chosen == number
            if bool(ended.all()):
                break
            path.append(chosen.masked_fill(ended, -1))
            # those that have ended go on with an object: nothing reads it
            last = chosen.masked_fill(ended, 0)
        paths = torch.stack(path, -1)
        return paths, (paths >= 0).sum(-1)

    def scores(self, step: int, last: Tensor) -> Tensor:
        """[B, S, N + 2] after one more fixation [B, S]; N for the beginning."""
        tokens = self.encoded.tokens
        x = tokens.gather(1, last[..., None].expand(-1, -1, tokens.shape[-1])) + self.times[step]
        for layer in self.layers:
            x = layer.step(x, self.seen)
        return self.model.points(x, *self.pointers)


class Layer:
    """One layer of the decoder with the scene's keys and values, and those of the steps so far."""

    def __init__(self, layer: nn.TransformerDecoderLayer, memory: Tensor, samples: int) -> None:
        self.layer, self.heads = layer, layer.self_attn.num_heads
        _, *self.scene = self._split(layer.multihead_attn, memory)
        width = memory.shape[-1] // self.heads
        self.cache = TokenCache(
            memory.shape[0] * samples,
            {"k": (self.heads, width), "v": (self.heads, width)},
            device=memory.device,
            dtype=memory.dtype,
        )

    def step(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """[B, S, D] to [B, S, D]: each sample attends to its own steps, and all of them to the same scene."""
        layer, (batch, samples) = self.layer, x.shape[:2]
        q, k, v = (part.flatten(0, 1)[:, None] for part in self._split(layer.self_attn, x))
        held = self.cache.append(k=k, v=v)
        own = softmax_attention(q, held["k"], held["v"]).flatten(2).view(batch, samples, -1)
        x = layer.norm1(x + layer.self_attn.out_proj(own))
        q = self._split(layer.multihead_attn, x)[0]
        found = softmax_attention(q, *self.scene, attn_mask=seen).flatten(2)
        x = layer.norm2(x + layer.multihead_attn.out_proj(found))
        out: Tensor = layer.norm3(x + layer.linear2(F.relu(layer.linear1(x))))
        return out

    def _split(self, attention: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [B, T, H, D / H] of [B, T, D]."""
        together = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        return tuple(part.view(*x.shape[:2], self.heads, -1) for part in together.chunk(3, -1))


def _choose(scores: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return scores.argmax(-1)
    weights = (scores.float() / temperature).softmax(-1)
    return torch.multinomial(weights.flatten(0, 1), 1, generator=generator).view(scores.shape[:2])
