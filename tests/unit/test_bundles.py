"""Bundles between stores: whatever the order and repetition, a picture is what the other node's
store is, and a command is carried out once."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgenode.__main__ import cli
from edgenode.bundles.book import read_book
from edgenode.bundles.keys import BundleError
from edgenode.bundles.orders import read_orders
from edgenode.bundles.receive import Ways, in_order
from edgenode.bundles.status import lines, status
from edgenode.verify import verify_store
from engine.files import catch_up
from minoots.wire.times import format_instant
from tests.unit.churn import Churn, contents, run
from tests.unit.sites import HOUR_NS, NOW_NS, Site, order, quiet, two
from tests.unit.stored import expire, opened


@pytest.mark.parametrize("seed", range(4))
def test_any_order_and_any_repetition_gives_the_same_picture(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with two(tmp_path, seed) as (a, b, move):
        paths = []
        for number in range(8):
            since = rng.choice(["last", "last", "last", "start", "1"]) if number else "last"
            to = rng.choice(["b", "b", ""])
            with_log = rng.random() < 0.9 or not number
            if since == "1" and not any(path.name.endswith(f"-{to}") for path in paths):
                since = "last"
            orders = tuple(order(i) for i in range(rng.randrange(3))) if to else ()
            paths.append(
                a.send(f"{number}-{to}", to=to, since=since, orders=orders, with_log=with_log)
            )
            for _ in range(rng.randrange(3)):
                move("moves", 0)
        paths.append(a.send("end", to="b"))
    left = set(paths)
    for _ in range(200):
        path = rng.choice(paths)
        before = contents(b.picture(a)) if b.picture(a).exists() else None
        try:
            b.take(path)
        except BundleError as error:
            if not re.search("without event|lacks command|no picture", str(error)):
                raise
            assert (contents(b.picture(a)) if b.picture(a).exists() else None) == before
        else:
            left.discard(path)
    assert not left
    assert contents(b.picture(a)) == contents(a.data)
    verify_store(b.picture(a), quiet)
    chain = read_book(a.data).outgoing["b"]
    assert len(b.done) == chain.orders_end
    keys = [idem for _, _, idem in b.done]
    assert keys == [f"bundle/{chain.chain}/{number}" for number in range(chain.orders_end)]


def test_files_are_taken_in_as_they_were_written(tmp_path: Path) -> None:
    with two(tmp_path, 1) as (a, b, move):
        paths = []
        for number in range(3):
            paths.append(a.send(f"z{9 - number}", to="b", utc_ns=NOW_NS + number))
            move("moves", 0)
    assert in_order(paths[::-1]) == paths
    b.take(*in_order(paths[::-1]))
    assert not any(taken.is_news for taken in b.take(*paths))


def test_an_increment_holds_only_what_is_new(tmp_path: Path) -> None:
    with two(tmp_path, 2) as (a, b, move):
        first = a.send("1", to="b")
        assert a.head.tables is not None
        last = a.head.log.last_seq if a.head.log else 0
        move("moves", 0)
        second = a.send("2", to="b")
        assert a.head.tables is None
        assert a.head.log is not None
        assert a.head.log.first_seq == last + 1
        assert a.head.previous
    assert second.stat().st_size < first.stat().st_size / 3
    assert b.take(first, second)[1].events == a.head.log.events


def test_a_gap_is_refused_and_said_and_can_be_accepted(tmp_path: Path) -> None:
    with two(tmp_path, 3) as (a, b, move):
        first = a.send("1", to="b")
        move("moves", 0)
        lost = a.send("2", to="b")
        begins = a.head.log.first_seq if a.head.log else 0
        ends = a.head.log.last_seq if a.head.log else 0
        move("moves", 0)
        third = a.send("3", to="b")
        move("moves", 0)
        fourth = a.send("4", to="b")
        whole = a.send("5", to="b", since="start")
        again = a.send("6", to="b", since="1")
    b.take(first)
    saved = tmp_path / "saved"
    shutil.copytree(b.data, saved)
    with pytest.raises(BundleError, match=f"without events {begins} to {ends}; --since 1 on a"):
        b.take(third)
    [taken] = b.take(third, ways=Ways(accept_gap=True))
    assert taken.gap == (begins, ends)
    b.take(fourth)
    verify_store(b.picture(a), quiet)
    assert contents(b.picture(a))["events"] != contents(a.data)["events"]
    assert f"without events {begins} to {ends}" in "".join(lines(status(b.data)))
    assert not b.take(lost)[0].is_news  # it is behind us now
    assert b.take(whole)[0].is_news  # though the picture stands there already
    assert contents(b.picture(a)) == contents(a.data)
    assert not status(b.data).pictures[0].gaps
    shutil.rmtree(b.data)
    saved.rename(b.data)  # the other remedy
    b.take(again)
    assert contents(b.picture(a)) == contents(a.data)
    assert not b.take(third, lost, fourth)[0].is_news


def test_a_trimmed_log_is_trimmed_in_the_picture(tmp_path: Path) -> None:
    a, b = Site(tmp_path, "a"), Site(tmp_path, "b")
    b.trusts(a)
    with opened(a.data) as (log, tables, _):
        run(log, tables, Churn(log, 1), 40)
        catch_up(log, tables)
    b.take(a.send("1"))
    with opened(a.data) as (log, tables, writer):
        churn = Churn(log, 2)
        below = log.state().last_seq - 20
        catch_up(log, tables)
        expire(tables, below, 5)
        while log.state().first_seq < below:
            writer.write([], trim_below=below, floor=writer.state.floor)
        churn.writer = writer
        churn.born = 10_000
        run(log, tables, churn, 3)
        catch_up(log, tables)
    b.take(a.send("2"))
    assert a.head.tables is None, "this was to be an increment"
    with opened(b.picture(a)) as (log, _, _):
        assert log.state().first_seq == below
    verify_store(b.picture(a), quiet)
    events = contents(a.data)["events"]
    assert contents(b.picture(a))["events"] == events


# -------------------------------------------------------------------------------------- commands


def test_commands_are_carried_out_once_and_in_order(tmp_path: Path) -> None:
    with two(tmp_path, 8) as (a, b, _):
        first = a.send("1", to="b", orders=(order(1), order(2)))
        second = a.send("2", to="b", orders=(order(3),))
        b.refuses = {2}
        b.take(first, first, second, first, second)
        assert [body for _, body, _ in b.done] == [b'{"name":"n%d"}' % n for n in (1, 2, 3)]
        b.trusts(a, may_command=True)
        with opened(b.data) as (log, tables, _):
            run(log, tables, Churn(log, 3), 1)
        a.take(b.send("back", to="a"))
        chain = read_book(a.data).outgoing["b"]
        assert (chain.acknowledged, chain.orders_first, chain.orders) == (2, 3, [])
        assert chain.refused == [1]
        third = a.send("3", to="b", since="start", orders=(order(4),))
        assert a.head.orders.first == 3, "those that are done are not sent again"
    b.take(third)
    assert len(b.done) == 4


def test_missing_commands_are_a_gap(tmp_path: Path) -> None:
    with two(tmp_path, 9) as (a, b, _):
        a.send("lost", to="b", orders=(order(1), order(2)), with_log=False)
        second = a.send("2", to="b", orders=(order(3),), with_log=False)
        again = a.send("3", to="b", since="start", with_log=False)
    with pytest.raises(BundleError, match="lacks commands 0 to 1; --since start on a"):
        b.take(second)
    assert not b.done
    b.take(again)
    b.take(second)
    assert len(b.done) == 3
    other = Site(tmp_path, "b2")
    other.trusts(a, may_command=True)
    with pytest.raises(BundleError, match="it is for b; this node is b2"):
        other.take(again)
    assert not b.picture(a).exists(), "nothing of a's log was sent"


def test_commands_left_out_stay_left_out(tmp_path: Path) -> None:
    with two(tmp_path, 10) as (a, b, _):
        lost = a.send("lost", to="b", orders=(order(1),))
        second = a.send("2", to="b", orders=(order(2),))
    b.take(lost, ways=Ways(log_only=True))
    assert not b.done
    b.take(second, ways=Ways(accept_gap=True))
    b.take(lost, second)
    assert [body for _, body, _ in b.done] == [b'{"name":"n2"}']


def test_a_command_that_has_expired_is_refused_by_itself(tmp_path: Path) -> None:
    line = b'{"op":"timer.cancel","body":{"name":"n1"}}'
    until = format_instant(NOW_NS + HOUR_NS)
    with two(tmp_path, 19) as (a, b, _):
        lost = a.send("1", to="b", orders=tuple(read_orders([line], until)))
        again = a.send("2", to="b", since="start", orders=(order(2),))
    [taken] = b.take(again, utc_ns=NOW_NS + 2 * HOUR_NS)
    assert [each["code"] for each in taken.refused] == ["deadline_exceeded"]
    assert [body for _, body, _ in b.done] == [b'{"name":"n2"}'], "it expires when it is sent again"
    assert not b.take(lost, utc_ns=NOW_NS)[0].is_news
    with pytest.raises(BundleError, match="line 1: expires_at"):
        read_orders([line[:-1] + b',"expires_at":"soon"}'])


def test_who_may_not_command_is_refused(tmp_path: Path) -> None:
    with two(tmp_path, 12) as (a, b, _):
        path = a.send("1", to="b", orders=(order(1),))
    b.trusts(a)
    with pytest.raises(BundleError, match="a may not command this node"):
        b.take(path)
    assert not b.picture(a).exists(), "nothing half done"
    b.trusts(a, may_command=True)
    b.take(path, ways=Ways(log_only=True))
    assert b.picture(a).exists()
    assert not b.done
    b.take(path)
    assert len(b.done) == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"op":"timer.nothing","body":{}}', "line 2: op is 'timer.nothing'; commands are"),
        (b'{"op":"timer.get","body":{"name":"x"}}', "line 2: op is 'timer.get'"),
        (b'{"op":"consumer.pull","body":{"name":"x"}}', "line 2: op is 'consumer.pull'"),
        (b'{"op":"timer.cancel","body":{"nam":"x"}}', "line 2: its body is no timer.cancel"),
        (b'{"op":"timer.cancel"}', "line 2: it is not"),
        (b"\xff", "line 2: it is not"),
    ],
)
def test_a_command_that_cannot_be_is_refused_when_it_is_given(line: bytes, why: str) -> None:
    good = b'{"op":"timer.cancel","body":{"name":"x"}}'
    with pytest.raises(BundleError, match=why):
        read_orders([good, line, good])


# ---------------------------------------------------------------------------------------- sending


def test_commands_without_a_recipient_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    with two(tmp_path, 13) as (a, _, _):
        for wish, why in (
            ({"orders": (order(1),)}, "name it with --to"),
            ({"to": "c"}, r"no key of 'c' is known \(known: b\)"),
            ({"to": "../x"}, "is no name of a node"),
            ({"since": "7"}, "bundle 7 of this chain is not in the book"),
            ({"since": "yesterday"}, "--since is 'yesterday'"),
        ):
            with pytest.raises(BundleError, match=why):
                a.send("1", **wish)
        assert not read_book(a.data).outgoing, "a number was given away"
        a.send("1")
        with pytest.raises(BundleError, match="exists; name another file"):
            a.send("1")
        assert len(read_book(a.data).outgoing[""].sent) == 1


def test_a_wrong_configuration_and_a_later_book_are_told(tmp_path: Path) -> None:
    site = Site(tmp_path, "a")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[log]\nretention = 3\n")
    words = ["bundle", "import", "x", "--data", str(site.data)]
    ran = CliRunner().invoke(cli, [*words, "--config", str(wrong)])
    assert ran.exit_code == 78
    assert "write a duration" in ran.output
    (site.data / "bundles/book.json").write_text('{"format": 2}')
    with pytest.raises(BundleError, match="format 2, newer than 1; upgrade"):
        read_book(site.data)
