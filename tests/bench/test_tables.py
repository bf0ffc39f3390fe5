"""`attensor bench`: contestants that compute the same thing, tables that say so, files that keep them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from attensor.bench import neighborhood
from attensor.bench.peers import natten_na2d
from attensor.bench.table import Table
from attensor.ops import neighborhood_attention


def test_neighborhood_measures_both_passes_and_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def peer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, kernel_size: int) -> torch.Tensor:
        assert not q.requires_grad, "NATTEN has no backward pass on a CPU"
        return neighborhood.gather_attention(q, k, v, kernel_size)

    monkeypatch.setattr(neighborhood, "natten_na2d", lambda: peer)
    setting = neighborhood.Setting(side=9, window_size=5, num_heads=2, head_dim=16)
    neighborhood.run(Console(quiet=True), settings=[setting], windows=(3, 7), rounds=1, save=True, folder=tmp_path)
    written = next(tmp_path.glob("*-neighborhood-cpu.md")).read_text()
    for name in ("ours", "gather", "dense SDPA, masked"):
        assert f"| {name} | forward |" in written
        assert f"| {name} | forward + backward |" in written
    assert "| natten (FlexAttention) | forward |" in written
    assert "| natten (FlexAttention) | forward + backward |" not in written
    assert written.count("\n| 3 |") == written.count("\n| 7 |") == 1


@pytest.mark.parametrize("window_size", [3, 5])
def test_the_gather_computes_neighborhood_attention(window_size: int) -> None:
    q, k, v = torch.randn(3, 1, 7, 7, 2, 16).unbind()
    ours = neighborhood_attention(q, k, v, window_size=window_size)
    torch.testing.assert_close(neighborhood.gather_attention(q, k, v, window_size), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_natten_computes_the_same() -> None:
    peer = natten_na2d()
    if peer is None:
        pytest.skip("natten is not installed")
    q, k, v = torch.randn(3, 1, 7, 7, 2, 16).unbind()
    ours = neighborhood_attention(q, k, v, window_size=5)
    torch.testing.assert_close(peer(q, k, v, kernel_size=5), ours, rtol=1e-4, atol=1e-5)


def test_an_absent_peer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "natten" else pytest.fail(name))
    assert natten_na2d() is None


def test_a_table_is_the_same_in_markdown_and_on_screen() -> None:
    table = Table("title", ("name", "value"), [("first", "1.0x")], note="a note")
    assert table.markdown() == "## title\n\n| name | value |\n| --- | ---: |\n| first | 1.0x |\n\na note\n"
    console = Console(width=60)
    with console.capture() as captured:
        console.print(table.rich())
    assert all(text in captured.get() for text in ("title", "first", "1.0x", "a note"))
