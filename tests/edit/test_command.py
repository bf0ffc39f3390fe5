"""`attensor edit swap` as it is typed: a page and a model, Ctrl-C and back, and folders that hold something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from attensor import edit, sites
from attensor.cli import main
from attensor.data.text import open_text
from attensor.edit.align import Alignment, transfer
from attensor.edit.controls import CONTROLS, controls
from attensor.edit.journal import Journal
from attensor.edit.task import NextToken, byte_tokens
from attensor.errors import Stopped
from attensor.lab.interruption import Interruption
from attensor.swap_journal import SwapFolder, SwapJournal

LITTLE = ("--align", "text", "--minutes", "0.005", "--length", "32", "--held-out", "8", "--context", "16")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a byte model of transformers and a folder of text."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    for number in range(12):
        lines = [f"line {i} of file {number} holds {i * number}\n" for i in range(40)]
        (tmp_path / "text" / f"{number}.txt").write_text("".join(lines))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=256, **sizes, **ends))
    model.save_pretrained(tmp_path / "model")
    return tmp_path


def swap(*arguments: str) -> int:
    return main(["edit", "swap", "model", *LITTLE, *arguments])


def test_a_page_with_all_controls_and_a_model_that_is_read_again(place: Path) -> None:
    assert swap("--to", "moh", "--options", "num_active=3", "--out", "out") == 0
    trial = json.loads((place / "out" / "trial.json").read_text())["trial"]
    assert set(trial["carried"]) == set(trial["aligned"]) == {"moh", *CONTROLS}
    assert trial["steps"] > 0
    assert not (place / "out" / "aligned.safetensors").exists()
    page = (place / "out" / "report.html").read_text()
    assert "attensor edit swap model --to moh --align text --minutes 0.005 --options num_active=3" in page
    assert all(control in page for control in CONTROLS)
    found = sites.find_sites(edit.load_swapped(place / "out"))
    assert [type(site.layer).__name__ for site in found] == ["MixtureOfHeads"] * 2


def test_latents_whose_sizes_weights_decided_are_read_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which keys turn is written down: random weights would choose others."""
    kept: list[nn.Module] = []
    save = edit.save_swapped

    def saving(model: nn.Module, *rest: Any, **named: Any) -> None:
        kept.append(model)
        save(model, *rest, **named)

    monkeypatch.setattr("attensor.swapping.save_swapped", saving)
    assert swap("--to", "mla", "--options", "kv_rank=5", "rotary_dim=6", "--out", "out") == 0
    swaps = json.loads((place / "out" / "swap.json").read_text())
    assert [one["layers"] for one in swaps] == [[0], [1]]
    assert all(len(one["components"]) == 3 for one in swaps)
    again, tokens = edit.load_swapped(place / "out"), torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, kept[0].eval()(tokens).logits)


