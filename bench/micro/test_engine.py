"""The wheel, the hot set, records and the chain, one operation or one batch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.samples import (
    BLOB,
    HOUR_TICKS,
    NOW_NS,
    due_ticks,
    id_of,
    image,
    scheduled,
)
from engine._hot import HotSet
from engine._wheel import Wheel
from engine.record import (
    Kind,
    chain_hash,
    pack_event,
    pack_row,
    unpack_blob,
    unpack_event,
    unpack_row,
)

BATCH = 10_000
ROUNDS = 30
SINGLE = 1_000  # calls in a round of a bench that uses things up

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def armed(count: int) -> tuple[Wheel, Any]:
    wheel = Wheel()
    handles = np.zeros(count, np.uint64)
    wheel.arm_many(due_ticks(count), handles)
    return wheel, handles


def test_wheel_arm_x1000(benchmark: BenchmarkFixture) -> None:
    wheel = Wheel()
    ticks = due_ticks(SINGLE).tolist()

    def arm() -> None:
        for tick in ticks:
            wheel.arm(tick)

    benchmark.pedantic(arm, rounds=ROUNDS, warmup_rounds=1)


def test_wheel_disarm_x1000(benchmark: BenchmarkFixture) -> None:
    def setup() -> Arguments:
        wheel, handles = armed(SINGLE)
        return (wheel, handles.tolist()), {}

    def disarm(wheel: Wheel, handles: list[int]) -> None:
        for handle in handles:
            wheel.disarm(handle)

    benchmark.pedantic(disarm, setup=setup, rounds=ROUNDS)


def test_wheel_advance_a_tick(benchmark: BenchmarkFixture) -> None:
    wheel, _ = armed(BATCH)
    out = np.zeros(BATCH, np.uint64)
    at = iter(range(1, 1 << 60))
    benchmark.pedantic(lambda: wheel.advance(next(at), out), rounds=5_000)


def test_wheel_arm_many_10000(benchmark: BenchmarkFixture) -> None:
    ticks, handles = due_ticks(BATCH), np.zeros(BATCH, np.uint64)
    benchmark.pedantic(
        lambda wheel: wheel.arm_many(ticks, handles),
        setup=lambda: ((Wheel(),), {}),
        rounds=ROUNDS,
    )


def test_wheel_disarm_many_10000(benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(
        lambda wheel, handles: wheel.disarm_many(handles),
        setup=lambda: (armed(BATCH), {}),
        rounds=ROUNDS,
    )


def test_wheel_advance_over_10000(benchmark: BenchmarkFixture) -> None:
    out = np.zeros(BATCH, np.uint64)
    benchmark.pedantic(
        lambda wheel, handles: wheel.advance(HOUR_TICKS, out),
        setup=lambda: (armed(BATCH), {}),
        rounds=ROUNDS,
    )


def noted() -> HotSet:
    hot = HotSet(Wheel())
    for seq in range(1, BATCH):
        hot.note(id_of(seq), seq, NOW_NS, 0)
    return hot


def test_hot_note(benchmark: BenchmarkFixture) -> None:
    hot = HotSet(Wheel())
    id = id_of(1)
    benchmark(hot.note, id, 1, NOW_NS, 0)


def test_hot_get(benchmark: BenchmarkFixture) -> None:
    hot = noted()
    assert benchmark(hot.get, id_of(77)) == (77, NOW_NS, 0, False)


def test_hot_arm_anew(benchmark: BenchmarkFixture) -> None:
    hot = noted()
    benchmark(hot.arm, id_of(77), 5_000)


def test_record_pack_event(benchmark: BenchmarkFixture) -> None:
    made = image(7)
    benchmark(pack_event, 7, Kind.SCHEDULED, 0, NOW_NS, 0, NOW_NS, 1, made, BLOB)


def test_record_unpack_event(benchmark: BenchmarkFixture) -> None:
    assert benchmark(unpack_event, 7, scheduled(7)).seq == 7


def test_record_unpack_row(benchmark: BenchmarkFixture) -> None:
    benchmark(unpack_row, id_of(7), pack_row(image(7), BLOB))


def test_record_unpack_blob(benchmark: BenchmarkFixture) -> None:
    benchmark(unpack_blob, BLOB)


def test_chain_hash_of_64(benchmark: BenchmarkFixture) -> None:
    events = [scheduled(seq) for seq in range(1, 65)]
    assert len(benchmark(chain_hash, bytes(32), 1, events, b"", b"")) == 32
