"""References against what scikit-learn, the compressors themselves and a count by hand say."""

import lzma
import sys
import types
import zlib
from collections import Counter
from math import log2
from random import Random

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from attensor.compare.references import image_references, text_references
from attensor.data import open_data


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    random = Random(3)
    words = ["".join(random.choices("abcdefghij", k=random.randint(2, 7))) for _ in range(80)]
    for i in range(60):
        (folder / f"{i}.txt").write_text(" ".join(random.choices(words, weights=range(80, 0, -1), k=150)))
    return open_data(folder, minimum_bytes=129)


def rows_of(references):
    return {reference.name: reference for reference in references}


def test_the_unigram_is_the_entropy_of_its_counts_on_the_test(text):
    """Every byte of the test stands in the training text often, so that discounts are all that differ."""
    windows = text.test(32, limit=50)[0]
    train = b"".join(stretch for stretch, _ in text.train_text(text.folds(1), limit=10**9))
    counts = Counter(train)
    plain = -sum(log2(counts[byte] / len(train)) for byte in windows[:, 1:].flatten().tolist())
    found = rows_of(text_references(text, windows))
    assert found["unigram"].score == pytest.approx(plain / windows[:, 1:].numel(), abs=2e-3)
    orders = [found["unigram"].score, *(found[f"{order}-gram"].score for order in range(2, 6))]
    assert orders[0] > orders[1] > orders[2] > orders[3]


def test_compressors_add_the_test_to_the_training_text(text):
    windows = text.test(128, limit=40)[0]
    test = bytes(windows[:, 1:].flatten().tolist())
    found = rows_of(text_references(text, windows))
    assert 0 < found["zlib"].score < 8 * len(zlib.compress(test, 9)) / len(test)
    assert 0 < found["lzma"].score < 8 * len(lzma.compress(test)) / len(test)
    # a raw stream ends in whole bytes, so twice one byte may be lost
    train = b"".join(stretch for stretch, _ in text.train_text(text.folds(1), limit=10**9))
    again = len(lzma.compress(train + test)) - len(lzma.compress(train))
    assert found["lzma"].score == pytest.approx(8 * again / len(test), abs=0.05)
    assert 0 < found["bz2"].score < 8


def test_zstd_is_taken_where_python_has_it_and_else_says_why_not(text, monkeypatch):
    windows = text.test(32, limit=9)[0]
    monkeypatch.setitem(sys.modules, "compression", None)
    without = rows_of(text_references(text, windows))["zstd"]
    assert without.score is None
    assert "Python 3.14" in without.reason
    package, module = types.ModuleType("compression"), types.ModuleType("compression.zstd")
    module.compress = lambda data, level: zlib.compress(data, min(level, 9))
    package.zstd = module
    monkeypatch.setitem(sys.modules, "compression", package)
    monkeypatch.setitem(sys.modules, "compression.zstd", module)
    assert 0 < rows_of(text_references(text, windows))["zstd"].score < 8


def sides(data):
    images, labels = data.training_images(10**6)
    pairs = [(rows.flatten(1).numpy(), own.numpy()) for rows, own in data.test_batches(64)]
    return (
        images.flatten(1).numpy(),
        labels.numpy(),
        np.concatenate([p[0] for p in pairs]),
        np.concatenate([p[1] for p in pairs]),
    )


def test_images_score_as_scikit_learn_says():
    data = open_data("digits", minimum_bytes=1)
    images, labels, test, expected = sides(data)
    found = rows_of(image_references(data))
    assert found["majority"].score == pytest.approx((expected == np.bincount(labels).argmax()).mean())
    nearest = KNeighborsClassifier(1).fit(images, labels).score(test, expected)
    assert found["nearest"].score == pytest.approx(nearest, abs=1 / len(expected))
    scale = images.std(0).clip(1e-3)
    fitted = [
        LogisticRegression(C=1 / (decay * len(images)), max_iter=300).fit((images - images.mean(0)) / scale, labels)
        for decay in (1e-1, 1e-2, 1e-3, 1e-4)
    ]
    scores = [model.score((test - images.mean(0)) / scale, expected) for model in fitted]
    assert min(scores) - 0.01 < found["logistic"].score < max(scores) + 0.01


def test_of_many_images_an_even_part_is_learned_from(monkeypatch):
    data = open_data("digits", minimum_bytes=1)
    monkeypatch.setattr("attensor.compare.references.images._MOST_IMAGES", 300)
    found = rows_of(image_references(data))
    assert "300 training images" in found["nearest"].title
    assert 0.8 < found["nearest"].score < 0.99
    monkeypatch.setattr("attensor.compare.references.images._MOST_WORK", 49 * 64 * 10)
    few = rows_of(image_references(data))["logistic"]
    assert few.score is None
    assert "10 classes" in few.reason


def test_training_images_are_those_of_the_batches():
    data = open_data("digits", minimum_bytes=1)
    images, labels = data.training_images(10**6)
    assert len(images) == data.train_images
    batch, own = data.batch(0, seed=1, batch_size=20)
    for image, label in zip(batch, own, strict=True):
        same = (images == image).flatten(1).all(1)
        assert same.any()
        assert labels[same].unique().tolist() == [label]
    part, _ = data.training_images(7)
    assert len(part) == 7
    assert torch.equal(part[0], images[0])
