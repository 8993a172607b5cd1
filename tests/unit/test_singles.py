"""Plain creates in a row against `Node.accept` for each: the same answers, the same records."""

from __future__ import annotations

import json

import pytest

from edgenode import call, node
from edgenode.call import Frames
from edgenode.config import Config, LimitsSection, LogSection
from edgenode.ledger import Ledger
from edgenode.principal import LOCAL, Principal
from edgenode.virtual import VirtualNode
from engine.clock import Now

HEADER = b'{"op":"timer.schedule"}'
NAMED = {"name": "tea", "labels": {"b": "2", "a": "1"}, "payload": {"k": [1, 2.5, None]}}

Came = list[tuple[int, Frames, Principal]]


def body(duration: str = "1h", **members: object) -> bytes:
    return json.dumps({"schedule": {"kind": "after", "duration": duration}} | members).encode()


def frames(corr: bytes, body: bytes, header: bytes = HEADER, magic: bytes = b"MZP1") -> Frames:
    return (b"peer", magic, b"Q", corr, header, body)


def came_of(*requests: Frames) -> Came:
    return [(0, request, LOCAL) for request in requests]


class Pair:
    """Two virtual nodes alike: one decides rows, the other each request by itself."""

    def __init__(self, config: Config | None = None) -> None:
        self.rows, self.each = VirtualNode(config=config), VirtualNode(config=config)
        for virtual in (self.rows, self.each):
            virtual._loop.node.accept(0, frames(b"first", body()), LOCAL)

    def decide(self, came: Came) -> list[int]:
        """Have both decide, and compare; how long the rows were."""
        rows: list[int] = []
        at = 0
        while at < len(came):
            rows.append(self.rows._loop.node.accept_singles(came, at))
            at += rows[-1]
            if at < len(came):
                self.rows._loop.node.accept(*came[at])
                at += 1
        for one in came:
            self.each._loop.node.accept(*one)
        a, b = self.ledgers
        assert a.events == b.events
        assert a.answers == b.answers
        assert (a.live_count, a.opened_ns) == (b.live_count, b.opened_ns)
        assert a.hot.newer_count == b.hot.newer_count
        assert a.hot.next_tick() == b.hot.next_tick()
        stats = [virtual._loop.node.about.metrics for virtual in (self.rows, self.each)]
        assert stats[0].requests == stats[1].requests
        assert stats[0].problems == stats[1].problems
        return rows

    @property
    def ledgers(self) -> tuple[Ledger, Ledger]:
        return self.rows._loop.recovered.ledger, self.each._loop.recovered.ledger


def test_a_row_is_decided_as_each_would_be() -> None:
    at = {"schedule": {"kind": "at", "instant": "2099-01-01T00:00:00Z"}}
    plain = [body(), body("90s", **NAMED), json.dumps(at).encode(), b" " + body() + b"\n"]
    came = came_of(*(frames(b"%d" % k, plain[k % 4]) for k in range(50)))
    assert Pair().decide(came) == [50]


@pytest.mark.parametrize(
    "other",
    [
        frames(b"x", body(), header=b'{"op":"timer.schedule","idem":"k"}'),
        frames(b"x", body(), header=b'{"op":"timer.schedule","deadline":"2001-01-01T00:00:00Z"}'),
        frames(b"x", body(), header=b'{"op":"timer.get"}'),
        frames(b"x", body(), header=b"{"),
        frames(b"x", body(), magic=b"MZP2"),
        frames(b"c" * (call.CORR_BYTES_MAX + 1), body()),
        (*frames(b"x", body()), b"blob"),
        frames(b"x", body())[:5],
        (b"peer", b"MZP1", b"S", b"x", HEADER, body()),
        frames(b"x", b"{}"),
        frames(b"x", b'{"schedule":'),
        frames(b"x", body(name="caf\u00e9")),
        frames(b"x", body().replace(b"1h", b"1\xff")),
        frames(b"x", body("1h", limits={"lateness_budget": "1ms"})),
        frames(b"x", body("999999d")),
        frames(b"x", body() + b" " * call.BODY_BYTES_MAX),
        frames(b"x", body(name="a\x7f")),
    ],
)
def test_what_is_not_plain_ends_the_row_and_is_decided_in_its_turn(other: Frames) -> None:
    pair = Pair()
    came = came_of(frames(b"1", body()), frames(b"2", body()), other, frames(b"3", body()))
    assert pair.decide(came) == [2, 1]


def test_only_the_local_principal_goes_this_way() -> None:
    came: Came = [
        (0, frames(b"1", body()), Principal(role="viewer")),
        *came_of(frames(b"2", body())),
    ]
    assert Pair().decide(came) == [0, 1]


def test_rows_end_where_limits_do() -> None:
    came = came_of(*(frames(b"%d" % k, body()) for k in range(6)))
    pair = Pair(Config(limits=LimitsSection(timers_max=4)))
    assert pair.decide(came)[0] == 3
    assert pair.ledgers[0].live_count == 4
    pair = Pair(Config(log=LogSection(overlay_max=1_000)))
    for _ in range(999):
        for ledger in pair.ledgers:
            ledger.hot.note(ledger.new_id(), ledger.next_seq, 1, 0)
    assert pair.decide(came) == [0] * 6
    assert len(pair.rows._loop.node._later) == 6


@pytest.mark.parametrize("what", ["writes_refused", "creates_refused", "fires_behind"])
def test_there_are_no_rows_while_creates_are_refused_or_wait(what: str) -> None:
    pair = Pair()
    for virtual in (pair.rows, pair.each):
        decides = virtual._loop.node
        if what == "fires_behind":
            decides.fires_behind = True
        else:
            setattr(decides.about, what, "the store is full")
    assert pair.decide(came_of(frames(b"1", body()), frames(b"2", body()))) == [0, 0]


def test_after_a_fault_in_a_row_each_is_decided_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is then decided by itself, and only one of them meets it."""
    virtual = VirtualNode()
    virtual.request(list(frames(b"first", body())[1:]))

    def broken(*_: object) -> list[bytes]:
        raise ZeroDivisionError

    monkeypatch.setattr(node, "read_singles", broken)
    virtual._doors.inbox.extend(came_of(*(frames(b"%d" % k, body()) for k in range(3))))
    virtual._loop.step()
    virtual._loop.step()
    assert [answer[2] for answer in virtual._doors.outbox] == [b"0", b"1", b"2"]
    assert {answer[1] for answer in virtual._doors.outbox} == {b"R"}


def test_a_fault_after_something_was_written_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    virtual = VirtualNode()
    virtual.request(list(frames(b"first", body())[1:]))

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(node, "answer_singles", broken)
    virtual._doors.inbox.extend(came_of(frames(b"1", body())))
    with pytest.raises(ZeroDivisionError):
        virtual._loop.step()


def test_headers_that_say_more_than_the_op_are_none_of_these() -> None:
    Pair()
    assert HEADER in call.singles
    assert all(json.loads(raw) == {"op": call.SINGLE} for raw in call.singles)


def test_headers_that_nobody_repeats_do_not_keep_the_usual_ones_out() -> None:
    now = Now(0, 0, 0)
    for k in range(3 * call.USUAL_MAX):
        call.read(0, (b"p", b"MZP1", b"Q", b"1", b'{"op":"odd-%d"}' % k, b"{}"), LOCAL, now)
    usual = b'{"op": "timer.schedule"}'
    call.read(0, (b"p", b"MZP1", b"Q", b"1", usual, b"{}"), LOCAL, now)
    assert usual in call.singles
    assert len(call._usual) <= call.USUAL_MAX
