"""One request's way through its attempts: times, keys, problems. No sockets."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import msgspec
import pytest

from minoots import verbs
from minoots.arguments import definition
from minoots.requests import (
    Call,
    Patience,
    Reply,
    Request,
    Sending,
    idem_key,
    new_rng,
    read_reply,
)
from minoots.wire.frames import FINAL, MAGIC, PARTIAL, PROBLEM, QUERY
from minoots.wire.problems import (
    DeadlineExceeded,
    NotFound,
    Overloaded,
    ProtocolError,
    Refused,
    Unreachable,
    refusal,
)

NOW_NS = 1_800_000_000_000_000_000


def call(request: Request[Any] | None = None, *, timeout_s: float = 8.0, retries: int = 4) -> Any:
    return Call(
        request or verbs.stats(),
        idem="key",
        now_s=100.0,
        patience=Patience(timeout_s, retries),
        rng=random.Random(7),
    )


def header(sending: Sending | None) -> dict[str, Any]:
    assert sending is not None
    found: dict[str, Any] = json.loads(sending.frames[3])
    return found


def refused(code: str, **more: Any) -> Reply:
    problem = refusal(code, "no", **more).problem
    return Reply(PROBLEM, b"", msgspec.json.encode(problem))


def test_frames_are_of_the_contract_and_tell_the_deadline() -> None:
    one = call(verbs.schedule(definition("tea", after="4m")))
    sending = one.act(100.0, NOW_NS)
    magic, kind, corr, _, body = sending.frames
    assert (magic, kind, corr) == (MAGIC, QUERY, one.corr)
    assert header(sending) == {
        "op": "timer.schedule",
        "idem": "key",
        "deadline": "2027-01-15T08:00:08.000000000Z",
    }
    told = json.loads(body)
    assert told["name"] == "tea"
    assert told["schedule"] == {"kind": "after", "duration": "4m"}


def test_silence_is_tried_again_with_the_same_key_and_corr_id_until_the_time_is_up() -> None:
    one = call()
    sent: list[tuple[float, Any]] = []
    while not one.done:
        sent.append((one.due_s, one.act(one.due_s, NOW_NS)))
    times = [at for at, sending in sent if sending is not None]
    assert times == [100.0, 102.0, 106.0]
    frames = [sending.frames for _, sending in sent if sending is not None]
    assert {frame[2] for frame in frames} == {one.corr}
    assert [sending.unanswered for _, sending in sent[:3]] == [False, True, True]
    with pytest.raises(Unreachable, match=r"no reply to stats in 8 s \(3 attempts\)"):
        one.result()


def test_without_retries_it_waits_the_whole_time_for_one_reply() -> None:
    one = call(retries=0)
    assert one.act(100.0, NOW_NS) is not None
    assert one.due_s == 108.0
    assert one.act(108.0, NOW_NS) is None
    with pytest.raises(Unreachable, match="1 attempt"):
        one.result()


def test_a_retryable_problem_is_tried_again_when_the_node_says() -> None:
    one = call()
    one.act(100.0, NOW_NS)
    one.take(refused("overloaded", retry_after_ms=1_000), 100.0)
    assert not one.done
    assert 101.0 <= one.due_s <= 101.1
    assert one.act(100.5, NOW_NS) is None
    again = one.act(101.2, NOW_NS)
    assert again is not None
    assert not again.unanswered
    one.take(Reply(FINAL, b"", b'{"ok":true}'), 101.3)
    assert one.result() == {"ok": True}
    assert one.attempts == 2


def test_pauses_grow_and_jitter_and_then_the_problem_is_raised() -> None:
    one = call(retries=3)
    pauses = []
    now_s = 100.0
    while not one.done:
        one.act(now_s, NOW_NS)
        one.take(refused("overloaded"), now_s)
        pauses.append(one.due_s - now_s)
        now_s = one.due_s
    assert all(
        base / 2 <= pause <= base for base, pause in zip((0.05, 0.1, 0.2), pauses, strict=False)
    )
    with pytest.raises(Overloaded):
        one.result()
    assert one.attempts == 4


def test_a_pause_beyond_the_deadline_is_not_waited_for() -> None:
    one = call(timeout_s=1.0)
    one.act(100.0, NOW_NS)
    one.take(refused("rate_limited", retry_after_ms=5_000), 100.1)
    with pytest.raises(Refused, match="no"):
        one.result()


def test_what_will_not_pass_is_raised_at_once() -> None:
    one = call()
    one.act(100.0, NOW_NS)
    one.take(refused("not_found", pointer="/id"), 100.1)
    with pytest.raises(NotFound) as told:
        one.result()
    assert told.value.errors[0].pointer == "/id"


def test_a_late_reply_to_an_earlier_attempt_is_the_answer() -> None:
    one = call()
    one.act(100.0, NOW_NS)
    one.act(102.0, NOW_NS)
    one.take(Reply(FINAL, b"", b"{}"), 102.1)
    one.take(refused("internal"), 102.2)
    assert one.result() == {}


def test_when_the_clocks_differ_the_deadline_is_not_told_again() -> None:
    one = call()
    assert "deadline" in header(one.act(100.0, NOW_NS))
    one.take(refused("deadline_exceeded"), 100.1)
    assert "deadline" not in header(one.act(101.0, NOW_NS))
    assert DeadlineExceeded.__name__ == "DeadlineExceeded"


def test_a_partial_reply_gives_more_time() -> None:
    one = call()
    one.act(100.0, NOW_NS)
    one.take(Reply(PARTIAL, b"", b"{}"), 101.5)
    assert one.due_s == 103.5
    assert not one.done


def test_time_sync_is_asked_once() -> None:
    one = call(verbs.time_sync(5))
    one.act(100.0, NOW_NS)
    assert one.due_s == 108.0


@pytest.mark.parametrize("kind", [FINAL, PROBLEM])
@pytest.mark.parametrize("body", [b'{"protocol":1,"code":3}', b'{"version":"\xe5","code":"\xe5"}'])
def test_a_body_of_nothing_known_is_a_protocol_error(kind: bytes, body: bytes) -> None:
    one = call(verbs.hello())
    one.act(100.0, NOW_NS)
    one.take(Reply(kind, b"", body), 100.1)
    with pytest.raises(ProtocolError, match="cannot be read"):
        one.result()


def test_results_that_do_not_match_the_request_are_a_protocol_error() -> None:
    request = verbs.schedule_many([definition("a", after=1)], atomic=False)
    with pytest.raises(ProtocolError, match="1 timers were sent, and 0 results came back"):
        request.read(b'{"results":[]}')


@pytest.mark.parametrize(
    "frames",
    [[], [b"x"] * 5, [b"MZP2", b"R", b"c", b"{}", b"{}"], [MAGIC, b"Q", b"c", b"{}", b"{}"]],
)
def test_messages_that_are_no_replies_are_dropped(frames: list[bytes]) -> None:
    assert read_reply(frames) is None


def test_keys_look_like_uuids_and_differ() -> None:
    keys = {idem_key(new_rng(bytes([at])).randbytes(16)) for at in range(50)}
    assert len(keys) == 50
    pattern = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert all(re.fullmatch(pattern, key) for key in keys)


def test_the_best_sample_of_time_sync_is_that_with_the_least_delay() -> None:
    slow = verbs.TimeReply(t1=2_000, t2=2_000)
    quick = verbs.TimeReply(t1=1_150, t2=1_160)
    found = verbs.best_sync([(0, slow, 1_000), (1_000, quick, 1_110)])
    assert found == verbs.TimeSync(offset_ns=100, delay_ns=100, samples=2)


@pytest.mark.parametrize(("timeout", "retries"), [(0, 1), (-1, 1), (1, -1)])
def test_patience_has_limits(timeout: float, retries: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Patience(timeout, retries)
