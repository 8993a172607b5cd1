"""BLAKE2b with eight bytes of digest in C (RFC 7693), equal to `record.name_hash`.

hashlib makes an object, a salt and two copies for each name: six times the compression itself.
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

import cython

cdef enum:
    BLOCK_BYTES = 128
    ROUNDS = 12

cdef uint64_t PARAMETERS = 0x01010008  # eight bytes of digest, no key, one leaf of one level

cdef uint64_t[8] START
START[:] = [
    0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
    0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
]

cdef uint8_t[10][16] ORDER
ORDER[:] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
]


@cython.overflowcheck(False)  # sums modulo 2^64
cdef inline void mix(
    uint64_t* v, int a, int b, int c, int d, uint64_t x, uint64_t y
) noexcept nogil:
    v[a] += v[b] + x
    v[d] = (v[d] ^ v[a]) >> 32 | (v[d] ^ v[a]) << 32
    v[c] += v[d]
    v[b] = (v[b] ^ v[c]) >> 24 | (v[b] ^ v[c]) << 40
    v[a] += v[b] + y
    v[d] = (v[d] ^ v[a]) >> 16 | (v[d] ^ v[a]) << 48
    v[c] += v[d]
    v[b] = (v[b] ^ v[c]) >> 63 | (v[b] ^ v[c]) << 1


cdef void compress(uint64_t* state, const uint64_t* words, uint64_t upto, bint last) noexcept nogil:
    """One block. upto: bytes up to its end."""
    cdef uint64_t[16] v
    cdef const uint8_t* order
    cdef int r, i
    memcpy(v, state, 64)
    memcpy(&v[8], START, 64)
    v[12] ^= upto
    if last:
        v[14] = ~v[14]
    for r in range(ROUNDS):
        order = ORDER[r % 10]
        mix(v, 0, 4, 8, 12, words[order[0]], words[order[1]])
        mix(v, 1, 5, 9, 13, words[order[2]], words[order[3]])
        mix(v, 2, 6, 10, 14, words[order[4]], words[order[5]])
        mix(v, 3, 7, 11, 15, words[order[6]], words[order[7]])
        mix(v, 0, 5, 10, 15, words[order[8]], words[order[9]])
        mix(v, 1, 6, 11, 12, words[order[10]], words[order[11]])
        mix(v, 2, 7, 8, 13, words[order[12]], words[order[13]])
        mix(v, 3, 4, 9, 14, words[order[14]], words[order[15]])
    for i in range(8):
        state[i] ^= v[i] ^ v[i + 8]


cdef uint64_t name_hash(const void* name, size_t size, uint16_t tenant) noexcept nogil:
    cdef const char* at = <const char*>name
    cdef uint64_t[8] state
    cdef uint64_t[16] words
    cdef uint64_t done = 0
    if size == 0:
        return 0
    memcpy(state, START, 64)
    state[0] ^= PARAMETERS
    state[4] ^= tenant  # the salt
    while size > BLOCK_BYTES:
        memcpy(words, at + done, BLOCK_BYTES)
        done += BLOCK_BYTES
        size -= BLOCK_BYTES
        compress(state, words, done, False)
    memset(words, 0, BLOCK_BYTES)
    memcpy(words, at + done, size)
    compress(state, words, done + size, True)
    return state[0] or 1


def name_hash_of(name: bytes, tenant: int = 0) -> int:
    """The same for Python: for tests."""
    return name_hash(<const char*>name, len(name), tenant)
