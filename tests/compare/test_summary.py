"""Sentences and verdict follow the numbers: turn a number round, and they turn too."""

from __future__ import annotations

import importlib
import re

import pytest

from attensor.compare.advice import code, price
from attensor.compare.conclusions import conclusions
from tests.compare.made_results import LENGTHS, Truth, cost, decode, made_results

QUIET = {"seed_sd": 0.003, "unit_sd": 0.003, "noise_sd": 0.003, "tail": 0.3}
STEEP = {
    "cost": [cost(n, 3e-3 * n * n / 1024) for n in LENGTHS],
    "decode": [decode(n, 1e-4 * n, 512 * n) for n in LENGTHS],
}


def concluded(gaps, seed=0, truth=None, **changes):
    return conclusions(made_results(Truth(gaps, **(truth or QUIET)), seed, **changes))


def said(*arguments, **changes):
    return " ".join(concluded(*arguments, **changes)["answer"])


def case(found, name):
    return next(one for one in found["verdict"] if one["case"] == name)


def reference(score, name="ngram-3", title="the back-off 3-gram"):
    return {"results": {"references": [{"name": name, "title": title, "score": score, "reason": None}]}}


def test_the_first_sentence_says_rule_best_and_the_other_rule():
    first = concluded({"a": 0.1, "b": 0.0})["answer"][0]
    assert first.startswith("After equal tokens, b is best: 2.0")
    assert first.endswith("bits per byte; equal time does not change that order.")
    slow = concluded({"a": 0.03, "b": 0.0}, b={"seconds_per_step": 0.04})["answer"][0]
    assert slow.endswith("; after equal time a leads.")


def test_a_tie_names_no_best_and_says_what_it_would_take():
    found = concluded({"a": 0.0, "b": 0.002, "c": 0.3}, truth={**QUIET, "seed_sd": 0.02})
    text = " ".join(found["answer"])
    assert "the best is not decided: " in found["answer"][0]
    assert "cannot be told apart" in text
    assert "a and b are too close for any sensible number of seeds." in text
    assert "c is worse than " in text
    assert case(found, "quality") | {"sentence": ""} == {
        "case": "quality",
        "use": None,
        "among": found["ranking"]["groups"][0],
        "score": None,
        "length": 128,
        "price": "",
        "confidence": "not decided",
        "code": "",
        "sentence": "",
    }


def test_more_time_or_more_data_is_asked_for():
    found = concluded({"a": 0.0, "b": 0.03}, truth={**QUIET, "seed_sd": 0.02}, a={"seconds_per_step": 1.0})
    assert found["ranking"]["minutes_to_decide"] > 5
    assert f"needs about {round(found['ranking']['minutes_to_decide'])} more minute" in found["answer"][1]
    found = concluded({"a": 0.0, "b": 0.03}, truth={**QUIET, "unit_sd": 0.3})
    assert found["ranking"]["minutes_to_decide"] is None
    assert "needs more test data: no number of seeds is enough" in found["answer"][1]


def test_alike_within_the_margin_is_said():
    text = said({"a": 0.0, "b": 0.0}, truth={**QUIET, "seed_sd": 0.0005, "unit_sd": 0.0005, "noise_sd": 0.001})
    assert "differ by less than 0.02 bits per byte: take either." in text


def test_withheld_names_nobody():
    text = said({"a": 0.0, "b": 0.3}, a={"load": 2.0})
    assert "No ranking: the machine was busy" in text
    for one in concluded({"a": 0.0, "b": 0.3}, a={"load": 2.0})["verdict"]:
        assert (one["use"], sorted(one["among"]), one["confidence"]) == (None, ["a", "b"], "not decided")
    assert "best" not in text
    assert "use" not in text.replace("busy", "")


def test_no_sentence_comes_twice():
    for seed in range(8):
        found = concluded({"softmax": 0.0, "gla": 0.02, "linear": 0.02}, seed, softmax=STEEP)["answer"]
        assert len(found) == len(set(found))
        clauses = [clause for sentence in found for clause in sentence.rstrip(".").split("; ")]
        assert len([c for c in clauses if "take either" in c]) <= 1


