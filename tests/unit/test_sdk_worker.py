"""Workers: handlers that work off a consumer; and remembering what was done."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("edgenode.virtual", reason="the node's extensions are not built")

from virtual_ask import Virtual, consumer, run

from minoots import consumer_verbs as verbs
from minoots.aio import AsyncClient
from minoots.consumer import AsyncConsumer
from minoots.done import DoneKeys, key_of
from minoots.event import Event
from minoots.wire.bodies import EventFilter
from minoots.working import GiveUp, Options, Retry, Worker, work_off, worker

pytestmark = pytest.mark.timeout(30)


class Client:
    """As much of an AsyncClient as a worker needs, of a virtual node."""

    def __init__(self, ask: Virtual) -> None:
        self._ask = ask

    def consumer(self, name: str, *, prefetch: int, **config: Any) -> AsyncConsumer:
        return consumer(self._ask, name, prefetch=prefetch, **config)


async def serve(ask: Virtual, made: Worker[Any], until: Callable[[], bool]) -> dict[str, int]:
    """Let a worker work until something holds."""
    stop = asyncio.Event()
    client = cast(AsyncClient, Client(ask))
    served = asyncio.create_task(made.serve(client, stop))
    for _ in range(2_000):
        if until() or served.done():
            break
        await asyncio.sleep(0.005)
    assert until() or served.done(), "it did not come to that"
    stop.set()
    return await served


def settled(ask: Virtual, count: int) -> Callable[[], bool]:
    ops = ("consumer.ack", "consumer.nack", "consumer.term")
    return lambda: sum(len(one["deliveries"]) for op in ops for one in ask.ops(op)) >= count


def test_how_a_handler_ends_is_what_becomes_of_the_message() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("good", "bad", "later", "never", "again")

        @worker("c", concurrency=3, types=["scheduled"])
        async def handler(message: Any) -> None:
            match message.event.name:
                case "bad":
                    raise KeyError("payload")
                case "later":
                    raise Retry("busy", delay="5m")
                case "again":
                    raise Retry
                case "never":
                    raise GiveUp("no such address")

        counts = await serve(ask, handler, settled(ask, 5))
        assert counts == {"ack": 1, "nack": 3, "term": 1, "return": 0, "stale": 0}
        nacks = {one["reason"]: one.get("delay") for one in ask.ops("consumer.nack")}
        assert nacks == {"KeyError: 'payload'": "1s", "busy": "5m", "to be tried again": "1s"}
        (dead,) = (await ask(verbs.dead_page("c", EventFilter(), 10, None))).items
        assert (dead.event.name, dead.reason) == ("never", "no such address")

    run(work())


def test_failures_wait_longer_each_time_unless_the_consumer_says_how_long() -> None:
    async def failing(message: Any) -> None:
        raise ValueError("no")

    async def work(**config: Any) -> list[Any]:
        ask = Virtual()
        await ask.schedule("a")
        options = Options(retry=config.pop("retry", None))
        made = Worker(failing, "c", options, None, {"types": ["scheduled"], **config})
        for count in range(1, 9):
            await serve(ask, made, settled(ask, count))
            ask.node.advance(3_600_000_000_000)
        return [one.get("delay") for one in ask.ops("consumer.nack")]

    assert run(work()) == ["1s", "2s", "4s", "8s", "16s", "32s", "1m", "1m"]
    assert run(work(backoff=["5s"])) == [None] * 8
    assert run(work(retry="7s")) == ["7s"] * 8


def test_a_plain_function_works_in_threads_with_blocking_messages() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule(*(f"t{at}" for at in range(8)))
        together = threading.Barrier(4, timeout=10)
        seen: list[str] = []

        @worker("c", concurrency=4, types=["scheduled"])
        def handler(message: Any) -> None:
            together.wait()  # only if four are worked on at the same time
            assert message.progress()
            assert threading.current_thread().name.startswith("minoots-worker")
            seen.append(message.event.name)

        counts = await serve(ask, handler, settled(ask, 8))
        assert counts == {"ack": 8, "nack": 0, "term": 0, "return": 0, "stale": 0}
        assert sorted(seen) == [f"t{at}" for at in range(8)]

    run(work())


def test_a_stop_finishes_what_is_worked_on_and_gives_the_rest_back() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule(*(f"t{at}" for at in range(10)))
        begun, finish = asyncio.Event(), asyncio.Event()

        async def handle(message: Any) -> None:
            begun.set()
            await finish.wait()

        stop = asyncio.Event()
        async with consumer(ask, since="start", max_deliver=5) as messages:
            working = asyncio.create_task(work_off(messages, handle, Options(2), stop))
            await begun.wait()
            stop.set()
            while not ask.ops("consumer.nack"):
                await asyncio.sleep(0.001)
            assert not working.done()
            finish.set()
            await working
            counts = messages.counts
        assert sum(len(one["deliveries"]) for one in ask.ops("consumer.ack")) == 2
        assert sum(len(one["deliveries"]) for one in ask.ops("consumer.nack")) == 8
        assert counts["nack"] == 0
        assert counts["return"] >= 1
        assert {one.get("delay") for one in ask.ops("consumer.nack")} == {"0s"}

    run(work())


def test_a_handler_that_does_not_finish_is_cancelled_and_its_message_given_back() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("a")
        begun, stop = asyncio.Event(), asyncio.Event()

        async def handle(message: Any) -> None:
            begun.set()
            await asyncio.sleep(3_600)

        async with consumer(ask) as messages:
            options = Options(1, drain_s=0.01)
            working = asyncio.create_task(work_off(messages, handle, options, stop))
            await begun.wait()
            stop.set()
            await working
        (nack,) = ask.ops("consumer.nack")
        assert nack["reason"] == "not settled by its worker"

    run(work())


def test_a_consumer_that_ends_ends_its_worker() -> None:
    async def work() -> None:
        ask = Virtual()

        async def handle(message: Any) -> None:
            raise AssertionError("there is no message")

        async with consumer(ask) as messages:
            working = asyncio.create_task(work_off(messages, handle, Options()))
            await asyncio.sleep(0.01)
            await ask(verbs.delete("c"))
            with pytest.raises(Exception, match="no consumer 'c'"):
                await working

    run(work())


def test_a_worker_is_its_handler_when_it_is_called() -> None:
    @worker("c")
    def double(message: int) -> int:
        return 2 * message

    assert double(4) == 8
    with pytest.raises(ValueError, match="concurrency is 0; the range is 1 to 10,000"):
        worker("c", concurrency=0)


# ------------------------------------------------------------------------------------ done once


def event(kind: str = "timer.expired", id: str = "1-7", key: str = "default/tmr_1/1") -> Event:
    none: Any = None
    return Event(
        **dict.fromkeys(Event.__slots__, none) | {"type": kind, "id": id, "dedupe_key": key}
    )


def test_only_expirations_are_known_by_their_dedupe_key() -> None:
    assert key_of(event()) == "default/tmr_1/1"
    paused = [event("timer.paused", id=id) for id in ("1-8", "1-9")]
    assert len({key_of(one) for one in (event(), *paused)}) == 3


def test_memory_forgets_the_least_recently_used() -> None:
    done = DoneKeys(keys=2)
    done.add("a")
    done.add("b")
    assert "a" in done
    done.add("c")
    assert ["a" in done, "b" in done, "c" in done] == [True, False, True]
    with done.once("a") as work:
        assert not work.is_new
    with pytest.raises(ValueError, match="keys is 0; remember at least one"):
        DoneKeys(keys=0)


def test_effect_and_key_are_one_transaction(tmp_path: Path) -> None:
    path = tmp_path / "done.sqlite"
    with DoneKeys(path) as done:
        with done.once("make") as work:
            assert work.connection is not None
            work.connection.execute("create table sent (name text)")

        def fail() -> None:
            with done.once(event()) as work:
                assert work.connection is not None
                work.connection.execute("insert into sent values ('half')")
                raise RuntimeError("the plug is pulled")

        with pytest.raises(RuntimeError):
            fail()
        assert event() not in done
        with done.once(event()) as work:
            assert work.is_new
            assert work.connection is not None
            work.connection.execute("insert into sent values ('whole')")
    with DoneKeys(path) as again:
        assert event() in again
        with again.once(event()) as work:
            assert not work.is_new
    rows = sqlite3.connect(path)
    assert rows.execute("select name from sent").fetchall() == [("whole",)]
    rows.close()


def test_two_processes_do_it_once(tmp_path: Path) -> None:
    path = tmp_path / "done.sqlite"
    DoneKeys(path).close()
    did: list[str] = []

    def do() -> None:
        with DoneKeys(path) as done:
            for at in range(50):
                with done.once(f"key {at}") as work:
                    if work.is_new:
                        did.append(f"key {at}")

    threads = [threading.Thread(target=do) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(did) == sorted(f"key {at}" for at in range(50))


def test_a_file_forgets_what_is_old(tmp_path: Path) -> None:
    path = tmp_path / "done.sqlite"
    with DoneKeys(path, keep="1h") as done:
        done.add("new")
        assert done._file is not None
        done._file.execute("update minoots_done set at = at - 3700000000000")
        done._new = 0
        done.add("newer")
        assert ["new" in done, "newer" in done] == [False, True]


@pytest.mark.parametrize("file", [False, True])
def test_what_was_done_is_acknowledged_and_not_done_again(file: bool, tmp_path: Path) -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("a", "b")
        seen: list[str] = []
        with DoneKeys(tmp_path / "done.sqlite" if file else None) as done:

            async def handler(message: Any) -> None:
                seen.append(message.event.name)
                if len(seen) == 1:
                    raise RuntimeError("not yet")
                # The acknowledgement comes too late: it is delivered again meanwhile.
                ask.node.advance(10_002_000_000)
                await asyncio.sleep(0.05)

            config = {"since": "start", "ack_wait": "10s"}
            made = Worker(handler, "c", Options(retry="1s", done=done), 5, config)
            counts = await serve(ask, made, lambda: len(seen) > 2 and settled(ask, 6)())
        assert seen == ["a", "b", "a"]
        assert counts["stale"] >= 1
        assert counts["ack"] == 2

    run(work())
