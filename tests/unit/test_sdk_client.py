"""Both clients against a node in a thread, over real sockets, with its faults."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from fake_node import FakeNode

import minoots
from minoots import AsyncClient, Client, definition
from minoots.wire.bodies import TimerView
from minoots.wire.problems import (
    AlreadyTerminal,
    BadSchedule,
    IdempotencyKeyReused,
    NotFound,
    Overloaded,
    Refused,
    Unreachable,
    refusal,
)
from minoots.wire.times import SECOND


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as fake:
        yield fake


@pytest.fixture
def client(node: FakeNode) -> Iterator[Client]:
    with Client(node.control, timeout=2.0) as made:
        yield made


def keys_of(node: FakeNode, op: str) -> list[str]:
    return [header["idem"] for name, header, _ in node.requests if name == op]


def test_a_timers_life(client: Client) -> None:
    timer = client.schedule("tea", after="4m", payload={"cups": 2}, labels={"a": "b"})
    assert isinstance(timer, TimerView)
    assert client.get("tea") == client.get(timer.id) == client.get(timer)
    assert client.extend("tea", "1m").revision == 2
    assert client.pause("tea").state == "paused"
    assert client.resume("tea").state == "scheduled"
    assert client.reschedule("tea", after="1h").schedule == definition(after="1h").schedule
    assert client.cancel(timer, idem="mine").state == "cancelled"
    assert client.cancel(timer, idem="mine").replayed
    with pytest.raises(AlreadyTerminal):
        client.cancel(timer)
    with pytest.raises(NotFound, match="there is no timer 'coffee'"):
        client.get("coffee")
    kinds = [event.type.removeprefix("timer.") for event in client.history(timer)]
    assert kinds == ["scheduled", "rescheduled", "paused", "resumed", "rescheduled", "cancelled"]
    assert [event.type for event in client.history(timer, limit=2)] == [
        "timer.rescheduled",
        "timer.cancelled",
    ]


def test_the_node_itself(client: Client, node: FakeNode) -> None:
    assert client.hello().doors == node.doors
    assert client.stats()["log"]["epoch"] == 1
    assert client.health() == {"status": "ok"}
    assert client.schema("hello") == {"type": "object"}
    assert client.ping() < 1
    node.clock_skew_ns = 3 * SECOND
    found = client.time_sync(3)
    assert abs(found.offset_ns - 3 * SECOND) < SECOND // 10
    assert len(client.next(every="5s", count=3)) == 3
    with pytest.raises(ValueError, match="take at least one"):
        client.time_sync(0)


def test_bulk_verbs_go_to_the_stream_door(client: Client, node: FakeNode) -> None:
    client.schedule("a", after=60)
    assert len(list(client.list())) == 1
    seen: list[str] = []

    def remember(sock: object, frames: list[bytes]) -> None:
        seen.append("stream" if sock is node._sockets[1] else "control")
        answer(sock, frames)  # type: ignore[arg-type]

    answer = node._answer
    node._answer = remember  # type: ignore[method-assign]
    client.get("a")
    client.page()
    list(client.replay())
    client.history("a")
    client.snapshot()
    assert seen == ["control", "stream", "stream", "control", "stream", "stream"]


def test_lists_are_read_page_by_page(client: Client) -> None:
    client.schedule_many([{"name": f"t{at}", "after": 60} for at in range(7)])
    assert [view.name for view in client.list(page_size=3)] == [f"t{at}" for at in range(7)]
    assert [view.name for view in client.list({"name_prefix": "t3"})] == ["t3"]
    snapshot = client.snapshot(page_size=2)
    assert snapshot.as_of.seq == 7
    assert len(list(snapshot.timers)) == 7
    assert [event.seq for event in client.replay(page_size=2)] == [1, 2, 3, 4, 5, 6, 7]
    assert [event.seq for event in client.replay(from_cursor=(1, 5))] == [6, 7]
    assert [event.seq for event in client.replay(name="t2")] == [3]
    with pytest.raises(ValueError, match="a replay begins earlier"):
        next(client.replay(since="now"))
    assert client.change_many("pause", {"name_prefix": "t"}, dry_run=True).count == 7
    assert client.cancel_many({"name_prefix": "t"}) == 7


def test_many_timers_go_in_chunks_each_with_its_own_key(client: Client, node: FakeNode) -> None:
    timers = [{"name": f"t{at}", "after": 60} for at in range(2_300)]
    timers[1_500] = {"name": "bad", "schedule": {"kind": "cron", "expr": "* * * * *"}}
    results = client.schedule_many(timers, idem="bulk")
    assert keys_of(node, "timer.schedule_many") == ["bulk", "bulk#1", "bulk#2"]
    assert isinstance(results[1_500], BadSchedule)
    views = [view.name for view in results if isinstance(view, TimerView)]
    assert views == [f"t{at}" for at in range(2_300) if at != 1_500]
    with pytest.raises(ValueError, match="one transaction takes 1000"):
        client.schedule_many(timers, atomic=True)
    with pytest.raises(BadSchedule):
        client.schedule_many(timers[1_499:1_502], atomic=True)


def test_a_pipeline_reads_only_what_it_sends_and_lets_others_between(client: Client) -> None:
    read = 0

    def endless() -> Iterator[dict[str, object]]:
        nonlocal read
        while True:
            read += 1
            yield {"name": f"t{read}", "after": 60}

    results = client.schedule_many_iter(endless(), in_flight=2, chunk=10)
    names = []
    for at, view in enumerate(results):
        assert isinstance(view, TimerView)
        names.append(client.get(view.id).name)
        if at == 25:
            results.close()  # type: ignore[attr-defined]
    assert names == [f"t{at}" for at in range(1, 27)]
    assert read <= 60
    assert client.hello().node_id == "fake"


def test_a_lost_reply_is_asked_for_again_and_done_once(client: Client, node: FakeNode) -> None:
    quick = Client(node.control, timeout=1.0)
    with quick:
        quick.hello()
        node.drop_replies = 1
        timer = quick.schedule("once", after=60)
    keys = keys_of(node, "timer.schedule")
    assert len(keys) == 2
    assert keys[0] == keys[1]
    assert timer.replayed
    assert len(node.timers) == 1


def test_a_problem_that_may_pass_is_tried_again(client: Client, node: FakeNode) -> None:
    node.problems.extend([refusal("overloaded", "wait", retry_after_ms=5)] * 2)
    client.schedule("x", after=60)
    assert len(set(keys_of(node, "timer.schedule"))) == 1
    assert len(keys_of(node, "timer.schedule")) == 3
    node.problems.extend([refusal("overloaded", "wait", retry_after_ms=5)] * 9)
    with pytest.raises(Overloaded, match="wait"):
        client.schedule("x", after=60)
    assert len(node.problems) == 4
    node.problems.clear()
    node.problems.append(refusal("forbidden", "no"))
    with pytest.raises(Refused, match="no"):
        client.schedule("x", after=60)
    client.schedule("y", after=60, idem="k")
    with pytest.raises(IdempotencyKeyReused):
        client.schedule("z", after=60, idem="k")


def test_a_node_with_another_clock_is_not_told_deadlines_it_cannot_meet(
    client: Client, node: FakeNode
) -> None:
    node.clock_skew_ns = 60 * SECOND
    assert client.schedule("x", after=60).name == "x"


def test_a_silent_node_is_unreachable(node: FakeNode) -> None:
    node.mute = True
    with Client(node.control, timeout=0.1) as client:
        with pytest.raises(Unreachable, match=r"no reply to hello in 0\.1 s"):
            client.hello()
        node.mute = False
    with pytest.raises(Unreachable, match="closed"):
        client.hello()
    with (
        Client("tcp://127.0.0.1:1", timeout=0.05, retries=0) as client,
        pytest.raises(Unreachable, match="1 attempt"),
    ):
        client.stats()
    with (
        Client("nonsense://x", timeout=0.05) as client,
        pytest.raises(Unreachable, match="no addr"),
    ):
        client.stats()


def test_a_node_that_moved_is_found_again(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no node serves"):
        Client(data=tmp_path)
    with FakeNode(data=tmp_path):
        client = Client(data=tmp_path, timeout=1.0)
        assert client.hello().node_id == "fake"
    with client, FakeNode(data=tmp_path) as other:
        assert client.hello().doors == other.doors


def test_calls_under_way_share_one_new_connection(tmp_path: Path) -> None:
    with FakeNode(data=tmp_path):
        client = Client(data=tmp_path, timeout=2.0)
        client.hello()
    with client, FakeNode(data=tmp_path):
        began = time.monotonic()
        timers = [{"name": "x", "after": 60}] * 8
        assert len(list(client.schedule_many_iter(timers, chunk=1))) == 8
        # One attempt was lost, and the second one of each came through.
        assert time.monotonic() - began < 0.9


def test_threads_may_share_a_client(client: Client, node: FakeNode) -> None:
    def work(at: int) -> None:
        for number in range(25):
            name = f"t{at}-{number}"
            assert client.get(client.schedule(name, after=60)).name == name

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(node.timers) == 100


def test_everything_that_is_promised_is_exported() -> None:
    for name in minoots.__all__:
        assert getattr(minoots, name) is not None
    with pytest.raises(AttributeError):
        minoots.nothing  # noqa: B018


# --------------------------------------------------------------------------------------- asyncio


def awaited(node: FakeNode, task: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncClient(node.control, timeout=1.0) as client:
            await task(client)

    asyncio.run(main())


def test_async_requests_go_at_the_same_time(node: FakeNode) -> None:
    async def task(client: AsyncClient) -> None:
        made = await asyncio.gather(*[client.schedule(f"t{at}", after=60) for at in range(50)])
        assert len({view.id for view in made}) == 50
        assert (await client.get("t7")).name == "t7"
        assert len([view async for view in client.list(page_size=20)]) == 50
        assert (await client.cancel("t7")).state == "cancelled"
        assert [e.type for e in await client.history(made[7])][-1] == "timer.cancelled"
        assert len([event async for event in client.replay(page_size=20)]) == 51
        snapshot = await client.snapshot(page_size=20)
        assert len([view async for view in snapshot.timers]) == 49
        found = await client.change_many("shift", {"name_prefix": "t1"}, by="1h")
        assert (found.count, found.sample) == (11, [])
        assert await client.cancel_many({"name_prefix": "t1"}) == 11
        assert len(await client.next(every="1m", count=4)) == 4
        assert (await client.time_sync(2)).samples == 2
        assert (await client.stats())["log"]["epoch"] == 1

    awaited(node, task)


def test_async_bulk_and_refusals(node: FakeNode) -> None:
    async def task(client: AsyncClient) -> None:
        timers = [{"name": f"t{at}", "after": 60} for at in range(2_100)]
        results = await client.schedule_many(timers)
        assert [view.name for view in results if isinstance(view, TimerView)][-1] == "t2099"
        with pytest.raises(NotFound):
            await client.get("none")
        with pytest.raises(ValueError, match="naive"):
            await client.schedule("x", at=datetime(2026, 1, 1))

    awaited(node, task)


def test_async_retries_are_the_same(node: FakeNode) -> None:
    async def task(client: AsyncClient) -> None:
        await client.hello()
        node.drop_replies = 1
        assert (await client.schedule("once", after=60)).replayed
        node.problems.append(refusal("overloaded", "wait", retry_after_ms=5))
        await client.schedule("twice", after=60)
        node.mute = True
        with pytest.raises(Unreachable):
            await client.stats()

    awaited(node, task)
    assert len(node.timers) == 2