def test_losing_to_a_reference_is_said():
    everyone = said({"a": 0.0, "b": 0.3}, **reference(1.9))
    assert "Every mechanism loses to the back-off 3-gram (1.900 bits per byte), which has no attention" in everyone
    assert "b loses to the back-off 3-gram" in said({"a": 0.0, "b": 0.3}, **reference(2.3))
    assert "b and c lose to" in said({"a": 0.0, "b": 0.3, "c": 0.5}, **reference(2.3))
    assert "All are better than the best reference" in said({"a": 0.0, "b": 0.3}, **reference(5.0))
    assert "reference" not in said({"a": 0.0, "b": 0.3}, **reference(None))


def test_quality_has_its_price_at_your_length_and_long_contexts_at_theirs():
    found = concluded({"softmax": 0.1, "gla": 0.0}, softmax=STEEP)
    quality, long = case(found, "quality"), case(found, "long")
    assert (quality["use"], quality["confidence"], quality["length"]) == ("gla", "clear", 128)
    assert (
        quality["price"] == "4x the time of softmax at 256 tokens, the same memory, 1/32 of the state after 256 tokens"
    )
    assert long["price"].startswith("1/16 of the time of softmax at 16k tokens")
    assert quality["code"] == "import attensor; layer = attensor.nn.GatedLinearAttention(hidden_size=64, num_heads=2)"
    assert quality["score"] == pytest.approx(found["mechanisms"][1]["score"]["mean"])
    assert long["score"] == pytest.approx(found["mechanisms"][1]["score_4x"]["mean"])


def test_cost_decides_only_among_the_good():
    """c decodes fastest, and is clearly worse; b is cheaper than a and not clearly worse."""
    fast = {"decode": [decode(n, 0.01, 4096) for n in LENGTHS]}
    middle = {"decode": [decode(n, 0.05, 4096) for n in LENGTHS]}
    found = case(concluded({"a": 0.0, "b": 0.005, "c": 0.3}, b=middle, c=fast), "decode")
    assert (found["use"], found["confidence"], found["length"]) == ("b", "clear", 16384)
    assert "50 µs for one more token after 16k tokens with 4 KiB of state a layer" in found["sentence"]
    found = case(concluded({"a": 0.0, "b": 0.002, "c": 0.004}, b=middle, c=fast), "decode")
    assert found["use"] == "c"


@pytest.mark.parametrize("gap", [0.017, 0.02, 0.023])
def test_a_difference_of_about_the_margin_does_not_turn_the_verdict(gap):
    """c is cheaper, and may be worse by more than a reader wants: it is offered with its price in quality."""
    fast = {"decode": [decode(n, 0.01, 4096) for n in LENGTHS]}
    found = case(concluded({"a": 0.0, "b": 0.1, "c": gap}, c=fast), "decode")
    assert (found["use"], found["confidence"]) == ("a", "clear")
    assert re.search(r"; c takes 0\.\d+x the time, for a score 0\.0\d+ bits per byte worse\.", found["sentence"])


def test_equal_ones_of_which_one_may_be_much_worse_leave_the_cheapest_open():
    noisy = {"seed_sd": 0.02}
    fast = {"decode": [decode(n, 0.01, 4096) for n in LENGTHS]}
    found = case(concluded({"a": 0.0, "b": 0.001}, truth={**QUIET, **noisy}, b=fast), "decode")
    assert (found["use"], found["confidence"]) == (None, "not decided")
    assert "which is not decided" in found["sentence"]


def test_overlapping_quartiles_decide_nothing_but_the_state_may():
    near = {"decode": [decode(n, 0.102, 4096, noise=0.05) for n in LENGTHS]}
    found = case(concluded({"a": 0.0, "b": 0.0}, b=near), "decode")
    assert (found["use"], sorted(found["among"]), found["confidence"]) == (None, ["a", "b"], "not decided")
    small = {"decode": [decode(n, 0.102, 1024, noise=0.05) for n in LENGTHS]}
    found = case(concluded({"a": 0.0, "b": 0.0}, b=small), "decode")
    assert (found["use"], found["confidence"]) == ("b", "likely")
    assert "as fast as any and with the smallest state" in found["sentence"]


