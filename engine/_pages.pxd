"""What LMDB's pages look like, and whether they hold together."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from engine._lmdb cimport Val

cdef enum:
    KIND_BRANCH = 1
    KIND_LEAF = 2

    MOVED = 1                       # what `check_trees` may say beside -1
    NO_MEMORY = -2

cdef packed struct PageHead:        # 16 bytes; the offsets of the nodes follow
    uint64_t number
    uint16_t pad
    uint16_t kind
    uint16_t lower                  # where the offsets end
    uint16_t upper                  # where the nodes begin; they lie close up to the page's end

cdef packed struct NodeHead:        # 8 bytes; the key follows, and in a leaf the data
    uint16_t low, high              # of a leaf: the size of the data; of a branch: the page below,
    uint16_t flags                  # ... whose highest bits these are
    uint16_t key_bytes

cdef packed struct Tree:            # how LMDB keeps a database: 48 bytes
    uint32_t pad                    # the size of a page, in that of the free pages
    uint16_t flags
    uint16_t depth
    uint64_t branches, leaves, overflows, entries
    uint64_t root

cdef packed struct Head:            # a head of the file, behind its PageHead; 136 bytes
    uint32_t magic, version
    uint64_t address, map_bytes
    Tree free
    Tree main
    uint64_t last_page
    uint64_t txn

cdef struct Check:                  # one look at a file
    int fd
    size_t page_bytes
    uint64_t pages                  # the file's, as its head says
    char* seen                      # a bit for each
    char* rooms                     # a page for each level
    bint deep                       # read the leaves, too
    uint64_t branches, leaves, entries
    uint64_t freed                  # the newest commit that freed pages
    Tree[8] trees                   # the named databases
    size_t trees_count
    const char* wrong               # what is; NULL
    uint64_t page                   # ... with which page

cdef bint page_is_sound(const char* page, size_t page_bytes, uint16_t kind) noexcept nogil
cdef bint is_within(const Val* data, size_t page_bytes) noexcept nogil
cdef bint goes_on(const void* before, const Val* key, size_t page_bytes) noexcept nogil
cdef int check_heads(Check* check, bint alone) noexcept nogil
cdef int check_trees(Check* check, uint64_t txn) noexcept nogil
