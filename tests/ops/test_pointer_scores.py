"""`pointer_scores` against sums written out, and what it keeps in memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attensor.errors import ShapeError
from attensor.ops import pointer_scores, pointer_scores_reference


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", [pointer_scores, pointer_scores_reference])
def test_each_number_is_the_sum_of_the_paper(form) -> None:
    queries, keys, weight = drawn(2, 3, 4), drawn(2, 5, 4, seed=1), drawn(4, seed=2)
    found = form(queries, keys, weight=weight)
    for b in range(2):
        for i in range(3):
            for j in range(5):
                terms = zip(weight.tolist(), queries[b, i].tolist(), keys[b, j].tolist(), strict=True)
                assert float(found[b, i, j]) == pytest.approx(sum(w * math.tanh(q + k) for w, q, k in terms), abs=1e-12)


@pytest.mark.parametrize("form", [pointer_scores, pointer_scores_reference])
def test_the_bilinear_form_is_torch_s_own(form) -> None:
    for queries in (3, 9):
        q, k, weight = drawn(2, queries, 4), drawn(2, 5, 6, seed=1), drawn(4, 6, seed=2)
        expected = torch.nn.functional.bilinear(
            q[:, :, None].expand(-1, -1, 5, -1).contiguous(),
            k[:, None].expand(-1, queries, -1, -1).contiguous(),
            weight[None],
        )[..., 0]
        torch.testing.assert_close(form(q, k, kind="bilinear", weight=weight), expected)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, (tuple, list)) else [found]:
            self.numbers = max(self.numbers, x.numel() if isinstance(x, torch.Tensor) else 0)
        return found


def test_no_tensor_has_a_number_for_each_pair_and_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    module = importlib.import_module("attensor.ops.pointer_scores")
    monkeypatch.setitem(module._TILE, "cpu", 2**12)
    queries, keys, weight = drawn(3, 60, 16), drawn(3, 40, 16, seed=1), drawn(1, 16, seed=2)
    for chunk in (None, 5):
        with Largest() as forward:
            found = module._run(queries, keys, weight, chunk)
        with Largest() as backward:
            module._run_backward(queries, keys, weight, torch.ones_like(found), chunk)
        assert forward.numbers == found.numel()
        assert backward.numbers <= found.numel()


def test_half_precision_sums_in_full() -> None:
    """512 terms of 1 with a small one: bfloat16 itself would lose it."""
    queries, keys = torch.full((1, 1, 512), 9.0), torch.zeros(1, 2, 512)
    weight = torch.ones(512)
    weight[0] = 2.0
    found = pointer_scores(queries.bfloat16(), keys.bfloat16(), weight=weight.bfloat16())
    assert found.dtype == torch.bfloat16
    assert found.float().tolist() == [[[512.0, 512.0]]]  # 513 rounded once


def test_what_is_refused() -> None:
    queries, keys = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    for arguments, options, error, words in (
        ((queries[0], keys), {}, ShapeError, "queries must be"),
        ((queries, keys[:1]), {}, ShapeError, "same batch size"),
        ((queries, keys[..., :3]), {}, ShapeError, "same channels"),
        ((queries, keys), {"weight": torch.ones(4, 4)}, ShapeError, r"weight must be \[4\]"),
        ((queries, keys), {"weight": torch.ones(4), "kind": "bilinear"}, ShapeError, r"weight must be \[4, 4\]"),
        ((queries, keys.double()), {}, TypeError, "share one floating dtype"),
        ((queries, keys), {"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
        ((queries, keys), {"chunk_size": 2, "kind": "bilinear"}, ValueError, "leave it out"),
        ((queries, keys), {"kind": "dot"}, ValueError, "kind must be one of"),
    ):
        with pytest.raises(error, match=words):
            pointer_scores(*arguments, **options)
