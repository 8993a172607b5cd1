"""Durable consumers on a virtual node: dead letters, crashes, retention, refusals."""

from __future__ import annotations

from typing import Any

import pytest

from edgenode.config import Config, EngineSection, LimitsSection, LogSection
from edgenode.principal import LOCAL
from edgenode.virtual import DAY_NS
from tests.sim.driver import SECOND
from tests.sim.worker import FIRES, Work, names


@pytest.fixture
def work() -> Work:
    return Work()


# --------------------------------------------------------------------------------- dead letters


def test_after_max_deliver_it_is_a_dead_letter_and_the_log_says_so(work: Work) -> None:
    work.make(max_deliver=2, ack_wait="1s")
    work.make("told", filter={"types": ["node.dead_lettered"]})
    work.fire(2)
    a, b = work.pull()
    work.ack(a, op="nack", reason="no such account")
    work.pass_(1.01)
    assert {one["attempt"] for one in work.pull()} == {2}
    work.ack({"delivery": f"1.{a['seq']}.2"}, op="nack", reason="no such account")
    work.pass_(1.01)
    assert work.pull() == []
    found = work.ask("dlq.list", {"consumer": "w"})["items"]
    assert [(one["id"], one["attempts"], one["reason"]) for one in found] == [
        (f"w/{a['seq']}", 2, "no such account"),
        (f"w/{b['seq']}", 2, "not acknowledged in time, 2 times"),
    ]
    assert found[0]["event"]["dedupekey"] == a["event"]["dedupekey"]
    told = [one["event"]["data"] for one in work.pull(name="told")]
    assert [(one["consumer"], one["seq"]) for one in told] == [("w", a["seq"]), ("w", b["seq"])]
    assert work.info()["dead"] == 2
    assert work.info()["floor"]["seq"] >= b["seq"], "the log need not be kept for them"


def test_dead_letters_are_redriven_or_dropped_one_by_one_or_by_filter(work: Work) -> None:
    work.make()
    for name in ("mail-1", "mail-2", "bill-1"):
        work.fire(1, name)
        work.ack(*work.pull(), op="term", reason="broken")
    ids = [one["id"] for one in work.ask("dlq.list", {"consumer": "w"})["items"]]
    mails = {"consumer": "w", "filter": {"name_prefix": "mail"}}
    assert len(work.ask("dlq.list", mails)["items"]) == 2
    page = work.ask("dlq.list", {"consumer": "w", "limit": 2})
    rest = work.ask("dlq.list", {"consumer": "w", "cursor": page["next_cursor"]})
    assert [one["id"] for one in page["items"] + rest["items"]] == ids
    assert work.ask("dlq.redrive", mails | {"dry_run": True}) == {"count": 2}
    assert work.pull() == []
    assert work.ask("dlq.redrive", {"ids": [ids[1], ids[1], "w/999999"]}) == {"count": 1}
    (message,) = work.pull()
    assert (names([message]), message["attempt"]) == (["mail-20"], 2)
    assert work.ask("dlq.drop", {"ids": [ids[2]]}) == {"count": 1}
    assert work.ask("dlq.redrive", mails) == {"count": 1}
    assert names(work.pull()) == ["mail-10"]
    assert work.ask("dlq.list", {"consumer": "w"})["items"] == []
    assert work.info()["ack_pending"] == 2
    assert work.ack(message) == {"count": 1}


def test_a_delivery_from_before_a_redrive_does_not_settle_one_after_it(work: Work) -> None:
    work.make(max_deliver=1, ack_wait="1s")
    work.fire(1)
    (first,) = work.pull()
    work.pass_(1.01)
    assert work.ask("dlq.redrive", {"consumer": "w"}) == {"count": 1}
    work.node.restart()
    (again,) = work.pull()
    assert again["attempt"] == 2
    assert work.ack(first) == {"count": 0, "stale": [first["delivery"]]}
    assert work.info()["out"] == 1
    work.pass_(1.01)
    assert work.info()["dead"] == 1, "one delivery is what it gets, again"


