"""Watching over real sockets: losses, restarts, snapshots, both shells."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_node import FakeNode

from minoots import AsyncClient, Client, Event
from minoots.wire.problems import EpochChanged, OutOfRetention, Unreachable, refusal


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as fake:
        yield fake


@pytest.fixture
def client(node: FakeNode) -> Iterator[Client]:
    with Client(node.control, timeout=2.0) as made:
        yield made


def take(watch: Iterator[Event], count: int) -> list[int]:
    return [next(watch).seq for _ in range(count)]


def test_events_come_as_they_fire(client: Client) -> None:
    with client.watch() as watch:
        timer = client.schedule("tea", after="20ms", payload=[1], labels={"a": "b"})
        first, second = next(watch), next(watch)
        assert watch.poll(0.01) is None
    assert (first.type, first.seq) == ("timer.scheduled", 1)
    assert (second.type, second.timer_id, second.payload) == ("timer.expired", timer.id, [1])
    assert second.lateness_us is not None
    assert second.lateness_us >= 0
    assert second.due is not None
    assert second.due.tzinfo is not None
    assert second.dedupe_key == f"default/{timer.id}/1"


def test_filters(client: Client, node: FakeNode) -> None:
    with client.watch(types=["expired"], name="b", labels={"k": "v"}) as watch:
        for name, labels in (("a", {}), ("b", {}), ("b", {"k": "v"})):
            client.schedule(name, after="1ms", labels=labels)
        assert next(watch).labels == {"k": "v"}


def test_what_the_feed_loses_is_replayed(client: Client, node: FakeNode) -> None:
    with client.watch(since="start") as watch:
        node.tell("timer.expired")
        assert take(watch, 1) == [1]
        node.drop_live = 3
        for _ in range(5):
            node.tell("timer.expired")
        assert take(watch, 5) == [2, 3, 4, 5, 6]
        node.drop_live = 1
        node.tell("timer.expired")
        assert take(watch, 1) == [7]  # by the next heartbeat
        assert watch.cursor is not None
        assert watch.cursor.seq == 7


def test_a_watch_goes_on_after_the_node_came_back(client: Client, node: FakeNode) -> None:
    with client.watch(since="start") as watch:
        node.tell("timer.expired")
        assert take(watch, 1) == [1]
        node.drop_live = 2
        node.tell("timer.expired")
        node.restart()
        node.tell("timer.expired")
        assert take(watch, 2) == [2, 3]
        node.tell("timer.cancelled")
        assert take(watch, 1) == [4]


def test_a_restored_log_is_read_from_where_the_watch_began(client: Client, node: FakeNode) -> None:
    with client.watch(since="start") as watch:
        for _ in range(3):
            node.tell("timer.expired")
        assert take(watch, 3) == [1, 2, 3]
        node.restart(epoch=2, keep=1)
        node.tell("timer.cancelled")
        events = [next(watch), next(watch)]
        assert [(event.epoch, event.seq) for event in events] == [(2, 1), (2, 2)]


def test_cursors_and_times(client: Client, node: FakeNode) -> None:
    for _ in range(4):
        node.tell("timer.expired")
    with client.watch(since=(1, 2)) as watch:
        assert take(watch, 2) == [3, 4]
    with client.watch(since="2026-01-01T00:00:00Z") as watch:
        assert take(watch, 4) == [1, 2, 3, 4]
    node.restart(epoch=2, keep=4)
    with (
        client.watch(since=(1, 2)) as watch,
        pytest.raises(EpochChanged, match="another epoch"),
    ):
        next(watch)


def test_a_snapshot_comes_first(client: Client, node: FakeNode) -> None:
    client.schedule("a", after=60)
    client.schedule("b", after=60)
    with client.watch(snapshot=True) as watch:
        assert [(next(watch).type, next(watch).name)] == [("snapshot", "b")]
        client.cancel("a")
        assert next(watch).type == "timer.cancelled"


def test_trouble_that_passes_and_trouble_that_does_not(client: Client, node: FakeNode) -> None:
    node.tell("timer.expired")
    with client.watch(since="start") as watch:
        node.problems.extend([refusal("overloaded", "wait", retry_after_ms=1)] * 7)
        assert take(watch, 1) == [1]
        node.drop_live = 1
        node.tell("timer.expired")
        node.problems.extend([refusal("out_of_retention", "gone")] * 2)
        with pytest.raises(OutOfRetention):
            next(watch)


def test_no_heartbeat_is_told() -> None:
    with (
        FakeNode(beat_s=60) as node,
        Client(node.control, timeout=0.1) as client,
    ):
        node.run(lambda: None)  # it has served, and its first heartbeat is gone
        with pytest.raises(Unreachable, match=r"no heartbeat came from the events door in 0\.1 s"):
            client.watch()


def test_a_node_that_moved_is_found_after_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minoots.order.SILENCE_S", 0.06)
    monkeypatch.setattr("minoots.order.LISTEN_S", 0.02)
    monkeypatch.setattr("minoots.watch.SETTLE_S", 0.01)
    with FakeNode(data=tmp_path) as node:
        client = Client(data=tmp_path, timeout=2.0)
        watch = client.watch(since="start")
        node.tell("timer.expired")
        assert take(watch, 1) == [1]
        log = node.log
    assert watch.poll(0.1) is None
    with client, watch, FakeNode(data=tmp_path) as other:
        other.run(lambda: other.log.extend(log))
        other.boot = 7
        other.tell("timer.cancelled")
        assert next(watch).type == "timer.cancelled"


def test_async_watching_is_the_same(node: FakeNode) -> None:
    async def main() -> None:
        async with AsyncClient(node.control, timeout=2.0) as client:
            node.tell("timer.expired")
            async with client.watch(since="start") as watch:
                assert (await anext(watch)).seq == 1
                node.drop_live = 2
                for _ in range(4):
                    node.tell("timer.expired")
                assert [(await anext(watch)).seq for _ in range(4)] == [2, 3, 4, 5]
                node.restart()
                node.tell("timer.expired")
                assert (await anext(watch)).seq == 6
            seqs = []
            async for event in client.watch(since=(1, 4)):
                seqs.append(event.seq)
                if event.seq == 6:
                    break
            assert seqs == [5, 6]

    asyncio.run(main())


def test_many_events_with_losses_come_once_each(client: Client, node: FakeNode) -> None:
    def burst() -> None:
        for at in range(1_500):
            node.drop_live = 7 if at % 100 == 50 else node.drop_live
            node._append("timer.expired", node._blank())

    with client.watch() as watch:
        node.run(burst)
        assert take(watch, 1_500) == list(range(1, 1_501))
