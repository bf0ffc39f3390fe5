"""Back-off n-grams against the formula written with dictionaries, one context at a time."""

import math
from collections import Counter, defaultdict
from random import Random

import pytest
import torch

from attensor.data import open_text
from attensor.data.folds import Folds
from attensor.data.ngram import NGram, NGramCounts

FOLDS = 3


def made_text(seed=0, stretches=23):
    """Stretches of words that come again, with folds; some are shorter than the longest sequence, one is empty."""
    random = Random(seed)
    words = [bytes(random.choices(b"abcdefgh\xff\x00", k=random.randint(1, 5))) for _ in range(40)]
    found = [b" ".join(random.choices(words, k=random.randint(1, 60))) for _ in range(stretches)]
    found += [b"", b"a", b"ab", b"abc", b"ab"]
    return [(stretch, random.randrange(FOLDS)) for stretch in found]


class Naive:
    """The n-gram of `order` bytes of these stretches, by its definition."""

    def __init__(self, stretches, order):
        raw = [Counter() for _ in range(order + 1)]
        before = [defaultdict(set) for _ in range(order + 1)]
        for stretch in stretches:
            for end in range(1, len(stretch) + 1):
                for length in range(1, min(order, end) + 1):
                    gram = stretch[end - length : end]
                    raw[length][gram] += 1
                    before[length][gram].add(stretch[end - length - 1] if end > length else None)
        self.order = order
        self.counts = [
            Counter({gram: len(found) for gram, found in before[length].items()}) if length < order else raw[length]
            for length in range(order + 1)
        ]
        self.followers = [defaultdict(dict) for _ in range(order + 1)]
        for length in range(1, order + 1):
            for gram, count in self.counts[length].items():
                self.followers[length][gram[:-1]][gram[-1]] = count
        self.discounts = [self._discounts(counts) for counts in self.counts]

    @staticmethod
    def _discounts(counts):
        n = Counter(counts.values())
        if not (n[1] and n[2] and n[3]):
            return [0.0, 0.5, 0.5, 0.5]
        y = n[1] / (n[1] + 2 * n[2])
        return [0.0, *(max(0.1, i - (i + 1) * y * n[i + 1] / n[i]) for i in (1, 2, 3))]

    def probability(self, byte, context, length=None):
        length = min(self.order - 1, len(context)) if length is None else length
        if length < 0:
            return 1 / 256
        lower = self.probability(byte, context, length - 1)
        followers = self.followers[length + 1].get(context[len(context) - length :])
        if not followers:
            return lower
        discounts, total = self.discounts[length + 1], sum(followers.values())
        count = followers.get(byte, 0)
        rest = sum(discounts[min(c, 3)] for c in followers.values()) / total
        return (count - discounts[min(count, 3)]) / total + rest * lower


def windows(text, length, count=5):
    joined = b"".join(stretch for stretch, _ in text)
    rows = [joined[i * 37 : i * 37 + length] for i in range(count - 1)] + [b"\x01zz" + joined[5 : length + 2]]
    return torch.tensor([list(row) for row in rows])


def expected(naive, row):
    return [[math.log(naive.probability(b, bytes(row[: t + 1].tolist()))) for b in range(256)] for t in range(len(row))]


