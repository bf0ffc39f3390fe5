"""`attensor edit rotate-latent`: the same model in another folder, however it is stored and however often cut short."""

from __future__ import annotations

import atexit
import functools
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from attensor import edit
from attensor.cli import main
from attensor.edit import rotate_folder as module
from attensor.models.language.stack import StackConfig, StackForCausalLM

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3, "kv_lora_rank": 8,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 6, "v_head_dim": 5, "intermediate_size": 20, "num_hidden_layers": 3,
    "first_k_dense_replace": 3, "max_position_embeddings": 640, "initializer_range": 0.3,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 160,
                        "mscale": 1.0, "mscale_all_dim": 1.0},
}  # fmt: skip
STACK = {"kv_rank": 8, "nope_dim": 4, "rotary_dim": 6}


@functools.cache
def _saved(kind: str, dtype: torch.dtype, shard: str) -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    if kind == "stack":
        sizes = {"vocab_size": 256, "hidden_size": 24, "intermediate_size": 20, "num_attention_heads": 3}
        config = StackConfig(
            **sizes,
            num_hidden_layers=3,
            layers=["softmax", "mla"],
            mixer_options={"mla": STACK},
            initializer_range=0.3,
        )
        model: Any = StackForCausalLM(config)
    elif kind == "V2":
        model = transformers.DeepseekV2ForCausalLM(transformers.DeepseekV2Config(**SIZES, q_lora_rank=None))
    else:
        model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**SIZES, q_lora_rank=7))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def saved(folder: Path, kind: str, dtype: torch.dtype = torch.float32, shard: str = "6KB") -> Path:
    """A checkpoint of random numbers, norms included."""
    return shutil.copytree(_saved(kind, dtype, shard), folder)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("A miller had three sons, a mill, an ass and a cat. " * 9)
    return str(path)


def run(*arguments: str) -> int:
    return main(["edit", "rotate-latent", *arguments])


@pytest.mark.parametrize(
    ("kind", "how", "check"),
    [
        ("V2", "pca", "float32"),
        ("V3", "hadamard", "float64"),
        ("V3", "pca", "float32"),
        ("stack", "pca", "float64"),
        ("stack", "identity", "float32"),
    ],
)
def test_the_new_folder_is_the_old_model(
    kind: str, how: str, check: str, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    is_double = (kind, check) == ("stack", "float64")
    source = saved(tmp_path / "old", kind, torch.float64 if is_double else torch.float32)
    out = tmp_path / "new"
    options = ["--calibration", text] if how == "pca" else []
    assert run(str(source), "--out", str(out), "--how", how, "--check", check, *options) == 0
    said = capsys.readouterr().out
    found = re.search(r"Logits are unchanged: largest difference (\S+) of the largest logit", said)
    assert found is not None
    assert float(found[1]) < (1e-12 if is_double else 2e-5)
    assert not (tmp_path / "new.partial").exists()
    assert {path.name for path in out.iterdir()} == {path.name for path in source.iterdir()} | {"latent_slicing.json"}
    old, new = (_tensors(folder) for folder in (source, out))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert old.keys() == new.keys()
    assert {name.split(".")[-2] for name in changed} >= {"kv_a_layernorm", "kv_b_proj"}
    assert all(re.search(r"kv_(a_layernorm|b_proj|a_proj_with_mqa)\.weight$", name) for name in changed)
    layers = json.loads((out / "latent_slicing.json").read_text())["layers"]
    assert len(layers) == (1 if kind == "stack" else 3)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in load_file(file).items()}


def test_shards_are_those_of_the_whole_and_constants_those_of_rotate_latent(tmp_path: Path, text: str) -> None:
    source = saved(tmp_path / "old", "V3")
    assert len(list(source.glob("*.safetensors"))) > 3
    assert run(str(source), "--out", str(tmp_path / "new"), "--calibration", text, "--gains", "fitted") == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    tokens = torch.tensor(list(Path(text).read_bytes()))[None]
    state, slicings = edit.to_tpla(model, [tokens], gains="fitted")
    written = _tensors(tmp_path / "new")
    for name, tensor in written.items():
        torch.testing.assert_close(tensor.abs(), state[name].abs(), rtol=1e-4, atol=1e-5)  # a basis has no sign
    found = edit.load_slicings(tmp_path / "new")
    assert found.keys() == slicings.keys()
    for name, slicing in found.items():
        assert slicing.norms == pytest.approx(slicings[name].norms, rel=1e-4)
        assert slicing.gains == pytest.approx(slicings[name].gains, rel=1e-3)


def test_what_was_cut_short_goes_on(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, partial = saved(tmp_path / "old", "V3"), tmp_path / "new.partial"
    whole, written = module._write_shard, []

    def interrupted(*arguments: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments)
        whole(*arguments)

    monkeypatch.setattr(module, "_write_shard", interrupted)
    asked = (str(source), "--out", str(tmp_path / "new"), "--calibration", text)
    assert run(*asked) == 130
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("model-*.safetensors")}
    assert len(kept) == 2
    assert not (tmp_path / "new").exists()
    assert run(*asked, "--groups", "4") == 2
    monkeypatch.setattr(module, "_write_shard", lambda *arguments: (written.append(arguments), whole(*arguments)))
    assert run(*asked) == 0
    assert len(written) == len(list(source.glob("model-*.safetensors")))
    assert all((tmp_path / "new" / name).stat().st_mtime_ns == time for name, time in kept.items())


