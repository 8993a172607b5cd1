"""TestNode: the real node on a virtual clock, as users' tests drive it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from minoots import AlreadyTerminal, NotFound
from minoots.wire.problems import MinootsError

pytest.importorskip("edgenode.virtual", reason="the node's extensions are not built")

from minoots.testing import TestNode

pytestmark = pytest.mark.timeout(20)  # a node that does not come to rest would never return

START = datetime(2027, 3, 1, 8, tzinfo=UTC)


def test_time_moves_only_when_it_is_told_to() -> None:
    with TestNode(START) as node:
        timer = node.client.schedule("tea", after="4m", payload={"cups": 2})
        assert node.now == START
        assert node.advance("3m59s") == []
        (fired,) = node.advance("1s")
        assert (fired.type, fired.timer_id, fired.payload) == (
            "timer.expired",
            timer.id,
            {"cups": 2},
        )
        assert fired.due == START + timedelta(minutes=4)
        assert fired.lateness_us == 0
        assert node.now == START + timedelta(minutes=4)
        assert [event.type for event in node.events] == ["timer.scheduled", "timer.expired"]
        assert node.client.get(timer).state == "completed"
        with pytest.raises(AlreadyTerminal):
            node.client.cancel(timer)


def test_a_month_of_hours_without_drift() -> None:
    with TestNode(START) as node:
        node.client.schedule("tick", every="1h")
        node.advance("30d")
        dues = [event.due for event in node.expired]
        assert dues == [START + timedelta(hours=hour) for hour in range(1, 721)]
        assert all(event.lateness_us == 0 for event in node.expired)


def test_two_runs_are_the_same() -> None:
    def run() -> list[tuple[str, int | None]]:
        with TestNode(START) as node:
            node.client.schedule("a", every="7s", max_occurrences=9)
            node.client.schedule("b", at=START + timedelta(seconds=20))
            node.advance("2m")
            return [(event.name, event.fired_ns) for event in node.expired]

    assert run() == run()
    assert len(run()) == 10


def test_the_client_of_a_virtual_node_does_all_that_a_client_does() -> None:
    with TestNode(START) as node:
        client = node.client
        timer = client.schedule("x", after="1h")
        assert client.pause("x").state == "paused"
        node.advance("2h")
        client.resume("x")
        client.extend("x", "5m")
        assert [view.id for view in client.list()] == [timer.id]
        assert client.next("x") == [START + timedelta(hours=3, minutes=5)]
        client.cancel("x")
        assert [event.type for event in client.history(timer)][-1] == "timer.cancelled"
        assert [event.seq for event in client.replay(types=["cancelled"])] == [
            event.seq for event in node.events if event.type == "timer.cancelled"
        ]
        with pytest.raises(NotFound):
            client.get("y")


def test_watching_a_virtual_node() -> None:
    with TestNode(START) as node, node.client.watch(types=["expired"]) as watch:
        node.client.schedule("a", after="1s")
        assert watch.poll(0) is None
        with pytest.raises(MinootsError, match=r"let time pass with advance\(\)"):
            next(watch)
        node.advance("1s")
        assert next(watch).name == "a"
        with node.client.watch(since="start") as again:
            assert [next(again).type for _ in range(2)] == ["timer.scheduled", "timer.expired"]
