"""Associative recall of recipes: rows of key-value pairs, then each key again; which value was it?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from attensor.data.mqar import IGNORED, mqar_batch
from attensor.recipes._runs import trained
from attensor.train import TrainConfig

__all__ = ["PAIRS", "RECALL_VOCAB", "fit_recall", "recall_rows"]

# pairs in a row, eight tokens each; as in arXiv:2312.04927 a training begins with easy rows
PAIRS, TOKENS_PER_PAIR, RECALL_TOKENS, RECALL_VOCAB = (2, 4, 8), 8, 2048, 64


def fit_recall(
    model: nn.Module, *, seed: int, steps: int, learning_rate: float, pairs: Sequence[int] = PAIRS
) -> dict[str, Any]:
    """Train a causal model in place to recall; what it then does with eight pairs in 64 tokens.

    Args:
        model: tokens [B, T] below `RECALL_VOCAB` to logits [B, T, RECALL_VOCAB].
        seed: of the data; the caller has drawn the weights.
        steps, learning_rate: of AdamW, with warm-up and cosine to and from the peak.
        pairs: in a row, each for an equal part of the steps; measured with as many as `PAIRS` ends with.
    Returns:
        `accuracy`: share of right values; `curve`: [[step, share], ..].
    """
    tokens, targets = recall_rows(-1, seed, PAIRS[-1], tokens=8 * RECALL_TOKENS)
    asked = targets != IGNORED

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return recall_rows(step, seed, pairs[len(pairs) * step // steps])

    def loss(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(rows[0]).flatten(0, 1), rows[1].flatten(), ignore_index=IGNORED)

    def accuracy(model: nn.Module) -> float:
        return float((model(tokens).argmax(-1)[asked] == targets[asked]).float().mean())

    result = trained(model, batch, loss, accuracy, TrainConfig(steps, learning_rate))
    return {"accuracy": result["score"], "curve": result["curve"]}


def recall_rows(step: int, seed: int, num_pairs: int, *, tokens: int = RECALL_TOKENS) -> tuple[Tensor, Tensor]:
    """So many tokens of recall with `num_pairs` pairs a row, see `mqar_batch`."""
    length = TOKENS_PER_PAIR * num_pairs
    return mqar_batch(
        step, seed=seed, batch_size=tokens // length, length=length, num_pairs=num_pairs, vocab_size=RECALL_VOCAB
    )