def test_ctrl_c_keeps_what_was_measured_and_resume_measures_the_rest(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def pressed(self: Interruption) -> Iterator[Interruption]:
        self.requested = True
        yield self

    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "listening", pressed)
        assert swap("--to", "gla", "--out", "out") == 130
    assert "with --resume goes on" in capsys.readouterr().out
    path = place / "out" / "scores.json"
    assert set(json.loads(path.read_text())) == {"original"}
    path.write_text(json.dumps({"original": [1.0] * 8}))  # what is known is not measured again
    assert swap("--to", "gla", "--out", "out") == 2
    assert "add --resume to go on" in capsys.readouterr().err
    assert swap("--to", "linear", "--out", "out", "--resume") == 2
    assert "to was 'gla' and is now 'linear'" in capsys.readouterr().err
    assert swap("--to", "gla", "--out", "out", "--resume") == 0
    assert json.loads((place / "out" / "trial.json").read_text())["trial"]["original"]["value"] == 1.0
    assert swap("--to", "gla", "--out", "out", "--resume") == 2
    assert "holds a finished swap" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "glaa"), "Did you mean 'gla'"),
        (("--to", "neighborhood"), "attention that sees both sides"),
        (("--to", "moh", "--options", "num_active=2.5"), "a share below 1, got 2.5"),
        (("--to", "sliding-window", "--options", "window_size=abc"), "--options: SlidingWindowAttention: window_size"),
        (("--to", "gla", "--options", "window=3"), "--options window: gla has"),
        (("--to", "gla", "--layers", "5"), "must be from -2 to 1"),
        (("--to", "gla", "--resume"), "there is no interrupted swap"),
        (("--to", "gla", "--align", "nothing"), "'nothing' does not exist"),
        (("--to", "gla", "--align", "text/0.txt", "--length", "512"), "is too small"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else "",
)
def test_what_cannot_be_done_is_said_in_one_line_and_leaves_no_folder(
    place: Path, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swap(*arguments, "--out", "out") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (place / "out").exists()


def test_folders_of_others_are_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((place / "text").iterdir())
    assert swap("--to", "gla", "--out", "text") == 2
    assert "there is something else already" in capsys.readouterr().err
    assert sorted((place / "text").iterdir()) == before
    assert main(["edit", "swap", "text", "--to", "gla"]) == 2
    assert "there is no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["alignment", "distillation"])
def test_an_interrupted_training_goes_on_to_the_same_bits(place: Path, kind: str) -> None:
    task = NextToken(open_text(place / "text", minimum_bytes=33), byte_tokens, length=32, batch_size=2, held_out=8)

    def train(journal: Journal) -> tuple[list[torch.Tensor], Alignment]:
        from attensor.edit.checkpoint import load_original

        model = load_original(place / "model")
        found = sites.find_sites(model)
        make = controls(window_size=3)["window only"]
        layers: dict[str, nn.Module] = {site.name: make(site.weights()) for site in found}
        if kind == "alignment":
            done = transfer(model, found, {"window": layers}, task.batches(), steps=8, journal=journal)
        else:
            for site in found:
                site.replace(layers[site.name])
            journal.begin("Distillation", "distilled")
            edit.distill(model, task.batches(), steps=8, journal=journal)
            done = Alignment(8)
        return [parameter.detach() for layer in layers.values() for parameter in layer.parameters()], done

    whole, expected = train(Journal())
    folder, interruption = SwapFolder(place / "run"), Interruption()
    folder.prepare({})

    class Stopping(SwapJournal):
        def stepped(self, text: str, share: float, *kept: Any) -> None:
            interruption.requested = text == "step 3"
            super().stepped(text, share, *kept)

    with pytest.raises(Stopped):
        train(Stopping(folder, Console(quiet=True), interruption))
    steps: list[str] = []

    class Listening(SwapJournal):
        def stepped(self, text: str, share: float, *kept: Any) -> None:
            steps.append(text)
            super().stepped(text, share, *kept)

    parts, done = train(Listening(folder, Console(quiet=True), Interruption()))
    assert steps[0] == "step 4"
    assert done.steps == 8
    assert done.errors == expected.errors
    assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))


def test_a_trial_stopped_in_its_last_distillation_goes_on_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was distilled and scored before stays; what a further step would change, does not change."""
    distilled = ("--to", "gla", "--distill", "0.005", "--out", "out")
    stepped = SwapJournal.stepped

    def stopping(self: SwapJournal, text: str, share: float, *kept: Any) -> None:
        self._interruption.requested = self._training == "distilled"
        stepped(self, text, share, *kept)

    with monkeypatch.context() as patch:
        patch.setattr(SwapJournal, "stepped", stopping)
        assert swap(*distilled) == 130
    out = place / "out"
    scores = json.loads((out / "scores.json").read_text())
    assert sum(name.startswith("distilled: ") for name in scores) == 1
    assert (out / "distilled.safetensors").exists()
    said: dict[str, set[str]] = {}

    def listening(self: SwapJournal, text: str, share: float, *kept: Any) -> None:
        said.setdefault(self._training, set()).add(text)
        stepped(self, text, share, *kept)

    with monkeypatch.context() as patch:
        patch.setattr(SwapJournal, "stepped", listening)
        assert swap(*distilled, "--resume") == 0
    assert len(said["aligned"]) == len(said["distilled-control"]) == 1  # no step more of what was over
    again = json.loads((out / "scores.json").read_text())
    assert {name: again[name] for name in scores} == scores
    assert len(json.loads((out / "trial.json").read_text())["trial"]["distilled"]) == 2
    assert [file.name for file in out.glob("*.safetensors")] == ["model.safetensors"]
