"""Durable consumers of the SDK, on the real node in this process and on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

pytest.importorskip("edgenode.virtual", reason="the node's extensions are not built")

from virtual_ask import Virtual, consumer, run

from minoots import AlreadyExists, NotFound, Unreachable
from minoots import consumer_verbs as verbs
from minoots.consumer import AsyncConsumer
from minoots.consumer_verbs import Delivered, config_of
from minoots.consumers import AsyncConsumers, AsyncDeadLetters, setup
from minoots.hand import Hand
from minoots.requests import Call, Patience, Request, new_rng
from minoots.settle import Settler, Verdict
from minoots.testing import TestNode
from minoots.wire.bodies import ReplayFrom
from minoots.wire.problems import MinootsError

pytestmark = pytest.mark.timeout(30)


# ----------------------------------------------------------------------------------- the verbs


def test_every_verb_by_the_synchronous_client() -> None:
    with TestNode() as node:
        client = node.client
        made = client.consumers.create("mailer", types=["expired"], ack_wait="10s", max_deliver=2)
        assert made.config.filter.types == ["timer.expired"]
        assert client.consumers.create(made.config).name == "mailer"
        with pytest.raises(AlreadyExists, match="another configuration"):
            client.consumers.create("mailer")
        for at in range(3):
            client.schedule(f"t{at}", after="1s")
        assert client.consumers.pull("mailer") == []
        node.advance("1s")
        assert client.consumers.info("mailer").pending == 3
        first, second, third = client.consumers.pull("mailer", 10)
        assert [first.event.name, first.attempt, first.seq] == ["t0", 1, first.event.seq]
        assert client.consumers.ack("mailer", first).count == 1
        again = client.consumers.ack("mailer", [first, second.delivery])
        assert (again.count, again.stale) == (1, [first.delivery])
        assert client.consumers.progress("mailer", third).count == 1
        assert client.consumers.nack("mailer", third, delay="5s", reason="no").count == 1
        assert client.consumers.pull("mailer") == []
        node.advance("5.002s")
        (third,) = client.consumers.pull("mailer")
        assert (third.attempt, third.event.attempt) == (2, 2)
        assert client.consumers.nack("mailer", third, reason="no again").count == 1
        (dead,) = client.dlq.list("mailer")
        assert (dead.id, dead.attempts, dead.reason) == (f"mailer/{third.seq}", 2, "no again")
        assert dead.event.name == "t2"
        assert list(client.dlq.list("mailer", {"name_prefix": "x"})) == []
        assert client.dlq.redrive("mailer", {"name_prefix": "t"}, dry_run=True) == 1
        assert client.dlq.redrive(ids=[dead.id]) == 1
        (third,) = client.consumers.pull("mailer")
        assert client.consumers.term("mailer", third, reason="never").count == 1
        assert [one.reason for one in client.dlq.list("mailer")] == ["never"]
        assert client.dlq.drop("mailer") == 1
        assert [view.name for view in client.consumers.list()] == ["mailer"]
        client.consumers.delete("mailer")
        with pytest.raises(NotFound):
            client.consumers.info("mailer")


def test_a_pull_that_would_wait_is_told_so_on_virtual_time() -> None:
    with TestNode() as node:
        node.client.consumers.create("c")
        with pytest.raises(MinootsError, match=r"pull with wait=0, and let time pass"):
            node.client.consumers.pull("c", wait="10s")


@pytest.mark.parametrize(
    ("since", "policy", "start"),
    [
        ("start", "all", None),
        ("now", "new", None),
        ((1, 7), "by_seq", {"epoch": 1, "seq": 7}),
        ("2027-01-15T08:00:00Z", "by_time", {"time": "2027-01-15T08:00:00Z"}),
    ],
)
def test_where_it_begins(since: Any, policy: str, start: Any) -> None:
    made = config_of("c", since=since)
    assert made.deliver_policy == policy
    assert made.from_ == (None if start is None else ReplayFrom(**start))
    with pytest.raises(ValueError, match="give one"):
        config_of("c", since=since, deliver_policy="last")


def test_a_pull_is_sent_once_and_given_time() -> None:
    call = Call(
        verbs.pull("c", 5, "30s"),
        idem=None,
        now_s=0.0,
        patience=Patience(5.0, 4),
        rng=new_rng(b"1"),
    )
    sending = call.act(0.0, 0)
    assert sending is not None
    assert b"deadline" not in sending.frames[3]
    assert b"idem" not in sending.frames[3]
    assert call.act(34.9, 0) is None
    assert not call.done
    assert call.act(35.0, 0) is None
    assert call.attempts == 1
    assert call.silent_since_s == 0.0
    with pytest.raises(Unreachable, match=r"no reply to consumer.pull in 35 s \(1 attempt\)"):
        call.result()


def test_a_connection_that_is_made_anew_ends_what_is_asked_only_once() -> None:
    def call_of(request: Request[Any]) -> Call[Any]:
        return Call(request, idem=None, now_s=0.0, patience=Patience(), rng=new_rng(b"1"))

    waits, asks, unsent = (
        call_of(request)
        for request in (verbs.pull("c", 5, "30s"), verbs.info("c"), verbs.pull("c", 5, "30s"))
    )
    for call in (waits, asks):
        assert call.act(0.0, 0) is not None
    for call in (waits, asks, unsent):
        call.cut_off("the connection was made anew")
    assert [waits.done, asks.done, unsent.done] == [True, False, False]
    with pytest.raises(Unreachable, match=r"made anew; there will be no reply to consumer.pull"):
        waits.result()


def test_every_verb_by_the_asynchronous_client() -> None:
    async def work() -> None:
        ask = Virtual()
        consumers, dlq = AsyncConsumers(ask), AsyncDeadLetters(ask)
        await ask.schedule("a", "b", "c")
        await consumers.create("x", types=["scheduled"])
        assert (await consumers.info("x")).pending == 3
        first, second, third = await consumers.pull("x", 3)
        assert (await consumers.ack("x", first)).count == 1
        assert (await consumers.progress("x", [second, third])).count == 2
        assert (await consumers.nack("x", second, delay="1h", reason="later")).count == 1
        assert (await consumers.term("x", third, reason="never")).count == 1
        (dead,) = [one async for one in dlq.list("x")]
        assert (dead.reason, dead.event.name) == ("never", "c")
        assert await dlq.drop("x", dry_run=True) == 1
        assert await dlq.redrive(ids=[dead.id]) == 1
        assert await dlq.drop("x") == 0
        assert [view.name async for view in consumers.list()] == ["x"]
        assert (await consumers.delete("x")).acked == 1
        with pytest.raises(NotFound):
            await consumers.info("x")

    run(work())


def test_what_makes_no_sense_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ValueError, match="there are 1001 deliveries; at most 1000 at a time"):
        verbs.deliveries_of(["1.1.1"] * 1_001)
    with pytest.raises(ValueError, match="give either ids, or a consumer and a filter"):
        verbs.dead_take("dlq.drop", None, None, None, dry_run=False)
    with pytest.raises(ValueError, match="duration is 'soon'"):
        config_of("c", ack_wait="soon")


# ------------------------------------------------------------------------------------ the hand


def some(count: int, attempt: int = 1, first: int = 1) -> list[Delivered]:
    raw = msgspec.Raw(b"{}")
    return [
        Delivered(f"1.{at}.{attempt}", at, attempt, "", raw) for at in range(first, first + count)
    ]


def test_credit_is_asked_for_in_large_pieces() -> None:
    hand = Hand(10, (30.0,), max_deliver=0, keep_s=60)
    assert hand.wanted == 10
    hand.take(some(10), 0.0)
    assert hand.wanted == 0
    given = [hand.give(0.0) for _ in range(4)]
    assert hand.wanted == 0  # they are worked on
    for held in given:
        assert held is not None
        assert hand.let_go(held.delivered.delivery)
    assert hand.wanted == 0  # six wait, and four is less than half
    hand.let_go("1.5.1")
    assert hand.wanted == 5
    for _ in range(6):
        hand.give(0.0)
    hand.let_go("1.6.1")
    assert hand.wanted == 6
    with pytest.raises(ValueError, match="prefetch is 0; the range is 1 to 65536"):
        Hand(0, (1.0,), max_deliver=0, keep_s=1)


def test_progress_is_due_at_a_third_and_not_for_ever() -> None:
    hand = Hand(10, (3.0, 30.0), max_deliver=0, keep_s=8)
    hand.take(some(1), 0.0)
    hand.take(some(1, attempt=2, first=2), 0.0)
    assert hand.give(0.0) is not None
    assert hand.due(0.9) == []
    assert hand.due(1.0) == ["1.1.1"]
    assert hand.due(1.9) == []
    assert hand.due(7.9) == ["1.1.1"]
    assert hand.due(8.1) == []  # kept for 8 s, and then no more
    assert len(hand) == 1
    assert hand.due(10.0) == ["1.2.2"]


def test_what_was_lost_is_not_given_to_be_worked_on() -> None:
    hand = Hand(10, (3.0,), max_deliver=0, keep_s=8)
    hand.take(some(2), 0.0)
    hand.lose(["1.1.1", "1.9.1"])
    held = hand.give(0.0)
    assert held is not None
    assert held.delivered.seq == 2
    assert not hand.let_go("1.1.1")


def test_the_last_delivery_is_not_given_back() -> None:
    hand = Hand(10, (3.0,), max_deliver=2, keep_s=8)
    hand.take([*some(2), *some(1, attempt=2, first=3)], 0.0)
    assert hand.give_back() == ["1.1.1", "1.2.1"]
    assert hand.wanted == 9
    held = hand.give(0.0)
    assert held is not None
    assert held.delivered.seq == 3
    assert hand.rest() == ([], ["1.3.2"])


# ------------------------------------------------------------------------------- acknowledgements


def test_acknowledgements_share_requests() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule(*(f"t{at}" for at in range(300)))
        async with consumer(ask, prefetch=300) as messages:
            for _ in range(300):
                (await anext(messages)).ack_soon()
        sizes = [len(body["deliveries"]) for body in ask.ops("consumer.ack")]
        assert sum(sizes) == 300
        assert len(sizes) <= 3
        assert (await ask(verbs.info("c"))).acked == 300

    run(work())


def test_a_lost_reply_does_not_make_an_acknowledgement_stale() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("a")
        async with consumer(ask) as messages:
            message = await anext(messages)
            ask.lost.append("consumer.ack")
            assert await message.ack()
            assert messages.counts == {"ack": 1, "nack": 0, "term": 0, "return": 0, "stale": 0}
        keys = [idem for op, idem, _ in ask.asked if op == "consumer.ack"]
        assert len(keys) == 2
        assert keys[0] == keys[1] is not None
        assert (await ask(verbs.info("c"))).acked == 1

    run(work())


def test_a_late_acknowledgement_is_told_so() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("a")
        async with consumer(ask, ack_wait="10s") as messages:
            late = await anext(messages)
            ask.node.advance(10_002_000_000)
            again = await anext(messages)
            assert again.event.dedupe_key == late.event.dedupe_key
            assert (late.attempt, again.attempt) == (1, 2)
            assert not await late.progress()
            assert late.lost
            assert not await late.ack()
            assert await again.ack()
            assert messages.counts == {"ack": 1, "nack": 0, "term": 0, "return": 0, "stale": 1}

    run(work())


def test_what_the_node_refuses_for_good_ends_it() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("a")
        with pytest.raises(NotFound, match="no consumer 'c'"):
            await AsyncConsumer(ask, setup("c", {})).__aenter__()
        async with consumer(ask, types=["scheduled"]) as messages:
            message = await anext(messages)
            await ask(verbs.delete("c"))
            with pytest.raises(NotFound):
                await message.ack()
            with pytest.raises(NotFound):
                await anext(messages)

    run(work())


def test_a_node_that_is_away_is_waited_for() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("a", "b")
        async with consumer(ask, prefetch=1, since="start") as messages:
            message = await anext(messages)
            ask.away = True
            told = asyncio.create_task(message.ack())
            await asyncio.sleep(0.03)
            assert not told.done()
            ask.node.restart()
            ask.away = False
            assert await told
            assert await (await anext(messages)).ack()

    run(work())


def test_what_cannot_be_told_is_said_when_it_is_left() -> None:
    async def work() -> None:
        settler = Settler(Virtual(), "c")
        ask = Virtual()
        ask.away = True
        settler = Settler(ask, "c")
        settler.put(Verdict("ack"), "1.1.1")
        told = asyncio.create_task(settler.tell(Verdict("ack"), "1.2.1"))
        await asyncio.sleep(0.01)
        with pytest.raises(Unreachable, match=r"2 deliveries could not be told in 0.02 s"):
            await settler.flush(0.02)
        with pytest.raises(asyncio.CancelledError):
            await told

    run(work())


# ------------------------------------------------------------------------------------- the end


def test_stopping_gives_the_rest_to_others_at_once() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule(*(f"t{at}" for at in range(10)))
        async with consumer(ask, since="start", backoff=["1h"]) as messages:
            first = await anext(messages)
            messages.stop()
            assert [message async for message in messages] == []
            assert await first.ack()
        async with AsyncConsumer(ask, setup("c", {})) as others:
            found = [await anext(others) for _ in range(9)]
            assert {message.attempt for message in found} == {2}
            assert [await message.ack() for message in found] == [True] * 9
        assert (await ask(verbs.info("c"))).acked == 10

    run(work())


def test_stopping_buries_nothing_unread() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("a", "b", "c")
        async with consumer(ask, max_deliver=1) as messages:
            first = await anext(messages)
            messages.stop()
            rest = [message async for message in messages]
            assert [message.event.name for message in rest] == ["b", "c"]
            assert all(message.is_last for message in rest)
            for message in (first, *rest):
                assert await message.ack()
        assert (await ask(verbs.info("c"))).dead == 0

    run(work())


def test_a_pull_under_way_may_still_bring_what_is_delivered_for_the_last_time() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("a")
        ask.gate.clear()
        async with consumer(ask, types=["scheduled"], max_deliver=1) as messages:
            await asyncio.sleep(0.01)
            messages.stop()
            rest = asyncio.create_task(anext(messages))
            await asyncio.sleep(0.01)
            ask.gate.set()
            assert await (await rest).ack()
        assert (await ask(verbs.info("c"))).dead == 0

    run(work())


def test_what_is_given_back_does_not_come_back_by_a_pull_under_way() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("a", "b")
        async with consumer(ask, types=["scheduled"]) as messages:
            first = await anext(messages)
            ask.gate.clear()
            while messages._asking is False:
                await asyncio.sleep(0.001)
            messages.stop()
            await asyncio.sleep(0.01)
            assert ask.ops("consumer.nack") == []
            ask.gate.set()
            assert await first.ack()
        assert messages.counts == {"ack": 1, "nack": 0, "term": 0, "return": 1, "stale": 0}
        (again,) = await ask(verbs.pull("c", 5, 0))
        assert again.attempt == 2

    run(work())


def test_leaving_by_an_exception_tells_why() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("a")

        async def fail() -> None:
            async with consumer(ask, max_deliver=1) as messages:
                await anext(messages)
                raise RuntimeError("oops")

        with pytest.raises(RuntimeError, match="oops"):
            await fail()
        assert ask.ops("consumer.nack")[0]["reason"] == "RuntimeError: oops"

    run(work())


def test_polling() -> None:
    async def work() -> None:
        ask = Virtual()
        await ask.schedule("a")
        async with consumer(ask, since="start") as messages:
            message = await messages.poll(5)
            assert message is not None
            assert await messages.poll(0.01) is None
            assert await message.nack("1h", "later")
            messages.stop()
            assert await messages.poll(5) is None

    run(work())
