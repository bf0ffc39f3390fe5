"""Edits that train, measure or rebuild layers, layers over several processes, and looks into models: legal calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from tests.fuzz.calls import need
from tests.fuzz.operator_rules import NOTHING
from tests.fuzz.rows import Row, row

__all__ = ["TRANSFERS"]

Arguments = dict[str, Any]
SOFTMAX = "torch.nn.Sequential(nn.SoftmaxAttention(12, 3), nn.SoftmaxAttention(12, 3))"
SWAPPED = f"edit.swap({SOFTMAX}, 'linear')"
LATENT = "torch.nn.Sequential(nn.LatentAttention(12, 4, kv_rank=4, rotary_dim=2, dtype=torch.float64))"
CUT = LATENT.replace("dtype", "slicing=nn.Slicing(2), dtype")
HIDDEN = "torch.randn(2, 5, 12).double()"
PLDR = "pldr.PLDRForCausalLM(pldr.PLDRForCausalLM.tiny)"
SCORE_ROWS = "{'0.': torch.eye(4).double()}"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MODEL = "*instance:Sequential"
PACE = {"steps": ("int?:1", "1", "3"), "minutes": ("float?:above 0", "None", "1.0")}
PACE |= {"learning_rate": ("float:above 0", "1e-3", "1")}
BATCHES = ("*anything", "[{'input': torch.randn(2, 3, 12)}]", "({'input': torch.zeros(1, 4, 12)},) * 4")


def _paced(a: Arguments) -> str | None:
    batches = a["batches"]
    need(isinstance(batches, Iterable) and not isinstance(batches, (str, torch.Tensor)), "batches: no row")
    need(len(list(batches)), "batches: none")
    need(all(isinstance(batch, Mapping) for batch in batches), "batches: no mapping")
    return "minutes: too few" if (a.get("minutes") or 1) < 1e-3 else None


def _shown(a: Arguments) -> str | None:
    """Inputs that a model of latent attention is shown."""
    batches = a.get("batches", ())
    need(isinstance(batches, Iterable) and not isinstance(batches, str), "batches, hidden_states: no row")
    for batch in batches:
        need(isinstance(batch, torch.Tensor) and batch.ndim == 3 and batch.shape[-1] == 12, "batches, hidden_states")
        need(batch.dtype in (torch.float32, torch.float64), "batches, hidden_states: dtype")
    return None


def _moments(a: Arguments) -> str | None:
    unsaid = _shown(a)
    need(len(list(a["batches"])), "batches: none")
    return unsaid


def _rotated(a: Arguments) -> str | None:
    state, moments = a["state_dict"], a.get("moments")
    names = [name.removesuffix("kv_a_proj_with_mqa.weight") for name in state if name.endswith("mqa.weight")]
    for name in names:
        parts = [state.get(f"{name}{part}") for part in ("kv_a_layernorm.weight", "kv_b_proj.weight")]
        need(all(part is not None for part in parts), "state_dict: not whole")
        gain, up = parts
        down = state[f"{name}kv_a_proj_with_mqa.weight"]
        need(gain.ndim == 1 and down.ndim == up.ndim == 2, "state_dict, kv_b_proj: rank")
        need(len(down) >= len(gain) == up.shape[1], "state_dict, kv_b_proj, moments, groups: sizes")
        need(len({x.device for x in (gain, down, up)}) == 1 and not gain.is_meta, "state_dict: devices")
        need(len(gain) and len(gain) % a.get("groups", 2) == 0, "groups: no divisor")
        need(a.get("how", "pca") != "hadamard" or len(gain) in (1, 2, 4, 8), "how, rank: a power of two")
        need(moments is not None or a.get("how", "pca") != "pca", "moments: none")
        if moments is not None:
            need(name in moments, "moments: one less")
            moment = moments[name]
            need(list(moment.shape) == [len(gain)] * 2 and moment.dtype in FLOATS, "moments: size or dtype")
            need(not moment.is_meta and bool(moment.isfinite().all()), "moments: not finite")
    return None if names else "state_dict: no latent layer"


def _tpla(a: Arguments) -> str | None:
    need(4 % a.get("groups", 2) == 0, "groups: no divisor of 4")
    unsaid = _shown(a)
    is_shown = bool(list(a.get("batches", ())))
    need(is_shown or (a.get("how", "pca") != "pca" and a.get("gains", "one") != "fitted"), "batches, how: none")
    return unsaid


def _slicings(a: Arguments) -> str | None:
    slicings = a["slicings"]
    need(isinstance(slicings, Mapping), "slicings: no mapping")
    for name, one in slicings.items():
        need(isinstance(name, str) and type(one).__name__ == "Slicing", "slicings: no Slicing")
    need("model" not in a or all(name == "0." for name in slicings), "slicings: no layer")
    return None


def _converted(a: Arguments) -> str | None:
    rank, rotary, moment = a.get("kv_rank"), a.get("rotary_dim"), a.get("moment")
    need(rotary is None or (0 < rotary <= 12 and rotary % 2 == 0), "rotary_dim: range")
    need(moment is None or list(moment.shape) == [12, 12], "moment: size")
    need(moment is None or (not moment.is_meta and bool(moment.isfinite().all())), "moment: not finite")
    if moment is not None and not torch.equal(moment, moment.mT):
        return "moment: no second moment"
    unusual = (rank or 0) > 10**4 or not 1 < (a.get("rotary") or 10_000) < 1e9
    return "kv_rank, rotary: unusual" if unusual else None


def _saved(a: Arguments) -> str | None:
    need(isinstance(a["swaps"], (list, tuple)), "swaps: no row")
    need(all(isinstance(one, Mapping) and all(map(_is_json, one.values())) for one in a["swaps"]), "swaps: no mapping")
    need(str(a["source"]).startswith("/") and "original" in str(a["source"]), "source: none")
    return None


def _is_json(x: Any) -> bool:
    return x is None or isinstance(x, (str, int, float, list, tuple))


def _folder(a: Arguments) -> None:
    need(
        "attensor-fuzz-" in str(a["folder"]) and not str(a["folder"]).endswith("nothing"),
        "folder: none, no model there",
    )


def _prompts(a: Arguments) -> str | None:
    need(isinstance(a["prompts"], (list, tuple)) and len(a["prompts"]), "prompts: none")
    for prompt in a["prompts"]:
        need(isinstance(prompt, torch.Tensor) and prompt.ndim == 1 and len(prompt), "prompts: no token ids")
        need(prompt.dtype in (torch.int32, torch.int64), "prompts: dtype")
        if prompt.is_meta:
            return "prompts: without numbers"
        need(0 <= int(prompt.min()) <= int(prompt.max()) < 13, "prompts, input_ids: outside the vocabulary")
    return None


def _field(a: Arguments) -> str | None:
    images, function = a["images"], a["function"]
    need(images.ndim == 4 and images.numel() and not images.is_meta, "images: shape")
    found = function(images) if not isinstance(function, type) else None
    need(isinstance(found, torch.Tensor), "function: gives no tensor")
    need(found.ndim == 4 and len(found) == len(images) and found.numel(), "function: gives no map")
    return "images: not finite" if not images.isfinite().all() or images.abs().max() > 1e3 else None


def _indicated(a: Arguments) -> str | None:
    inputs = a["inputs"]
    need(isinstance(inputs, Mapping) and set(inputs) == {"input"}, "inputs, input, keyword: other names")
    x = inputs["input"]
    need(isinstance(x, torch.Tensor) and x.ndim in (3, 4, 5) and x.shape[-1] == 12, "inputs, hidden_states: shape")
    need(x.dtype == torch.float32 and not x.is_meta, "inputs, hidden_states: dtype")
    return NOTHING if not x.numel() else "inputs: space" if x.ndim > 3 else None


def _place(a: Arguments) -> None:
    need(a["ranks"] % a.get("groups", 1) == 0, "groups, ranks: no divisor")
    need(a["rank"] < a["ranks"], "rank, ranks: outside")


def _ranks(a: Arguments) -> None:
    need(a["rank"] < a["size"], "rank, size: outside")


def _split(a: Arguments) -> str | None:
    state, heads = a["state_dict"], a["num_heads"]
    if "kv_a_proj_with_mqa.weight" not in state:
        return "state_dict: no latent layer, all passes"
    need(heads in (2, 4), "num_heads, state_dict: not the layer's")
    need(all(f"{part}.weight" in state for part in ("q_proj", "kv_b_proj", "o_proj")), "state_dict: not whole")
    return "state_dict: another"


def _shard(a: Arguments) -> None:
    need(a.get("group") is None, "group: none of torch.distributed")
    need(a.get("groups") in (None, 1), "groups: more than ranks")


def _texts(a: Arguments) -> str | None:
    texts = a["texts"]
    need(isinstance(texts, (list, tuple)), "texts: no row")
    need(all(isinstance(text, bytes) for text in texts), "texts: no bytes")
    need(len({len(text) for text in texts}) <= 1, "texts: lengths")
    return None


TRANSFERS: dict[str, Row] = {
    "align": row("edit.align", _paced, says=("find_sites",), model=(MODEL, SWAPPED), batches=BATCHES, **PACE),
    "distill": row("edit.distill", _paced, says=("find_sites",), model=(MODEL, SWAPPED), batches=BATCHES, **PACE),
    "transfer": row("transferred", _paced, says=("transfer",), batches=BATCHES, **PACE),
    "latent_moments": row(
        "edit.latent_moments", _moments, says=("LatentAttention",),
        model=(MODEL, LATENT), batches=("*anything", f"[{HIDDEN}]"),
    ),
    "score_moments": row(
        "edit.score_moments", _moments, says=("LatentAttention",),
        model=(MODEL, LATENT), batches=("*anything", f"[{HIDDEN}]"),
    ),
    "input_moments": row(
        "edit.input_moments", _moments, says=("SoftmaxAttention", "find_sites"),
        model=(MODEL, SOFTMAX), batches=("*anything", "[torch.randn(2, 5, 12)]"),
    ),
    "rotate_latent": row(
        "edit.rotate_latent", _rotated, says=("rotation",),
        state_dict=("*mapping:float", f"{LATENT}.state_dict()"), how=("choice:identity|hadamard|pca", "'pca'"),
        groups=("int:1", "1", "2"), moments=("mapping?:float", SCORE_ROWS), seed=("int", "3"),
    ),
    "to_tpla": row(
        "edit.to_tpla", _tpla, says=("rotate_latent", "rotation", "LatentAttention", "latent_moments"),
        model=(MODEL, LATENT), batches=("anything", f"[{HIDDEN}]"), seed=("int", "3"), softmax=("bool", "False"),
        how=("choice:identity|hadamard|pca", "'hadamard'"), gains=("choice:one|reciprocal|fitted", "'one'"),
        groups=("int:1", "1", "2"), when=("choice:decode|always", "'always'"),
    ),
    "apply_slicings": row(
        "edit.apply_slicings", _slicings, model=(MODEL, LATENT), slicings=("*anything", "{'0.': nn.Slicing(2)}")
    ),
    "slicing_options": row(
        "edit.slicing_options", _slicings, slicings=("*anything", "{'model.layers.0.attn.': nn.Slicing(2)}")
    ),
    "gqa_to_latent": row(
        "edit.gqa_to_latent", _converted, says=("LatentAttention", "Frequencies"),
        source=("*instance:SoftmaxAttention", "nn.SoftmaxAttention(12, 3)"), kv_rank=("int?:1", "None", "6", "30"),
        rotary_dim=("int?", "None", "4"), moment=("tensor?:float", "torch.eye(12)"),
        rotary=("float?:above 0", "None", "100.0"),
    ),
    "save_swapped": row(
        "written(edit.save_swapped)", _saved, says=("save_swapped",), weight=0.3,
        model=("*instance:LlamaForCausalLM", "small_llama()"), swaps=("*anything", "[{'to': 'gla'}]", "[]"),
        source=("*path", "original_folder()"),
    ),
    "load_swapped": row(
        "edit.load_swapped", _folder, says=(r"/\S+", r"\."), weight=0.3, folder=("*path", "swapped_folder()")
    ),
    "load_original": row(
        "edit.checkpoint.load_original", _folder, says=(r"/\S+", r"\."), weight=0.3,
        folder=("*path", "original_folder()")
    ),
    "model_indicators": row(
        "attensor.lens.indicators.model_indicators", _indicated,
        says=("SoftmaxAttention", "find_sites", "indicators"),
        model=(MODEL, SOFTMAX), inputs=("*anything", "{'input': torch.randn(2, 4, 12)}"),
    ),
    "read_operators": row(
        "operator.read_operators", _prompts, says=("PLDRModel", "TokenCache"), weight=0.5,
        model=("*instance:PLDRForCausalLM", PLDR), prompts=("*anything", "[torch.arange(5), torch.arange(9)]"),
    ),
    "receptive_field": row(
        "receptive_field.receptive_field", _field, function=("*function", "lambda x: x * 2", "torch.nn.ReLU()"),
        images=("*tensor:float", "torch.randn(2, 3, 6, 5)"), seed=("int", "4"),
    ),
    "find_sites": row("sites.find_sites", model=(MODEL, SOFTMAX)),
    "replace": row(
        "sites.replace", site=("*instance:HouseSite", f"sites.find_sites({SOFTMAX})[0]"),
        layer=("*instance:SoftmaxAttention", "nn.SoftmaxAttention(12, 3)"), says=("AttentionSite", r"\w*Site", "0"),
    ),
    "Place": row(
        "parallel.Place", _place, says=("parallel",), rank=("*int:0", "0", "1"), ranks=("*int:1", "2", "4"),
        groups=("int:1", "1", "2"),
    ),
    "Ranks": row(
        "parallel.Ranks", _ranks, rank=("*int:0", "0", "1"), size=("*int:1", "2", "4"),
        group=("instance?:ProcessGroup", "None"),
    ),
    "split_state_dict": row(
        "parallel.split_state_dict", _split, says=("parallel",), num_heads=("*int:1", "4"),
        state_dict=("*mapping", f"{LATENT}[0].state_dict()"), place=("*instance:Place", "parallel.Place(1, 2)"),
    ),
    "shard": row(
        "alone(parallel.shard)", _shard, says=("parallel", "shard", "Place"),
        layer=("*instance:LatentAttention", f"{LATENT}[0]"),
        group=("anything?", "None"), groups=("int?:1", "None", "1"), by=("choice:heads|tokens", "'tokens'"),
    ),
    "shard_layers": row(
        "alone(parallel.shard_layers)", _shard, says=("parallel", "shard", "shard_layers", "Place"),
        model=(MODEL, LATENT),
        group=("anything?", "None"), groups=("int?:1", "None", "1"), by=("choice:heads|tokens", "'tokens'"),
    ),
    "ShardedLatentAttention": row(
        "parallel.ShardedLatentAttention", _shard, says=("parallel", "Place"),
        layer=("*instance:LatentAttention", f"{CUT}[0]"),
        ranks=("*instance:Ranks", "parallel.Ranks(0, 1)"), groups=("int:1", "1"),
    ),
    "TokenShardedLatentAttention": row(
        "parallel.TokenShardedLatentAttention", says=("parallel", "Place"),
        layer=("*instance:LatentAttention", f"{LATENT}[0]"), ranks=("*instance:Ranks", "parallel.Ranks(0, 1)"),
    ),
    "controls": row("edit.controls.controls", window_size=("int:1", "8"), sinks=("int:0", "4")),
    "byte_tokens": row("task.byte_tokens", _texts, texts=("*anything", "[b'abc', b'xyz']")),
}  # fmt: skip
