"""PLDR-LLM: the authors' numbers, published sizes, weights of both layouts, fixed operators, and the acyclic loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from attensor.errors import ShapeError
from attensor.models.language.convert import pldr_config_from_official, pldr_from_official
from attensor.models.language.pldr import (
    PLDRConfig,
    PLDRForCausalLM,
    dag_loss,
    deductive_outputs,
    fix_operators,
    given_operators,
)
from tests.golden.drawn import golden, listing, summaries, weighed, weights
from tests.golden.record_pldr import PROMPT, VOCABULARY, rows_of_tokens
from tests.models.families import build, tokens

THEIRS = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_reslayerA": 3, "num_denseA": 2, "A_dff": 10, "reference_rope": True,
    "custom_G_type": None, "layer_norm_eps": 1e-6, "pad_token_id": 0,
}  # fmt: skip
NUMBERS = golden("pldr-llm")


def theirs(**changed: Any) -> PLDRForCausalLM:
    """Our model with the weights that theirs had."""
    model = PLDRForCausalLM(PLDRConfig(**pldr_config_from_official({**THEIRS, **changed}))).double()
    model.load_state_dict(pldr_from_official(weights(listing("pldr-llm"))))
    return model.eval()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_logits_and_all_gradients_are_the_authors() -> None:
    model = theirs()
    logits = model(rows_of_tokens(), use_cache=False).logits
    close(logits, NUMBERS["logits"])
    weighed(logits).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    ours = {name: next(iter(pldr_from_official({name: torch.zeros(())}))) for name in listing("pldr-llm")}
    assert sorted(ours.values()) == sorted(gradients)
    close(summaries({name: gradients[ours[name]] for name in ours}), NUMBERS["dp"])


def test_what_it_concludes_is_what_the_authors_code_does() -> None:
    found = deductive_outputs(theirs(), rows_of_tokens())
    for i, one in enumerate(found):
        for name, x in one._asdict().items():
            close(x[0], NUMBERS[f"{name}.{i}"])


@torch.no_grad()
def test_both_caches_are_the_authors() -> None:
    """With keys, values and A, and with G too: a prompt, and single tokens behind it."""
    model, rows = theirs(), rows_of_tokens()
    for keeps, name in (("tensor", "cached.kv"), ("operator", "cached.kvg")):
        for layer in model.model.layers:
            layer.attn.keeps = keeps
        cache, found = model.new_cache(), []
        for piece in (rows[:, :PROMPT], *rows[:, PROMPT:].split(1, 1)):
            found.append(model(piece, past_key_values=cache).logits)
        close(torch.cat(found, 1), NUMBERS[name])


@torch.no_grad()
def test_the_operators_of_a_prompt_stand_for_the_net() -> None:
    model, rows = theirs(), rows_of_tokens()
    held = [one.operator for one in deductive_outputs(model, rows[:, :PROMPT])]
    with given_operators(model, held):
        close(model(rows, use_cache=False).logits, NUMBERS["cached.kvg"])
    close(model(rows, use_cache=False).logits, NUMBERS["logits"])
    with (
        pytest.raises(ValueError, match="operators must be one for each of 2 layers, got 1"),
        given_operators(model, held[:1]),
    ):
        pass


def halves_from_neighbours(state: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Weights of v51 for v52: all that lies along a head's channels in the order 0 2 4 .. 1 3 5 .., G's net too."""
    order = torch.arange(head_dim).view(-1, 2).T.flatten()

    def along(x: Tensor, *axes: int) -> Tensor:
        for axis in axes:
            x = x.index_select(axis, order)
        return x

    turned = dict(state)
    for name, x in state.items():
        last = name.rpartition(".")[2]
        if ".attn." not in name:
            continue
        if ".q_proj." in name or ".k_proj." in name:
            turned[name] = along(x.unflatten(0, (-1, head_dim)), 1).flatten(0, 1)
        elif last in ("gate_weight", "up_weight"):
            turned[name] = along(x, 1)
        elif last in ("down_weight", "down_bias") or ".norm." in name:
            turned[name] = along(x, 0)
        elif x.dim() == 3:
            turned[name] = along(x, 1, 2)
    return turned


def test_v52_is_v51_with_its_channels_in_another_order() -> None:
    """The authors' numbers of v51, by rotations of halves: G acts in the rotated basis, and its net turns with it."""
    v51, v52 = theirs(), theirs(reference_rope=False)
    assert [layer.attn.interleaved for layer in v52.model.layers] == [False, False]
    assert (v52(rows_of_tokens(), use_cache=False).logits - NUMBERS["logits"]).abs().max() > 1e-4
    v52.load_state_dict(halves_from_neighbours(v51.state_dict(), 16))
    close(v52(rows_of_tokens(), use_cache=False).logits, NUMBERS["logits"])
    found = deductive_outputs(v52, rows_of_tokens())
    order = torch.arange(16).view(-1, 2).T.flatten()
    for i, one in enumerate(found):
        close(one.operator[0], NUMBERS[f"operator.{i}"][:, order][..., order])


