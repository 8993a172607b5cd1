"""Bundles between stores: whatever the order, repetition and accidents, a picture is what the other
node's store is, and a command is carried out once."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgenode.__main__ import cli
from edgenode.backup import back_up
from edgenode.bundles import sealed
from edgenode.bundles import send as sending
from edgenode.bundles.book import book_of, read_book
from edgenode.bundles.keys import BundleError, Keyring
from edgenode.bundles.orders import Carrier, Order, Outcome, read_orders
from edgenode.bundles.picture import Picture
from edgenode.bundles.receive import Receiver, Taken, Ways, in_order
from edgenode.bundles.sealed import Head, Writer
from edgenode.bundles.send import Wish, send
from edgenode.bundles.status import lines, status
from edgenode.config import NODE_ID_FILE
from edgenode.restore import restore
from edgenode.verify import verify_store
from engine.clock import OsClock
from engine.errors import StoreCorrupt
from engine.files import catch_up
from tests.unit.churn import Churn, churning, contents, run
from tests.unit.stored import expire, opened

NOW_NS = 1_800_000_000 * 10**9
HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS


def quiet(what: str, size: int) -> None:
    assert what
    assert size >= 0


class Site:
    """A node that others know, and what its own node was told to do."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.data = name, folder / name
        self.data.mkdir(exist_ok=True)
        (self.data / NODE_ID_FILE).write_text(f"{name}\n")
        self.ring = Keyring(self.data)
        self.key = self.ring.make(name)
        self.done: list[tuple[str, bytes, str]] = []
        self.refuses: set[int] = set()
        self.breaks_at: int | None = None

    def trusts(self, other: Site, *, may_command: bool = False) -> None:
        self.ring.trust(other.key.public, may_command=may_command)

    def send(self, name: str, utc_ns: int = NOW_NS, **wish: object) -> Path:
        target = self.data.parent / name
        self.head: Head = send(self.data, target, Wish(**wish), utc_ns, quiet)  # type: ignore[arg-type]
        return target

    def carry(self, order: Order, idem: str) -> Outcome:
        if len(self.done) == self.breaks_at:
            raise BundleError("the node is gone")
        self.done.append((order.op, bytes(order.body), idem))
        return Outcome("not_found", "x") if len(self.done) in self.refuses else Outcome("", "")

    def take(self, *paths: Path, utc_ns: int = NOW_NS, ways: Ways | None = None) -> list[Taken]:
        carry: Carrier = self.carry
        with book_of(self.data) as pages:
            receiver = Receiver(
                self.data, self.name, pages, carry, ways or Ways(), utc_ns, DAY_NS, quiet
            )
            return [receiver.take_in(path) for path in paths]

    def picture(self, other: Site) -> Path:
        return Picture(self.data, other.name).store


@contextmanager
def two(tmp_path: Path, seed: int) -> Iterator[tuple[Site, Site, Callable[[str, int], None]]]:
    """A site whose store moves, and one that trusts it."""
    (tmp_path / "a").mkdir()
    with churning(tmp_path / "a", seed) as move:
        a, b = Site(tmp_path, "a"), Site(tmp_path, "b")
        a.trusts(b)
        b.trusts(a, may_command=True)
        yield a, b, move


def order(number: int) -> Order:
    [made] = read_orders([b'{"op":"timer.cancel","body":{"name":"n%d"}}' % number])
    return made


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


def test_a_node_that_was_restored_sends_all_anew(tmp_path: Path) -> None:
    with two(tmp_path, 5) as (a, b, move):
        first = a.send("1", to="b")
        move("moves", 0)
        second = a.send("2", to="b")
    b.take(first, second)
    back_up(a.data, tmp_path / "full", None, NOW_NS, quiet)
    for name in ("log", "tables"):
        shutil.rmtree(a.data / name)
    restore([tmp_path / "full"], a.data, OsClock(), 0, quiet)
    third = a.send("3", to="b")
    assert a.head.tables is not None
    assert a.head.epoch == 2
    [taken] = b.take(third)
    assert taken.is_news
    assert contents(b.picture(a)) == contents(a.data)
    assert b.take(second)[0].is_news is False, "of an epoch that has passed"
    assert contents(b.picture(a)) == contents(a.data)


