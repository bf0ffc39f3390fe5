"""Names become cards, paths become the user's classes, and anything else a message that helps."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

import pytest
import torch

from attensor.catalogue import Domain, mechanisms
from attensor.compare.subjects import Subject, resolve
from attensor.compare.user_files import try_class, user_class

USER_FILE = """
from torch import nn

class MyMixer(nn.Module):
    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.sizes = hidden_size, num_heads

class NoModule:
    pass
"""


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "my_file.py"
    path.write_text(USER_FILE)
    return path


def test_all_means_every_card_that_fits():
    found = {subject.name for subject in resolve("all", Domain.SEQUENCE)}
    assert found == {c.name for c in mechanisms().values() if Domain.SEQUENCE in c.domain and c.is_causal}
    assert {"softmax", "gla"} <= found
    assert "neighborhood" not in found


def test_the_users_class_is_built_like_a_layer(user_file):
    (subject,) = resolve(f"{user_file}:MyMixer", Domain.SEQUENCE)
    assert (subject.name, subject.source) == ("MyMixer", "my_file.py:MyMixer")
    mixer = subject.mixers(Domain.SEQUENCE, 8, 2, 1)(0)
    assert mixer.sizes == (8, 2)


def test_a_stack_is_one_row_whose_cards_take_turns(tmp_path):
    subjects = resolve("2*gla+ softmax,gla+gla,softmax+lightning", Domain.SEQUENCE)
    assert [s.name for s in subjects] == ["2*gla+softmax", "gla", "softmax+lightning"]
    assert subjects[1] == Subject.of("gla")
    assert subjects[0].folder(tmp_path) == tmp_path / "2xgla+softmax"
    kinds = [type(subjects[0].mixers(Domain.SEQUENCE, 16, 2, 6)(i)).__name__ for i in range(5)]
    assert kinds == [*["GatedLinearAttention"] * 2, "SoftmaxAttention", *["GatedLinearAttention"] * 2]
    # a layer knows its place among all layers, not among those of its card
    lightning = subjects[2].mixers(Domain.SEQUENCE, 16, 2, 8)
    assert [lightning(i).layer_index for i in (1, 7)] == [1, 7]


def test_equal_class_names_get_rows_of_their_own(user_file, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(USER_FILE)
    names = [s.name for s in resolve(f"{user_file}:MyMixer, {other}:MyMixer", Domain.GRID)]
    assert names == ["MyMixer", "MyMixer-1"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("softmaks", "no mechanism is called 'softmaks'.*Did you mean 'softmax'"),
        ("neighborhood", "neighborhood mixes the cells of a grid, and the data is text. For text there are .*softmax"),
        ("softmax,softmax", "softmax is named twice"),
        ("gla+softmax,gla + softmax", "gla \\+ softmax is named twice"),
        ("gla+softmaks", "no mechanism is called 'softmaks'"),
        ("gla+neighborhood", "neighborhood mixes the cells of a grid"),
        (" , ", "--mechanisms is empty"),
        ("nowhere.py:A", r"there is no file /.*/nowhere\.py"),
        ("1000000000*gla", "has more than 1000 layers"),
        ("{file}:not a name", "say which class of the file"),
        ("{file}", "say which class of the file"),
    ],
    ids=str,
)
def test_a_wrong_name_is_explained(wanted, message, user_file):
    with pytest.raises(ValueError, match=message):
        resolve(wanted.format(file=user_file), Domain.SEQUENCE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MyMixr", "has no nn.Module class of that name. Did you mean MyMixer"),
        ("NoModule", "has no nn.Module class of that name"),
    ],
)
def test_a_class_that_is_not_in_the_file_is_explained(name, message, user_file):
    with pytest.raises(ValueError, match=message):
        user_class(user_file, name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def (", "SyntaxError"),
        ("quit()", "it ends the process .* Put that below `if __name__ == '__main__':`"),
        (
            "import argparse; p = argparse.ArgumentParser(); p.add_argument('--x', required=True); p.parse_args()",
            "argp",
        ),
        ("raise GeneratorExit", "GeneratorExit"),
        (r"raise RuntimeError('\x1b[31mred\nand more')", r"RuntimeError: \\x1b\[31mred and more"),
    ],
    ids=["divides", "syntax", "quits", "argparse", "generator", "escapes"],
)
def test_a_file_that_does_not_run_is_named(code, message, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(ValueError, match=rf"broken\.py: cannot be imported: .*{message}"):
        user_class(path, "A")


CHANGES = [
    ("import os; os.chdir('/')", os.getcwd),
    ("import torch; torch.set_default_dtype(torch.float64)", torch.get_default_dtype),
    ("import torch; torch.set_default_device('meta')", torch.get_default_device),
    ("import torch; torch.set_grad_enabled(False)", torch.is_grad_enabled),
    ("import torch; torch.set_num_threads(7)", torch.get_num_threads),
    ("import torch; torch.use_deterministic_algorithms(True)", torch.are_deterministic_algorithms_enabled),
    ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", lambda: signal.getsignal(signal.SIGTERM)),
]


@pytest.mark.parametrize("place", ["import", "constructor"])
@pytest.mark.parametrize(("code", "state"), CHANGES, ids=[code.rpartition(".")[2] for code, _ in CHANGES])
def test_what_a_file_changes_for_the_whole_process_is_put_back(code, state, place, user_file):
    """Else its rows, and in one process those after it, would be trained in another precision than the plan says."""
    at_import = USER_FILE + f"\n{code}\n"
    in_constructor = USER_FILE.replace("super().__init__()", f"{code}; super().__init__()")
    user_file.write_text(at_import if place == "import" else in_constructor)
    before = state()
    (subject,) = resolve(f"{user_file}:MyMixer", Domain.SEQUENCE)
    subject.mixers(Domain.SEQUENCE, 8, 2, 1)(0)
    assert state() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os._exit(5)", r"my_file\.py: cannot be imported: the process ended with status 5"),
        ("import time; time.sleep(600)", r"my_file\.py: cannot be imported: did not end within 3 s"),
        ("import sys; sys.stdout.close(); sys.path.clear(); 1 / 0", r"my_file\.py: cannot be imported: ZeroDivision"),
        ("import threading, time; threading.Thread(target=time.sleep, args=[600]).start()", None),
    ],
    ids=["exits", "hangs", "closes", "thread"],
)
def test_a_file_is_tried_where_it_can_do_no_harm(code, message, user_file, monkeypatch):
    monkeypatch.setattr("attensor.compare.user_files._IMPORT_SECONDS", 3.0 if "600)" in code else 60.0)
    user_file.write_text(f"{code}\n{USER_FILE}")
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        try_class(user_file, "MyMixer")


def test_a_usual_comparison_leaves_out_what_all_takes_in():
    usual, every = ({s.name for s in resolve(wanted, Domain.SEQUENCE)} for wanted in (None, " all "))
    assert every - usual == {name for name, card in mechanisms().items() if not card.is_compared}
    assert {"mla", "grouped-latent"} <= every - usual
