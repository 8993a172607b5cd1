"""An item: one stored key and value outside the store, as backups hold them.

`docs/format.md` tells the layout. The value is what the store holds, byte for byte, and carries its
own checksum.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from engine._lmdb cimport Val

cdef enum Table:                    # which table of the store an item is of
    EVENT = 1
    SEAL
    TIMER
    DONE
    NOTE

cdef packed struct ItemHead:        # 8 bytes; behind it the key, then the value
    uint8_t table
    uint8_t key_bytes
    uint16_t reserved
    uint32_t value_bytes


cdef inline Table next_item(const char** at, const char* end, Val* key, Val* data) noexcept nogil:
    """The item at `at`, which then is behind it; 0 if what is left is not a whole one."""
    cdef ItemHead head
    cdef size_t room = <size_t>end - <size_t>at[0]
    if room < sizeof(ItemHead):
        return <Table>0
    memcpy(&head, at[0], sizeof(ItemHead))
    if head.reserved or room < sizeof(ItemHead) + head.key_bytes + <size_t>head.value_bytes:
        return <Table>0
    key.size, key.at = head.key_bytes, <char*>at[0] + sizeof(ItemHead)
    data.size, data.at = head.value_bytes, <char*>key.at + head.key_bytes
    at[0] = <char*>data.at + head.value_bytes
    return <Table>head.table
