"""The whole comparison on a small text: trained, measured, written, reported; interrupted and resumed."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from rich.console import Console

from attensor.compare import Result
from attensor.compare.columns import csv_text
from attensor.compare.comparison import compare
from attensor.compare.config import CompareConfig, GenerateConfig
from attensor.compare.generate import generate_text
from attensor.compare.schema import schema

pytestmark = pytest.mark.slow

MIXERS = Path(__file__).with_name("mixers.py")
DATA = str(Path(sysconfig.get_paths()["stdlib"]) / "json")


def options(out, **more):
    return {"data": DATA, "steps": 12, "length": 32, "batch_size": 3, "max_length": 1024, "out": str(out), **more}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of everything that can happen to a row: (folder, results, what the terminal showed)."""
    shown = io.StringIO()
    names = f"softmax,linear,linear+softmax,{MIXERS}:Mean,{MIXERS}:Future,{MIXERS}:Raises,{MIXERS}:Huge"
    config = CompareConfig(**options(tmp_path_factory.mktemp("runs"), mechanisms=names), device="cpu")
    run = compare(config, console=Console(file=shown, width=160))
    return run, json.loads((run / "results.json").read_text()), shown.getvalue()


def rows(results):
    return {row["name"]: row for row in results["mechanisms"]}


def test_references_are_scored_beside_the_models(finished):
    run, results, _ = finished
    scores = {row["name"]: row["score"] for row in results["references"]}
    assert {"unigram", *(f"{n}-gram" for n in range(2, 6)), "zlib", "bz2", "lzma", "zstd"} == scores.keys()
    assert results["references"] == json.loads((run / "references.json").read_text())["rows"]
    assert scores["5-gram"] < scores["4-gram"] < scores["2-gram"] < scores["unigram"] < results["quality"]["chance"]
    # after so few steps, the models are what they began with
    assert rows(results)["softmax"]["score"]["mean"] == pytest.approx(scores["5-gram"], abs=0.2)


def test_good_rows_have_everything(finished):
    run, results, _ = finished
    assert results["finished"]
    for name in ("softmax", "linear", "linear+softmax", "Mean"):
        row = rows(results)[name]
        assert row["status"] == "ok", row["reason"]
        rates = [pilot["learning_rate"] for pilot in row["pilots"]]
        assert set(results["plan"]["learning_rates"]) <= set(rates)
        assert row["at_edge"] == (row["learning_rate"] in (rates[0], rates[-1]))
        assert [r["curve"][-1]["step"] for r in row["runs"]] == [12, 12, 12]
        assert [p["steps"] for p in row["pilots"]] == [11] * len(rates)
        assert row["runs"][0]["curve"][-1]["tokens"] == 12 * 3 * 32
        finals = [r["final"]["4x"] for r in row["runs"]]
        assert row["score_4x"]["mean"] == pytest.approx(sum(finals) / 3)
        assert row["score_4x"]["spread"] == pytest.approx((max(finals) - min(finals)) / 2)
        assert len(set(finals)) == 3
        assert [c["length"] for c in row["cost"]] == [256, 512, 1024]
        assert all((run / r["checkpoint"]).exists() for r in row["runs"])


def test_what_is_written_keeps_the_schema(finished):
    """With rows that went well, layers that take turns, the user's own and failed ones."""
    run, results, _ = finished
    pytest.importorskip("jsonschema").validate(results, schema())
    assert Result.load(run).results == results
    assert (run / "results.csv").read_text("utf-8") == csv_text(results)


def test_it_has_learned_something(finished):
    """Better than guessing any of 256 bytes, which takes 8 bits."""
    assert all(row["score"]["mean"] < 7 for row in finished[1]["mechanisms"] if row["status"] == "ok")


def test_parameters_agree_within_two_percent(finished):
    counts = [row["parameters"] for row in finished[1]["mechanisms"] if row["status"] == "ok"]
    assert max(counts) <= 1.02 * min(counts)


def test_the_pilot_that_was_best_is_taken(finished):
    for row in finished[1]["mechanisms"]:
        if row["status"] == "ok":
            best = min(row["pilots"], key=lambda pilot: pilot["score"])
            (middle,) = (pilot for pilot in row["pilots"] if pilot["learning_rate"] == 6e-3)
            is_close = middle["score"] <= best["score"] * 1.003
            assert row["learning_rate"] == (middle if is_close else best)["learning_rate"]


def test_a_failure_costs_one_row_and_says_why(finished):
    failed = {name: row["reason"] for name, row in rows(finished[1]).items() if row["status"] == "failed"}
    assert failed.keys() == {"Future", "Raises", "Huge"}
    assert failed["Future"].startswith("leaks the future: changing token 64 changed output 63")
    assert failed["Raises"].startswith("IndexError: list index out of range (mixers.py, line ")
    assert failed["Huge"].startswith("ValueError: parameters cannot be balanced")
    assert any("Future has no result: leaks the future" in sentence for sentence in finished[1]["answer"])


