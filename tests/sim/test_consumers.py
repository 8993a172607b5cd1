"""Durable consumers on a virtual node: what is delivered, when, to whom, in which order."""

from __future__ import annotations

import pytest

from edgenode.config import Config, LimitsSection
from tests.sim.worker import Work, names


@pytest.fixture
def work() -> Work:
    return Work()


# --------------------------------------------------------------------------------- delivery


def test_what_has_fired_is_delivered_once_and_settled_by_an_ack(work: Work) -> None:
    work.make()
    work.fire(3)
    messages = work.pull(2)
    assert names(messages) == ["t0", "t1"]
    assert [one["attempt"] for one in messages] == [1, 1]
    assert messages[0]["event"]["data"]["lateness_us"] == 0
    assert names(work.pull()) == ["t2"]
    assert work.pull() == []
    assert work.info()["ack_pending"] == 3
    assert work.ack(*messages) == {"count": 2}
    found = work.info()
    assert (found["ack_pending"], found["acked"], found["pending"]) == (1, 2, 0)
    assert found["floor"]["seq"] == messages[1]["seq"]


def test_an_event_is_not_delivered_before_its_instant() -> None:
    """Expiries are in the log a lead before they are due."""
    work = Work()
    work.make()
    work.after("1s", "a")
    work.pass_(0.9985)  # its lead, 2 ms in the virtual node, has begun
    assert work.ask("stats")["fires"]["total"] == 0
    state = work.node.log.state()
    assert state.floor < state.last_seq, "it is committed ahead"
    assert work.pull() == []
    work.pass_(0.002)
    assert names(work.pull()) == ["a"]


def test_a_filter_is_by_type_label_and_name(work: Work) -> None:
    work.make("all", filter={})
    work.make("labels", filter={"labels": {"team": "ops"}})
    work.make("prefix", filter={"name_prefix": "backup", "types": ["timer.expired"]})
    work.make("node", filter={"types": ["node.consumer_created"]}, deliver_policy="all")
    work.after("10ms", "backup-db", labels={"team": "ops"})
    work.after("10ms", "mail", labels={"team": "web"})
    work.pass_(1)
    types = [one["event"]["type"].split(".")[-2] for one in work.pull(name="all")]
    assert types == ["scheduled", "scheduled", "expired", "expired"], "of the node: only if asked"
    assert names(work.pull(name="labels")) == ["backup-db", "backup-db"]
    assert names(work.pull(name="prefix")) == ["backup-db"]
    told = [one["event"]["data"]["consumer"] for one in work.pull(name="node")]
    assert told == ["all", "labels", "prefix", "node"]


def test_a_filter_is_for_the_clients_own_tenant(work: Work) -> None:
    work.make(filter={"types": ["timer.expired"], "tenant": "default"})
    work.fire(1)
    assert names(work.pull()) == ["t0"]
    for op, body in (
        ("consumer.create", {"name": "x", "filter": {"tenant": "acme"}}),
        ("stream.replay", {"filter": {"tenant": "acme"}}),
        ("dlq.list", {"consumer": "w", "filter": {"tenant": "acme"}}),
    ):
        assert work.refused(op, body)["code"] == "forbidden"


def test_not_more_than_max_ack_pending_are_out(work: Work) -> None:
    work.make(max_ack_pending=2)
    work.fire(3)
    first = work.pull()
    assert names(first) == ["t0", "t1"]
    assert work.pull() == []
    work.ack(first[1])
    assert names(work.pull()) == ["t2"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("all", ["a", "b", "c"]), ("last", ["b", "c"]), ("new", ["c"])],
)
def test_where_a_consumer_begins(work: Work, policy: str, expected: list[str]) -> None:
    for name in ("a", "b"):
        work.after("10ms", name)
        work.pass_(1)
    work.make(deliver_policy=policy)
    work.after("10ms", "c")
    work.pass_(1)
    assert names(work.pull()) == expected


