"""`verify`: each kind of difference is found and its place told, by the node's own code and by the
program that knows docs/format.md alone.

The stores are wrong in what they say, not in their checksums: those are tested in test_files.py and
test_log.py.
"""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from edgenode import verify
from edgenode.backup import back_up
from edgenode.verify import verify_store
from engine.errors import StoreCorrupt, StoreLocked
from engine.files import catch_up
from engine.record import (
    META_SEED,
    STANDING,
    Kind,
    Note,
    pack_note,
    pack_row,
    pack_standing,
    unpack_row,
    unpack_standing,
)
from engine.timer import MOVES, State
from tests.unit.churn import churned
from tests.unit.stored import Writer, behind, event, expire, opened, receipt, timer_id

ROOT = Path(__file__).resolve().parent.parent.parent
APART = ROOT / "packaging/verify/minoots_verify.py"
KEPT_NS = 1 << 62


def quiet(what: str, size: int) -> None:
    assert what


def apart(*words: str) -> subprocess.CompletedProcess[str]:
    """The program that shares nothing with the node, run away from the project."""
    return subprocess.run(
        [sys.executable, "-I", str(APART), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


def note(key: bytes, reply: bytes, at_ns: int = KEPT_NS) -> bytes:
    return pack_note(Note(key * 16, bytes(16), at_ns, 1, 0, reply))


def plain(path: Path) -> None:
    """Four timers: one waits, one is paused, one has fired, one is cancelled; receipts, notes."""
    with opened(path) as (log, tables, writer):
        writer.create(4)
        story(writer)
        catch_up(log, tables)


def story(writer: Writer) -> None:
    writer.write(
        [
            event(5, Kind.PAUSED, State.PAUSED, timer=2, prev_seq=2),
            event(6, Kind.EXPIRED, State.COMPLETED, timer=3, prev_seq=3),
            event(7, Kind.CANCELLED, State.CANCELLED, timer=4, prev_seq=4),
        ],
        notes=[note(b"k", b"kept"), note(b"s", b"swept", 1)],
    )
    writer.write([], receipts=receipt(6, 66), notes=[note(b"k", b"newer")], floor=7)


def seal_cell(seed: int, key: bytes, value: int) -> bytes:
    data = value.to_bytes(8, "little")
    return zlib.crc32(data, zlib.crc32(key, seed)).to_bytes(4, "little") + data


def put(table: bytes, key: bytes, value: bytes, where: str = "tables") -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with behind(path / where, table) as (txn, _):
            txn.put(key, value)

    return change


def drop(table: bytes, key: bytes, where: str = "tables") -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with behind(path / where, table) as (txn, _):
            assert txn.delete(key)

    return change


def drop_nth(table: bytes, at: int, where: str = "tables") -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with behind(path / where, table) as (txn, keys):
            assert txn.delete(keys[at])

    return change


def say(**fields: int) -> Callable[[Path], None]:
    """Have the tables' position say something else."""

    def change(path: Path) -> None:
        with behind(path / "tables", b"meta") as (txn, _):
            standing = unpack_standing(txn.get(b"standing"))
            txn.put(b"standing", pack_standing(standing._replace(**fields)))

    return change


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        for one in changes:
            one(path)

    return change


def alter_row(path: Path, *, definition: bool) -> None:
    with behind(path / "tables", b"timers") as (txn, _):
        image, blob = unpack_row(timer_id(1), txn.get(timer_id(1)))
        if definition:
            blob = blob.replace(b"ppp", b"qqq")
        else:
            image = image._replace(created_ns=2)
        txn.put(timer_id(1), pack_row(image, blob))


WRONGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a row says otherwise": (
        lambda path: alter_row(path, definition=False),
        "the row of timer 0{31}1 is not what event 1 says",
    ),
    "a definition is another": (
        lambda path: alter_row(path, definition=True),
        "the row of timer 0{31}1 holds another definition",
    ),
    "a row is lost": (
        both(drop(b"timers", timer_id(2)), say(live_count=1)),
        "timer 0{31}2 of event 5 (has no row|is missing)",
    ),
    "a row is lost, and counted": (
        drop(b"timers", timer_id(2)),
        r"the tables hold \(?1.*should hold \(?2",
    ),
    "a finished timer is lost": (drop(b"done", timer_id(4)), "timer 0{31}4.*event 7"),
    "a finished timer ended elsewhere": (
        put(b"done", timer_id(4), seal_cell(0x444F4E45, timer_id(4), 6)),
        "0{31}4.*event 6",
    ),
    "a timer that waits is finished": (
        put(b"done", timer_id(1), seal_cell(0x444F4E45, timer_id(1), 1)),
        "timer 0{31}1",
    ),
    "a due row is lost": (drop_nth(b"due", 0), "due row"),
    "a name row is lost": (drop_nth(b"names", 1), "name row"),
    "a name row is of no timer": (
        put(b"names", bytes(24), zlib.crc32(bytes(24), 0x4E414D45).to_bytes(4, "little")),
        "names|name row",
    ),
    "a note is older": (put(b"notes", b"k" * 16, note(b"k", b"kept")), "the note 6b.* commit 3"),
    "a note is lost": (
        both(drop(b"notes", b"k" * 16), say(notes_count=1)),
        "the note (6b)+ of commit 3 is missing",
    ),
    "a receipt is another": (
        put(b"receipts", bytes(7) + b"\6", seal_cell(0x52435054, bytes(7) + b"\6", 67), "log"),
        "the receipt of event 6",
    ),
    "a receipt is of no commit": (
        put(b"receipts", bytes(7) + b"\7", seal_cell(0x52435054, bytes(7) + b"\7", 67), "log"),
        "receipts? (are kept|of event 7)",
    ),
    "an event is lost": (drop(b"events", bytes(7) + b"\3", "log"), "event 3"),
    "a seal is lost": (drop(b"commits", bytes(7) + b"\2", "log"), "commit 2"),
    "the tables are ahead": (say(seq=9, commit=9), "commit 9"),
}  # fmt: skip


