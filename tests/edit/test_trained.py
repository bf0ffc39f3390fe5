"""A Llama that has learned something: what a mixture of heads costs it without tuning, beside no attention at all."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from attensor import edit
from attensor.data.text import TextData, open_text
from attensor.edit.controls import controls
from attensor.edit.court import Court
from attensor.edit.journal import Journal
from attensor.edit.swap import layer_for
from attensor.edit.task import NextToken, byte_tokens
from attensor.sites import find_sites

LENGTH = 96


def trained(data: TextData, steps: int) -> nn.Module:
    """A Llama of transformers after some steps on Python's standard library."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=256, **sizes, **ends))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 20) * min(1.0, 2 * (1 - step / steps))
        tokens = data.batch(step, seed=0, batch_size=12, length=LENGTH)[:, :LENGTH]
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.slow
def test_three_quarters_of_the_heads_cost_little_without_tuning_and_the_way_back_is_bit_equal() -> None:
    data = open_text("stdlib", minimum_bytes=LENGTH + 1)
    model = trained(data, steps=300)
    task = NextToken(data, byte_tokens, length=LENGTH, held_out=96)
    found = find_sites(model)
    court = Court(model, task, found, Journal())

    def worse(arm: str, make: Any, **options: Any) -> tuple[float, float]:
        """Nats for each byte, and half the width of the 95 % interval over passages."""
        layers = {site.name: layer_for(make, site, i, 2, options) for i, site in enumerate(found)}
        score = court.compared(court.units("carried", arm, layers))
        return score.worse * math.log(2), score.interval * math.log(2)

    none, _ = worse("none", controls()["no attention"])
    assert none > 0.1  # the model uses its attention
    moh, interval = worse("moh", "moh", num_active=0.75)
    assert moh + interval <= 0.05
    state = copy.deepcopy(model.state_dict())
    edit.swap(model, to="moh", num_active=0.75)
    torch.testing.assert_close(task.score(model), court.measured("carried: moh, 0,1"))
    edit.restore(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(task.score(model), court.base)