def test_decode_state_grows_only_with_a_cache_of_keys(finished):
    softmax, linear = (rows(finished[1])[name]["decode"] for name in ("softmax", "linear"))
    sizes = [(128, 1), (256, 1), (512, 1), (1024, 1), (1024, 8), (1024, 32)]
    assert [(d["context"], d["batch"]) for d in softmax] == sizes
    assert softmax[3]["state_bytes"] == 8 * softmax[0]["state_bytes"]
    assert softmax[5]["state_bytes"] == 32 * softmax[3]["state_bytes"]
    assert len({(d["state_bytes"], d["ms_per_token"]) for d in linear[:4]}) == 1
    both = [d["state_bytes"] for d in rows(finished[1])["linear+softmax"]["decode"]]
    assert both == [(a["state_bytes"] + b["state_bytes"]) // 2 for a, b in zip(softmax, linear, strict=True)]
    assert [g["batch"] for g in rows(finished[1])["linear+softmax"]["generation"]] == [1, 8, 32]
    assert rows(finished[1])["Mean"]["generation"] == []
    assert rows(finished[1])["Mean"]["decode_stopped"] == "Mean has no new_cache(), so it cannot decode token by token"


def test_report_table_and_answer_are_shown(finished):
    run, results, shown = finished
    assert (run / "report.html").stat().st_size > 10_000
    assert "bits per byte" in shown
    assert results["answer"][0].split(",")[0] in shown


def test_nothing_temporary_is_left(finished):
    left = [f.name for f in finished[0].rglob("*") if f.name.endswith(".tmp") or ".state." in f.name]
    assert left == []


@pytest.mark.parametrize("name", ["linear", "Mean", "linear+softmax"])
def test_trained_models_write_text(finished, name):
    """With a decode cache and without; the same seed writes the same."""
    config = GenerateConfig(folder=str(finished[0]), mechanism=name, prompt="def ", tokens=40, seed=3)
    text = "".join(generate_text(config))
    assert text == "".join(generate_text(config))
    assert text != "".join(generate_text(GenerateConfig(**{**config.__dict__, "seed": 4})))
    assert 1 <= len(text) <= 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mechanism": "gla"}, "the run .* has softmax, linear, linear\\+softmax, Mean"),
        ({"seed_index": 3}, "--seed-index 3: the run has 3 seeds"),
        ({"mechanism": "Huge"}, "not trained to the end"),
    ],
    ids=str,
)
def test_what_cannot_be_generated_is_explained(finished, change, message):
    config = {"folder": str(finished[0]), "mechanism": "linear", **change}
    with pytest.raises(ValueError, match=message):
        list(generate_text(GenerateConfig(**config)))


def test_a_damaged_model_is_named(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    (run / "linear/seed-0.safetensors").write_bytes(b"xx")
    with pytest.raises(ValueError, match=r"linear/seed-0\.safetensors: is damaged"):
        list(generate_text(GenerateConfig(folder=str(run), mechanism="linear")))


@pytest.mark.usefixtures("interruptible")
def test_interrupted_and_resumed(tmp_path, start):
    """The first Ctrl-C saves, writes what is there, and names the command that continues."""
    code = (
        "from attensor.compare.config import CompareConfig\nfrom attensor.compare.comparison import compare\n"
        f"compare(CompareConfig(**{options(tmp_path / 'out', mechanisms='softmax,linear', steps=2000)!r}))"
    )
    process = start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/*/softmax/*.state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    (run,) = (tmp_path / "out").iterdir()
    assert process.returncode == 130
    assert f"attensor compare --resume {run}" in shown.replace("\n", "")
    results = json.loads((run / "results.json").read_text())
    assert not results["finished"]
    assert {row["status"] for row in results["mechanisms"]} == {"unfinished"}
    assert {row["score"] for row in results["mechanisms"]} == {None}
    assert "no ranking" in results["answer"][0].lower()
    assert results["answer"][-1] == f"Continue with: attensor compare --resume {run}"
    assert (run / "report.html").exists()
    assert list(run.glob("softmax/*.state.safetensors"))


def test_killed_and_resumed_to_the_same_numbers(finished, tmp_path, start):
    """kill -9 in the middle of the training, its processes outliving it for a moment."""
    code = (
        "from attensor.compare.config import CompareConfig\nfrom attensor.compare.comparison import compare\n"
        f"compare(CompareConfig(**{options(tmp_path / 'out', mechanisms='linear,linear+softmax', max_length=128)!r}))"
    )
    process = start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/*/linear/seed-0.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    (run,) = (tmp_path / "out").iterdir()
    assert not list(run.glob("linear+softmax/cost.json"))
    compare(CompareConfig(resume=str(run)), console=Console(file=io.StringIO()))
    again = rows(json.loads((run / "results.json").read_text()))
    for name in ("linear", "linear+softmax"):
        before, after = rows(finished[1])[name], again[name]
        assert [r["final"] for r in after["runs"]] == [r["final"] for r in before["runs"]]
        assert after["pilots"] == before["pilots"]
