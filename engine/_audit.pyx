"""Replaying a log from its items: does everything in it follow from what came before?

`feed` takes the log piece by piece (`_item.pxd`) and raises at the first thing that does not agree:
a checksum, a number that is skipped, the hash chain, a move that no timer may make, a record that
names another predecessor than the timer had, a receipt of what did not expire. It keeps what each
timer came to, so that the tables can be held against it: `compare`, then `finish`.

48 to 96 bytes of memory a timer and note of the log. It knows nothing of files: a backup is
replayed by it as a store is.
"""

import hashlib

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from engine._commit cimport check_event, check_seal, key_of
from engine._crc cimport crc32
from engine._fates cimport Fates, Slot
from engine._fold cimport check_cell, check_note, check_row
from engine._item cimport DONE, EVENT, NOTE, SEAL, TIMER, Table, next_item
from engine._lmdb cimport Val
from engine._record cimport (
    DONE_SEED,
    FLAG_BLOB,
    FLAG_IMAGE,
    RECORD_VERSION,
    STATE_PAUSED,
    Cell,
    EventHead,
    Image,
    NoteHead,
    Receipt,
    RowHead,
    SealHead,
)

from engine.errors import StoreCorrupt, StoreTooNew
from engine.record import Kind
from engine.store import CHAIN_START
from engine.timer import MOVES

cdef enum:
    KIND_EXPIRED = 2
    STATES = 8                      # rows of the table of moves; the first is: not known
    IMAGE_END = 112                 # of an event
    ROW_IMAGE_END = 80              # of a row
    HAS_BLOB = 1                    # the definition is known
    SEEN_ROW = 2
    SEEN_DONE = 4
    TOLD_MIN = 4096

cdef int64_t KEPT_NS = 1 << 61      # a note of this or a later time is never swept

assert KIND_EXPIRED == Kind.EXPIRED

cdef uint8_t[8 * 256] moves         # by state before and kind: the states after, a bit each


def _fill_moves() -> None:
    for (before, kind), afters in MOVES.items():
        bits = sum(1 << after for after in afters)
        if before is None:
            moves[7 * 256 + kind] |= bits           # 7: there was none
        else:
            moves[before * 256 + kind] |= bits
            moves[kind] |= bits                     # 0: it is not known, its events are trimmed


_fill_moves()


def whole_items(const unsigned char[::1] items) -> int:
    """How many bytes of `items` are whole items; what is behind them is the beginning of one."""
    if items.shape[0] == 0:
        return 0
    cdef const char* begin = <const char*>&items[0]
    cdef const char* at = begin
    cdef Val key, data
    while next_item(&at, begin + items.shape[0], &key, &data):
        pass
    return at - begin


