"""What holds for every language model in transformers' conventions: caches, padding, generation, files, training."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DataCollatorWithFlattening, DynamicCache

from attensor.errors import ShapeError
from attensor.models.language.stack import StackConfig
from tests.models import families
from tests.models.families import CAUSAL, VARIANTS, VOCAB, build, config, tokens

# stacks of other cards than these are told apart by their mixers alone, which have laws of their own
_QUICK = {*families.FAMILIES, "hybrid", "card-softmax", "card-gla", "card-sliding-window", "card-mla"}
EVERY = pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.slow] * (name not in _QUICK)) for name in VARIANTS]
)
FAMILIES = pytest.mark.parametrize("variant", [*families.FAMILIES, "card-softmax", "card-sliding-window"])
MASKS = {
    "left": [[0, 0, 0, 1, 1, 1, 1], [1] * 7, [0, 1, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 1, 1, 0, 0], [1] * 7, [1, 0, 0, 0, 0, 0, 0]],
    "inner": [[0, 1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 1, 0]],
}


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def alone(model: Any, rows: Tensor, mask: Tensor) -> list[Tensor]:
    """Logits of the real tokens of each row, run by itself and without a cache."""
    return [model(row[kept.bool()][None], use_cache=False).logits[0] for row, kept in zip(rows, mask)]


@EVERY
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("side", MASKS)
def test_padding_changes_nothing(variant: str, use_cache: bool, side: str) -> None:
    """Outputs and gradients of real tokens are those of the rows alone, and what stands at padding is never read."""
    model, rows, mask = build(variant), tokens(3, 7), torch.tensor(MASKS[side])
    expected = torch.cat(alone(model, rows, mask))
    got = model(torch.where(mask.bool(), rows, 0), attention_mask=mask, use_cache=use_cache).logits
    close(got[mask.bool()], expected)
    at_padding = got[~mask.bool()]
    nothing = torch.zeros_like(at_padding) if model.lm_head.bias is None else model.lm_head.bias.expand_as(at_padding)
    assert torch.equal(at_padding, nothing)
    other = model(torch.where(mask.bool(), rows, VOCAB - 1), attention_mask=mask.bool(), use_cache=use_cache).logits
    assert torch.equal(other, got)

    weight = torch.linspace(-1, 1, expected.numel(), dtype=expected.dtype).view_as(expected)
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad((got[mask.bool()] * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
        strict=True,
    ):
        close(a, b)


@EVERY
@pytest.mark.parametrize("side", MASKS)
def test_decoding_after_a_padded_prefill_continues_each_row(variant: str, side: str) -> None:
    model, rows, mask, more = build(variant), tokens(3, 7), torch.tensor(MASKS[side]), tokens(3, 4, seed=5)
    cache = model(rows, attention_mask=mask).past_key_values
    got = []
    for step in range(more.shape[1]):
        mask = torch.cat([mask, mask.new_ones(3, 1)], 1)
        got.append(model(more[:, step : step + 1], attention_mask=mask, past_key_values=cache).logits)
    assert cache.get_seq_length() == 11
    whole = torch.cat([rows, more], 1)
    for row, expected in zip(torch.cat(got, 1), alone(model, whole, mask)):
        close(row, expected[-4:])


@FAMILIES
def test_any_cut_of_a_prefill_gives_the_same(variant: str) -> None:
    """Left padding may reach over several pieces, and a piece may be one token."""
    model, rows, mask = build(variant), tokens(2, 9), torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [1] * 9])
    expected = model(rows, attention_mask=mask, use_cache=False).logits
    for cuts in ([3, 9], [1, 2, 5, 9], list(range(1, 10))):
        cache, start, got = model.new_cache(), 0, []
        for end in cuts:
            out = model(rows[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
            got.append(out.logits)
            start = end
        close(torch.cat(got, 1)[mask.bool()], expected[mask.bool()])


@FAMILIES
def test_a_row_may_begin_in_a_later_piece_in_any_way(variant: str) -> None:
    """As long as a row holds padding alone its state is empty, and what follows may be padded inside or right too."""
    model, rows, new = build(variant), tokens(2, 6), tokens(2, 1, seed=4)
    mask = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 1, 1, 1, 1, 1]])
    cache = model(rows[:, :2], attention_mask=mask[:, :2]).past_key_values
    got = model(rows[:, 2:], attention_mask=mask, past_key_values=cache).logits
    mask = torch.cat([mask, mask.new_ones(2, 1)], 1)
    last = model(new, attention_mask=mask, past_key_values=cache).logits
    first, second = alone(model, torch.cat([rows, new], 1), mask)
    close(got[0, [0, 2]], first[:2])
    close(got[1], second[1:5])
    close(last[:, 0], torch.stack([first[-1], second[-1]]))


@FAMILIES
def test_packed_rows_equal_rows_alone(variant: str) -> None:
    model, row = build(variant), tokens(1, 11)
    packed = model(row, cu_seqlens=torch.tensor([0, 4, 4, 11]), use_cache=False).logits
    close(packed, torch.cat([model(row[:, :4]).logits, model(row[:, 4:]).logits], 1))
    named = model(row, cu_seq_lens_q=torch.tensor([0, 4, 4, 11], dtype=torch.int32), max_length_q=7)
    assert torch.equal(named.logits, packed)
    restarted = torch.tensor([[*range(4), *range(7)]])
    assert torch.equal(model(row, position_ids=restarted).logits, packed)
    close(model(row, position_ids=torch.arange(11)[None]).logits, model(row).logits)
    assert named.past_key_values is None
    with pytest.raises(ValueError, match="cu_seqlens excludes attention_mask and a cache"):
        model(row, cu_seqlens=torch.tensor([0, 11]), use_cache=True)


@FAMILIES
def test_padding_inside_what_a_cache_holds_is_refused(variant: str) -> None:
    model, rows = build(variant), tokens(2, 3)
    cache = model(rows).past_key_values
    for mask in ([[1, 1, 1, 1, 1], [1, 1, 1, 0, 1]], [[1, 1], [0, 1]]):
        with pytest.raises(ValueError, match=r"padding after real tokens in rows \[1\]"):
            model(rows[:, :2], attention_mask=torch.tensor(mask), past_key_values=cache)
    with pytest.raises(ShapeError, match=r"attention_mask must be \[2, 2\] or \[2, 5\], got \[2, 4\]"):
        model(rows[:, :2], attention_mask=torch.ones(2, 4), past_key_values=cache)


@FAMILIES
def test_caches_of_others_are_refused_with_the_repair(variant: str) -> None:
    with pytest.raises(TypeError, match=r"make one with model.new_cache\(\)"):
        build(variant)(tokens(1, 3), past_key_values=DynamicCache())


@EVERY
def test_generation_with_and_without_cache_and_in_pieces(variant: str) -> None:
    model, rows = build(variant), tokens(3, 5)
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    expected = model.generate(rows, use_cache=False, **options)
    assert expected.shape == (3, 14)
    assert len({tuple(row.tolist()) for row in expected[:, 5:]}) > 1
    assert torch.equal(model.generate(rows, **options), expected)
    assert torch.equal(model.generate(rows, prefill_chunk_size=2, **options), expected)
    one = model.generate(rows, return_dict_in_generate=True, **{**options, "max_new_tokens": 4})
    states, real = one.past_key_values, torch.ones(3, 9)
    longer = model.generate(
        one.sequences, attention_mask=real, past_key_values=states, **{**options, "max_new_tokens": 5}
    )
    assert torch.equal(longer, expected)


@EVERY
@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_of_a_left_padded_batch_equals_one_by_one(variant: str, num_beams: int) -> None:
    model, rows = build(variant), tokens(3, 7)
    mask = torch.tensor(MASKS["left"])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "num_beams": num_beams}
    together = model.generate(torch.where(mask.bool(), rows, 0), attention_mask=mask, **options)[:, 7:]
    for row, kept, new in zip(rows, mask, together):
        prompt = row[kept.bool()][None]
        assert torch.equal(model.generate(prompt, **options)[0, prompt.shape[1] :], new)
        assert torch.equal(model.generate(prompt, use_cache=False, **options)[0, prompt.shape[1] :], new)


@FAMILIES
def test_sampling_is_seeded_and_needs_no_cache(variant: str) -> None:
    model, rows = build(variant), tokens(2, 5)
    options = {"max_new_tokens": 7, "do_sample": True, "temperature": 1.3, "top_k": 5, "num_return_sequences": 2}
    drawn = []
    for use_cache in (True, True, False):
        torch.manual_seed(3)
        drawn.append(model.generate(rows, use_cache=use_cache, eos_token_id=None, **options))
    assert drawn[0].shape == (4, 12)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@FAMILIES
def test_generation_from_embeddings(variant: str) -> None:
    model, rows = build(variant), tokens(2, 5)
    embedded = model.get_input_embeddings()(rows)
    close(model(inputs_embeds=embedded).logits, model(rows).logits)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(inputs_embeds=embedded, **options), model.generate(rows, **options)[:, 5:])
    for arguments in ({}, {"input_ids": rows, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**arguments)


def test_what_transformers_asks_of_a_cache_layer() -> None:
    layer = build("card-softmax")(tokens(2, 5)).past_key_values.layers[0]
    assert (layer.get_seq_length(), layer.get_max_length(), layer.get_mask_sizes(3)) == (5, -1, (8, 0))
    held = layer.held
    layer.offload()
    layer.prefetch()
    assert layer.held is held
    with pytest.raises(NotImplementedError, match="use open"):
        layer.update(torch.zeros(1), torch.zeros(1))


@FAMILIES
def test_a_cache_can_be_reordered_repeated_selected_and_reset(variant: str) -> None:
    model, rows, new = build(variant), tokens(3, 5), tokens(4, 1, seed=7)
    cache = model(rows).past_key_values
    cache.reorder_cache(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([True, False, True, True, False, True]))
    expected = model(torch.cat([rows[[2, 2, 0, 0]], new], 1)).logits[:, -1:]
    close(model(new, past_key_values=cache).logits, expected)
    cache.crop(0)
    with pytest.raises(ValueError, match=r"length must be in \[0, 6\], got 8"):
        cache.crop(2)
    cache.reset()
    assert cache.get_seq_length() == 0
    close(model(rows, past_key_values=cache).logits, model(rows).logits)


@EVERY
def test_a_crop_takes_tokens_back_or_changes_nothing(variant: str) -> None:
    """After a left-padded prefill: what can be cropped goes on as if the tokens had never come, the rest refuses."""
    model, rows, mask, new = build(variant), tokens(3, 7), torch.tensor(MASKS["left"]), tokens(3, 2, seed=7)
    cache = model(rows, attention_mask=mask).past_key_values
    assert cache.is_croppable == (not model._is_stateful)
    longer = torch.cat([mask, mask.new_ones(3, 2)], 1)
    if cache.is_croppable:
        model(tokens(3, 2, seed=8), attention_mask=longer, past_key_values=cache)
        cache.crop(-2)
    else:
        lengths = [layer.get_seq_length() for layer in cache.layers]
        with pytest.raises(ValueError, match=r"cannot be (unwound|restored)"):
            cache.crop(-2)
        assert [layer.get_seq_length() for layer in cache.layers] == lengths
    got = model(new, attention_mask=longer, past_key_values=cache).logits
    for row, expected in zip(got, alone(model, torch.cat([rows, new], 1), longer)):
        close(row, expected[-2:])


@EVERY
def test_assisted_generation_where_tokens_can_be_taken_back(variant: str) -> None:
    model, helper, rows = build(variant), build(variant, seed=1), tokens(1, 5)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "suppress_tokens": [0]}
    if model._is_stateful:
        with pytest.raises(ValueError, match="not supported with stateful models"):
            model.generate(rows, assistant_model=helper, **options)
        return
    assert torch.equal(model.generate(rows, assistant_model=helper, **options), model.generate(rows, **options))


@FAMILIES
def test_states_carry_gradients_from_piece_to_piece(variant: str) -> None:
    """Back-propagation through a cache reaches the tokens before."""
    model, rows = build(variant), tokens(2, 6)
    whole, cache = model(rows).logits[:, 4:], model(rows[:, :4]).past_key_values
    pieces = model(rows[:, 4:], past_key_values=cache).logits
    weight = torch.linspace(-1, 1, whole.numel(), dtype=whole.dtype).view_as(whole)
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad((whole * weight).sum(), parameters),
        torch.autograd.grad((pieces * weight).sum(), parameters),
        strict=True,
    ):
        close(a, b)


@EVERY
@pytest.mark.parametrize("tied", [False, True])
def test_files_bring_everything_back(variant: str, tied: bool, tmp_path: Path) -> None:
    model = build(variant, tie_word_embeddings=tied, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.to_diff_dict() == AutoConfig.from_pretrained(tmp_path).to_diff_dict()
    expected = {**model.state_dict(), **dict(model.named_buffers())}
    got = {**again.state_dict(), **dict(again.named_buffers())}
    assert expected.keys() == got.keys()
    assert all(buffer.isfinite().all() for buffer in again.buffers())
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied
    rows = tokens(2, 5)
    assert torch.equal(again(rows).logits, model(rows).logits)
    body = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(body(rows).last_hidden_state, model.model(rows).last_hidden_state)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.generate(rows, max_new_tokens=3, eos_token_id=None).shape == (2, 8)
    exact = copy.deepcopy(half).float()(rows).logits  # with the same rounded weights
    assert (half(rows).logits.float() - exact).norm() <= 6e-2 * exact.norm()  # measured: 0.9e-2 to 3.5e-2


@EVERY
def test_fresh_weights_do_not_depend_on_the_device_they_were_planned_on(variant: str) -> None:
    """Built on meta and materialised, everything is filled: no parameter is left as found memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(variant))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)  # no such token
    model.init_weights()
    assert all(tensor.isfinite().all() for tensor in (*model.parameters(), *model.buffers()))
    assert model(tokens(1, 3)).logits.isfinite().all()


