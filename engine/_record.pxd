"""The C view of `record.py`, and of what only the store's own C code writes."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef packed struct EventHead:  # 40 bytes
    uint32_t crc
    uint8_t version
    uint8_t kind
    uint16_t flags
    int64_t at_ns
    uint64_t prev_seq
    int64_t due_ns
    uint32_t occurrence
    uint32_t reserved

cdef packed struct Image:  # 72 bytes
    uint8_t id[16]
    uint64_t seq
    int64_t due_ns
    int64_t created_ns
    int64_t left_ns
    uint64_t name_hash
    uint32_t occurrence
    uint32_t revision
    uint16_t tenant
    uint8_t state
    uint8_t scale
    uint8_t reason
    uint8_t reserved[3]

cdef packed struct RowHead:  # 8 bytes
    uint32_t crc
    uint8_t version
    uint8_t reserved[3]

cdef packed struct NoteHead:  # 64 bytes
    uint32_t crc
    uint8_t version
    uint8_t reserved[3]
    uint8_t key[16]
    uint8_t body_hash[16]
    int64_t at_ns
    uint64_t first_seq
    uint32_t count
    uint32_t reply_bytes

cdef packed struct BlobHead:  # 20 bytes
    uint16_t rule_bytes
    uint16_t name_bytes
    uint16_t labels_bytes
    uint8_t reserved[2]
    uint32_t schedule_bytes
    uint32_t payload_bytes
    uint32_t rest_bytes

# The seal of a commit; behind it the packed receipts, then each note after its length (4 bytes).
cdef packed struct SealHead:  # 80 bytes
    uint32_t crc
    uint8_t version
    uint8_t reserved[3]
    uint64_t first_seq
    int64_t at_ns
    uint64_t floor
    uint8_t chain[32]
    uint32_t count
    uint32_t receipts_count
    uint32_t notes_count
    uint32_t notes_bytes

# A value of eight bytes under its checksum: a receipt, a due row, a done row.
cdef packed struct Cell:  # 12 bytes
    uint32_t crc
    uint64_t value

cdef packed struct Receipt:  # 16 bytes: as packed in a batch
    uint64_t seq
    int64_t fired_ns

cdef enum:
    RECORD_VERSION = 1
    ROW_SEED = 0x4D494E4F
    NOTE_SEED = 0x4E4F5445
    SEAL_SEED = 0x5345414C
    RECEIPT_SEED = 0x52435054
    DUE_SEED = 0x44554520
    DONE_SEED = 0x444F4E45
    NAME_SEED = 0x4E414D45
    META_SEED = 0x4D455441
    FLAG_IMAGE = 1
    FLAG_BLOB = 2
    KIND_SCHEDULED = 1
    KIND_LATE = 3                # told of a fire, even after it was the last
    STATE_SCHEDULED = 1
    STATE_PAUSED = 2             # what is above is terminal
    SCALE_STEADY = 0

cdef extern from *:
    # Keys are compared byte by byte, so numbers in them stand big end first; its own inverse.
    uint64_t big_endian "__builtin_bswap64"(uint64_t value) noexcept nogil
    uint32_t big_endian_32 "__builtin_bswap32"(uint32_t value) noexcept nogil