def test_a_consumer_begins_at_a_cursor_or_a_time(work: Work) -> None:
    for name in ("a", "b"):
        work.after("10ms", name)
        work.pass_(1)
    work.make("all")
    second = work.pull(name="all")[1]
    place = {"epoch": 1, "seq": second["seq"] - 1}
    work.make("by-seq", deliver_policy="by_seq", **{"from": place})
    work.make("by-time", deliver_policy="by_time", **{"from": {"time": second["event"]["time"]}})
    assert names(work.pull(name="by-seq")) == names(work.pull(name="by-time")) == ["b"]
    refused = work.refused(
        "consumer.create",
        {"name": "x", "deliver_policy": "by_seq", "from": {"epoch": 9, "seq": 1}},
    )
    assert refused["code"] == "epoch_changed"


# --------------------------------------------------------------------------------- again


def test_what_is_not_acknowledged_in_time_comes_again_and_not_before(work: Work) -> None:
    work.make(ack_wait="5s")
    work.fire(1)
    (first,) = work.pull()
    work.pass_(4.999)
    assert work.pull() == []
    work.pass_(0.01)
    (again,) = work.pull()
    assert (again["seq"], again["attempt"]) == (first["seq"], 2)
    assert again["event"]["attempt"] == 2
    assert again["event"]["dedupekey"] == first["event"]["dedupekey"]
    assert work.ack(first) == {"count": 0, "stale": [first["delivery"]]}, "another has it now"
    assert work.ack(again) == {"count": 1}
    assert work.ack(again) == {"count": 0, "stale": [again["delivery"]]}


def test_a_late_ack_counts_while_nobody_else_has_the_message(work: Work) -> None:
    work.make(ack_wait="5s")
    work.fire(1)
    (first,) = work.pull()
    work.pass_(60)
    assert work.ack(first) == {"count": 1}
    assert work.pull() == []


def test_progress_begins_the_wait_anew(work: Work) -> None:
    work.make(ack_wait="5s")
    work.fire(1)
    (first,) = work.pull()
    for _ in range(5):
        work.pass_(4)
        assert work.ack(first, op="progress") == {"count": 1}
        assert work.pull() == []
    work.pass_(5.01)
    assert work.pull()[0]["attempt"] == 2
    assert work.ack(first, op="progress") == {"count": 0, "stale": [first["delivery"]]}


def test_a_nack_has_it_come_again_at_once_or_after_a_delay(work: Work) -> None:
    work.make()
    work.fire(2)
    a, b = work.pull()
    work.ack(a, op="nack")
    work.ack(b, op="nack", delay="10s")
    assert [(one["seq"], one["attempt"]) for one in work.pull()] == [(a["seq"], 2)]
    work.pass_(9.99)
    assert work.pull() == []
    work.pass_(0.02)
    assert [(one["seq"], one["attempt"]) for one in work.pull()] == [(b["seq"], 2)]


def test_backoffs_take_the_place_of_ack_wait_and_the_last_one_repeats(work: Work) -> None:
    work.make(backoff=["1s", "3s"])
    work.fire(1)
    assert work.pull()[0]["attempt"] == 1
    for attempt, wait_s in ((2, 1), (3, 3), (4, 3)):
        work.pass_(wait_s - 0.01)
        assert work.pull() == []
        work.pass_(0.02)
        (message,) = work.pull()
        assert message["attempt"] == attempt
    work.ack(message, op="nack")  # waits its backoff too
    assert work.pull() == []
    work.pass_(3.01)
    assert work.pull()[0]["attempt"] == 5


# --------------------------------------------------------------------------------- waiting


def test_a_pull_waits_until_something_fires(work: Work) -> None:
    work.make()
    work.after("2s", "a")
    work.post(b"1", wait="10s")
    assert work.heard() == []
    work.pass_(1.9)
    assert work.heard() == []
    work.pass_(0.11)
    assert work.heard() == [(b"R", b"1", ["a"])]


def test_a_pull_that_waits_ends_empty(work: Work) -> None:
    work.make()
    work.post(b"1", wait="10s")
    work.pass_(9.99)
    assert work.heard() == []
    work.pass_(0.02)
    assert work.heard() == [(b"R", b"1", [])]
    work.fire(1)
    assert work.heard() == []
    assert names(work.pull()) == ["t0"], "who is gone took nothing"


