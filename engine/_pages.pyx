"""Whether the pages of an LMDB file hold together: the part that no checksum of ours covers.

LMDB 0.9 has no checksums. Each record of ours has one; but what leads to the records, page numbers,
lists of nodes and their counts, may be damaged so that some are not seen, or older ones are, and all
that is seen is right. Three looks find that:

`check_heads`: the two heads of the file agree with each other, before LMDB opens it.
`check_trees`: from a head down to the pages above the leaves, every page is what it should be and is
used once, none of them or of the leaves is free, and there are as many as the head says. The leaves
themselves are not read: of ten million timers this reads some thirty megabytes. By `pread`, so
that a page number to nowhere is an error and no SIGBUS.
`goes_on`: a leaf that a reader comes to hides no record. Its nodes lie close, so their sizes must fill
the room that its head gives them.

The layouts are those of mdb.c in LMDB 0.9 (MDB_page, MDB_node, MDB_db, MDB_meta) on machines of 64
bits; `_lmdb.pyx` takes no other version.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

cdef extern from "<unistd.h>" nogil:
    int64_t pread(int fd, void* to, size_t count, int64_t offset)

cdef extern from "<sys/stat.h>" nogil:
    cdef struct stat_t "stat":
        long st_size
    int fstat(int fd, stat_t* found)

cdef enum:
    MAGIC_LOW = 0xC0DE          # of 0xBEEFC0DE, which is no int
    MAGIC_HIGH = 0xBEEF
    VERSION = 1
    BIG = 1                     # of a node: its data lies on pages of its own
    SUBTREE = 2                 # of a node: its data is a Tree
    INTEGER_KEYS = 8            # of the tree of free pages
    KIND_OVERFLOW = 4
    ENTRIES = 16
    LEVELS_MAX = 12
    TREES_MAX = 8
    PAGE_MIN = 512
    PAGE_MAX = 32_768
    HEADS = 2
    SLACK_PAGES = 65_536        # a commit may take pages behind the file's end, and not write them

cdef uint64_t NO_PAGE = 0xFFFF_FFFF_FFFF_FFFF


cdef inline NodeHead* node_of(const char* page, size_t i) noexcept nogil:
    return <NodeHead*>(page + (<uint16_t*>(page + sizeof(PageHead)))[i])


cdef inline size_t nodes_of(const char* page) noexcept nogil:
    return ((<PageHead*>page).lower - sizeof(PageHead)) // 2


cdef inline uint64_t below(const NodeHead* node) noexcept nogil:
    """The page that a node of a branch leads to."""
    return <uint64_t>node.low | <uint64_t>node.high << 16 | <uint64_t>node.flags << 32


cdef inline size_t data_bytes(const NodeHead* node) noexcept nogil:
    return <size_t>node.low | <size_t>node.high << 16


cdef inline int order(const NodeHead* a, const NodeHead* b) noexcept nogil:
    """As LMDB orders keys: byte by byte, the longer behind."""
    cdef size_t both = min(a.key_bytes, b.key_bytes)
    cdef int found = memcmp(<char*>a + sizeof(NodeHead), <char*>b + sizeof(NodeHead), both)
    return found if found else <int>a.key_bytes - <int>b.key_bytes


cdef bint page_is_sound(const char* page, size_t page_bytes, uint16_t kind) noexcept nogil:
    """Whether a page lists all of its nodes, in order; some hundred nanoseconds.

    The order of a page of the tree of free pages, whose keys are numbers, is not looked at.
    """
    cdef const PageHead* head = <const PageHead*>page
    cdef NodeHead* node
    cdef NodeHead* before = NULL
    cdef size_t i, at, size, sum = 0
    cdef uint16_t of_numbers = kind & <uint16_t>INTEGER_KEYS
    kind = kind & ~<uint16_t>INTEGER_KEYS
    if head.kind != kind or head.lower % 2 or head.lower <= sizeof(PageHead):
        return False
    if head.lower > head.upper or head.upper > page_bytes:
        return False
    for i in range(nodes_of(page)):
        at = (<uint16_t*>(page + sizeof(PageHead)))[i]
        if at < head.upper or at + sizeof(NodeHead) > page_bytes:
            return False
        node = <NodeHead*>(page + at)
        size = sizeof(NodeHead) + node.key_bytes
        if kind == KIND_LEAF:
            size += sizeof(uint64_t) if node.flags & BIG else data_bytes(node)
        sum += size + size % 2
        if at + size > page_bytes:
            return False
        if kind == KIND_BRANCH and i == 0:
            continue  # it has no key: it is below all others
        if before is not NULL and not of_numbers and order(before, node) >= 0:
            return False
        before = node
    return sum == page_bytes - head.upper


cdef bint is_within(const Val* data, size_t page_bytes) noexcept nogil:
    """Whether data that is too long for a leaf ends before the pages that it lies on do."""
    cdef const PageHead* head = <const PageHead*>(<char*>data.at - sizeof(PageHead))
    cdef uint64_t pages = head.lower | <uint64_t>head.upper << 16
    return head.kind & KIND_OVERFLOW and data.size + sizeof(PageHead) <= pages * page_bytes


cdef bint goes_on(const void* before, const Val* key, size_t page_bytes) noexcept nogil:
    """Whether a walk in the order of the keys may go on from the one at `before`, of the same size
    (NULL: it begins), to `key`: this one is above, and its leaf, if another one, hides no node.

    For a reader: leaves that are being written lie elsewhere.
    """
    cdef const char* leaf = <const char*>(<size_t>key.at & ~(page_bytes - 1))
    if before is not NULL:
        if <const char*>(<size_t>before & ~(page_bytes - 1)) == leaf:
            return True  # in a sound leaf they are in order
        if memcmp(before, key.at, key.size) >= 0:
            return False
    return page_is_sound(leaf, page_bytes, KIND_LEAF)


cdef int bad(Check* check, const char* what, uint64_t page) noexcept nogil:
    check.wrong, check.page = what, page
    return -1


cdef int read_page(Check* check, uint64_t number, char* to) noexcept nogil:
    cdef int64_t at = <int64_t>(number * check.page_bytes)
    if pread(check.fd, to, check.page_bytes, at) != <int64_t>check.page_bytes:
        return bad(check, b"it cannot be read", number)
    return 0


# The heads.


cdef int check_heads(Check* check, bint alone) noexcept nogil:
    """Whether both heads of the file are heads and agree; fills `page_bytes`.

    alone: nobody writes meanwhile, so that one must be by one commit older than the other.
    """
    cdef char[PAGE_MIN] room
    cdef Head[HEADS] heads
    cdef stat_t file
    cdef uint64_t i
    check.page_bytes = 0
    for i in range(HEADS):
        if pread(check.fd, room, sizeof(room), <int64_t>(i * check.page_bytes)) != sizeof(room):
            return bad(check, b"it cannot be read", i)
        memcpy(&heads[i], room + sizeof(PageHead), sizeof(Head))
        if head_is_bad(&heads[i]) or heads[i].free.pad != heads[0].free.pad:
            return bad(check, b"it is no head of a file", i)
        check.page_bytes = heads[0].free.pad
    if fstat(check.fd, &file):
        return bad(check, b"its file has no size", 0)
    for i in range(HEADS):
        if heads[i].last_page > <uint64_t>file.st_size // check.page_bytes * 2 + SLACK_PAGES:
            return bad(check, b"it names more pages than there are", i)
    if alone and not heads_follow(heads[0].txn, heads[1].txn):
        return bad(check, b"its commit does not go with that of the other head", 0)
    return 0


cdef bint head_is_bad(const Head* head) noexcept nogil:
    cdef uint32_t size = head.free.pad
    return (
        head.magic & 0xFFFF != MAGIC_LOW
        or head.magic >> 16 != MAGIC_HIGH
        or head.version != VERSION
        or size < PAGE_MIN
        or size > PAGE_MAX
        or size & (size - 1)
        or head.free.flags != INTEGER_KEYS
        or head.main.flags != 0
    )


cdef bint heads_follow(uint64_t even, uint64_t odd) noexcept nogil:
    """Commits write the heads in turn; of a new file both are of none."""
    if even % 2 or (odd % 2 == 0 and odd):
        return False
    return even == odd or even == odd + 1 or odd == even + 1


# The trees.


cdef int check_trees(Check* check, uint64_t txn) noexcept nogil:
    """Whether all that the head of the commit `txn` leads to holds together, the leaves unread.

    For the length of a read transaction that sees that commit. -1: `wrong` and `page` say what is.
    MOVED: the head is another one by now, look again. NO_MEMORY: there is none to look with.
    """
    cdef Head head, after
    cdef size_t i
    cdef int rc = read_head(check, txn, &head)
    if rc:
        return rc
    check.pages = head.last_page + 1
    check.freed = check.trees_count = 0
    check.seen = <char*>calloc(check.pages // 8 + 1, 1)
    check.rooms = <char*>malloc(LEVELS_MAX * check.page_bytes)
    if check.seen is NULL or check.rooms is NULL:
        rc = NO_MEMORY
    for i in range(HEADS):
        rc = rc or mark(check, i)
    rc = rc or check_tree(check, &head.free, INTEGER_KEYS)
    if rc == 0 and txn > 1 and check.freed != txn:
        # Each commit frees pages, the first but for: this head is an older one, with a new number.
        rc = bad(check, b"its commit is not the one that wrote it", txn % 2)
    rc = rc or check_tree(check, &head.main, SUBTREE)
    for i in range(check.trees_count):
        rc = rc or check_tree(check, &check.trees[i], 0)
    free(check.seen)
    free(check.rooms)
    check.seen = check.rooms = NULL
    if rc == -1 and (read_head(check, txn, &after) or memcmp(&head, &after, sizeof(Head))):
        return MOVED  # it was being written while it was read
    return rc


cdef int read_head(Check* check, uint64_t txn, Head* head) noexcept nogil:
    cdef char[PAGE_MIN] room
    cdef int64_t at = <int64_t>(txn % 2 * check.page_bytes)
    if pread(check.fd, room, sizeof(room), at) != sizeof(room):
        return bad(check, b"it cannot be read", txn % 2)
    memcpy(head, room + sizeof(PageHead), sizeof(Head))
    return MOVED if head.txn != txn else 0


cdef int mark(Check* check, uint64_t number) noexcept nogil:
    """Note that a page is used, or free."""
    if number >= check.pages:
        return bad(check, b"it is behind the last page", number)
    cdef char bit = <char>(1 << number % 8)
    if check.seen[number // 8] & bit:
        return bad(check, b"it is used twice, or free and used", number)
    check.seen[number // 8] |= bit
    return 0


cdef int check_tree(Check* check, const Tree* tree, uint16_t leaves) noexcept nogil:
    """leaves: why they are read, 0 if they are not. That of a small tree always is."""
    if tree.root == NO_PAGE:
        if tree.depth or tree.branches or tree.leaves or tree.entries:
            return bad(check, b"a tree without pages counts some", 0)
        return 0
    if tree.depth == 0 or tree.depth > LEVELS_MAX:
        return bad(check, b"it is the root of a tree of no depth", tree.root)
    if leaves == 0 and (check.deep or tree.depth == 1):
        leaves = ENTRIES
    check.branches = check.leaves = check.entries = 0
    cdef int rc = walk(check, tree.root, tree.depth - 1, leaves, NULL, NULL)
    if rc:
        return rc
    if check.branches != tree.branches or check.leaves != tree.leaves:
        return bad(check, b"it is the root of more or fewer pages than are counted", tree.root)
    if leaves and check.entries != tree.entries:
        return bad(check, b"it is the root of more or fewer entries than are counted", tree.root)
    return 0


cdef int walk(
    Check* check, uint64_t number, size_t level, uint16_t leaves,
    const NodeHead* low, const NodeHead* high
) noexcept nogil:
    """A page and all below it, whose keys are not below `low` and are below `high`."""
    cdef char* page = check.rooms + level * check.page_bytes
    cdef size_t i, count
    cdef NodeHead* least
    cdef NodeHead* most
    cdef int rc
    if mark(check, number):
        return -1
    if level == 0:
        check.leaves += 1
        return read_leaf(check, number, leaves, low, high) if leaves else 0
    check.branches += 1
    if read_page(check, number, page):
        return -1
    if not page_is_sound(page, check.page_bytes, KIND_BRANCH | (leaves & INTEGER_KEYS)):
        return bad(check, b"its list of pages is damaged", number)
    if (<PageHead*>page).number != number:
        return bad(check, b"it is another page", number)
    count = nodes_of(page)
    for i in range(count):
        least = node_of(page, i) if i else <NodeHead*>low
        most = node_of(page, i + 1) if i + 1 < count else <NodeHead*>high
        if leaves != INTEGER_KEYS and least is not NULL and most is not NULL:
            if order(least, most) >= 0:
                return bad(check, b"its keys are not between those above it", number)
        rc = walk(check, below(node_of(page, i)), level - 1, leaves, least, most)
        if rc:
            return rc
    return 0


cdef int read_leaf(
    Check* check, uint64_t number, uint16_t leaves, const NodeHead* low, const NodeHead* high
) noexcept nogil:
    """leaves: INTEGER_KEYS to mark the free pages that they list, SUBTREE to take the trees from
    them, ENTRIES to mark the pages that entries lie on."""
    cdef char* page = check.rooms
    cdef NodeHead* node
    cdef char* data
    cdef size_t i
    cdef int rc = 0
    if read_page(check, number, page):
        return -1
    if not page_is_sound(page, check.page_bytes, KIND_LEAF | (leaves & INTEGER_KEYS)):
        return bad(check, b"its list of nodes is damaged", number)
    if (<PageHead*>page).number != number:
        return bad(check, b"it is another page", number)
    if leaves != INTEGER_KEYS and (
        (low is not NULL and order(low, node_of(page, 0)) > 0)
        or (high is not NULL and order(node_of(page, nodes_of(page) - 1), high) >= 0)
    ):
        return bad(check, b"its keys are not between those above it", number)
    check.entries += nodes_of(page)
    for i in range(nodes_of(page)):
        node = node_of(page, i)
        data = <char*>node + sizeof(NodeHead) + node.key_bytes
        if leaves == INTEGER_KEYS:
            memcpy(&check.freed, data - sizeof(uint64_t), sizeof(uint64_t))  # they are in order
            rc = take_free(check, number, node, data)
        elif leaves == SUBTREE:
            rc = take_tree(check, number, node, data)
        elif node.flags & BIG:
            rc = mark_run(check, node, data)
        if rc:
            return rc
    return 0


cdef int mark_run(Check* check, const NodeHead* node, const char* data) noexcept nogil:
    """Mark the pages that hold the data of one node."""
    cdef PageHead head
    cdef uint64_t first, i, pages
    memcpy(&first, data, sizeof(first))
    if first >= check.pages:
        return bad(check, b"it is behind the last page", first)
    cdef int64_t at = <int64_t>(first * check.page_bytes)
    if pread(check.fd, &head, sizeof(head), at) != sizeof(head):
        return bad(check, b"it cannot be read", first)
    pages = head.lower | <uint64_t>head.upper << 16
    if head.kind != KIND_OVERFLOW or head.number != first:
        return bad(check, b"it does not hold the data of an entry", first)
    if data_bytes(node) + sizeof(PageHead) > pages * check.page_bytes:
        return bad(check, b"it is too short for its data", first)
    for i in range(pages):
        if mark(check, first + i):
            return -1
    return 0


cdef int take_tree(
    Check* check, uint64_t number, const NodeHead* node, const char* data
) noexcept nogil:
    cdef bint good = node.flags == SUBTREE and data_bytes(node) == sizeof(Tree)
    if not good or check.trees_count == TREES_MAX or (<Tree*>data).flags:
        return bad(check, b"it names no database", number)
    memcpy(&check.trees[check.trees_count], data, sizeof(Tree))
    check.trees_count += 1
    return 0


cdef int take_free(
    Check* check, uint64_t number, const NodeHead* node, const char* data
) noexcept nogil:
    """Mark what a node of the tree of free pages lists: how many there are, and which."""
    cdef uint64_t first, room = data_bytes(node)
    if not node.flags & BIG:
        return mark_free(check, number, data, room)
    if mark_run(check, node, data):
        return -1
    memcpy(&first, data, sizeof(first))
    cdef uint64_t pages = (room + sizeof(PageHead) + check.page_bytes - 1) // check.page_bytes
    cdef char* list = <char*>malloc(pages * check.page_bytes)
    cdef int64_t size = <int64_t>(pages * check.page_bytes)
    cdef int rc = 0
    if list is NULL:
        return NO_MEMORY
    if pread(check.fd, list, size, <int64_t>(first * check.page_bytes)) != size:
        rc = bad(check, b"it cannot be read", first)
    else:
        rc = mark_free(check, first, list + sizeof(PageHead), room)
    free(list)
    return rc


cdef int mark_free(Check* check, uint64_t number, const char* list, size_t room) noexcept nogil:
    cdef uint64_t count = 0, page, i
    if room >= sizeof(uint64_t):
        memcpy(&count, list, sizeof(uint64_t))
    # It may have been given more room than it came to need.
    if room < sizeof(uint64_t) or room // sizeof(uint64_t) - 1 < count:
        return bad(check, b"it lists fewer free pages than it counts", number)
    for i in range(count):
        memcpy(&page, list + (i + 1) * sizeof(uint64_t), sizeof(uint64_t))
        if mark(check, page):
            return -1
    return 0