@torch.no_grad()
def test_a_cache_may_keep_the_first_row_s_operator_for_all() -> None:
    """A prompt by each row's own, what follows by the first's: as the first row's operators given to all."""
    model, rows = theirs(cache_first_G=True), torch.cat([rows_of_tokens(), rows_of_tokens().flip(1)])
    prompt, behind = rows[:, :PROMPT], rows[:, PROMPT : PROMPT + 1]
    cache, plain = model.new_cache(), theirs()
    begun = model(prompt, past_key_values=cache).logits
    close(begun, plain(prompt, use_cache=False).logits)
    found = model(behind, past_key_values=cache).logits
    twin = plain.new_cache()
    plain(prompt, past_key_values=twin)
    with given_operators(plain, [one.operator[0] for one in deductive_outputs(plain, prompt)]):
        close(found, plain(behind, past_key_values=twin).logits)
    own = theirs().new_cache()
    plain(prompt, past_key_values=own)
    assert (found - plain(behind, past_key_values=own).logits)[1:].abs().max() > 1e-6
    with pytest.raises(ValueError, match='cache_first_operator must be False with operator "previous-blocks"'):
        PLDRForCausalLM(PLDRConfig(**{**model.config.to_dict(), "operator": "previous-blocks"}))


def test_published_sizes() -> None:
    with torch.device("meta"):
        counts = {
            name: AutoModelForCausalLM.from_config(PLDRConfig.from_preset(name)).num_parameters()
            for name in PLDRConfig.presets
        }
    layer = 8 * 2 * (3 * 64 * 170 + 2 * 170 + 64) + 8 * 2 * 64 + 2 * 64 + 5 * 14 * 64**2  # what a predefined G saves
    assert counts == {
        "v51-110M": 109_689_362,
        "v51G-106M": 109_689_362 - 5 * layer,
        "v52": 109_689_362,
        "DAG": 109_689_362,
    }
    assert PLDRConfig() == PLDRConfig.from_preset("v51-110M")
    assert PLDRConfig.from_preset("v51-110M").operator == "previous-blocks"


def test_a_predefined_operator_comes_with_the_port_s_weights(tmp_path: Path) -> None:
    """Of three in its buffer the last; it survives saving, in every dtype of the rest."""
    config = PLDRConfig(**pldr_config_from_official({**THEIRS, "custom_G_type": "external"}))
    assert (config.operator, config.custom) == ("fixed", "external")
    kept = {
        n: x
        for n, x in weights(listing("pldr-llm")).items()
        if not any(p in n for p in ("plgatt", "reslayer", "mha1.layernorm1"))
    }
    held = torch.stack(
        [torch.full((3, 1, 4, 16, 16), float(i)) + torch.arange(3.0)[:, None, None, None, None] for i in range(2)]
    )
    port = {**kept, "decoder.past_G_values": held, "decoder.past_G_values_status": torch.ones(2, dtype=torch.bool)}
    model = PLDRForCausalLM(config)
    assert torch.equal(model.model.layers[0].attn.fixed_operator, torch.eye(16).repeat(4, 1, 1))
    model.load_state_dict(pldr_from_official(port))
    assert [float(layer.attn.fixed_operator.mean()) for layer in model.model.layers] == [2.0, 3.0]
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(rows_of_tokens()).logits, model(rows_of_tokens()).logits)
    apart = pldr_from_official({f"module.{name}": x for name, x in kept.items()}, operators=list(held[:, 1, 0]))
    assert torch.equal(apart["model.layers.1.attn.fixed_operator"], held[1, 1, 0])


