"""PEFT's LoRA on every family and every causal card: train, save the adapter, load it, merge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.models.families import CAUSAL, FAMILIES, build, tokens

pytestmark = [
    pytest.mark.slow,  # every causal mechanism is trained
    pytest.mark.filterwarnings(  # PEFT 0.21 asks transformers 5.23 by an old name
        "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
    ),
]
EVERY = pytest.mark.parametrize("variant", [*FAMILIES, *(f"card-{name}" for name in CAUSAL), "hybrid"])


def adapted(model: Any) -> Any:
    """With adapters of every projection, those of the mixers among them; the second factor drawn, not zeros."""
    torch.manual_seed(0)
    lora = get_peft_model(model, LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return lora


def fit(lora: Any, rows: Tensor, steps: int = 6) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(steps):
        loss = lora(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@EVERY
def test_an_adapter_is_trained_saved_loaded_and_merged(variant: str, tmp_path: Path) -> None:
    model, rows = build(variant, dtype=torch.float32), tokens(4, 7)
    model.save_pretrained(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = model(rows).logits.detach()
    lora = adapted(model).train()
    frozen = {name for name, parameter in lora.named_parameters() if not parameter.requires_grad}
    assert all("lora_" in name for name, _ in lora.named_parameters() if name not in frozen)
    mixers = {type(m).__name__ for layer in model.model.layers for m in layer.attn.modules() if hasattr(m, "lora_A")}
    assert mixers == {"Linear"}  # PEFT's
    losses = fit(lora, rows)
    assert losses[-1] < losses[0]
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, f"{name} has no part in the loss"

    lora.eval()
    expected, greedy = lora(rows).logits.detach(), generated(lora, rows)
    assert not torch.allclose(expected, plain, atol=1e-2)
    base = {
        name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items() if "lora_" not in name
    }
    assert all(torch.equal(base[name], tensor) for name, tensor in before.items())

    lora.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(again(rows).logits, expected)
    merged = again.merge_and_unload()
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(rows).logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(generated(merged, rows), greedy)
    merged.save_pretrained(tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(whole(rows).logits, merged(rows).logits)


def generated(model: nn.Module, rows: Tensor) -> Tensor:
    """Greedy, with the caches of the adapted mixers, fixed ones too."""
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found: Tensor = model.generate(input_ids=rows, **options)  # type: ignore[operator]
    assert torch.equal(model.generate(input_ids=rows, use_cache=False, **options), found)  # type: ignore[operator]
    assert torch.equal(model.generate(input_ids=rows, cache_implementation="static", **options), found)  # type: ignore[operator]
    return found


@pytest.mark.parametrize("variant", ["gla", "card-mla"])
def test_adapters_train_with_gradient_checkpointing(variant: str) -> None:
    """The same gradients; the embedding's output must ask for them, as PEFT sees to."""
    rows, gradients = tokens(3, 6), []
    for checkpointing in (False, True):
        lora = adapted(build(variant)).train()
        if checkpointing:
            lora.enable_input_require_grads()
            lora.base_model.model.activation_checkpointing_enable()
        lora(rows, labels=rows, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in lora.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
