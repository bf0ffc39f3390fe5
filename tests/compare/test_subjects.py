"""Names become cards, paths become the user's classes, and anything else a message that helps."""

from __future__ import annotations

import pytest

from attensor.catalogue import Domain, mechanisms
from attensor.compare.subjects import Subject, resolve

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


def test_left_out_means_every_card_that_fits():
    found = {subject.name for subject in resolve(None, Domain.SEQUENCE)}
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
        ("nowhere.py:A", r"there is no file nowhere\.py"),
        ("{file}", "say which class of the file"),
        ("{file}:MyMixr", "has no nn.Module class of that name. Did you mean MyMixer"),
        ("{file}:NoModule", "has no nn.Module class of that name"),
    ],
    ids=str,
)
def test_a_wrong_name_is_explained(wanted, message, user_file):
    with pytest.raises(ValueError, match=message):
        resolve(wanted.format(file=user_file), Domain.SEQUENCE)


def test_a_file_that_does_not_run_is_named(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    with pytest.raises(ValueError, match=r"broken\.py: cannot be imported: ZeroDivisionError"):
        resolve(f"{path}:A", Domain.SEQUENCE)