def test_a_store_that_is_right_is_verified(tmp_path: Path) -> None:
    plain(tmp_path)
    found = verify_store(tmp_path, quiet)
    assert (found.events, found.commits, found.receipts) == (7, 3, 1)
    assert (found.timers, found.rows, found.dues, found.names) == (2, 6, 1, 2)
    assert found.unchained == found.receipts_waiting == found.consumers == 0
    said = apart(str(tmp_path))
    assert said.stdout == "7 events, 3 commits, 2 timers agree; epoch 1\n", said.stderr


@pytest.mark.parametrize("name", WRONGS)
def test_what_is_wrong_is_found(tmp_path: Path, name: str) -> None:
    plain(tmp_path)
    change, finds = WRONGS[name]
    change(tmp_path)
    with pytest.raises(StoreCorrupt, match=finds):
        verify_store(tmp_path, quiet)
    said = apart(str(tmp_path))
    assert said.returncode == 1
    assert "agree" not in said.stdout
    assert said.stderr.startswith("minoots_verify: ")


@pytest.mark.parametrize(
    ("events", "fields", "finds"),
    [
        (
            [event(2, Kind.RESUMED, timer=1, prev_seq=1)],
            {},
            "event 2 of kind 8 (takes|is no move)",
        ),
        (
            [event(2, Kind.CANCELLED, State.CANCELLED, timer=9)],
            {},
            "event 2 of kind 6 (takes|is no move)",
        ),
        (
            [event(2, Kind.CANCELLED, State.CANCELLED, timer=1)],
            {},
            "event 2(: before it is 1| names 0 .*; that was 1)",
        ),
        ([], {"receipts": receipt(1, 5)}, "event 1.* waits for (one|no receipt)"),
        (
            [event(2, Kind.EXPIRED, State.COMPLETED, timer=1, prev_seq=1)],
            {"floor": 2},
            "event 2 has no receipt",
        ),
    ],
)
def test_a_log_that_could_not_be_is_found(
    tmp_path: Path, events: list[bytes], fields: dict[str, object], finds: str
) -> None:
    with opened(tmp_path) as (_, _, writer):
        writer.create(1)
        writer.write(events, **fields)
    with pytest.raises(StoreCorrupt, match=finds):
        verify_store(tmp_path, quiet)
    said = apart(str(tmp_path))
    assert said.returncode == 1
    assert re.search(finds, said.stderr), said.stderr


