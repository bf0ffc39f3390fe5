"""A fixed sequence that runs beside the tokens, through the same blocks: what queries and keys are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SideStream"]


class SideStream(nn.Module):
    """Normed inputs of every block for one sequence of fixed tokens, or of fixed random vectors.

    Run once a step in training, with gradients into the shared weights; outside training it is kept until a weight
    changes (in-place changes through `.data` are not seen).

    Args:
        config: a `DeconstructedConfig`.
    """

    tokens: Tensor
    vectors: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.length, self.std, self.vocab_size = config.stream_length, config.initializer_range, config.vocab_size
        self.given, self.is_text = config.fixed_tokens, config.variant == "fixed-sequence"
        self._kept: tuple[Any, list[Tensor]] | None = None
        if self.is_text:
            self.register_buffer("tokens", torch.zeros(self.length, dtype=torch.int64))
        else:
            self.register_buffer("vectors", torch.zeros(self.length, config.hidden_size))
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Take the tokens that the configuration gives, or draw the sequence."""
        for name, buffer in self.named_buffers():
            if buffer.is_meta:
                continue
            if name == "vectors":
                nn.init.normal_(buffer, std=self.std)
            else:
                same = torch.Generator().manual_seed(0)  # as buffers that a model makes are the same each time
                drawn = self.given or torch.randint(self.vocab_size, (self.length,), generator=same)
                buffer.copy_(torch.as_tensor(drawn))

    def forward(self, body: Any, positions: Tensor, blocks: int) -> list[Tensor]:
        """Of the first blocks the normed input at all places up to the last of `positions`: [places, C] each.

        Args:
            body: with `embed_tokens` and `layers`.
            blocks: how many.
            positions: [T] or [B, T], that will be read.
        Raises:
            ValueError: a position beyond the sequence.
        """
        needed = self.length
        if not torch.compiler.is_compiling() and not positions.is_meta:
            needed = int(positions.max()) + 1 if positions.numel() else 0
        if needed > self.length:
            raise ValueError(
                f"{type(body).__name__}: sequences must have at most {self.length} tokens, as stream_length has, got "
                f"{needed}; nothing is defined beyond the sequence beside. Make the model with a longer one."
            )
        may_keep = not (body.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        if not may_keep:
            self._kept = None
            return self._run(body, needed, blocks)
        weights = [*body.parameters(), *self.buffers()]
        if any(x.is_inference() or x.is_meta for x in weights):
            return self._run(body, needed, blocks)
        key = [(id(x), x._version, x.data_ptr(), x.dtype) for x in weights]
        if self._kept is None or self._kept[0] != key or len(self._kept[1][0]) < needed:
            # twice what is needed, so that decoding does not run it for every token
            self._kept = key, self._run(body, min(max(2 * needed, 64), self.length), blocks)
        return self._kept[1]

    def _run(self, body: Any, places: int, blocks: int) -> list[Tensor]:
        found = []
        if self.is_text:
            tokens = self.tokens[:places].remainder(body.embed_tokens.num_embeddings)  # which may have become fewer
            hidden_states = body.embed_tokens(tokens)[None]
        else:
            hidden_states = self.vectors[:places].to(body.embed_tokens.weight.dtype)[None]
        for index, layer in enumerate(body.layers[:blocks]):
            hidden_states = body.layers[index - 1](hidden_states) if index else hidden_states
            found.append(layer.input_layernorm(hidden_states)[0])
        return found
