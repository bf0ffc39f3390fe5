"""Decoding: the same token through the same states, at an early and at a late position."""

from __future__ import annotations

import pytest
import torch

from attensor.bench.linear import decode, measure_decode, tables
from attensor.bench.linear.decode import DECODERS, Decoder, Workload
from attensor.bench.linear.tables import decode_tables

ABSENT = ("is not installed", "needs a GPU", "cannot be imported", "no ops/")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("NUM_HEADS", 2), ("KEY_DIM", 3), ("VALUE_DIM", 5), ("HIDDEN_SIZE", 32)):
        monkeypatch.setattr(decode, name, size)
    for module in (decode, measure_decode, tables):
        monkeypatch.setattr(module, "POSITIONS", (7, 70))


def test_contestants_of_a_task_give_the_same_token() -> None:
    rows = measure_decode.measure_decode(Workload("cpu", 3), {peer for _, peer in DECODERS}, 1, lambda *_: None)
    assert [(row.task, row.peer) for row in rows] == list(DECODERS)
    for row in rows:
        assert row.seconds or any(reason in row.skipped for reason in ABSENT), row
        assert row.max_error is None or row.max_error < 1e-5
        assert (row.max_error is None) == (row.peer in ("ours", "sdpa") or not row.seconds)


def test_a_state_stays_and_a_cache_of_keys_grows() -> None:
    rows = measure_decode.measure_decode(Workload("cpu", 3), {"sdpa"}, 1, lambda *_: None)
    kept = {row.peer: row.state_bytes for row in rows if row.task == decode.GATES}
    assert kept["ours"] == dict.fromkeys((7, 70), 3 * 2 * 3 * 5 * 4)
    assert kept["sdpa"] == {n: 3 * n * 2 * (3 + 5) * 4 for n in (7, 70)}


def test_layers_that_do_not_fit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "KEPT_BYTES", 2 * 70 * 2 * (3 + 5) * 4)
    late = decode._softmax(Workload("cpu", 4), 70)
    assert isinstance(late, Decoder)
    assert late.layers == 2
    monkeypatch.setattr(measure_decode, "paired", lambda calls, *_, **__: dict.fromkeys(calls, 0.5))
    rows = measure_decode.measure_decode(Workload("cpu", 4), {"sdpa"}, 1, lambda *_: None)
    ours, softmax = (row for row in rows if row.task == decode.GATES)
    assert ours.seconds == {7: 0.5, 70: 0.5}
    assert softmax.seconds == {7: 0.5, 70: 1.0}
    assert (softmax.growth, softmax.against_ours) == (2.0, 2.0)
    assert softmax.state_bytes[70] == 4 * 70 * 2 * (3 + 5) * 4


def test_layers_of_ours_continue_at_the_position() -> None:
    work = Workload("cpu", 1)
    (layer,) = work.lightning
    cache = layer.new_cache(1)
    cache.update(7, state=work.states(layer.key_dim, layer.value_dim)[0])
    decoder = decode._lightning_layers(work, 7)
    assert isinstance(decoder, Decoder)
    token = work.draw(1, 1, 32)
    torch.testing.assert_close(decoder.step(), token + layer(token, cache=cache))


def test_another_token_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(work: Workload, position: int) -> Decoder:
        ours = decode._ours_operator(work, position)
        assert isinstance(ours, Decoder)
        return Decoder(lambda: 1.01 * ours.step(), ours.layers, ours.state_bytes)

    monkeypatch.setitem(DECODERS, (decode.GATES, "fake"), wrong)
    rows = measure_decode.measure_decode(Workload("cpu", 1), {"fake"}, 1, lambda *_: None)
    (fake,) = (row for row in rows if row.peer == "fake")
    assert fake.skipped.startswith("computes another function: it differs by 9.9e-03")
    tables = list(decode_tables(rows))
    assert [[row[0] for row in table.rows] for table in tables] == [["ours"], ["ours"], ["ours"]]
    assert tables[0].title.endswith(decode.GATES)
    assert "fake: computes another function" in tables[0].note
    assert "random numbers" in tables[-1].note
    assert list(decode_tables([])) == []