def test_other_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 of 1 names are not of this layout, the first is 'decoder.x'"):
        pldr_from_official({"decoder.x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"rope_theta must be 10000\.0"):
        pldr_config_from_official({"rope_theta": 5e5})


@pytest.mark.parametrize("custom", ["identity", "random"])
def test_a_model_with_a_fixed_operator_is_whole(custom: str, tmp_path: Path) -> None:
    """It loads without NaN, decodes and takes tokens back, and its matrices are no parameters."""
    model = build("pldr", custom=custom, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(x.isfinite().all() for x in (*again.parameters(), *again.buffers()))
    rows, options = tokens(2, 5), {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(again(rows).logits, model(rows).logits)
    assert torch.equal(again.generate(rows, **options), model.generate(rows, use_cache=False, **options))
    assert not again._is_stateful
    assert not any("operator" in name for name, _ in again.named_parameters())


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_with_the_paper_s_operator(num_beams: int) -> None:
    """Greedy and with beams, a batch padded on the left as its rows alone: G is of each row's own prompt."""
    model, rows = build("pldr", operator="sequence"), tokens(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "num_beams": num_beams}
    together = model.generate(torch.where(mask.bool(), rows, 0), attention_mask=mask, **options)[:, 6:]
    for row, kept, new in zip(rows, mask, together):
        prompt = row[kept.bool()][None]
        assert torch.equal(model.generate(prompt, **options)[0, prompt.shape[1] :], new)
        held = [one.operator for one in deductive_outputs(model, prompt)]
        with given_operators(model, held):
            assert torch.equal(model.generate(prompt, use_cache=False, **options)[0, prompt.shape[1] :], new)


def test_a_net_gives_way_to_what_it_concluded(tmp_path: Path) -> None:
    model, rows = build("pldr", operator="sequence", dtype=torch.float32), tokens(1, 6)
    expected, held = model(rows, use_cache=False).logits, deductive_outputs(model, rows)
    with pytest.raises(ShapeError, match="custom must be"):
        fix_operators(model, [one.operator for one in held])
    fix_operators(model, [one.operator[0] for one in held])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(rows).logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(again(rows).logits, model(rows).logits)
    with pytest.raises(ValueError, match="operator is fixed"):
        deductive_outputs(again, rows)


def test_the_acyclic_loss_is_the_authors() -> None:
    model = theirs()
    for layer in model.model.layers:
        layer.attn.records = True
    model(rows_of_tokens(), use_cache=False)
    ones = torch.eye(3).tolist()
    found = torch.stack([dag_loss(model, one) for one in ones])
    torch.testing.assert_close(found, NUMBERS["dag"], rtol=1e-5, atol=1e-5)  # theirs is in float32
    close(dag_loss(model, (0.5, 0.0, 2.0)), 0.5 * found[0] + 2 * found[2])
    assert dag_loss(model, (0.0, 0.0, 0.0)) == 0
    dag_loss(model).backward()
    assert model.model.layers[0].attn.mix.grad.abs().max() > 0


def test_the_acyclic_loss_is_part_of_a_training_loss_alone() -> None:
    model, rows = build("pldr", dag_coefficients=[0.05, 0.1, 0.2]), tokens(3, 8)
    plain = model(rows, labels=rows).loss
    model.train()
    trained = model(rows, labels=rows).loss
    close(trained, plain + dag_loss(model, (0.05, 0.1, 0.2)).to(trained.dtype), 1e-6)
    with torch.no_grad():
        model(rows)
    for found, message in (
        ((1.0, 1.0), "three numbers"),
        ((-1.0, 0.0, 0.0), "three numbers"),
        ((1.0, 1.0, 1.0), "no gradient"),
    ):
        with pytest.raises(ValueError, match=message):
            dag_loss(model, found)
    with pytest.raises(ValueError, match="set records = True"):
        dag_loss(build("pldr"))


def test_a_matrix_without_cycles_costs_nothing() -> None:
    from attensor.models.language.pldr import _cycles

    triangle = torch.randn(4, 7, 7, dtype=torch.float64).triu(1)
    close(_cycles(triangle), torch.zeros(4, dtype=torch.float64))
    assert (_cycles(triangle + triangle.mT) > 0.1).all()


def test_a_block_is_its_formula() -> None:
    """Norms follow the branches, biases everywhere, and no norm stands before the logits."""
    model, rows = build("pldr", num_hidden_layers=1), tokens(2, 7)
    w, layer = model.state_dict(), model.model.layers[0]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (12,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    x = norm(12**0.5 * w["model.embed_tokens.weight"][rows], "model.embed_norm")
    x = norm(x + layer.attn(x), "model.layers.0.input_layernorm")
    gate, up = (
        F.linear(x, w[f"model.layers.0.mlp.{n}_proj.weight"], w[f"model.layers.0.mlp.{n}_proj.bias"])
        for n in ("gate", "up")
    )
    inside = F.linear(
        F.silu(gate) * up, w["model.layers.0.mlp.down_proj.weight"], w["model.layers.0.mlp.down_proj.bias"]
    )
    x = norm(x + inside, "model.layers.0.post_attention_layernorm")
    close(model(rows).logits, F.linear(x, w["lm_head.weight"], w["lm_head.bias"]))