@pytest.mark.parametrize("order", [1, 2, 3, 5, 7])
def test_probabilities_are_those_of_the_formula(order):
    """Also where a window is shorter than the context, and after bytes that the text does not have."""
    text = made_text()
    model = NGramCounts(text, order=order, folds=FOLDS).smoothed()
    naive = Naive([stretch for stretch, _ in text], order)
    rows = windows(text, 11, count=3)
    expect = torch.tensor([expected(naive, row) for row in rows])
    torch.testing.assert_close(model.log_probabilities(rows), expect, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(model.log_probabilities(rows[:, :1]), expect[:, :1], rtol=2e-6, atol=2e-6)


def test_a_fold_left_out_is_as_if_its_text_had_never_been_counted():
    text = made_text(seed=1)
    model = NGramCounts(text, order=4, folds=FOLDS).smoothed()
    rows = windows(text, 29)
    for fold in range(FOLDS):
        others = [(stretch, 0) for stretch, of in text if of != fold]
        alone = NGramCounts(others, order=4, folds=1).smoothed()
        torch.testing.assert_close(
            model.log_probabilities(rows, fold), alone.log_probabilities(rows), rtol=0, atol=1e-6
        )


def test_each_place_may_leave_out_another_fold():
    text = made_text(seed=2)
    model = NGramCounts(text, order=3, folds=FOLDS).smoothed()
    rows = windows(text, 17)
    folds = torch.randint(FOLDS, (5, 17), generator=torch.Generator().manual_seed(0))
    of_each = torch.stack([model.log_probabilities(rows, fold) for fold in range(FOLDS)])
    expect = of_each.gather(0, folds[None, :, :, None].expand(1, -1, -1, 256))[0]
    torch.testing.assert_close(model.log_probabilities(rows, folds), expect, rtol=0, atol=0)


def test_probabilities_sum_to_one_and_none_is_zero():
    text = [*made_text(seed=3), (bytes(range(256)) * 2, 1)]
    model = NGramCounts(text, order=6, folds=FOLDS).smoothed()
    rows = windows(text, 40)
    for fold in (None, 0, 1, 2):
        found = model.log_probabilities(rows, fold)
        assert found.isfinite().all()
        torch.testing.assert_close(found.exp().sum(-1), torch.ones(5, 40), rtol=0, atol=2e-6)


def test_shorter_orders_come_from_the_same_counts():
    text = made_text(seed=4)
    counts = NGramCounts(text, order=5, folds=FOLDS)
    rows = windows(text, 13)
    for order in (1, 2, 4):
        alone = NGramCounts(text, order=order, folds=FOLDS).smoothed()
        found = counts.smoothed(order)
        assert found.order == order
        torch.testing.assert_close(found.log_probabilities(rows), alone.log_probabilities(rows), rtol=0, atol=1e-6)


def test_long_text_is_counted_in_parts_with_the_same_result(monkeypatch):
    text = made_text(seed=5)
    whole = NGramCounts(text, order=5, folds=FOLDS).smoothed()
    monkeypatch.setattr("attensor.data.ngram._AT_ONCE", 31)
    parts = NGramCounts(text, order=5, folds=FOLDS).smoothed()
    rows = windows(text, 23)
    torch.testing.assert_close(parts.log_probabilities(rows, 1), whole.log_probabilities(rows, 1), rtol=0, atol=0)


def test_saved_and_loaded_it_says_the_same(tmp_path):
    text = made_text(seed=6)
    model = NGramCounts(text, order=4, folds=FOLDS).smoothed()
    model.save(tmp_path / "counts.safetensors")
    rows = windows(text, 19)
    found = NGram.load(tmp_path / "counts.safetensors").to("cpu")
    torch.testing.assert_close(found.log_probabilities(rows, 2), model.log_probabilities(rows, 2), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["counts.safetensors"]


@pytest.mark.parametrize(("order", "folds"), [(0, 3), (8, 3), (3, 0), (3, 9)])
def test_orders_and_folds_beyond_the_keys_are_refused(order, folds):
    with pytest.raises(ValueError, match="order must be 1 to 7 and folds 1 to 8"):
        NGramCounts([], order=order, folds=folds)


def test_folds_are_balanced_by_whole_files():
    random = Random(0)
    sizes = [random.randint(100, 5000) for _ in range(60)]
    folds = Folds.of(sizes, 5)
    assert folds.ends.tolist() == torch.tensor(sizes).cumsum(0).tolist()
    filled = [sum(s for s, n in zip(sizes, folds.numbers.tolist(), strict=True) if n == i) for i in range(5)]
    assert max(filled) - min(filled) < max(sizes)
    places = torch.arange(sum(sizes))
    of_each = [n for size, n in zip(sizes, folds.numbers.tolist(), strict=True) for _ in range(size)]
    assert folds.at(places.view(-1, 1))[:, 0].tolist() == of_each


def test_a_single_file_is_cut_into_neighbouring_folds():
    folds = Folds.of([1003], 5)
    assert folds.numbers.tolist() == [0, 1, 2, 3, 4]
    assert folds.ends.tolist() == [200, 401, 601, 802, 1003]
    assert list(folds.between(150, 402)) == [(150, 200, 0), (200, 401, 1), (401, 402, 2)]


def test_text_gives_its_training_side_in_folds(tmp_path):
    random = Random(1)
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_bytes(bytes(random.choices(b"etaoin \n", k=random.randint(200, 900))))
    data = open_text(tmp_path, minimum_bytes=65)
    folds = data.folds(5)
    stretches = list(data.train_text(folds, limit=10**6))
    joined = b"".join(stretch for stretch, _ in stretches)
    assert len(joined) == data.train_bytes
    starts = data.starts(3, seed=7, batch_size=6, length=50)
    rows = data.batch(3, seed=7, batch_size=6, length=50)
    assert [bytes(row.tolist()) for row in rows] == [joined[start : start + 51] for start in starts.tolist()]
    of_each = [number for stretch, number in stretches for _ in stretch]
    places = starts[:, None] + torch.arange(51)
    assert folds.at(places).tolist() == [[of_each[i] for i in row] for row in places.tolist()]


def test_of_long_text_an_even_part_is_read(tmp_path, monkeypatch):
    (tmp_path / "long.txt").write_bytes(bytes(Random(2).choices(b"abc", k=40_000)))
    data = open_text(tmp_path / "long.txt", minimum_bytes=65)
    folds = data.folds(5)
    whole = b"".join(stretch for stretch, _ in data.train_text(folds, limit=10**6))
    monkeypatch.setattr("attensor.data.text._PART_BYTES", 100)
    parts = list(data.train_text(folds, limit=3000))
    assert sum(len(part) for part, _ in parts) == 3000
    assert {number for _, number in parts} == {0, 1, 2, 3, 4}
    assert all(part in whole for part, _ in parts)