def test_a_wrong_model_does_not_get_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = saved(tmp_path / "old", "V3")
    right = module.turned_tensor
    monkeypatch.setattr(module, "turned_tensor", lambda name, *rest: right(name, *rest) * 1.01)
    assert run(str(source), "--out", str(tmp_path / "new"), "--how", "hadamard") == 2
    assert "the turned model is another one" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "new.partial").exists()


def test_half_precision_says_what_rounding_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "old", "V2", torch.bfloat16, "1GB")
    assert run(str(source), "--out", str(tmp_path / "new"), "--how", "hadamard") == 0
    assert "unchanged but for rounding the turned weights to bfloat16" in capsys.readouterr().out
    assert {x.dtype for x in _tensors(tmp_path / "new").values()} == {torch.bfloat16}


def test_moments_come_from_a_file(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "old", "stack")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    moments = edit.latent_moments(model, [torch.tensor(list(Path(text).read_bytes()))[None]])
    save_file(moments, tmp_path / "moments.safetensors")
    asked = ("--calibration", str(tmp_path / "moments.safetensors"), "--check", "none")
    assert run(str(source), "--out", str(tmp_path / "new"), *asked) == 0
    assert "Nothing is proved" in capsys.readouterr().out
    assert edit.load_slicings(tmp_path / "new").keys() == moments.keys()


def _add(source: Path, **tensors: torch.Tensor) -> None:
    state = _tensors(source)
    for file in source.glob("model*.safetensors*"):
        file.unlink()
    save_file({**state, **tensors}, source / "model.safetensors", metadata={"format": "pt"})


def test_layers_that_predict_further_tokens_stay(tmp_path: Path, text: str) -> None:
    source = saved(tmp_path / "old", "V3")
    parts = ("kv_a_proj_with_mqa.weight", "kv_a_layernorm.weight", "kv_b_proj.weight")
    further = {f"model.layers.3.self_attn.{part}": _tensors(source)[f"{BEGIN}{part}"] for part in parts}
    _add(source, **further)
    assert run(str(source), "--out", str(tmp_path / "new"), "--calibration", text) == 0
    written = _tensors(tmp_path / "new")
    assert all(torch.equal(written[name], tensor) for name, tensor in further.items())
    assert not torch.equal(written[f"{BEGIN}{parts[2]}"], further[f"model.layers.3.self_attn.{parts[2]}"])


BEGIN = "model.layers.0.self_attn."
REFUSED: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "no folder": (shutil.rmtree, (), "there is no config.json"),
    "no safetensors": (lambda s: [f.unlink() for f in s.glob("model*")], (), "there is no model.safetensors"),
    "a shard is missing": (lambda s: next(s.glob("model-00002*")).unlink(), (), "there is no model-00002"),
    "damaged": (lambda s: next(s.glob("model-00002*")).write_bytes(b"x" * 99), (), "is damaged"),
    "8 bits": (lambda s: _add(s, **{f"{BEGIN}kv_b_proj.weight_scale_inv": torch.ones(1)}), (), "weights of 8 bits"),
    "8 bits, plain": (
        lambda s: _add(s, **{f"{BEGIN}kv_b_proj.weight": torch.ones(27, 8).to(torch.float8_e4m3fn)}),
        (),
        "must be of 16 bits or more, got F8_E4M3",
    ),
    "an adapter": (lambda s: _add(s, **{f"{BEGIN}kv_b_proj.lora_A.weight": torch.ones(1)}), (), "merge it into"),
    "an adapter beside": (lambda s: (s / "adapter_config.json").write_text("{}"), (), "holds an adapter"),
    "groups": (lambda s: None, ("--groups", "3"), "groups must divide the latent's width 8, got 3"),
    "no text": (lambda s: None, ("--how", "pca"), "--how pca needs --calibration FILE"),
    "no such text": (lambda s: None, ("--calibration", "nowhere.txt"), "nowhere.txt"),
    "negative": (lambda s: None, ("--tokens", "0"), "--tokens 0: must be at least 1"),
    "taken": (lambda s: (s.parent / "new").mkdir(), (), "is there already"),
    "fit without text": (lambda s: None, ("--gains", "fitted"), "--gains fitted needs --calibration"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, options, message = REFUSED[case]
    source = saved(tmp_path / "old", "V3")
    change(source)
    capsys.readouterr()
    assert run(str(source), "--out", str(tmp_path / "new"), *(options or ("--how", "hadamard")), *_usual(options)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new.partial").exists()


def _usual(options: tuple[str, ...]) -> tuple[str, ...]:
    return ("--how", "hadamard") if options and "--how" not in options else ()


def test_a_model_of_other_attention_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = StackConfig(
        vocab_size=256, hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=3
    )
    StackForCausalLM(config).save_pretrained(tmp_path / "old")
    assert run(str(tmp_path / "old"), "--out", str(tmp_path / "new"), "--how", "hadamard") == 2
    assert "has no multi-head latent attention" in capsys.readouterr().err