def test_a_redriven_message_may_die_again(work: Work) -> None:
    work.make(max_deliver=1)
    work.fire(1)
    for _ in range(3):
        (message,) = work.pull()
        work.ack(message, op="nack")
        (dead,) = work.ask("dlq.list", {"consumer": "w"})["items"]
        work.node.restart()
        assert work.ask("dlq.redrive", {"ids": [dead["id"]]}) == {"count": 1}
    (message,) = work.pull()
    assert message["event"]["data"]["lateness_us"] == 0
    work.ack(message)
    assert work.pull() == []
    assert work.ask("dlq.list", {"consumer": "w"})["items"] == []


def test_more_dead_letters_than_one_piece_of_the_list_holds(work: Work) -> None:
    work.make()
    for _ in range(3):
        work.fire(100)
        work.ack(*work.pull(), op="term")
    before = work.ask("dlq.list", {"consumer": "w", "limit": 1000})["items"]
    assert len(before) == 300
    work.node.restart()
    assert work.ask("dlq.list", {"consumer": "w", "limit": 1000})["items"] == before
    assert work.ask("dlq.drop", {"consumer": "w"}) == {"count": 300}
    work.node.restart()
    assert work.info()["dead"] == 0


def test_a_consumer_of_dead_letters_is_not_told_of_its_own(work: Work) -> None:
    work.make(filter={"types": ["timer.expired", "node.dead_lettered"]}, max_deliver=1)
    work.fire(1)
    work.ack(*work.pull(), op="nack")
    assert work.info()["dead"] == 1
    assert work.pull() == []


# --------------------------------------------------------------------------------- restarts


def test_everything_of_a_consumer_survives_a_crash(work: Work) -> None:
    work.make(ack_wait="10s", max_deliver=2)
    work.fire(5)
    a, b, c, d = work.pull(4)
    work.ack(a)
    work.ack(b, op="nack", delay="20s")
    work.ack(c, op="term", reason="broken")
    before = work.info()
    for _ in range(2):
        work.node.restart()
        assert work.info() == before
        assert work.ask("dlq.list", {"consumer": "w"})["items"][0]["reason"] == "broken"
    assert names(work.pull()) == ["t4"]
    work.pass_(10.01)
    assert {one["seq"]: one["attempt"] for one in work.pull()} == {d["seq"]: 2, d["seq"] + 1: 2}
    work.pass_(10)
    assert [(one["seq"], one["attempt"]) for one in work.pull()] == [(b["seq"], 2)]


def test_a_delivery_that_was_not_committed_never_happened(work: Work) -> None:
    work.make()
    work.fire(1)
    work.node._doors.inbox.append(
        (0, (b"v", b"MZP1", b"Q", b"1", b'{"op":"consumer.pull"}', b'{"name":"w"}'), LOCAL)
    )
    work.node._loop._accept()  # decided, not submitted
    work.node.restart()
    assert work.node.answers() == []
    (message,) = work.pull()
    assert message["attempt"] == 1


def test_a_deleted_consumer_stays_deleted_and_its_name_begins_anew(work: Work) -> None:
    work.make()
    work.fire(2)
    work.ack(*work.pull(1), op="term")
    work.pull()
    work.ask("consumer.delete", {"name": "w"})
    work.node.restart()
    assert work.refused("consumer.info", {"name": "w"})["code"] == "not_found"
    assert work.ask("consumer.list")["items"] == []
    work.make()
    assert names(work.pull()) == ["t0", "t1"]
    assert work.info()["dead"] == 0


def test_the_log_is_kept_for_what_is_not_settled_and_dead_letters_outlive_it() -> None:
    log = LogSection(retention=60_000_000_000)
    work = Work(Config(engine=EngineSection(horizon=DAY_NS), log=log))
    work.make(ack_wait="10s")
    work.fire(3)
    a, b, c = work.pull()
    work.ack(a, op="term", reason="broken")
    work.ack(c)
    for _ in range(12):  # retention passes, and upkeep with commits that trim
        work.pass_(6 * 3600)
        work.after("1s", "later")
    first_kept = work.node.log.state().first_seq
    assert first_kept == b["seq"], "b is not settled"
    (again,) = [one for one in work.pull() if one["seq"] == b["seq"]]
    work.ack(again, *work.pull(1000))
    assert names(work.ask("dlq.list", {"consumer": "w"})["items"]) == ["t0"]
    for _ in range(12):
        work.pass_(6 * 3600)
        work.after("1s", "later")
        work.ack(*work.pull(1000))
    assert work.node.log.state().first_seq > b["seq"]
    work.node.restart()
    work.ask("dlq.redrive", {"consumer": "w"})
    (message,) = [one for one in work.pull() if one["seq"] == a["seq"]]
    assert message["event"]["data"]["lateness_us"] == 0
    work.node.restart()
    work.pass_(11)
    (message,) = [one for one in work.pull() if one["seq"] == a["seq"]]
    assert message["attempt"] == 3


