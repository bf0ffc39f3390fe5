"""What layers are made of refuses what it cannot take, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attensor.nn import (
    LearnedFeatures,
    LocalConcentration,
    RandomFeatures,
    RelativePositionBias,
    StateCache,
    TokenCache,
    grid_rotary_embedding,
    pad,
    rotary_embedding,
    token_positions,
    unpad,
)
from attensor.nn.lightning import decay_slopes
from attensor.ops.feature_maps import PositiveRandomFeatures, random_projection

CPU = torch.device("cpu")
B, T, H, D = 2, 7, 3, 4
X = torch.randn(B, T, H, D)
POSITIONS = torch.arange(T)
PACKED, CU, INDEX = unpad(X, torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * T]))

# (function, legal arguments, argument, values that are refused)
CASES: list[tuple[Callable[..., Any], dict[str, Any], str, list[Any]]] = [
    (rotary_embedding, {"x": X, "positions": POSITIONS}, "x",
     [X.numpy(), None, X[0], X[..., :3], X[..., :0], X.long(), X.to(torch.complex64), X.to(torch.float8_e5m2)]),
    (rotary_embedding, {"x": X, "positions": POSITIONS}, "positions",
     [[0, 1], None, POSITIONS.double(), POSITIONS > 2, POSITIONS[:1], POSITIONS[:1, None], torch.tensor(0),
      POSITIONS[None], POSITIONS.expand(3, T), POSITIONS.to("meta")]),
    (rotary_embedding, {"x": X, "positions": POSITIONS}, "base",
     [0.0, -1.0, float("nan"), float("inf"), "a", None, True]),
    (grid_rotary_embedding, {"x": X, "space": (1, T)}, "x", [None, X[0], X[..., :2], X[..., :3], X.long()]),
    (grid_rotary_embedding, {"x": X, "space": (1, T)}, "space", [(2, 3), (-1, -T), (T,), 7, (1.0, 7.0), None]),
    (grid_rotary_embedding, {"x": X, "space": (1, T)}, "base", [0.0, float("nan"), "a"]),
    (token_positions, {"tokens": T, "device": CPU}, "tokens", [-1, 2.5, "7", True, None]),
    (token_positions, {"tokens": T, "device": CPU}, "offset", [-1, 2.5, "7", True, None]),
    (token_positions, {"tokens": T, "device": CPU}, "first", [[1], torch.ones(2), torch.ones(2, 2).long()]),
    (token_positions, {"tokens": T, "device": CPU}, "cu_seqlens",
     [[0, T], torch.tensor([0.0, T]), torch.tensor([1, T]), torch.tensor([0, T + 1]), torch.tensor([[0, T]])]),
    (unpad, {"x": X, "attention_mask": torch.ones(B, T)}, "attention_mask",
     [None, [[1]], torch.ones(T, B), torch.ones(B, T, device="meta"), torch.ones(B, T, dtype=torch.complex64)]),
    (unpad, {"x": X, "attention_mask": torch.ones(B, T)}, "x", [None, X.numpy(), X.to_sparse()]),
    (pad, {"packed": PACKED, "index": INDEX, "batch_size": B, "length": T}, "packed", [None, PACKED[0], X]),
    (pad, {"packed": PACKED, "index": INDEX, "batch_size": B, "length": T}, "index",
     [None, INDEX.double(), INDEX[1:], INDEX + 5, INDEX - 5, INDEX.to("meta")]),
    (pad, {"packed": PACKED, "index": INDEX, "batch_size": B, "length": T}, "batch_size", [-1, 2.5, None, True]),
    (pad, {"packed": PACKED, "index": INDEX, "batch_size": B, "length": T}, "length", [-1, 2.5, None, "7"]),
    (RelativePositionBias, {"num_heads": H, "block_size": 3}, "block_size", [0, -1, 2.5, True, "3", None]),
    (RelativePositionBias(H, 3), {"height": 3, "width": 2}, "height", [4, -1, 2.5, True, None]),
    (LocalConcentration, {"hidden_size": 6}, "kernel_size", [4, 0, 3.0, None, True]),
    (RandomFeatures, {"key_dim": D}, "num_features", [0, -1, 2.5, "4", True]),
    (RandomFeatures, {"key_dim": D}, "normalize", [1, "no", None]),
    (LearnedFeatures, {"key_dim": D}, "key_dim", [0, 2.5, None]),
    (random_projection, {"num_heads": 1, "num_features": 4, "head_dim": D}, "num_heads", [0, -1, 1.0, True, None]),
    (random_projection, {"num_heads": 1, "num_features": 4, "head_dim": D}, "generator", ["abc", 1]),
    (PositiveRandomFeatures, {"projection": X[:1, 0]}, "projection",
     [None, X, X[0, 0], X[0].long(), X[0].to(torch.float8_e5m2), X[0, :0]]),
    (PositiveRandomFeatures, {"projection": X[:1, 0]}, "scale", [float("nan"), float("inf"), "1", True]),
    (PositiveRandomFeatures, {"projection": X[:1, 0]}, "eps", [-1.0, float("nan"), None]),
    (PositiveRandomFeatures, {"projection": X[:1, 0]}, "normalize", [1, "yes", None]),
    (decay_slopes, {"num_heads": H, "device": CPU}, "num_heads", [0, 2.5, None]),
    (decay_slopes, {"num_heads": H, "device": CPU}, "slopes", ["none", None, 1]),
    (TokenCache, {"batch_size": B, "sizes": {"keys": (H, D)}}, "batch_size", [-1, 2.5, None, True]),
    (TokenCache, {"batch_size": B, "sizes": {"keys": (H, D)}}, "windows", [0, -1, 2.5, "3"]),
    (TokenCache, {"batch_size": B, "sizes": {"keys": (H, D)}}, "dtype", [torch.int32, "float32"]),
    (StateCache, {"batch_size": B, "sizes": {"state": (H, D, D)}}, "sizes", [None, 3, [4]]),
    (StateCache(B, {"state": (H, D, D)}).crop, {"length": 0}, "length", [-1, 1, 2.5, None, "0"]),
    (StateCache(B, {"state": (H, D, D)}).reorder, {"index": torch.tensor([1, 0])}, "index",
     [None, [1, 0], torch.ones(2), torch.tensor([0, 2]), torch.tensor([[0]])]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "legal", "argument", "wrong"),
    CASES,
    ids=[f"{getattr(f, '__qualname__', type(f).__name__)}-{argument}" for f, _, argument, _ in CASES],
)
def test_a_wrong_argument_is_refused_by_name(
    function: Callable[..., Any], legal: dict[str, Any], argument: str, wrong: list[Any]
) -> None:
    function(**legal)
    for value in wrong:
        with pytest.raises(
            (TypeError, ValueError), match=rf"^\w+[.\w]*: .*{argument}.*(must|is on|of a multiple) "
        ) as e:
            function(**legal | {argument: value})
        assert "got " in str(e.value) or "is on" in str(e.value)


@pytest.mark.parametrize("wrong", [X[..., :3], X.long(), X.to("meta"), X[0, 0, 0], None], ids=lambda x: str(type(x)))
def test_features_of_other_inputs_are_refused(wrong: Tensor) -> None:
    for features in (PositiveRandomFeatures(X[:1, 0]), RandomFeatures(D)):
        with pytest.raises((TypeError, ValueError), match=r"^PositiveRandomFeatures: .*(got|is on) "):
            features(wrong)