@FAMILIES
def test_loss_is_the_mean_over_shifted_labels(variant: str) -> None:
    model, rows = build(variant), tokens(3, 6)
    labels = rows.clone()
    labels[0, :4] = -100
    out = model(rows, labels=labels)
    logits, targets = out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(logits.float(), targets)
    torch.testing.assert_close(out.loss, expected)
    assert model(rows, labels=labels, return_dict=False)[0] == out.loss


@FAMILIES
@pytest.mark.parametrize(
    "options",
    [{}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True, "return_position_ids": False}],
    ids=str,
)
def test_rows_flattened_by_transformers_collator_stay_apart(variant: str, options: dict[str, Any]) -> None:
    model, parts = build(variant), [tokens(1, n, seed=n)[0] for n in (5, 2, 7)]
    batch = DataCollatorWithFlattening(**options)([{"input_ids": part} for part in parts])
    out = model(**batch)
    close(out.logits, torch.cat([model(part[None]).logits for part in parts], 1))
    counted = [(model(part[None], labels=part[None]).loss, len(part) - 1) for part in parts]
    torch.testing.assert_close(out.loss, sum(loss * n for loss, n in counted) / 11)


@FAMILIES
def test_logits_to_keep(variant: str) -> None:
    model, rows = build(variant), tokens(2, 6)
    logits = model(rows).logits
    close(model(rows, logits_to_keep=2).logits, logits[:, -2:])
    close(model(rows, logits_to_keep=torch.tensor([0, 3])).logits, logits[:, [0, 3]])


