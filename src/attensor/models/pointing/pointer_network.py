r"""Pointer networks: sequence to sequence, where the output's vocabulary is the input.

    u_ij = v^T tanh(W1 e_j + W2 d_i),   p(C_i | C_<i, P) = softmax_j(u_i),   j = 0 (the end) .. n

Encoder and decoder are LSTMs; the decoder reads the coordinates of the point that it chose before. Beside it the two
models that the paper compares it with, whose vocabulary is fixed.
Sizes: B batch, n points, m choices, H hidden units. Source: arXiv:1506.03134, sections 2.1 to 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from attensor.models.pointing.pointing import Decoding, Pointing
from attensor.ops import pointer_scores
from attensor.ops._checks import checked

__all__ = ["PointerNetwork", "Seq2SeqBaselines"]

Memory = tuple[Tensor, Tensor]


class PointerNetwork(Pointing):
    """The pointer network: scores of the encoder's states are the output's logits.

    Its output has as many choices as the input has points, and the end: one model for inputs of any length.
    8 H^2 + 8 H (input_size + 2) + 2 H^2 + .. parameters: 664,322 at the default sizes.

    Args:
        hidden_size: units H of the LSTMs, the scores and the end symbol.
        input_size: numbers of a point.
        init_range: all parameters begin uniform within it; the paper's 0.08 learns nothing for a thousand steps at
            small sizes. None: as suits points of the unit square, see `reset_parameters`, which learns fastest.
        end_starts_encoder: the vector of the end symbol is also the encoder's hidden state before the first point, as
            in the replication; otherwise that is zero. Its cell state is learned.
        logit_clip: scores become `logit_clip tanh(scores)`, as in arXiv:1611.09940 (there 10); None leaves them.
        device, dtype: of the parameters.
    Source: arXiv:1506.03134, section 2.3; github.com/gchaperon/pointer-networks for what the paper leaves open.
    """

    @partial(checked, owner="PointerNetwork")
    def __init__(
        self,
        hidden_size: int = 256,
        input_size: int = 2,
        *,
        init_range: float | None = 0.08,
        end_starts_encoder: bool = True,
        logit_clip: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, input_size, 0, init_range)
        if logit_clip is not None and not logit_clip > 0:
            raise ValueError(f"PointerNetwork: logit_clip must be above 0, got {logit_clip}.")
        self.end_starts_encoder, self.logit_clip = end_starts_encoder, logit_clip
        self.end = nn.Parameter(torch.empty(hidden_size))
        self.initial_cell = nn.Parameter(torch.empty(hidden_size))
        self.key_projection = nn.Linear(hidden_size, hidden_size, bias=False)
        self.query_projection = nn.Linear(hidden_size, hidden_size, bias=False)
        self.score_weight = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()
        self.to(device=device, dtype=dtype)

    def _initial(self, batch: int) -> Memory:
        hidden = self.end if self.end_starts_encoder else torch.zeros_like(self.end)
        return hidden.expand(1, batch, -1), self.initial_cell.expand(1, batch, -1)

    def _memory(self, encoded: Tensor, counts: Tensor) -> Memory:
        """Keys [B, n + 1, H], the end's first, and which of them are padding [B, 1, n + 1]."""
        keys = torch.cat([self.end.expand(len(encoded), 1, -1), encoded], 1)
        places = torch.arange(keys.shape[1], device=keys.device)
        return self.key_projection(keys), places > counts[:, None, None]

    def _scores(self, queries: Tensor, memory: Memory) -> Tensor:
        keys, is_padding = memory
        found = pointer_scores(self.query_projection(queries), keys, weight=self.score_weight)
        if self.logit_clip is not None:
            found = self.logit_clip * torch.tanh(found)
        return found.masked_fill(is_padding, -torch.inf)

    def _forced(self, given: Tensor, memory: Memory, state: Decoding) -> Tensor:
        if not given.numel():
            return given.new_zeros(*given.shape[:2], memory[0].shape[1])
        return self._scores(self.decoder(given, (state.hidden, state.cell))[0], memory)

    def _step(self, given: Tensor, memory: Memory, state: Decoding) -> Tensor:
        out, (state.hidden, state.cell) = self.decoder(given.flatten(0, 1)[:, None], (state.hidden, state.cell))
        return self._scores(out.view(*given.shape[:2], -1), memory)  # beams share keys

    @staticmethod
    def from_replication(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of github.com/gchaperon/pointer-networks by our names; `to_replication` is the way back.

        Raises:
            KeyError: there is no such tensor, by name.
        """
        found = {ours: weights[theirs] for ours, theirs in _NAMES.items()}
        return {name: x.mT.contiguous() if x.ndim == 2 and "projection" in name else x for name, x in found.items()}

    @staticmethod
    def to_replication(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The opposite of `from_replication`; that code multiplies by its matrices from the left."""
        return {
            theirs: weights[ours].mT.contiguous() if "projection" in ours else weights[ours]
            for ours, theirs in _NAMES.items()
        }


_LSTM = [f"{kind}_{what}_l0" for kind in ("weight", "bias") for what in ("ih", "hh")]
_NAMES = {
    "start": "start_symbol",
    "end": "end_symbol",
    "initial_cell": "encoder_c_0",
    **{f"{net}.{name}": f"{net}.{name}" for net in ("encoder", "decoder") for name in _LSTM},
    "key_projection.weight": "attention.W1",
    "query_projection.weight": "attention.W2",
    "score_weight": "attention.v",
}


class Seq2SeqBaselines(Pointing):
    """The two models of the paper without a pointer: a softmax over the places 0 to `max_points`, learned as words.

    Inputs have at most as many points as the vocabulary, and what was learned of one place says nothing of another.

    Args:
        hidden_size: units H.
        max_points: most points of an input; the vocabulary has one more word, the end.
        attention: False: logits of the decoder's state. True: of that and the mean of the encoder's states by additive
            attention, both of which also go into the next step.
        input_size: numbers of a point.
        init_range: all parameters begin uniform within it; None: as suits points of the unit square.
        device, dtype: of the parameters.
    Source: arXiv:1506.03134, sections 2.1 and 2.2.
    """

    @partial(checked, owner="Seq2SeqBaselines")
    def __init__(
        self,
        hidden_size: int = 256,
        max_points: int = 50,
        *,
        attention: bool = False,
        input_size: int = 2,
        init_range: float | None = 0.08,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        wide = 2 * hidden_size if attention else hidden_size
        super().__init__(hidden_size, input_size, wide if attention else 0, init_range)
        if max_points < 1:
            raise ValueError(f"Seq2SeqBaselines: max_points must be at least 1, got {max_points}.")
        self.max_points, self.attention = max_points, attention
        self.words = nn.Linear(wide, max_points + 1)
        if attention:
            self.key_projection = nn.Linear(hidden_size, hidden_size, bias=False)
            self.query_projection = nn.Linear(hidden_size, hidden_size, bias=False)
            self.score_weight = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()
        self.to(device=device, dtype=dtype)

    def _check(self, points: Tensor, counts: Tensor | None) -> Tensor:
        counts = super()._check(points, counts)
        if points.shape[1] > self.max_points:
            raise ValueError(
                f"Seq2SeqBaselines: points must be at most max_points = {self.max_points}, got {points.shape[1]}; its "
                "vocabulary has no more places. A PointerNetwork has as many as there are points."
            )
        return counts

    def _choices(self, points: Tensor) -> int:
        return self.max_points + 1

    def _memory(self, encoded: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        """Encoder's states, their keys, and which are padding."""
        if not self.attention:
            return ()
        is_padding = torch.arange(encoded.shape[1], device=encoded.device) >= counts[:, None, None]
        return encoded, self.key_projection(encoded), is_padding

    def _forced(self, given: Tensor, memory: tuple[Tensor, ...], state: Decoding) -> Tensor:
        if not given.numel():
            return given.new_zeros(*given.shape[:2], self.max_points + 1)
        if not self.attention:
            found: Tensor = self.words(self.decoder(given, (state.hidden, state.cell))[0])
            return found
        return torch.cat([self._step(one[:, None], memory, state) for one in given.unbind(1)], 1)

    def _step(self, given: Tensor, memory: tuple[Tensor, ...], state: Decoding) -> Tensor:
        rows, width = given.flatten(0, 1), given.shape[1]
        if self.attention:
            fed = rows.new_zeros(len(rows), 2 * self.hidden_size) if state.fed is None else state.fed
            rows = torch.cat([rows, fed], -1)
        out, (state.hidden, state.cell) = self.decoder(rows[:, None], (state.hidden, state.cell))
        out = out.view(-1, width, self.hidden_size)
        if self.attention:
            encoded, keys, is_padding = memory
            scores = pointer_scores(self.query_projection(out), keys, weight=self.score_weight)
            weights = scores.masked_fill(is_padding, -torch.inf).softmax(-1)
            out = torch.cat([torch.matmul(weights, encoded), out], -1)
            state.fed = out.flatten(0, 1)
        logits: Tensor = self.words(out)
        return logits
