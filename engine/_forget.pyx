"""Forgetting: the done rows of timers that finished long ago, and old idempotency notes.

Both are bounded in each transaction. Notes are keyed by a hash, so a sweep goes round the table and
remembers where it was.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from engine._fold cimport Fold, Standing, check_cell, check_note, of_timer, unwritable
from engine._lmdb cimport NEXT, NOTFOUND, SET, SET_RANGE, Val, lm
from engine._record cimport DONE_SEED, Cell, NoteHead, big_endian
from engine._slice cimport DONE_DAMAGED, NOTE_DAMAGED, Fault, Slice, wrong


cdef int fold_forget(Fold* fold, Slice* piece, Fault* fault) noexcept nogil:
    """Delete the done rows of these events, unless a later event has put another one there."""
    cdef Val key, data
    cdef void* cursor
    cdef uint64_t[2] id
    cdef size_t i
    cdef int rc = lm.cursor_open(fold.txn, fold.dbs.done, &cursor)
    if rc:
        return unwritable(fault, rc)
    for i in range(piece.entries_count):
        id[0] = big_endian(piece.entries[i].id_high)
        id[1] = big_endian(piece.entries[i].id_low)
        key.size, key.at = 16, id
        rc = lm.cursor_get(cursor, &key, &data, SET)
        if rc == 0:
            if check_cell(DONE_SEED, &key, &data):
                rc = of_timer(fault, DONE_DAMAGED, id)
                break
            if (<Cell*>data.at).value == piece.entries[i].seq:
                rc = lm.cursor_del(cursor, 0)
        if rc == NOTFOUND:
            rc = 0
        if unwritable(fault, rc):
            break
    lm.cursor_close(cursor)
    return -1 if rc else 0


cdef int fold_sweep(
    Fold* fold, int64_t before_ns, uint64_t looks, Standing* standing, Fault* fault
) noexcept nogil:
    """Look at `looks` notes, on from where the last sweep ended, and delete the old ones."""
    cdef Val key, data
    cdef void* cursor
    cdef int rc = lm.cursor_open(fold.txn, fold.dbs.notes, &cursor)
    if rc:
        return unwritable(fault, rc)
    key.size, key.at = 16, standing.swept
    rc = lm.cursor_get(cursor, &key, &data, SET_RANGE)
    while rc == 0:
        memcpy(standing.swept, key.at, 16)
        if looks == 0:
            break
        looks -= 1
        if check_note(&key, &data):
            rc = wrong(fault, NOTE_DAMAGED, 0, 0)
            break
        if (<NoteHead*>data.at).at_ns < before_ns:
            rc = lm.cursor_del(cursor, 0)
        rc = rc or lm.cursor_get(cursor, &key, &data, NEXT)
    lm.cursor_close(cursor)
    if rc == NOTFOUND:
        memset(standing.swept, 0, 16)
        return 0
    return rc if rc == -1 else unwritable(fault, rc)