def test_a_consumer_that_nobody_uses_ends(work: Work) -> None:
    work.make(inactive_threshold="1h")
    work.pass_(3000)
    work.pull()
    work.pass_(3000)
    work.post(b"1", wait="5m")
    work.pass_(3599)
    work.info()
    work.pass_(400)
    assert work.refused("consumer.info", {"name": "w"})["code"] == "not_found"
    told = work.ask("stream.replay", {"filter": {"types": ["node.consumer_deleted"]}})
    assert told["events"][0]["data"] == {"consumer": "w", "reason": "inactive_threshold"}


# --------------------------------------------------------------------------------- refusals


def test_making_it_again_changes_nothing_and_another_is_refused(work: Work) -> None:
    first = work.make(ack_wait="5s")
    work.fire(1)
    work.pull()
    assert work.make(ack_wait="5s")["created_at"] == first["created_at"]
    refused = work.refused("consumer.create", {"name": "w", "ack_wait": "6s"} | FIRES)
    assert refused["code"] == "already_exists"
    assert work.info()["ack_pending"] == 1


@pytest.mark.parametrize(
    ("config", "detail"),
    [
        ({"name": "no spaces"}, "name is 'no spaces'; a consumer's has 1 to 64 of the characters"),
        ({"ack_wait": "1ms"}, "ack_wait is '1ms'; the range is 10ms to"),
        ({"ack_wait": "soon"}, "ack_wait: "),
        ({"backoff": ["1s", "2s"], "max_deliver": 1}, "backoff has 2 waits for 1 deliveries"),
        ({"max_ack_pending": 0}, "max_ack_pending is 0; the range is 1 to 65536"),
        ({"max_deliver": -1}, "max_deliver is -1; the range is 0 to 1000000"),
        ({"filter": {"types": ["timer.gone"]}}, "type 'timer.gone' is unknown"),
        ({"deliver_policy": "by_seq"}, "from: deliver_policy 'by_seq' needs epoch and seq"),
        ({"from": {"seq": 1}}, "from: 'all' takes none"),
        ({"inactive_threshold": "1ms"}, "inactive_threshold is '1ms'; the range is"),
    ],
)
def test_what_makes_no_sense_is_refused(work: Work, config: dict[str, Any], detail: str) -> None:
    refused = work.refused("consumer.create", {"name": "w"} | config)
    assert refused["code"] == "validation"
    assert detail in refused["detail"]
    assert work.ask("consumer.list")["items"] == []


@pytest.mark.parametrize(
    ("op", "body", "code"),
    [
        ("consumer.pull", {"name": "gone"}, "not_found"),
        ("consumer.pull", {"name": "w", "batch": 0}, "validation"),
        ("consumer.pull", {"name": "w", "batch": 1001}, "validation"),
        ("consumer.pull", {"name": "w", "wait": "6m"}, "validation"),
        ("consumer.ack", {"name": "w", "deliveries": ["x"]}, "validation"),
        ("consumer.ack", {"name": "w", "deliveries": ["1.1.1"] * 1001}, "too_large"),
        ("consumer.nack", {"name": "w", "deliveries": [], "delay": "x"}, "validation"),
        ("dlq.list", {"consumer": "w", "cursor": "x"}, "validation"),
        ("dlq.redrive", {}, "validation"),
        ("dlq.redrive", {"ids": ["w"]}, "validation"),
        ("dlq.drop", {"ids": ["gone/1"]}, "not_found"),
    ],
)
def test_bad_requests_get_a_problem_and_change_nothing(
    work: Work, op: str, body: dict[str, Any], code: str
) -> None:
    work.make()
    work.fire(1)
    before = work.info()
    assert work.refused(op, body)["code"] == code
    assert work.info() == before