def test_who_waits_longer_is_served_first_and_a_repeated_pull_waits_once(work: Work) -> None:
    work.make()
    for corr in (b"1", b"2", b"1", b"3"):
        work.post(corr, wait="10s")
    work.fire(2)
    assert [(corr, got) for _, corr, got in work.heard()] == [(b"2", ["t0"]), (b"1", ["t1"])]
    work.ask("consumer.delete", {"name": "w"})


def test_what_comes_again_wakes_a_pull(work: Work) -> None:
    work.make(ack_wait="5s")
    work.fire(1)
    work.pull()
    work.post(b"1", wait="60s")
    work.pass_(4.999)
    assert work.heard() == []
    work.pass_(0.01)
    assert work.heard() == [(b"R", b"1", ["t0"])]


def test_pushes_come_one_by_one_until_the_credit_is_used(work: Work) -> None:
    work.make(ack_wait="5m")
    work.post(b"1", batch=3, wait="60s", push=True)
    assert work.heard() == []
    for k in range(4):
        work.after("10ms", f"t{k}")
        work.pass_(1)
    assert work.heard() == [
        (b"P", b"1", ["t0"]),
        (b"P", b"1", ["t1"]),
        (b"P", b"1", ["t2"]),
        (b"R", b"1", []),
    ]
    work.post(b"2", batch=3, wait="60s", push=True)
    assert work.heard() == [(b"P", b"2", ["t3"])]
    work.pass_(60.01)
    assert work.heard() == [(b"R", b"2", [])]


@pytest.mark.parametrize("push", [False, True])
def test_not_more_pulls_wait_than_the_inbox_may_hold(push: bool) -> None:
    work = Work(Config(limits=LimitsSection(inbox_max=16)))
    work.make()
    for k in range(17):
        work.post(b"%d" % k, wait="60s", push=push)
    assert [(kind, corr) for kind, corr, _ in work.heard()] == [(b"E", b"16")]
    assert work.info()["waiting"] == 16


def test_two_pushes_take_turns(work: Work) -> None:
    work.make()
    for corr in (b"1", b"2"):
        work.post(corr, batch=10, wait="60s", push=True)
    for k in range(4):
        work.after("10ms", f"t{k}")
        work.pass_(1)
    assert [corr for _, corr, _ in work.heard()] == [b"1", b"2", b"1", b"2"]


def test_deleting_a_consumer_tells_those_who_wait(work: Work) -> None:
    work.make()
    work.post(b"1", wait="60s")
    work.ask("consumer.delete", {"name": "w"})
    assert work.heard() == [(b"E", b"1", [])]
    work.make()
    assert work.info()["waiting"] == 0


def test_a_node_that_stops_answers_those_who_wait(work: Work) -> None:
    work.make()
    work.post(b"1", wait="60s")
    work.node._loop.drain()
    assert work.heard() == [(b"R", b"1", [])]


# --------------------------------------------------------------------------------- order


def test_order_is_kept_per_timer_and_others_go_on(work: Work) -> None:
    work.make(ordered=True, ack_wait="5s")
    work.every("1s", "a", max_occurrences=3)
    work.after("1500ms", "b")
    work.pass_(4)
    first = work.pull()
    assert names(first) == ["a", "b"]
    assert work.pull() == [], "the second of a waits for the first"
    work.ack(first[0], op="nack", delay="2s")
    assert work.pull() == []
    work.pass_(2.01)
    (again,) = work.pull()
    assert (again["seq"], again["attempt"]) == (first[0]["seq"], 2)
    work.ack(again)
    (second,) = work.pull()
    assert second["event"]["data"]["occurrence"] == 2
    work.node.restart()
    assert work.pull() == [], "b is out, and the third waits for the second"
    work.ack(second, op="term")
    (third,) = work.pull()
    assert third["event"]["data"]["occurrence"] == 3
