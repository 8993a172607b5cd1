"""Whether the pages of an LMDB file hold together: no whole file is called damaged, and each kind
of damage is."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import lmdb
import pytest
from tests.unit._probe_pages import wrong

from edgenode.offline import reindex
from edgenode.verify import verify_store
from engine._log import LmdbLog
from engine._tables import LmdbTables
from engine.errors import StoreCorrupt
from engine.files import catch_up, open_store
from engine.record import Scale
from tests.proof.structure import HEAD, LEAF, PAGE, TREE, _pages
from tests.unit.stored import Writer, opened, receipt

PAGE_BYTES = 4_096
HEAD_AT = PAGE.size
TXN_AT = HEAD_AT + HEAD.size - 8
LOWER_AT = 12


def workload(path: Path, seed: int, commits: int) -> int:
    """Write and delete at random, also what is too long for a page; the newest commit, after each
    of which all has to hold together."""
    draw = random.Random(seed)
    environment = lmdb.open(str(path), max_dbs=8, map_size=1 << 30, sync=False)
    names = [b"one", b"two", b"three"]
    tables = [environment.open_db(name) for name in names]
    number = 0
    for commit in range(commits):
        with environment.begin(write=True) as txn:
            table = draw.choice(tables)
            keys = [bytes(key) for key, _ in txn.cursor(table)]
            if commit % 50 == 49:
                txn.drop(table, delete=False)
            for _ in range(draw.choice((1, 10, 200))):
                if keys and draw.random() < 0.45:
                    txn.delete(draw.choice(keys), db=table)
                else:
                    size = draw.choice((0, 7, 40, 300, 1_900, 2_100, 9_000, 70_000 // (1 + commit)))
                    txn.put(draw.randbytes(draw.choice((8, 16, 21))), b"x" * size, db=table)
            number = txn.id()
        found = [wrong(str(path / "data.mdb"), number, deep) for deep in (False, True)]
        assert found == ["", ""], f"after commit {number} of seed {seed}"
    environment.close()
    return number


@pytest.mark.parametrize("seed", range(4))
def test_a_file_that_is_whole_is_never_called_damaged(tmp_path: Path, seed: int) -> None:
    workload(tmp_path, seed, 120)


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, int]:
    """A file of some trees of two levels, and its newest commit."""
    return tmp_path / "data.mdb", workload(tmp_path, 99, 40)


def newest(data: bytes, txn: int) -> tuple[int, ...]:
    return HEAD.unpack_from(data, txn % 2 * PAGE_BYTES + HEAD_AT)  # type: ignore[return-value]


def put(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def named_pages(data: bytes, txn: int) -> list[tuple[bytes, int, list[int]]]:
    """Of each named database: its record, where that is, and where its pages are."""
    main = TREE.unpack(newest(data, txn)[5])[-1]  # type: ignore[arg-type]
    found = []
    for page in _pages(data, PAGE_BYTES, main):
        for at in struct.unpack_from("<3H", data, page + PAGE.size):
            (key_bytes,) = struct.unpack_from("<H", data, page + at + 6)
            tree = page + at + 8 + key_bytes
            record = data[tree : tree + TREE.size]
            found.append((record, tree, list(_pages(data, PAGE_BYTES, TREE.unpack(record)[-1]))))
    return found


def test_heads_that_do_not_go_together(file: tuple[Path, int]) -> None:
    path, txn = file
    older = (txn + 1) % 2 * PAGE_BYTES
    for changed in (txn, txn + 3, txn - 3, 1 << 40):
        put(path, older + TXN_AT, struct.pack("<Q", changed))
        assert "does not go with that of the other head" in wrong(str(path), txn, False)
    put(path, older + TXN_AT, struct.pack("<Q", txn + 1))
    assert "its commit is not the one that wrote it" in wrong(str(path), txn + 1, False)
    put(path, older + TXN_AT, struct.pack("<Q", txn - 1))
    assert wrong(str(path), txn, False) == ""
    assert wrong(str(path), txn - 2, False) == "the head is of another commit"  # by now: look again
    for at in (HEAD_AT, HEAD_AT + 4, HEAD_AT + 24, HEAD_AT + 28):  # magic, version, size, flags
        before = path.read_bytes()[older + at]
        put(path, older + at, bytes([before ^ 4]))
        assert "it is no head of a file" in wrong(str(path), txn, False), at
        put(path, older + at, bytes([before]))
    put(path, older + TXN_AT - 8, struct.pack("<Q", 1 << 33))
    assert "it names more pages than there are" in wrong(str(path), txn, False)


def test_a_page_number_that_leads_to_another_page(file: tuple[Path, int]) -> None:
    """To one in use, to a free one (an older picture of the same page, say), to nowhere."""
    path, txn = file
    data = path.read_bytes()
    _, at, pages = max(named_pages(data, txn), key=lambda found: len(found[2]))
    used = set().union(*(found[2] for found in named_pages(data, txn)))
    free = next(
        page
        for page in range(2 * PAGE_BYTES, len(data), PAGE_BYTES)
        if page not in used and PAGE.unpack_from(data, page)[2] == LEAF
    )
    branch, leaf = pages[0], pages[1]
    node = branch + struct.unpack_from("<H", data, branch + PAGE.size)[0]
    for target, text in (
        (leaf, "it is used twice"),
        (free, "free and used"),
        (1 << 40, "it is behind the last page"),
    ):
        put(path, node, (target // PAGE_BYTES).to_bytes(6, "little"))
        assert text in wrong(str(path), txn, False), text
    put(path, node, data[node : node + 6])
    put(path, at + TREE.size - 8, struct.pack("<Q", leaf // PAGE_BYTES))
    assert wrong(str(path), txn, False) != ""


def test_a_page_that_hides_some_of_what_is_on_it(file: tuple[Path, int]) -> None:
    path, txn = file
    data = path.read_bytes()
    _, _, pages = max(named_pages(data, txn), key=lambda found: len(found[2]))
    for page, deep in ((pages[0], False), (pages[1], True)):
        put(path, page + LOWER_AT, bytes([data[page + LOWER_AT] - 2]))
        assert "is damaged" in wrong(str(path), txn, deep)
        put(path, page + LOWER_AT, data[page + LOWER_AT : page + LOWER_AT + 1])
    assert wrong(str(path), txn, True) == ""


def test_counts_that_are_not_those_of_the_trees(file: tuple[Path, int]) -> None:
    path, txn = file
    data = path.read_bytes()
    _, at, _ = max(named_pages(data, txn), key=lambda found: len(found[2]))
    for field in (8, 16):  # branches, leaves
        put(path, at + field, bytes([data[at + field] ^ 1]))
        assert "more or fewer pages than are counted" in wrong(str(path), txn, False)
        put(path, at + field, data[at + field : at + field + 1])
    put(path, at + 32, bytes([data[at + 32] ^ 1]))
    assert "more or fewer entries than are counted" in wrong(str(path), txn, True)


# ------------------------------------------------------------------------------- of a store


def root_of(data: bytes, table: int) -> int:
    """Where the root of a table of a store lies."""
    heads = [HEAD.unpack_from(data, at + HEAD_AT)[-1] for at in (0, PAGE_BYTES)]
    main = TREE.unpack(newest(data, max(heads))[5])[-1]  # type: ignore[arg-type]
    page = main * PAGE_BYTES
    (at,) = struct.unpack_from("<H", data, page + PAGE.size + 2 * table)
    (key_bytes,) = struct.unpack_from("<H", data, page + at + 6)
    return int(TREE.unpack_from(data, page + at + 8 + key_bytes)[-1]) * PAGE_BYTES


def damage_a_branch(path: Path, table: int) -> None:
    """Have that root lead to one page twice."""
    data = path.read_bytes()
    root = root_of(data, table)
    one, two = struct.unpack_from("<HH", data, root + PAGE.size)
    put(path, root + one, data[root + two : root + two + 6])


COMMITS, DUE, EVENTS = 0, 1, 1  # their places in the order of the names


def test_a_store_with_a_damaged_branch_does_not_open(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, tables, writer):
        writer.create(2_000)
        catch_up(log, tables)
    kept = (tmp_path / "tables/data.mdb").read_bytes()
    damage_a_branch(tmp_path / "tables/data.mdb", DUE)
    with pytest.raises(StoreCorrupt, match=r"page \d+ of .*tables/data.mdb is damaged.*reindex"):
        open_store(tmp_path)
    with pytest.raises(StoreCorrupt, match=r"page \d+ of .*tables/data.mdb is damaged"):
        verify_store(tmp_path, lambda what, size: None)
    assert reindex(tmp_path, tables=True) == 0
    with opened(tmp_path) as (_, tables, _):
        assert len(tables.due(Scale.WALL, 0, 1 << 62)[0]) == 2_000 * 16
    assert kept != (tmp_path / "tables/data.mdb").read_bytes()
    damage_a_branch(tmp_path / "log/data.mdb", EVENTS)
    with pytest.raises(StoreCorrupt, match=r"log/data.mdb is damaged.*; restore from a backup$"):
        open_store(tmp_path)


def test_damaged_tables_of_a_trimmed_log_are_replaced_where_the_loss_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path) as (log, tables, writer):
        writer.create(2_000)
        writer.create(1_000)
        catch_up(log, tables)
        writer.write([], trim_below=2_001)
        left = 3_001 - log.state().first_seq
    assert left < 3_000
    damage_a_branch(tmp_path / "tables/data.mdb", DUE)
    assert reindex(tmp_path, tables=True) == 1
    assert "is damaged" in capsys.readouterr().err
    assert reindex(tmp_path, tables=True, accept_loss=True) == 0
    assert f"reindexed {left} timers as of event 3000" in capsys.readouterr().out
    verify_store(tmp_path, lambda what, size: None)


@pytest.fixture
def log_file(tmp_path: Path) -> tuple[Path, bytes]:
    """The file of a log of two commits, whose events fill some pages; and what is in it."""
    with opened(tmp_path) as (_, _, writer):
        writer.create(2_000)
        writer.create(1)
    path = tmp_path / "log/data.mdb"
    return path, path.read_bytes()


def test_the_oldest_event_is_not_trimmed_because_a_border_says_so(
    tmp_path: Path, log_file: tuple[Path, bytes]
) -> None:
    """A damaged key in the page above the events sends the search for the first into the second
    page, where it is not."""
    path, data = log_file
    root = root_of(data, EVENTS)
    _, second = struct.unpack_from("<HH", data, root + PAGE.size)
    put(path, root + second + 8, (1).to_bytes(8, "big"))
    with opened(tmp_path) as (log, _, _):
        assert log.state().first_seq == 1
        with pytest.raises(StoreCorrupt, match="event 1 is missing from the log"):
            log.event(1)
        with pytest.raises(StoreCorrupt, match="event 1 is missing from the log"):
            log.events(1, 10, 1 << 20)


def leftmost(data: bytes, table: int) -> int:
    """Where the first leaf of a table lies."""
    root = root_of(data, table)
    (first,) = struct.unpack_from("<H", data, root + PAGE.size)
    return int.from_bytes(data[root + first : root + first + 6], "little") * PAGE_BYTES


def test_the_number_of_the_oldest_event_is_not_believed_alone(
    tmp_path: Path, log_file: tuple[Path, bytes]
) -> None:
    """As if those before it were trimmed."""
    path, data = log_file
    leaf = leftmost(data, EVENTS)
    (node,) = struct.unpack_from("<H", data, leaf + PAGE.size)
    put(path, leaf + node + 8, (2).to_bytes(8, "big"))
    with pytest.raises(StoreCorrupt, match="event 2 is not the oldest of the log"):
        open_store(tmp_path)
    put(path, leaf, data[leaf : leaf + PAGE_BYTES])
    for at in (LOWER_AT, PAGE.size):  # it hides some; it lists one twice
        put(path, leaf + at, data[leaf + at + 2 : leaf + at + 4])
        with pytest.raises(StoreCorrupt):
            open_store(tmp_path)
        put(path, leaf, data[leaf : leaf + PAGE_BYTES])


def test_a_last_commit_without_events_is_not_hidden(tmp_path: Path) -> None:
    """The seal before it ends with the same event."""
    with opened(tmp_path) as (_, _, writer):
        writer.create(2)
        writer.write([], receipts=receipt(1, 11))
    path = tmp_path / "log/data.mdb"
    data = path.read_bytes()
    root = root_of(data, COMMITS)
    put(path, root + LOWER_AT, bytes([data[root + LOWER_AT] - 2]))
    with pytest.raises(StoreCorrupt):
        open_store(tmp_path)
    put(path, root, data[root : root + PAGE_BYTES])
    with opened(tmp_path) as (_, _, writer):
        for _ in range(400):
            writer.write([], receipts=receipt(1, 11))
    data = path.read_bytes()
    root = root_of(data, COMMITS)
    last = _pages(data, PAGE_BYTES, root // PAGE_BYTES)
    leaf = next(page for page in last if PAGE.unpack_from(data, page)[2] == LEAF)
    put(path, leaf + LOWER_AT, bytes([data[leaf + LOWER_AT] - 2]))
    with pytest.raises(StoreCorrupt, match="seal of commit 401 is damaged"):
        open_store(tmp_path)


def test_verify_finds_a_key_that_belongs_into_another_leaf(tmp_path: Path) -> None:
    """The last one of the first leaf, above the first of the second."""
    with opened(tmp_path) as (log, tables, writer):
        writer.create(2_000)
        catch_up(log, tables)
    path = tmp_path / "tables/data.mdb"
    data = path.read_bytes()
    leaf = leftmost(data, DUE)
    (lower,) = struct.unpack_from("<H", data, leaf + LOWER_AT)
    (node,) = struct.unpack_from("<H", data, leaf + lower - 2)
    put(path, leaf + node + 8, b"\xff")
    with pytest.raises(StoreCorrupt, match="its keys are not between those above it"):
        verify_store(tmp_path, lambda what, size: None)


def look(tables: LmdbTables, times: int = 1) -> None:
    """Give it so often the time for a look."""
    for _ in range(times):
        time.sleep(0.03)
        tables.expire(0, 0)
        tables.applied()


def test_a_look_while_both_files_are_written_calls_neither_damaged(tmp_path: Path) -> None:
    for part in ("log", "tables"):
        (tmp_path / part).mkdir()
    log = LmdbLog(str(tmp_path / "log"))
    tables = LmdbTables(str(tmp_path / "tables"), log, slice_age_ns=0, look_every_ns=1)
    try:
        writer = Writer(log)
        for at in range(1_500):
            number = writer.create(1 + at % 40)
            tables.follow(writer.state.last_seq, number)
            tables.expire(0, 0)
            tables.applied()
        tables.expire(0, 0)
        log.durable()
    finally:
        tables.close()
        log.close()


@pytest.mark.parametrize("name", ["log", "tables"])
def test_what_is_damaged_while_the_store_is_open_is_found_by_the_next_look(
    tmp_path: Path, name: str
) -> None:
    for part in ("log", "tables"):
        (tmp_path / part).mkdir()
    log = LmdbLog(str(tmp_path / "log"))
    tables = LmdbTables(str(tmp_path / "tables"), log, look_every_ns=20_000_000)
    try:
        Writer(log).create(2_000)
        catch_up(log, tables)
        for _ in range(5):
            look(tables)
            assert tables.applied().seq == 2_000
        damage_a_branch(tmp_path / name / "data.mdb", DUE if name == "tables" else EVENTS)
        with pytest.raises(StoreCorrupt, match=rf"page \d+ of the {name} does not go"):
            look(tables, times=100)
    finally:
        tables.close()
        log.close()
