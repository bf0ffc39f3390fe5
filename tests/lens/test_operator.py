"""`attensor lens operator`: readings of matrices that are known, and the command from a folder to a page."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from attensor import cli
from attensor.lens.operator import _reading, read_operators
from attensor.models.language.pldr import PLDRConfig, PLDRForCausalLM

SIZES = {"hidden_size": 12, "intermediate_size": 9, "num_hidden_layers": 2, "num_attention_heads": 3}
IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def model(**options: object) -> PLDRForCausalLM:
    torch.manual_seed(0)
    made = PLDRForCausalLM(PLDRConfig(vocab_size=256, units=2, net_size=5, **SIZES, **IDS, **options))
    return made.eval()


def test_numbers_of_known_matrices() -> None:
    """Two heads over three prompts: one differs by a known step, the other not at all and has rank 2."""
    first = torch.diag(torch.tensor([10.0, 1.0, 0.1], dtype=torch.float64))
    steps = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None] * 0.3
    second = torch.diag(torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64))
    operators = torch.stack([first + steps, second.expand(3, 3, 3)], 1)
    rows = torch.randn(3, 1, 1, 3, dtype=torch.float64).expand(3, 2, 3, 3)  # equal rows
    found = _reading(operators, rows).heads
    assert found[0].log10_determinant == pytest.approx(0, abs=1e-9)
    assert found[0].rank == 3
    assert found[0].singular_values == pytest.approx((10, 1, 0.1))
    # entries of all pairs differ by 0.3, 0.3 and 0.6
    assert found[0].rmse == pytest.approx(math.sqrt((0.09 + 0.09 + 0.36) / 3))
    assert found[0].spread == pytest.approx(math.sqrt(2 * 9 * 0.09 / 3) / math.sqrt(101.01))
    assert found[1].log10_determinant == -math.inf
    assert (found[1].rank, found[1].tensor_rank) == (2, 1)
    assert found[1].rmse == found[1].spread == 0
    assert found[1].row_share == pytest.approx(0, abs=1e-12)
    assert found[1].norm == pytest.approx(math.sqrt(13))


def test_every_layer_and_head_is_read() -> None:
    made, prompts = model(), [torch.arange(5), torch.arange(9)]
    found = read_operators(made, prompts)
    assert [len(layer.heads) for layer in found] == [3, 3]
    assert all(0.1 < head.row_share <= 1 and head.spread > 0 for layer in found for head in layer.heads)
    same = read_operators(made, [torch.arange(5)] * 2)
    assert max(head.spread for layer in same for head in layer.heads) < 1e-6
    fixed = read_operators(model(custom="identity"), prompts)
    assert {head.rank for layer in fixed for head in layer.heads} == {4}
    assert all(math.isnan(head.spread) for layer in fixed for head in layer.heads)
    with pytest.raises(ValueError, match="one or more, each with a token"):
        read_operators(made, [])
    with pytest.raises(ValueError, match="must be a PLDRForCausalLM, got Linear"):
        read_operators(torch.nn.Linear(2, 2), prompts)


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model().save_pretrained(tmp_path / "made")
    (tmp_path / "text").write_text("abcdefg" * 9)
    page = tmp_path / "page.html"
    options = ["--model", str(tmp_path / "made"), "--text", str(tmp_path / "text"), "--length", "16"]
    assert cli.main(["lens", "operator", *options, "--out", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "log10 |det G|" in shown
    assert "Over 3 prompts G differs from its mean by" in shown
    text = page.read_text("utf-8")
    assert text.count("data:image/png") == 2 * 3
    assert "Singular values of G" in text
    for more, message in (
        (["--length", "99"], "fewer than --length 99"),
        (["--out", str(tmp_path / "none" / "page.html")], "there is no folder"),
        (["--out", "page.txt"], "--out must end in .html"),
        (["--prompts", "0"], "--prompts must be at least 1"),
    ):
        assert cli.main(["lens", "operator", *options, *more]) == 2
        assert message in capsys.readouterr().err
