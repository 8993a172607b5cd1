"""Notes of the ledger between the log and the tables."""

from __future__ import annotations

from edgenode.ledger import Ledger
from edgenode.virtual import VirtualNode
from engine.record import Note

KEY = b"one key of many."


def _remember(ledger: Ledger, content: bytes) -> None:
    ledger.remember(Note(KEY, bytes(16), 1 << 62, 0, 0, content))


def test_a_note_of_the_open_turn_outlives_an_older_one_that_the_tables_have() -> None:
    """The log is slow: a turn is open while the tables reach an older note of the same key."""
    ledger = VirtualNode()._loop.recovered.ledger
    first = ledger.log.state().commit + 1
    _remember(ledger, b"older")
    ledger.close_turn(first)
    _remember(ledger, b"newer")
    ledger.tables_moved(first)
    assert ledger.content(KEY) == b"newer"
    ledger.close_turn(first + 1)
    ledger.tables_moved(first)
    assert ledger.content(KEY) == b"newer"
    ledger.tables_moved(first + 1)
    assert ledger.content(KEY) is None
    assert (ledger.newer_notes, ledger.notes_left, list(ledger.notes_order)) == ({}, {}, [])


def test_of_two_notes_of_one_turn_the_newest_stays_until_the_tables_have_it() -> None:
    ledger = VirtualNode()._loop.recovered.ledger
    number = ledger.log.state().commit + 1
    _remember(ledger, b"older")
    _remember(ledger, b"newer")
    ledger.close_turn(number)
    ledger.tables_moved(number - 1)
    assert ledger.content(KEY) == b"newer"
    ledger.tables_moved(number)
    assert KEY not in ledger.newer_notes