def test_a_history_that_forked_is_refused(tmp_path: Path) -> None:
    with two(tmp_path, 6) as (a, b, move):
        first = a.send("1", to="b")
        fork = tmp_path / "fork"
        move("moves", 0)
        second = a.send("2", to="b")
    b.take(first, second)
    with opened(a.data) as (log, tables, _):
        churn = Churn(log, 9)
        churn.born = 50_000
        shutil.copytree(a.data, fork, ignore=shutil.ignore_patterns("lock"))
        run(log, tables, churn, 1)
    third = a.send("3", to="b")
    shutil.rmtree(a.data)
    fork.rename(a.data)  # the disk image of before
    with opened(a.data) as (log, tables, _):
        churn = Churn(log, 10)
        churn.born = 90_000
        run(log, tables, churn, 2)
    other = a.send("3x", to="b")
    [taken] = b.take(third)
    assert taken.is_news
    before = contents(b.picture(a))
    with pytest.raises(BundleError, match="another bundle 3 of a has been taken in"):
        b.take(other)
    ran = CliRunner().invoke(cli, ["bundle", "restart", "b", "--yes", "--data", str(a.data)])
    assert ran.exit_code == 0, ran.output
    anew = a.send("4", to="b")
    with pytest.raises(StoreCorrupt, match="does not go on from the picture of a"):
        b.take(anew)  # even so the log does not follow
    assert contents(b.picture(a)) == before
    ran = CliRunner().invoke(cli, ["bundle", "forget", "a", "--yes", "--data", str(b.data)])
    assert ran.exit_code == 0, ran.output
    b.take(anew)
    assert contents(b.picture(a)) == contents(a.data)


def test_what_was_cut_off_in_the_middle_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "FRAME_BYTES", 700)
    with two(tmp_path, 7) as (a, b, move):
        first = a.send("1", to="b")
        for _ in range(4):
            move("moves", 0)
        second = a.send("2", to="b")
    b.take(first)
    stops = 0

    class Cut(Exception):
        pass

    def stop(what: str, size: int) -> None:
        if what == "taken in":
            raise Cut

    while True:
        with book_of(b.data) as pages:
            receiver = Receiver(b.data, "b", pages, b.carry, Ways(), NOW_NS, DAY_NS, stop)
            try:
                receiver.take_in(second)
                break
            except Cut:
                stops += 1
        with opened(b.picture(a)) as (log, _, _):  # it holds together
            assert log.state().last_seq
    assert stops > 4
    assert contents(b.picture(a)) == contents(a.data)


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


def test_an_import_that_was_cut_off_repeats_only_what_the_key_makes_harmless(
    tmp_path: Path,
) -> None:
    with two(tmp_path, 11) as (a, b, _):
        path = a.send("1", to="b", orders=tuple(order(n) for n in range(150)))
    b.breaks_at = 100
    with pytest.raises(BundleError, match="the node is gone"):
        b.take(path)
    assert read_book(b.data).incoming[a.head.chain].orders == 64
    b.breaks_at = None
    saved = tmp_path / "saved"
    shutil.copytree(b.data, saved)
    b.take(path, utc_ns=NOW_NS + HOUR_NS)
    assert len({idem for _, _, idem in b.done}) == 150
    assert len(b.done) == 150 + 36  # with the same keys: the node answers them from its notes
    b.take(path)
    assert len(b.done) == 150 + 36
    shutil.rmtree(b.data)
    saved.rename(b.data)
    with pytest.raises(BundleError, match=r"cut off at command 64, longer ago .* --accept-repeat"):
        b.take(path, utc_ns=NOW_NS + 2 * DAY_NS)
    with pytest.raises(BundleError, match="longer ago"):
        b.take(path, utc_ns=NOW_NS - HOUR_NS)  # the clock was put back: nobody knows
    b.take(path, utc_ns=NOW_NS + 2 * DAY_NS, ways=Ways(accept_repeat=True))
    assert len({idem for _, _, idem in b.done}) == 150


def test_who_may_not_command_is_refused(tmp_path: Path) -> None:
    with two(tmp_path, 12) as (a, b, _):
        path = a.send("1", to="b", orders=(order(1),), valid_ns=HOUR_NS)
    b.trusts(a)
    with pytest.raises(BundleError, match="a may not command this node"):
        b.take(path)
    assert not b.picture(a).exists(), "nothing half done"
    b.trusts(a, may_command=True)
    with pytest.raises(BundleError, match="were to be carried out by"):
        b.take(path, utc_ns=NOW_NS + 2 * HOUR_NS)
    b.take(path, utc_ns=NOW_NS + 2 * HOUR_NS, ways=Ways(log_only=True))
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


def test_a_bundle_that_was_not_put_is_put_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between the book and the rename: its commands are not given twice."""
    with two(tmp_path, 14) as (a, b, _):
        target = tmp_path / "x"
        with monkeypatch.context() as cut:
            cut.setattr(Writer, "leave", lambda writer: writer._file.close())
            cut.setattr(sending, "put", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                a.send("x", to="b", orders=(order(1),))
        assert not target.exists()
        assert len(read_book(a.data).outgoing["b"].sent) == 1
        assert a.send("x", to="b", orders=(order(1),)) == target
        assert len(read_book(a.data).outgoing["b"].sent) == 1
    b.take(target)
    assert len(b.done) == 1


def _interrupted(path: Path) -> None:
    raise KeyboardInterrupt
