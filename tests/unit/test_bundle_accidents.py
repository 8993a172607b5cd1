"""Bundles after accidents: cut off anywhere, put back, restored, forked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgenode.__main__ import cli
from edgenode.backup import back_up
from edgenode.bundles import sealed
from edgenode.bundles import send as sending
from edgenode.bundles.book import book_of, read_book
from edgenode.bundles.keys import BundleError
from edgenode.bundles.picture import Picture
from edgenode.bundles.receive import Receiver, Ways
from edgenode.bundles.sealed import Writer
from edgenode.bundles.view import open_picture
from edgenode.restore import restore
from engine._copy import StoreFiles
from engine.clock import OsClock
from engine.errors import StoreCorrupt
from minoots.wire.problems import Unreachable
from tests.unit.churn import Churn, contents, run
from tests.unit.sites import DAY_NS, HOUR_NS, NOW_NS, order, quiet, two
from tests.unit.stored import opened


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


def test_a_picture_whose_tables_were_left_behind_is_whole_when_it_is_looked_at(
    tmp_path: Path,
) -> None:
    """As after a kill behind the last transaction of the log."""
    with two(tmp_path, 15) as (a, b, move):
        first = a.send("1", to="b")
        for _ in range(3):
            move("moves", 0)
        second = a.send("2", to="b")
    b.take(first)
    picture = Picture(b.data, "a")

    def killed(begins: int) -> int:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as cut:
        follow = Picture._follow
        cut.setattr(
            Picture, "_follow", lambda at, begins: killed(begins) if begins else follow(at, 0)
        )
        with pytest.raises(KeyboardInterrupt):
            b.take(second)
    assert not b.take(second)[0].is_news
    files = StoreFiles(picture.store)
    assert files.standing().commit == files.ends().last_commit
    files.close()


def test_what_a_kill_between_two_renames_left_is_no_hindrance(tmp_path: Path) -> None:
    with two(tmp_path, 16) as (a, b, move):
        paths = [a.send("0", to="b")]
        for number in range(1, 4):
            move("moves", 0)
            paths.append(a.send(str(number), to="b", since="start" if number % 2 else "last"))
    b.take(paths[0])
    folder = Picture(b.data, "a").folder
    (folder / "store").rename(folder / "old")  # ... before the new one was put in its place
    with pytest.raises(Unreachable, match="import a bundle"):
        open_picture(str(b.data), "a")
    assert not (folder / "store").exists(), "looking made an empty store"
    b.take(*paths)
    shutil.copytree(folder / "store", folder / "old")  # ... before the old one was removed
    book = b.data / "bundles/book.json"
    book.write_text(book.read_text().replace('"gaps": []', '"gaps": [[1, 2]]'))
    b.take(paths[3])  # of the whole log: it heals, so the picture is made anew
    assert contents(b.picture(a)) == contents(a.data)
    assert not (folder / "old").exists()


def test_an_old_bundle_does_not_take_back_what_a_newer_one_has_told(tmp_path: Path) -> None:
    with two(tmp_path, 17) as (a, b, _):
        with opened(b.data) as (log, tables, _):
            run(log, tables, Churn(log, 3), 1)
        b.take(a.send("1", to="b", orders=(order(1),)))
        old = b.send("old", to="a")
        b.refuses = {2}
        b.take(a.send("2", to="b", orders=(order(2),)))
        a.take(old, b.send("new", to="a"))
        assert read_book(a.data).outgoing["b"].refused == [1]
        a.take(old)
        assert read_book(a.data).outgoing["b"].refused == [1]


def test_other_commands_than_those_that_were_cut_off_are_not_dropped(tmp_path: Path) -> None:
    with two(tmp_path, 18) as (a, _, _):
        with pytest.MonkeyPatch.context() as cut:
            cut.setattr(Writer, "leave", lambda writer: writer._file.close())
            cut.setattr(sending, "put", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                a.send("x", to="b", orders=(order(1),))
        with pytest.raises(BundleError, match="cut off, of other commands"):
            a.send("x", to="b", orders=(order(2),))
        assert (tmp_path / "x").exists()
        a.send("y", to="b", orders=(order(2),))
        assert a.head.orders.first == 1
