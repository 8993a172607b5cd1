"""What C makes of the layouts of `engine/record.py`, for `test_record.py`."""

from engine._fold cimport DueKey, NameKey
from engine._record cimport (
    DONE_SEED,
    DUE_SEED,
    FLAG_BLOB,
    FLAG_IMAGE,
    KIND_SCHEDULED,
    META_SEED,
    NAME_SEED,
    NOTE_SEED,
    RECEIPT_SEED,
    RECORD_VERSION,
    ROW_SEED,
    SCALE_STEADY,
    SEAL_SEED,
    STATE_PAUSED,
    STATE_SCHEDULED,
    BlobHead,
    EventHead,
    Image,
    NoteHead,
    RowHead,
)


def event_head(bytes data) -> tuple[object, ...]:
    """The fields of EVENT_HEAD, as C reads them."""
    cdef EventHead* at = <EventHead*><char*>data
    return (
        at.crc, at.version, at.kind, at.flags, at.at_ns, at.prev_seq, at.due_ns, at.occurrence,
        at.reserved,
    )


def image(bytes data) -> tuple[object, ...]:
    """The fields of IMAGE, as C reads them."""
    cdef Image* at = <Image*><char*>data
    return (
        (<char*>at.id)[:16], at.seq, at.due_ns, at.created_ns, at.left_ns, at.name_hash,
        at.occurrence, at.revision, at.tenant, at.state, at.scale, at.reason,
    )


def row_head(bytes data) -> tuple[object, ...]:
    """The fields of ROW_HEAD, as C reads them."""
    cdef RowHead* at = <RowHead*><char*>data
    return at.crc, at.version


def note_head(bytes data) -> tuple[object, ...]:
    """The fields of NOTE_HEAD, as C reads them."""
    cdef NoteHead* at = <NoteHead*><char*>data
    return (
        at.crc, at.version, (<char*>at.key)[:16], (<char*>at.body_hash)[:16], at.at_ns,
        at.first_seq, at.count, at.reply_bytes,
    )


def blob_head(bytes data) -> tuple[object, ...]:
    """The fields of BLOB_HEAD, as C reads them."""
    cdef BlobHead* at = <BlobHead*><char*>data
    return (
        at.rule_bytes, at.name_bytes, at.labels_bytes, at.schedule_bytes, at.payload_bytes,
        at.rest_bytes,
    )


SIZES = {
    "EVENT_HEAD": sizeof(EventHead),
    "IMAGE": sizeof(Image),
    "ROW_HEAD": sizeof(RowHead),
    "NOTE_HEAD": sizeof(NoteHead),
    "BLOB_HEAD": sizeof(BlobHead),
    "due key": sizeof(DueKey),
    "name key": sizeof(NameKey),
}
CONSTANTS = {
    "RECORD_VERSION": RECORD_VERSION,
    "ROW_SEED": ROW_SEED,
    "NOTE_SEED": NOTE_SEED,
    "FLAG_IMAGE": FLAG_IMAGE,
    "FLAG_BLOB": FLAG_BLOB,
}
STATES = {"scheduled": STATE_SCHEDULED, "paused": STATE_PAUSED}
KIND_OF_BIRTH = KIND_SCHEDULED
STEADY = SCALE_STEADY
SEEDS = (
    ROW_SEED, NOTE_SEED, SEAL_SEED, RECEIPT_SEED, DUE_SEED, DONE_SEED, NAME_SEED, META_SEED
)
