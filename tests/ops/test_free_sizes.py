"""Sizes that a graph leaves open: whole numbers in blocks, and programs for ONNX, which has none of our kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attensor.nn import NeighborhoodAttention, SoftmaxAttention
from attensor.ops._free_sizes import coordinates, divided, gathered, whole

FREE = torch.export.Dim.DYNAMIC


def test_blocks_are_counted_up() -> None:
    assert [whole(length, 7) for length in (0, 1, 6, 7, 8, 15)] == [0, 7, 7, 7, 14, 21]
    numbers = torch.arange(40)
    quotient, rest = divided(numbers, 7)
    assert list(zip(quotient.tolist(), rest.tolist())) == [divmod(n, 7) for n in range(40)]
    planes, rows, columns = coordinates((2, 3, 5), torch.device("cpu"))
    assert torch.equal(15 * planes + 5 * rows + columns, torch.arange(30))
    assert (planes.max(), rows.max(), columns.max()) == (1, 2, 4)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_what_is_not_there_is_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([[1, 0, 1], [1, 1, 0]]).to(dtype)
    found = gathered(x, 1, torch.tensor([2, 2, 0, 1]), torch.tensor([True, False, True, False]))
    assert found.dtype == dtype
    assert found.tolist() == torch.tensor([[1, 0, 1, 0], [0, 0, 1, 0]]).to(dtype).tolist()


LAYERS = {
    "softmax": (lambda: SoftmaxAttention(12, 3, is_causal=False), (7,), (5,)),
    "neighborhood": (lambda: NeighborhoodAttention(12, 3, window_size=3, relative_bias=True), (6, 8), (5, 9)),
    "dilated": (lambda: NeighborhoodAttention(12, 3, window_size=3, dilation=2), (6, 8), (7, 9)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_a_program_for_onnx_is_made_of_operations_of_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And serves every size: of a dilated neighbourhood those too that the dilation does not divide."""
    build, made_for, other = LAYERS[name]
    torch.manual_seed(0)
    layer: nn.Module = build().double().eval()
    free = dict.fromkeys(range(1 + len(made_for)), FREE)
    x = torch.randn(2, *made_for, 12, dtype=torch.float64)

    def program() -> torch.export.ExportedProgram:
        with torch.no_grad():
            return torch.export.export(layer, (x,), dynamic_shapes=(free,), strict=False)

    def kernels(one: torch.export.ExportedProgram) -> set[str]:
        return {str(node.target) for node in one.graph.nodes if str(node.target).startswith("attensor.")}

    assert kernels(program())
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    for_onnx = program()
    assert kernels(for_onnx) == set()
    for images in (x, torch.randn(3, *other, 12, dtype=torch.float64)):
        torch.testing.assert_close(for_onnx.module()(images), layer(images), rtol=1e-10, atol=1e-12)