@EVERY
def test_gradient_checkpointing_changes_no_gradient(variant: str) -> None:
    model, rows = build(variant).train(), tokens(3, 7)
    mask = torch.tensor(MASKS["inner"])
    gradients, calls = [], []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        if checkpointing:  # the second name until 5.23
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model.zero_grad()
        out = model(rows, attention_mask=mask, labels=rows.masked_fill(mask == 0, -100), use_cache=checkpointing)
        assert out.past_key_values is None
        out.loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert len(calls) == 1 + 2
    with pytest.raises(ValueError, match="gradient checkpointing would run the layers twice"):
        model(rows, past_key_values=model.new_cache())
    assert model.generate(rows, max_new_tokens=2, eos_token_id=None).shape == (3, 9)


@FAMILIES
def test_training_keeps_no_states_unless_asked(variant: str) -> None:
    model = build(variant).train()
    assert model(tokens(1, 3)).past_key_values is None
    assert model(tokens(1, 3), use_cache=True).past_key_values.get_seq_length() == 3
    assert model.eval()(tokens(1, 3)).past_key_values.get_seq_length() == 3
    assert build(variant, use_cache=False)(tokens(1, 3)).past_key_values is None


@FAMILIES
def test_vocabulary_can_grow(variant: str) -> None:
    model, rows = build(variant), tokens(2, 5)
    before = model(rows).logits
    model.resize_token_embeddings(VOCAB + 4, mean_resizing=False)
    after = model(torch.cat([rows, rows.new_full((2, 1), VOCAB + 3)], 1)).logits
    assert after.shape == (2, 6, VOCAB + 4)
    close(after[:, :5, :VOCAB], before)
    assert model.config.vocab_size == VOCAB + 4