def test_who_did_not_get_so_far_is_not_chosen_for_long_contexts():
    short = {"cost": [cost(n, 1e-6 * n) for n in LENGTHS[:2]]}
    found = case(concluded({"a": 0.0, "b": 0.0}, a=short), "long")
    assert (found["use"], found["length"]) == ("b", 16384)
    assert "did not get so far" in found["sentence"]


def test_a_bad_score_at_four_times_is_out_for_long_contexts():
    results = made_results(Truth({"a": 0.0, "b": 0.0}, **QUIET), a={"cost": [cost(n, 1e-6 * n) for n in LENGTHS]})
    assert case(conclusions(results), "long")["use"] == "a"
    for run in results["mechanisms"][0]["runs"]:
        run["final"]["4x"] += 1
    assert case(conclusions(results), "long")["use"] == "b"


def test_crossings_of_cost_and_quality():
    """softmax is faster up to 1k, where the curves meet; a forgets at 4x."""
    results = made_results(Truth({"softmax": 0.1, "a": 0.0}, **QUIET), softmax=STEEP)
    for run in results["mechanisms"][1]["runs"]:
        run["final"]["4x"] += 1
    assert conclusions(results)["crossings"] == [
        {"of": "cost", "a": "softmax", "b": "a", "length": 4096},
        {"of": "quality", "a": "a", "b": "softmax", "length": 512},
    ]


def test_images_have_cells_and_no_decoding():
    results = made_results(Truth({"a": 0.0, "b": 0.05}, base=0.3, difficulty_sd=0, **QUIET))
    results["data"] = {"name": "digits", "kind": "images", "test_images": 40}
    results["quality"] |= {"metric": "accuracy", "lower_is_better": False, "chance": 0.1}
    for row in results["mechanisms"]:
        row["decode"] = []
        for run in row["runs"]:
            run["final"] |= {"2x": None, "4x": None}
    found = conclusions(results)
    assert found["answer"][0].startswith("After equally many images, b is best: ")
    assert " % right" in found["answer"][0]
    assert [one["case"] for one in found["verdict"]] == ["quality", "long"]
    assert "at 16k cells" in case(found, "long")["sentence"]
    assert found["mechanisms"][0]["score_4x"] is None
    assert found["trust"]["test_size"] == "40 images"


def test_failures_and_unfinished_rows_are_named():
    changes = {
        "bad": {"status": "failed", "reason": "leaks the future: changing token 9 changed output 3.", "runs": []},
        "late": {"status": "unfinished", "runs": []},
        "half": {"status": "unfinished", "cost": [], "decode": []},
    }
    text = said({"good": 0.0, "fair": 0.2, "bad": 0.0, "late": 0.0, "half": 0.4}, **changes)
    assert "bad has no result: leaks the future: changing token 9 changed output 3. " in text
    assert "Not trained to the end: late." in text
    assert "Trained, but not measured to the end: half." in text


def test_nothing_trained_is_no_ranking():
    found = concluded(
        {"a": 0.0, "b": 0.0}, a={"runs": [], "status": "unfinished"}, b={"runs": [], "status": "unfinished"}
    )
    assert found["answer"][0].startswith("No mechanism has been trained to the end")
    assert found["verdict"] == []


def test_how_little_it_was_trained_is_said():
    assert "123 thousand parameters after 410 thousand training tokens a seed" in said({"a": 0.0, "b": 0.1})


NULLS = [
    *("cost", "decode", "steps", "seconds_per_step", "load", "parameters", "at_edge", "learning_rate"),
    *("cost_stopped", "decode_stopped", "missing", "formula", "pilots", "generation", "exponent"),
]