def test_the_tables_may_be_behind_the_log(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, tables, writer):
        writer.create(4)
        catch_up(log, tables)
        story(writer)
    found = verify_store(tmp_path, quiet)
    assert (found.applied_seq, found.last_seq, found.timers) == (4, 7, 4)
    assert apart(str(tmp_path)).returncode == 0


def test_a_trimmed_log_is_verified_from_where_it_begins(tmp_path: Path) -> None:
    plain(tmp_path)
    with opened(tmp_path) as (log, tables, writer):
        expire(tables, 6)
        writer.write([event(8)], trim_below=6, floor=7)
        assert log.state().first_seq == 6
        catch_up(log, tables)
    found = verify_store(tmp_path, quiet)
    assert (found.first_seq, found.events, found.unchained) == (6, 3, 1)
    assert apart(str(tmp_path)).returncode == 0


def test_random_stores_are_verified_by_both(tmp_path: Path) -> None:
    for seed in range(3):
        path = tmp_path / str(seed)
        churned(path, 40, seed)
        found = verify_store(path, quiet)
        said = apart(str(path))
        assert said.stdout.startswith(f"{found.events} events, {found.commits} commits"), said
        back_up(path, tmp_path / f"b{seed}", None, 0, quiet)
        said = apart("--from-backup", str(tmp_path / f"b{seed}"))
        assert said.stdout.startswith(f"{found.events} events, "), said.stderr
        damaged = tmp_path / f"b{seed}" / "log.items"
        damaged.write_bytes(damaged.read_bytes()[:-1])
        assert apart("--from-backup", str(tmp_path / f"b{seed}")).returncode == 1


def test_a_running_node_is_not_verified(tmp_path: Path) -> None:
    plain(tmp_path)
    with opened(tmp_path), pytest.raises(StoreLocked, match="one node per directory"):
        verify_store(tmp_path, quiet)


def test_pieces_may_be_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    churned(tmp_path / "a", 30)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    whole = verify_store(tmp_path / "a", quiet)
    monkeypatch.setattr(verify, "PIECE_BYTES", 1)
    assert verify_store(tmp_path / "b", quiet) == whole


def test_the_position_is_written_as_the_engine_reads_it(tmp_path: Path) -> None:
    plain(tmp_path)
    with behind(tmp_path / "tables", b"meta") as (txn, _):
        data = txn.get(b"standing")
    assert pack_standing(unpack_standing(data)) == data
    assert len(data) == STANDING.size == 80
    assert int.from_bytes(data[:4], "little") == zlib.crc32(data[4:], META_SEED)


def test_the_program_apart_knows_every_move() -> None:
    """A new move goes into docs/format.md and from there into the program."""
    found = runpy.run_path(str(APART))["MOVES"]
    moves = {
        (int(before or 0), int(kind), int(after))
        for (before, kind), afters in MOVES.items()
        for after in afters
    }
    assert {
        (before, kind, after)
        for kind, befores in found.items()
        for before, afters in befores.items()
        for after in afters
    } == moves
    page = (ROOT / "docs/format.md").read_text()
    told = set()
    for kind, said in re.findall(r"^\| (\d+) \| \w+ \| (.*) \|$", page, re.MULTILINE):
        if said.startswith("from each"):
            told |= {(state, int(kind), state) for state in range(1, 6)}
        for before, afters in re.findall(r"(none|[\d or]+) to ([\d or]+)", said):
            for one in before.replace("none", "0").split(" or "):
                told |= {(int(one), int(kind), int(after)) for after in afters.split(" or ")}
    assert told == moves