@cython.final
cdef class Audit:
    """The replay of one log, from its oldest event `from_seq` (1: from its beginning)."""

    cdef readonly uint64_t from_seq, last_seq, last_commit, events, commits, receipts, rows
    cdef readonly uint64_t floor, expired, unchained
    cdef readonly int64_t at_ns
    cdef readonly bytes chain       # after the last whole commit; b"" while it is not known
    cdef Fates timers, notes
    cdef dict waiting               # seqs of expirations above the floor without a receipt, in order
    cdef set told                   # ... and of those that have one, and of some below the floor
    cdef uint64_t receipts_from
    cdef uint64_t told_max          # at this size it is pruned
    cdef list pairs                 # packed receipts of events that are kept
    cdef bytes seal                 # of the commit that is being read
    cdef uint64_t end_seq           # ... and the event behind its last
    cdef object digest              # b"" where the chain before it is not known
    cdef bytearray text             # its events, as far as they are not digested

    def __cinit__(
        self,
        uint64_t from_seq,
        bytes chain not None=CHAIN_START,
        uint64_t commit=0,
        uint64_t receipts_from=0,
    ):
        """chain, commit: where the log begins; b"" for a chain that is not known.

        receipts_from: those of older events are not counted, nor given by `take_receipts`.
        """
        self.receipts_from = receipts_from
        self.from_seq = max(from_seq, <uint64_t>1)
        self.last_commit, self.chain = commit, chain
        self.timers, self.notes = Fates(), Fates()
        self.waiting, self.told, self.pairs = {}, set(), []
        self.told_max = TOLD_MIN
        self.text = bytearray()

    def feed(self, const unsigned char[::1] items) -> None:
        """Replay more of the log. Raises StoreCorrupt, StoreTooNew. 0.5 to 1 us an event."""
        if items.shape[0] == 0:
            return
        cdef const char* at = <const char*>&items[0]
        cdef const char* end = at + items.shape[0]
        cdef Val key, data
        cdef Table table
        while at < end:
            table = next_item(&at, end, &key, &data)
            if table == EVENT:
                self.take_event(&key, &data)
            elif table == SEAL:
                self.end_commit()
                self.take_seal(&key, &data)
            else:
                raise StoreCorrupt(f"after event {self.last_seq} there is no item of a log")
        self.digest_text()

    def ended(self) -> None:
        """All was fed: the last commit must be whole. Raises StoreCorrupt."""
        self.end_commit()

    def take_receipts(self) -> bytes:
        """The receipts of events that are kept, since the last time, as packed pairs."""
        found = b"".join(self.pairs)
        self.pairs = []
        return found

    @property
    def fates_count(self) -> int:
        """Timers that the log tells of."""
        return self.timers.count

    @property
    def receipts_waiting(self) -> int:
        """Expirations that have no receipt."""
        return len(self.waiting)

    # Seals.

    cdef int take_seal(self, const Val* key, const Val* data) except -1:
        cdef uint64_t number = key_of(key)
        cdef const SealHead* seal = <const SealHead*>data.at
        if check_seal(number, data):
            raise StoreCorrupt(f"the seal of commit {number} is damaged")
        if seal.version > RECORD_VERSION:
            raise StoreTooNew(
                f"commit {number} has version {seal.version}, newer than {RECORD_VERSION}; "
                "upgrade minoots"
            )
        if self.last_commit and number != self.last_commit + 1:
            raise StoreCorrupt(
                f"the seal of commit {self.last_commit + 1} is missing: {number} comes next"
            )
        if self.last_commit == 0 and number != 1:
            self.chain = b""
        begin = max(<uint64_t>seal.first_seq, self.from_seq)
        if self.last_seq and seal.first_seq != self.last_seq + 1:
            raise StoreCorrupt(
                f"commit {number} begins at event {seal.first_seq}, after {self.last_seq}"
            )
        self.seal = PyBytes_FromStringAndSize(<char*>data.at, data.size)
        self.last_commit, self.end_seq = number, seal.first_seq + seal.count
        self.last_seq = max(self.last_seq, min(begin, self.end_seq) - 1)
        self.digest = None
        if self.chain and begin == seal.first_seq:
            self.digest = hashlib.sha256(self.chain)
            receipts_bytes = seal.receipts_count * sizeof(Receipt)
            notes_bytes = seal.notes_bytes - 4 * seal.notes_count
            self.digest.update(
                b"%d %d %d %d\n" % (seal.first_seq, seal.count, receipts_bytes, notes_bytes)
            )
        return 0

    cdef int end_commit(self) except -1:
        """The commit that was read last: whole, chained, and what its seal says."""
        if self.seal is None:
            return 0
        cdef const char* at = <const char*><char*>self.seal
        cdef const SealHead* seal = <const SealHead*>at
        if self.last_seq + 1 != self.end_seq:
            raise StoreCorrupt(f"event {self.last_seq + 1} is missing from the log")
        at += sizeof(SealHead)
        receipts = PyBytes_FromStringAndSize(at, seal.receipts_count * sizeof(Receipt))
        at += seal.receipts_count * sizeof(Receipt)
        found = self.take_notes(at, seal.notes_count, seal.notes_bytes)
        chain = PyBytes_FromStringAndSize(<char*>seal.chain, 32)
        if self.digest is None:
            self.unchained += 1
        else:
            self.digest_text()
            self.digest.update(receipts)
            self.digest.update(found)
            if self.digest.digest() != chain:
                raise StoreCorrupt(
                    f"commit {self.last_commit} does not agree with the hash chain"
                )
        self.take_pairs(receipts, seal.floor)
        self.chain, self.digest, self.at_ns = chain, None, seal.at_ns
        self.commits += 1
        self.seal = None
        return 0

    cdef bytes take_notes(self, const char* at, uint32_t count, uint64_t size):
        """Remember the newest note of each key; all of them, without their lengths."""
        cdef Val key, data
        cdef uint32_t length
        cdef uint64_t used = 0, i
        cdef Slot* slot
        cdef list found = []
        for i in range(count):
            if used + 4 > size:
                raise StoreCorrupt(f"the notes of commit {self.last_commit} do not add up")
            memcpy(&length, at + used, 4)
            data.at, data.size = <char*>at + used + 4, length
            used += 4 + <uint64_t>length
            if used > size or length < sizeof(NoteHead):
                raise StoreCorrupt(f"the notes of commit {self.last_commit} do not add up")
            key.size, key.at = 16, (<NoteHead*>data.at).key
            if check_note(&key, &data):
                raise StoreCorrupt(f"a note of commit {self.last_commit} is damaged")
            slot = self.notes.take((<NoteHead*>data.at).key)
            slot.seq, slot.at_ns = self.last_commit, (<NoteHead*>data.at).at_ns
            slot.image_crc = (<NoteHead*>data.at).crc
            slot.flags = 0
            found.append(PyBytes_FromStringAndSize(<char*>data.at, length))
        if used != size:
            raise StoreCorrupt(f"the notes of commit {self.last_commit} do not add up")
        return b"".join(found)

    cdef int take_pairs(self, bytes receipts, uint64_t floor) except -1:
        cdef const Receipt* pair = <const Receipt*><char*>receipts
        cdef uint64_t i
        for i in range(len(receipts) // sizeof(Receipt)):
            seq = pair[i].seq
            if seq > self.last_seq:
                raise StoreCorrupt(
                    f"commit {self.last_commit} has a receipt of event {seq}, which comes later"
                )
            if seq < self.from_seq:
                continue
            if seq in self.waiting:
                del self.waiting[seq]
                self.told.add(seq)
                self.receipts += seq >= self.receipts_from
            elif seq not in self.told:
                raise StoreCorrupt(
                    f"commit {self.last_commit} has a receipt of event {seq}, which is no "
                    "expiration that waits for one"
                )
            if seq >= self.receipts_from:
                self.pairs.append(receipts[16 * i : 16 * i + 16])
        if floor < self.floor:
            raise StoreCorrupt(
                f"commit {self.last_commit} puts the floor of receipts back from {self.floor} to "
                f"{floor}"
            )
        self.floor = floor
        oldest = next(iter(self.waiting), None)
        if oldest is not None and oldest <= floor:
            raise StoreCorrupt(
                f"event {oldest} has no receipt, and commit {self.last_commit} says that all up to "
                f"{floor} have one"
            )
        if <uint64_t>len(self.told) >= self.told_max:
            self.told = {seq for seq in self.told if seq > floor}
            self.told_max = 2 * <uint64_t>len(self.told) + TOLD_MIN
        return 0

    # Events.

    cdef int digest_text(self) except -1:
        if self.text:
            if self.digest is not None:
                self.digest.update(self.text)
            self.text.clear()
        return 0

    cdef int take_event(self, const Val* key, const Val* data) except -1:
        cdef uint64_t seq = key_of(key)
        cdef const EventHead* head = <const EventHead*>data.at
        if seq != self.last_seq + 1 or seq >= self.end_seq:
            raise StoreCorrupt(f"event {seq} stands where {self.last_seq + 1} belongs")
        if check_event(seq, data):
            raise StoreCorrupt(f"event {seq} does not agree with its checksum")
        if head.version > RECORD_VERSION:
            raise StoreTooNew(
                f"event {seq} has version {head.version}, newer than {RECORD_VERSION}; "
                "upgrade minoots"
            )
        if self.digest is not None:
            self.text += (<char*>data.at)[:data.size]
        if head.flags & FLAG_IMAGE:
            self.take_image(seq, head, data.size)
        self.last_seq = seq
        self.events += 1
        return 0

    cdef int take_image(self, uint64_t seq, const EventHead* head, size_t size) except -1:
        cdef const Image* image = <const Image*>(<char*>head + sizeof(EventHead))
        if size < <size_t>IMAGE_END or image.seq != seq or image.state >= STATES - 1:
            raise StoreCorrupt(f"event {seq} carries no whole image of its timer")
        cdef Slot* slot = self.timers.take(image.id)
        cdef int before = slot.state
        if slot.seq == 0 and not head.prev_seq:
            before = STATES - 1
        if slot.seq != head.prev_seq and (slot.seq or head.prev_seq >= self.from_seq):
            raise StoreCorrupt(
                f"event {seq} names {head.prev_seq} as the event of timer {id_of(image.id)} before "
                f"it; that was {slot.seq}"
            )
        if not moves[before * 256 + head.kind] >> image.state & 1:
            raise StoreCorrupt(
                f"event {seq} of kind {head.kind} takes timer {id_of(image.id)} from state {slot.state} "
                f"to {image.state}, which is no move"
            )
        slot.seq, slot.state = seq, image.state
        slot.image_crc = crc32(0, image, sizeof(Image))
        if head.flags & FLAG_BLOB:
            slot.blob_crc = crc32(0, <char*>head + IMAGE_END, size - IMAGE_END)
            slot.flags |= HAS_BLOB
        if head.kind == KIND_EXPIRED:
            self.expired += 1
            if seq > self.floor:
                self.waiting[seq] = None
        return 0

    # The tables.

    def compare(
        self, const unsigned char[::1] items, *, uint64_t applied_seq, bint moving = False
    ) -> None:
        """Hold rows of timers, finished timers and notes against what was replayed.

        applied_seq: how far the tables are; the log was fed that far, and no further, unless
        `moving`: then the rows were read while that changed. Raises StoreCorrupt at a difference.
        """
        if items.shape[0] == 0:
            return
        cdef const char* at = <const char*>&items[0]
        cdef const char* end = at + items.shape[0]
        cdef Val key, data
        cdef Table table
        while at < end:
            table = next_item(&at, end, &key, &data)
            if table not in (TIMER, DONE, NOTE) or key.size != 16:
                raise StoreCorrupt(f"after {self.rows} rows there is no item of the tables")
            self.rows += 1
            if table == TIMER:
                self.compare_row(&key, &data, applied_seq, moving)
            elif table == DONE:
                self.compare_done(&key, &data, applied_seq, moving)
            else:
                self.compare_note(&key, &data, moving)

    cdef int compare_row(
        self, const Val* key, const Val* data, uint64_t applied_seq, bint moving
    ) except -1:
        cdef const Image* image = <const Image*>(<char*>data.at + sizeof(RowHead))
        if check_row(key.at, data):
            raise StoreCorrupt(f"the row of timer {id_of(key.at)} does not agree with its checksum")
        if (<RowHead*>data.at).version > RECORD_VERSION:
            raise StoreTooNew(f"the row of timer {id_of(key.at)} is newer; upgrade minoots")
        cdef Slot* slot = self.timers.find(key.at)
        if image.seq > applied_seq:
            raise StoreCorrupt(
                f"the row of timer {id_of(key.at)} is of event {image.seq}; the tables stand at "
                f"{applied_seq}"
            )
        if slot.seq == 0 and image.seq < self.from_seq:
            return 0                # all of its events are trimmed
        if image.seq != slot.seq:
            if moving and slot.seq:
                return 0
            raise StoreCorrupt(
                f"the row of timer {id_of(key.at)} is of event {image.seq}; its newest is {slot.seq}"
            )
        if slot.state > STATE_PAUSED:
            raise StoreCorrupt(f"timer {id_of(key.at)} ended at event {slot.seq} and has a row")
        if slot.image_crc != crc32(0, image, sizeof(Image)):
            raise StoreCorrupt(
                f"the row of timer {id_of(key.at)} is not what event {slot.seq} says"
            )
        if slot.flags & HAS_BLOB and slot.blob_crc != crc32(
            0, <char*>data.at + ROW_IMAGE_END, data.size - ROW_IMAGE_END
        ):
            raise StoreCorrupt(f"the row of timer {id_of(key.at)} holds another definition")
        slot.flags |= SEEN_ROW
        return 0

    cdef int compare_done(
        self, const Val* key, const Val* data, uint64_t applied_seq, bint moving
    ) except -1:
        if check_cell(DONE_SEED, key, data):
            raise StoreCorrupt(f"the row of the finished timer {id_of(key.at)} is damaged")
        cdef uint64_t seq = (<Cell*>data.at).value
        cdef Slot* slot = self.timers.find(key.at)
        if slot.seq == 0 and seq < self.from_seq:
            return 0
        if slot.seq and slot.state > STATE_PAUSED and (seq == slot.seq or moving):
            slot.flags |= SEEN_DONE
            return 0
        raise StoreCorrupt(
            f"timer {id_of(key.at)} stands among the finished with event {seq}; its newest is "
            f"{slot.seq}, and its state {slot.state}"
        )

    cdef int compare_note(self, const Val* key, const Val* data, bint moving) except -1:
        if check_note(key, data):
            raise StoreCorrupt(f"the note {id_of(key.at)} does not agree with its checksum")
        cdef Slot* slot = self.notes.find(key.at)
        if slot.seq == 0 or moving:
            return 0
        if slot.image_crc != (<NoteHead*>data.at).crc:
            raise StoreCorrupt(f"the note {id_of(key.at)} is not what commit {slot.seq} says")
        slot.flags |= SEEN_ROW
        return 0

    def finish(self, *, uint64_t done_below, bint rebuilt) -> None:
        """All rows were compared: none may be missing.

        done_below: finished timers whose last event is below may be forgotten. rebuilt: the tables
        were rebuilt from a trimmed log, so timers whose definition is gone have no row.
        Raises StoreCorrupt.
        """
        cdef uint64_t i
        cdef Slot* slot
        for i in range(self.timers.mask + 1):
            slot = &self.timers.slots[i]
            if slot.seq == 0 or slot.flags & (SEEN_ROW | SEEN_DONE):
                continue
            if slot.state > STATE_PAUSED:
                if slot.seq >= done_below:
                    raise StoreCorrupt(
                        f"timer {id_of(&slot.high)}, which ended at event {slot.seq}, is not among "
                        "the finished"
                    )
            elif slot.flags & HAS_BLOB or not rebuilt:
                raise StoreCorrupt(f"timer {id_of(&slot.high)} of event {slot.seq} has no row")
        for i in range(self.notes.mask + 1):
            slot = &self.notes.slots[i]
            if slot.seq and not slot.flags & SEEN_ROW and slot.at_ns >= KEPT_NS:
                raise StoreCorrupt(f"the note {id_of(&slot.high)} of commit {slot.seq} is missing")


cdef str id_of(const void* id):
    return PyBytes_FromStringAndSize(<char*>id, 16).hex()


assert IMAGE_END == sizeof(EventHead) + sizeof(Image)
assert ROW_IMAGE_END == sizeof(RowHead) + sizeof(Image)