@pytest.mark.parametrize("field", NULLS)
@pytest.mark.parametrize("is_gone", [False, True])
def test_any_unknown_field_is_borne(field, is_gone):
    results = made_results(Truth({"softmax": 0.1, "gla": 0.0}, **QUIET))
    for row in results["mechanisms"][:1]:
        row.pop(field) if is_gone else row.update({field: None})
    assert conclusions(results)["answer"][0].startswith("After equal tokens, gla is best")


@pytest.mark.parametrize("field", ["units", "curve", "load", "checkpoint"])
def test_any_unknown_field_of_a_run_is_borne(field):
    results = made_results(Truth({"softmax": 0.1, "gla": 0.0}, **QUIET))
    for run in results["mechanisms"][0]["runs"]:
        run[field] = None
    assert conclusions(results)["answer"][0].startswith("After equal tokens, gla is best")


@pytest.mark.parametrize("field", ["references", "plan", "machine", "finished", "protocol"])
def test_any_unknown_field_at_the_top_is_borne(field):
    results = made_results(Truth({"softmax": 0.1, "gla": 0.0}, **QUIET))
    results.pop(field)
    assert conclusions(results)["answer"][0].startswith("After equal tokens, gla is best")


def test_a_users_class_is_imported_and_stacks_are_configured():
    results = made_results(Truth({"softmax": 0.0, "Mine": 0.1, "3*gla+softmax": 0.2}, **QUIET))
    _, mine, stack = results["mechanisms"]
    mine["source"] = "my_file.py:Mine"
    assert code(results, mine) == "from my_file import Mine; layer = Mine(64, 2)"
    assert 'StackConfig(layers="3*gla+softmax", num_hidden_layers=2)' in code(results, stack)
    results["data"]["kind"] = "images"
    stack["name"] = "axial+softmax"
    assert code(results, stack).startswith("import attensor; layers = [attensor.nn.AxialAttention(")


@pytest.mark.parametrize("kind", ["text", "images"])
def test_what_is_pasted_runs(kind):
    """The line of every card makes a layer; those of stacks and of text a configuration."""
    from attensor import catalogue
    from attensor.catalogue import Domain

    domain = Domain.SEQUENCE if kind == "text" else Domain.GRID
    names = [c.name for c in catalogue.mechanisms().values() if c.domain & domain]
    results = made_results(Truth(dict.fromkeys(names, 0.0), **QUIET))
    results["data"]["kind"] = kind
    for row in results["mechanisms"]:
        space: dict = {}
        exec(code(results, row), space)
        assert type(space["layer"]).__name__ == catalogue.mechanism(row["name"]).layer.partition(":")[2]
    if importlib.util.find_spec("transformers") and kind == "text":
        exec(code(results, results["mechanisms"][0] | {"name": "gla+softmax"}), space)
        assert space["config"].mechanisms == ["gla", "softmax"]


def test_prices():
    results = made_results(Truth({"softmax": 0.0, "gla": 0.1}, **QUIET), softmax=STEEP)
    softmax, gla = results["mechanisms"]
    assert price(results, softmax, None) == "softmax is what the others are compared with"
    assert price(results, gla, 1024).startswith("the same time of softmax at 1k tokens")
    results["mechanisms"] = [gla]
    assert price(results, gla, None).startswith("49.2 ms forward and backward at 16k tokens, 15.6 MiB of memory")


def test_doubts_are_listed():
    found = concluded({"a": 0.0, "b": 0.3}, a={"at_edge": True, "load": 1.3}, results={"finished": False})
    assert found["trust"]["edges"] == ["a"]
    assert found["trust"]["load"] == 1.3
    assert [doubt.split()[0] for doubt in found["trust"]["reasons"]] == ["the", "the", "the"]
    sure = concluded({"a": 0.0, "b": 0.3})["trust"]
    assert (sure["reasons"], sure["rule"]) == ([], "equal tokens: 400 steps for all")
    assert sure["test_size"].endswith(" KiB in 40 files")