@FAMILIES
def test_hidden_states_of_every_block(variant: str) -> None:
    model, rows, mask = build(variant), tokens(3, 7), torch.tensor(MASKS["inner"])
    out = model(rows, attention_mask=mask, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    close(model.lm_head(out.hidden_states[-1]), out.logits)
    for states, packed in zip(
        out.hidden_states, model(rows, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    ):
        close(states, packed)


@EVERY
def test_a_few_steps_of_training_lower_the_loss(variant: str) -> None:
    model, rows = build(variant, dtype=torch.float32).train(), tokens(8, 9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(12):
        loss = model(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@FAMILIES
def test_no_state_stays_in_the_model(variant: str) -> None:
    """Two sequences decoded in turns are two sequences: everything remembered is in the caches."""
    model, rows = build(variant), tokens(2, 6)
    caches, got = [model.new_cache(), model.new_cache()], ([], [])
    for step in range(6):
        for row in range(2):
            logits = model(rows[row : row + 1, step : step + 1], past_key_values=caches[row]).logits
            got[row].append(logits)
    close(torch.cat([torch.cat(row, 1) for row in got]), model(rows, use_cache=False).logits)


def _run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_only_the_model_files_import_transformers() -> None:
    _run("import sys, attensor.models.language.convert\nassert 'transformers' not in sys.modules\n")


@pytest.mark.slow
def test_without_transformers_the_extra_is_named() -> None:
    modules = sorted({family.__module__.rpartition(".")[2] for _, family, _ in families.FAMILIES.values()})
    out = _run(
        "import sys\n"
        "sys.modules['transformers'] = None\n"
        "from attensor.errors import MissingExtraError\n"
        f"for name in {modules}:\n"
        "    try:\n"
        "        __import__('attensor.models.language.' + name)\n"
        "    except MissingExtraError as error:\n"
        "        print(error)\n"
    )
    assert out.count('needs transformers, which is not installed: pip install "attensor[hf]"') == len(modules)


def test_layers_are_named_in_full_or_repeat() -> None:
    assert config("hybrid").mechanisms == ["softmax", "gla", "sliding-window", "softmax"]
    model = build("hybrid")
    assert [type(layer.attn).__name__ for layer in model.model.layers] == [
        "SoftmaxAttention",
        "GatedLinearAttention",
        "SlidingWindowAttention",
        "SoftmaxAttention",
    ]
    assert model.model.layers[2].attn.window_size == 3
    assert [layer.attn.num_kv_heads for layer in model.model.layers] == [3, 3, 3, 1]
    assert StackConfig(num_hidden_layers=2).mechanisms == ["softmax"] * 2
    assert StackConfig(layers="2*gla+softmax", num_hidden_layers=4).mechanisms == ["gla", "gla", "softmax", "gla"]
    assert len(CAUSAL) >= 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["gla"] * 3}, "layers has 3 mechanisms, but num_hidden_layers is 2; name 1 to 2"),
        ({"layers": ["gla"], "mixer_options": {"softmax": {}}}, "softmax, which is neither a mechanism of the stack"),
        ({"layers": ["gla"], "mixer_options": {"2": {}}}, "nor a layer from 0 to 1"),
        ({"layers": ["glaa"]}, "no mechanism is called 'glaa'.*Did you mean 'gla'"),
        ({"layers": ["axial"]}, "'axial' is no causal mechanism of sequences"),
    ],
    ids=str,
)
def test_impossible_stacks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_config(StackConfig(**{**families.SIZES, **options}))
