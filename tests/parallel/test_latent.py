"""Latent attention over gloo ranks: the whole layer's numbers, its part of the cache, and no call but those stated."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attensor import parallel
from attensor.errors import RankError, ShapeError
from attensor.nn import GroupedLatentAttention, LatentAttention, Slicing
from attensor.parallel import Place, Ranks, ShardedLatentAttention, TokenShardedLatentAttention, split_state_dict
from tests.parallel import scenes
from tests.parallel.scenes import HEADS, HIDDEN, PIECES, ROWS, SIZES, SLICINGS, inputs, layer

RANK, ROTARY = SIZES["kv_rank"], SIZES["rotary_dim"]
SCENES = {"2 ranks, 2 slices": (2, 2), "4 ranks, 2 slices": (4, 2), "4 ranks, 4 slices": (4, 4)}
WHOLE = {"2 ranks, 1 slice": (2, 1), "4 ranks, 1 slice": (4, 1)}
TOKENS = {"2 ranks, tokens": (2, 1), "4 ranks, tokens": (4, 1)}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Tensor]]:
    """What every rank of the scenes found."""
    return [scenes.loaded(one) for one in parallel.on_ranks(scenes.all_scenes, 4, timeout=900.0)]


def of(found: list[dict[str, Tensor]], scene: str) -> list[dict[str, Tensor]]:
    """By rank, and by call."""
    begin = f"{scene}: "
    return [{k.removeprefix(begin): x for k, x in one.items() if k.startswith(begin)} for one in found]


@pytest.mark.parametrize("scene", [*SCENES, *WHOLE, *TOKENS])
def test_every_rank_has_the_outputs_of_the_whole_layer(scene: str, found: list[dict[str, Tensor]]) -> None:
    """Prompts, steps and further pieces; the whole layer cuts its latents in one process, or not at all."""
    groups = {**SCENES, **WHOLE, **TOKENS}[scene][1]
    expected = scenes.run(layer(SLICINGS[groups] if groups > 1 else None))
    for one in of(found, scene):
        for name in PIECES:
            torch.testing.assert_close(one[name], expected[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize(("scene", "slicing"), [("2 ranks, padded", SLICINGS[2]), ("2 ranks, tokens, padded", None)])
def test_padding_and_other_rows_are_those_of_the_whole_layer(
    scene: str, slicing: Slicing | None, found: list[dict[str, Tensor]]
) -> None:
    expected = scenes.run(layer(slicing), padding=scenes.PADDING)
    for one in of(found, scene):
        for name in PIECES:
            is_real = torch.arange(PIECES[name]) >= (scenes.PADDING[:, None] if name == "prompt" else 0)
            torch.testing.assert_close(one[name][is_real.expand(ROWS, -1)], expected[name][is_real.expand(ROWS, -1)])


def test_two_ranks_add_what_one_process_adds(found: list[dict[str, Tensor]]) -> None:
    """Bit for bit: the same terms, of the same shapes, by the same thread."""
    parts = [ShardedLatentAttention(layer(SLICINGS[2]), Ranks(rank, 2), 2) for rank in range(2)]
    caches = [part.new_cache(ROWS) for part in parts]
    for name in ("prompt", "step"):
        terms = [part(inputs()[name], cache=cache) for part, cache in zip(parts, caches, strict=True)]
        for one in of(found, "2 ranks, 2 slices"):
            assert torch.equal(one[name], terms[0] + terms[1])


@pytest.mark.parametrize("when", ["decode", "always"])
@pytest.mark.parametrize("norms", [None, (1.7, 2.6)], ids=["whole norm", "norms"])
def test_terms_add_up_to_the_layer_with_slices(when: Any, norms: tuple[float, ...] | None) -> None:
    """Also with the norm of the whole latent, which every rank can take, and where prompts are sliced, too."""
    whole = layer(Slicing(2, norms, when=when))
    parts = [ShardedLatentAttention(whole, Ranks(rank, 4), 2) for rank in range(4)]
    caches = [one.new_cache(ROWS) for one in (whole, *parts)]
    for name in ("prompt", "step"):
        expected = whole(inputs()[name], cache=caches[0])
        found = sum(part(inputs()[name], cache=cache) for part, cache in zip(parts, caches[1:], strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_prompt_is_exact_and_a_step_is_not(found: list[dict[str, Tensor]]) -> None:
    """Logits of a model that was sharded in place, against the model whose latents nobody cuts."""
    exact, cut = scenes.logits(scenes.model()), scenes.logits(scenes.model(SLICINGS[2]))
    for one in of(found, "model"):
        torch.testing.assert_close(one["prompt"], exact["prompt"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one["step"], cut["step"], rtol=1e-12, atol=1e-12)
        assert (one["step"] - exact["step"]).abs().max() > 1e-4


@pytest.mark.parametrize("scene", [*SCENES, *WHOLE])
def test_calls_and_bytes_are_the_formula(scene: str, found: list[dict[str, Tensor]]) -> None:
    """A step: one all-reduce of B C numbers; a piece behind others: an all-gather of what is held, B T R in all."""
    ranks, groups = {**SCENES, **WHOLE}[scene]
    held = 0
    for name, tokens in PIECES.items():
        numbers = ROWS * tokens * HIDDEN
        expected = [[0, numbers, 8 * numbers]]
        if groups > 1 and held and tokens > 1:
            share = -(-held // (ranks // groups))
            sent = ROWS * share * RANK // groups
            expected = [[1, sent, 8 * sent], *expected]
        for one in of(found, scene):
            assert one[f"calls, {name}"].tolist() == expected
        held += tokens


@pytest.mark.parametrize("scene", TOKENS)
def test_by_tokens_a_call_is_one_gather_and_a_cache_every_kth_token(scene: str, found: list[dict[str, Tensor]]) -> None:
    """B T H (V + 1) numbers of each rank; what all ranks hold, taken in turn, is what the whole layer holds."""
    ranks = TOKENS[scene][0]
    for name, tokens in PIECES.items():
        numbers = ROWS * tokens * HEADS * (SIZES["value_dim"] + 1)
        for one in of(found, scene):
            assert one[f"calls, {name}"].tolist() == [[1, numbers, 8 * numbers]]
    whole = scenes.run(layer())["held"]
    for place, one in enumerate(of(found, scene)):
        own = whole[:, place % ranks :: ranks]
        torch.testing.assert_close(one["held"], own)
        assert int(one["nbytes"]) == own.nbytes


def test_packed_rows_and_models_by_tokens_are_those_of_one_process(found: list[dict[str, Tensor]]) -> None:
    expected = {"packed": scenes.packed(layer()), **scenes.logits(scenes.model())}
    for rows, model in zip(of(found, "4 ranks, tokens, packed"), of(found, "model by tokens"), strict=True):
        torch.testing.assert_close({"packed": rows["out"], **model}, expected, rtol=1e-12, atol=1e-12)


def test_a_cache_of_some_tokens_is_cropped_and_taken_up_at_the_length_of_all() -> None:
    """Beams and assisted decoding go back; files hold what one rank has."""
    part, x = TokenShardedLatentAttention(layer(), Ranks(2, 3)), torch.randn(ROWS, 11, HIDDEN, dtype=torch.float64)
    kept = torch.cat([part.kv_a_layernorm(part.kv_a_proj_with_mqa(x)[..., :RANK]), x[..., :ROTARY]], -1)[:, :, None]
    cache = part.new_cache(ROWS, max_length=11)
    for piece in kept.split([4, 1, 6], 1):
        held = cache.append(latent=piece)["latent"]
    assert cache.length == 11
    torch.testing.assert_close(held, kept[:, 2::3])
    other = part.new_cache(1)
    other.load_state_dict(cache.state_dict())
    for length, count in ((11, 3), (8, 2), (2, 0)):
        other.crop(length)
        assert (other.length, other.state_dict()["latent"].shape[1]) == (length, count)
    torch.testing.assert_close(other.append(latent=kept[:, 2:9])["latent"], kept[:, 2:9:3])
    with pytest.raises(ValueError, match="decode without a static cache"):
        cache.make_static(20)


@pytest.mark.parametrize("scene", [*SCENES, *WHOLE])
def test_a_cache_holds_a_slice_and_the_rotary_key(scene: str, found: list[dict[str, Tensor]]) -> None:
    groups = {**SCENES, **WHOLE}[scene][1]
    for one in of(found, scene):
        assert int(one["nbytes"]) == 8 * ROWS * sum(PIECES.values()) * (RANK // groups + ROTARY)


def test_published_sizes_keep_320_of_576_numbers() -> None:
    """DeepSeek's latent of 512 and key of 64."""
    whole = LatentAttention(32, 4, kv_rank=512, nope_dim=8, rotary_dim=64, slicing=Slicing(2, (2.0, 2.0)))
    part, x = ShardedLatentAttention(whole, Ranks(0, 2), 2), torch.randn(1, 5, 32)
    caches = [one.new_cache(1) for one in (part, whole)]
    with torch.no_grad():
        for one, cache in zip((part, whole), caches, strict=True):
            one(x, cache=cache)
    assert [cache.nbytes for cache in caches] == [4 * 5 * 320, 4 * 5 * 576]


