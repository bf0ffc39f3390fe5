"""The model of the panel: a decoder of 64 channels and two blocks, whose mixers read through a short convolution.

    mixer(w_0 x_t + w_1 x_{t-1} + w_2 x_{t-2})        w: [3, C], one weight a channel and distance, learned

Models of this field have such a convolution (H3, Hyena, Mamba, Based). Without it every mechanism first spends most of
the time on learning to look one token back: with 8192 tokens and 4 pairs softmax attention of 64 channels is still at
chance after 2000 steps. Here all have the same one, so that what differs is what mixers do beyond that.

Source: arXiv:2312.04927, sections 4 and 5 (short convolution and recall); arXiv:2402.18668, section 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attensor.catalogue import Domain, mechanism
from attensor.compare.balance import balanced_mlp_size, parameter_count
from attensor.compare.subjects import Subject
from attensor.data.mqar import IGNORED
from attensor.models.language import Decoder, DecoderConfig

__all__ = ["balanced", "build", "right_answers", "skill_loss", "state_bytes"]

HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS = 64, 2, 2
REFERENCE_MLP_SIZE = 96
_KERNEL_SIZE = 3


class ShortConvolution(nn.Module):
    """A mixer behind a depthwise causal convolution; [B, T, C] to the same.

    Args:
        mixer: maps [B, T, C] to the same.
        hidden_size: channels C.
        kernel_size: tokens that it sees, the present one included.
    """

    def __init__(self, mixer: nn.Module, hidden_size: int, kernel_size: int = _KERNEL_SIZE) -> None:
        super().__init__()
        self.mixer = mixer
        bound = kernel_size**-0.5
        self.weight = nn.Parameter(torch.empty(kernel_size, hidden_size).uniform_(-bound, bound))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, C] to the same."""
        length = hidden_states.shape[1]
        mixed = hidden_states * self.weight[0]
        for distance in range(1, self.weight.shape[0]):
            earlier = functional.pad(hidden_states, (0, 0, distance, 0))[:, :length]  # [B, T, C]
            mixed = mixed + earlier * self.weight[distance]
        out: Tensor = self.mixer(mixed)
        return out


def build(subject: Subject, vocab_size: int, mlp_hidden_size: int, *, num_layers: int | None = None) -> Decoder:
    """A model around the subject's mixers, as deep as their turns need where no number of layers is given.

    Raises:
        ValueError: the user's file cannot be imported, or has no such module class.
    """
    layers = num_layers or _depth(subject)
    mixers = subject.mixers(Domain.SEQUENCE, HIDDEN_SIZE, NUM_HEADS, layers)
    config = DecoderConfig(vocab_size, HIDDEN_SIZE, layers, NUM_HEADS, mlp_hidden_size)
    return Decoder(config, lambda index: ShortConvolution(mixers(index), HIDDEN_SIZE))


def balanced(subject: Subject) -> int:
    """The MLP width that gives the subject's model as many parameters as that of softmax attention.

    Raises:
        ValueError: there is none.
    """
    # the table of tokens is the same for all: without it the bound on the difference is stricter
    with torch.device("meta"):
        softmax = build(Subject.of("softmax"), 1, REFERENCE_MLP_SIZE, num_layers=_depth(subject))
    target = parameter_count(softmax)
    return balanced_mlp_size(lambda width: build(subject, 1, width), target)[0]


def skill_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the answers, in nats; nothing else goes through the output projection."""
    logits, targets = _answers(model, *batch)
    return functional.cross_entropy(logits, targets)


@torch.no_grad()
def right_answers(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[int, int, float]:
    """Of a batch: right answers, answers, and the sum of their cross-entropies in nats."""
    logits, targets = _answers(model, *batch)
    loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
    return int((logits.argmax(-1) == targets).sum()), targets.numel(), float(loss)


def state_bytes(subject: Subject, length: int) -> int | None:
    """What one layer keeps of a row of `length` tokens while decoding, in float32; None for a user's class.

    Of a stack it is the mean over its layers.
    """
    if subject.path is not None:
        return None
    layers = _depth(subject)
    mixers: Any = subject.mixers(Domain.SEQUENCE, HIDDEN_SIZE, NUM_HEADS, layers)
    cards = [mechanism(subject.layers[index % subject.period]) for index in range(layers)]
    kept = [card.cost("state_bytes", B=1, **mixers(i).cost_sizes((length,))) for i, card in enumerate(cards)]
    return sum(kept) // layers


def _depth(subject: Subject) -> int:
    return max(NUM_LAYERS, subject.period)


def _answers(model: Any, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [answers, vocabulary] and targets [answers] where something is asked for."""
    hidden_states = model.run(model.embed_tokens(tokens))
    is_asked = targets != IGNORED
    return functional.linear(hidden_states[is_asked], model.embed_tokens.weight), targets[is_asked]