def test_an_ack_of_another_epoch_or_of_nothing_is_not_counted(work: Work) -> None:
    work.make()
    work.fire(1)
    (message,) = work.pull()
    other = message["delivery"].replace("1.", "2.", 1)
    asked = {"name": "w", "deliveries": [other, "1.999.1", message["delivery"]] * 2}
    found = work.ask("consumer.ack", asked)
    assert found["count"] == 1
    assert len(found["stale"]) == 5


def test_there_is_a_limit_on_consumers() -> None:
    work = Work(Config(limits=LimitsSection(consumers_max=2)))
    for name in ("b", "a"):
        work.make(name)
    assert work.refused("consumer.create", {"name": "c"})["code"] == "quota_exceeded"
    page = work.ask("consumer.list", {"limit": 1})
    rest = work.ask("consumer.list", {"cursor": page["next_cursor"]})
    assert [one["name"] for one in page["items"] + rest["items"]] == ["a", "b"]
    assert rest["next_cursor"] is None


def test_a_pull_takes_no_idempotency_key_and_an_ack_may(work: Work) -> None:
    work.make()
    work.fire(1)
    assert work.refused("consumer.pull", {"name": "w"}, idem="k")["code"] == "validation"
    (message,) = work.pull()
    asked = {"name": "w", "deliveries": [message["delivery"]]}
    assert work.ask("consumer.ack", asked, idem="k") == {"count": 1}
    assert work.ask("consumer.ack", asked, idem="k") == {"count": 1, "replayed": True}


def test_the_key_of_an_ack_is_kept_for_minutes_and_not_for_a_day(work: Work) -> None:
    """A worker sends some hundred a second: kept for a day, they would fill `log.idem_max`."""
    work.make(ack_wait="1d")
    work.fire(2)
    a, b = work.pull()
    for message, key in ((a, "a"), (b, "b")):
        asked = {"name": "w", "deliveries": [message["delivery"]]}
        assert work.ask("consumer.ack", asked, idem=key) == {"count": 1}
        work.pass_(899)
        assert work.ask("consumer.ack", asked, idem=key) == {"count": 1, "replayed": True}
        work.pass_(2)
        assert work.ask("consumer.ack", asked, idem=key)["count"] == 0


def test_a_damaged_event_is_not_delivered_and_the_node_goes_on(work: Work) -> None:
    work.make()
    work.fire(3)
    bad = work.node.log.state().last_seq - 1
    events = work.node.log._events
    whole = events[bad]
    events[bad] = whole[:-1] + bytes([whole[-1] ^ 1])
    (good,) = work.pull(1)
    for _ in range(2):
        assert work.refused("consumer.pull", {"name": "w", "batch": 5})["code"] == "internal"
    assert work.info()["out"] == 1
    work.post(b"1", wait="10s")
    assert [kind for kind, _, _ in work.heard()] == [b"E"]
    assert work.ack(good) == {"count": 1}
    events[bad] = whole  # as a repaired log
    work.node.restart()
    assert [one["attempt"] for one in work.pull()] == [1, 1]


def test_a_damaged_event_is_not_buried_and_the_node_goes_on(work: Work) -> None:
    work.make(max_deliver=1, ack_wait="1s")
    work.fire(2)
    whole, broken = work.pull()
    work.node.restart()
    events = work.node.log._events
    before, events[broken["seq"]] = events[broken["seq"]], b""
    work.ack(whole, broken, op="term")
    assert (work.info()["dead"], work.info()["ack_pending"]) == (1, 1)
    work.pass_(2)
    assert work.refused("consumer.pull", {"name": "w"})["code"] == "internal"
    assert len(work.ask("dlq.list", {"consumer": "w"})["items"]) == 1
    events[broken["seq"]] = before  # as a repaired log
    assert [one["seq"] for one in work.pull()] == [broken["seq"]]


def test_idle_years_with_a_pending_ack_cost_nothing(work: Work) -> None:
    work.make(ack_wait="30d")
    work.fire(1)
    work.pull()
    work.node.advance(29 * 86_400 * SECOND)
    assert work.pull() == []
    work.node.advance(2 * 86_400 * SECOND)
    assert work.pull()[0]["attempt"] == 2