def test_caches_are_the_columns_of_the_whole_one_and_can_be_handed_over(found: list[dict[str, Tensor]]) -> None:
    """A prompt elsewhere, steps here: the same as a prompt here."""
    whole = layer(SLICINGS[2])
    cache = whole.new_cache(ROWS)
    with torch.no_grad():
        whole(inputs()["prompt"], cache=cache)
    parts = [ShardedLatentAttention(whole, Ranks(rank, 2), 2) for rank in range(2)]
    own = [part.hand_over(cache) for part in parts]
    for part, one in zip(parts, own, strict=True):
        fresh = part.new_cache(ROWS)
        part(inputs()["prompt"], cache=fresh)
        torch.testing.assert_close(one.state_dict(), fresh.state_dict())
    out = sum(part(inputs()["step"], cache=one) for part, one in zip(parts, own, strict=True))
    torch.testing.assert_close(out, of(found, "2 ranks, 2 slices")[0]["step"])
    with pytest.raises(ShapeError, match=r"cache must hold latent \[B, T, 1, 20\]"):
        parts[0].hand_over(own[0])


def test_weights_are_cut_by_heads() -> None:
    """Four ranks and two slices: whose rows and columns, told by numbers that say where they were."""
    state = layer(SLICINGS[2]).state_dict()
    rows = SIZES["nope_dim"] + SIZES["value_dim"]
    marks = torch.arange(HEADS)[:, None, None] * 1000 + torch.arange(rows)[:, None] * 20 + torch.arange(RANK)
    state["kv_b_proj.weight"] = marks.flatten(0, 1).double()
    owned = {}
    for rank in range(4):
        found = split_state_dict(state, Place(rank, 4, 2), HEADS)
        prompt, sliced = (found[f"{name}.weight"].unflatten(0, (-1, rows)) for name in ("kv_b_proj", "kv_slice"))
        owned[rank] = [(t[:, 0, 0] // 1000).long().tolist() for t in (prompt, sliced)]
        assert torch.equal(prompt, marks[owned[rank][0]].double())  # keys and values of the same heads
        half = slice(RANK // 2 * (rank // 2), RANK // 2 * (rank // 2 + 1))
        assert torch.equal(sliced, marks[owned[rank][1]][..., half].double())
        by_head = state["o_proj.weight"].unflatten(1, (HEADS, -1))
        assert torch.equal(found["o_proj.weight"], by_head[:, owned[rank][1]].flatten(1))
        assert found["kv_a_proj_with_mqa.weight"] is state["kv_a_proj_with_mqa.weight"]
    assert owned == {
        0: [[0, 1], [0, 1, 2, 3]],
        1: [[4, 5], [4, 5, 6, 7]],
        2: [[2, 3], [0, 1, 2, 3]],
        3: [[6, 7], [4, 5, 6, 7]],
    }


def test_a_rank_can_load_its_part_alone() -> None:
    with torch.device("meta"):
        empty = LatentAttention(HIDDEN, HEADS, slicing=SLICINGS[2], **SIZES)
    part = ShardedLatentAttention(empty, Ranks(1, 4), 2)
    whole = layer(SLICINGS[2])
    part.load_state_dict(split_state_dict(whole.state_dict(), Place(1, 4, 2), HEADS), assign=True)
    expected = ShardedLatentAttention(whole, Ranks(1, 4), 2)
    assert torch.equal(part(inputs()["prompt"]), expected(inputs()["prompt"]))
    shares = {"q_b_proj": 1 / 2, "kv_b_proj": 1 / 4, "kv_slice": 1 / 4, "o_proj": 1 / 2}
    for name, share in shares.items():
        of_whole = getattr(whole, "kv_b_proj" if name == "kv_slice" else name).weight.numel()
        assert getattr(part, name).weight.numel() == share * of_whole


def test_a_late_rank_is_named_with_the_call(found: list[dict[str, Tensor]]) -> None:
    said = bytes(found[0]["late"].tolist()).decode()
    assert said.startswith("parallel: rank 0 of 2 waited in vain for rank 1 in all_reduce of [3, 7, 24] float64: ")


def test_a_rank_that_ends_is_named_by_the_others() -> None:
    with pytest.raises(RankError, match=r"rank 0 of 2 waited in vain for rank 1 in all_reduce of \[3, 1, 24\]") as said:
        parallel.on_ranks(scenes.leave, 2)
    assert "rank 1 of 2 ended with exit code 3" in str(said.value)


def refused(**changed: Any) -> None:
    ranks, groups = changed.pop("ranks", 2), changed.pop("groups", 2)
    ShardedLatentAttention(changed.pop("layer", None) or layer(**changed), Ranks(0, ranks), groups)


def adapted() -> LatentAttention:
    made = layer(SLICINGS[2])
    made.kv_b_proj = nn.Sequential(made.kv_b_proj)  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "2 groups need a layer with slicing of 2 groups and a softmax each, got slicing=None"),
        ({"slicing": SLICINGS[4]}, "2 groups need a layer with slicing of 2 groups"),
        ({"slicing": Slicing(2, softmax=False)}, "2 groups need a layer with slicing of 2 groups"),
        ({"slicing": SLICINGS[2], "ranks": 3}, "groups must divide the number of ranks, got 2 groups and 3 ranks"),
        ({"groups": 1, "ranks": 3}, "num_heads must be a multiple of the 3 ranks, got 8"),
        ({"layer": GroupedLatentAttention(24, 8)}, "layer must be a whole nn.LatentAttention with one latent"),
        ({"layer": LatentAttention(24, 8, kv_norm=False)}, "must have a norm of its latents .*gqa_to_latent makes one"),
        ({"layer": adapted()}, "projections must be plain nn.Linear to be cut, got kv_b_proj: Sequential; merge"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refused(**changed)


def test_other_refusals() -> None:
    with pytest.raises(RuntimeError, match="there is no process group; start with `torchrun"):
        parallel.shard(layer())
    with pytest.raises(ValueError, match=r"model must have an nn\.LatentAttention inside, got none"):
        parallel.shard_layers(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="rank must be at least 0 and below 2, got 2"):
        Ranks(2, 2)
    with pytest.raises(RuntimeError, match="there is no process group"):
        parallel.shard(layer(), by="tokens")
    with pytest.raises(ValueError, match=r"by must be .*tokens.*, got 'rows'"):
        parallel.shard(layer(), by="rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='by="tokens" shares whole latents, got groups=2'):
        parallel.shard(layer(), groups=2, by="tokens")
    for part in (ShardedLatentAttention(layer(), Ranks(0, 2)), TokenShardedLatentAttention(layer(), Ranks(0, 2))):
        with pytest.raises(RuntimeError, match=r"hidden_states asks for gradients, .* torch\.no_grad"):
            part(inputs()["prompt"].requires_grad_())
    with pytest.raises(RankError, match="rank 0 of 2 is by itself, and cannot gather"):
        part.peers.gather(torch.zeros(1))


@pytest.mark.slow
def test_no_rank_outlives_who_asked(tmp_path: Path, start: Callable[..., Any]) -> None:
    program = f"""
from attensor import parallel
from tests.parallel import scenes
if __name__ == "__main__":
    parallel.on_ranks(scenes.sleep, 2, {str(tmp_path)!r})
"""
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = start([sys.executable, str(tmp_path / "program.py")], env=environment)
    deadline = time.monotonic() + 60
    while not all((tmp_path / str(rank)).exists() and (tmp_path / str(rank)).read_text() for rank in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pids = [int((tmp_path / str(rank)).read_text()) for rank in range(2)]
    process.send_signal(signal.SIGKILL)
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
