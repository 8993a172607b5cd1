"""LMDB's C API as a table of function pointers; see `_lmdb.pyx` for where they come from."""

from libc.stdint cimport uint64_t

from engine._pages cimport Check

ctypedef unsigned int Dbi

cdef struct Val:
    size_t size
    void* at

cdef struct Stat:
    unsigned int page_bytes
    unsigned int depth
    size_t branch_pages
    size_t leaf_pages
    size_t overflow_pages
    size_t entries

cdef struct EnvironmentInfo:
    void* map_at
    size_t map_bytes
    size_t last_page            # the last one that was ever in use
    size_t last_txn
    unsigned int readers_max
    unsigned int readers

cdef enum:
    # environment
    NOTLS = 0x200000
    RDONLY = 0x20000
    # named database
    CREATE = 0x40000
    # put
    NOOVERWRITE = 0x10
    RESERVE = 0x10000
    APPEND = 0x20000
    # cursor
    FIRST = 0
    GET_CURRENT = 4
    LAST = 6
    NEXT = 8
    PREV = 12
    SET = 15
    SET_KEY = 16
    SET_RANGE = 17
    # what came of it
    KEYEXIST = -30799
    NOTFOUND = -30798
    PAGE_NOTFOUND = -30797
    CORRUPTED = -30796
    VERSION_MISMATCH = -30794
    INVALID = -30793
    MAP_FULL = -30792
    CURSOR_FULL = -30787
    # the two databases that LMDB itself keeps
    FREE_DBI = 0
    MAIN_DBI = 1

cdef struct Api:
    int (*env_create)(void** env) noexcept nogil
    int (*env_open)(void* env, const char* path, unsigned int flags, int mode) noexcept nogil
    void (*env_close)(void* env) noexcept nogil
    int (*env_set_mapsize)(void* env, size_t size) noexcept nogil
    int (*env_set_maxdbs)(void* env, Dbi dbs) noexcept nogil
    int (*env_get_fd)(void* env, int* fd) noexcept nogil
    int (*env_info)(void* env, EnvironmentInfo* info) noexcept nogil
    int (*env_stat)(void* env, Stat* stat) noexcept nogil
    int (*reader_check)(void* env, int* dead) noexcept nogil
    int (*txn_begin)(void* env, void* parent, unsigned int flags, void** txn) noexcept nogil
    int (*txn_commit)(void* txn) noexcept nogil
    void (*txn_abort)(void* txn) noexcept nogil
    void (*txn_reset)(void* txn) noexcept nogil
    int (*txn_renew)(void* txn) noexcept nogil
    size_t (*txn_id)(void* txn) noexcept nogil
    int (*dbi_open)(void* txn, const char* name, unsigned int flags, Dbi* dbi) noexcept nogil
    int (*stat)(void* txn, Dbi dbi, Stat* stat) noexcept nogil
    int (*drop)(void* txn, Dbi dbi, int del_) noexcept nogil
    int (*get)(void* txn, Dbi dbi, Val* key, Val* data) noexcept nogil
    int (*put)(void* txn, Dbi dbi, Val* key, Val* data, unsigned int flags) noexcept nogil
    int (*delete)(void* txn, Dbi dbi, Val* key, Val* data) noexcept nogil
    int (*cursor_open)(void* txn, Dbi dbi, void** cursor) noexcept nogil
    void (*cursor_close)(void* cursor) noexcept nogil
    int (*cursor_get)(void* cursor, Val* key, Val* data, int op) noexcept nogil
    int (*cursor_put)(void* cursor, Val* key, Val* data, unsigned int flags) noexcept nogil
    int (*cursor_del)(void* cursor, unsigned int flags) noexcept nogil
    const char* (*strerror)(int rc) noexcept nogil
    const char* (*version)(int* major, int* minor, int* patch) noexcept nogil

cdef Api lm

cdef class Environment:
    cdef void* env
    cdef void* reader            # renewed at begin_read, reset at end_read: the caller's thread
    cdef char* map_at            # where the file is mapped
    cdef uint64_t device, inode  # which directory this is
    cdef unsigned int page_bytes
    cdef int fd
    cdef int users
    cdef bint readonly
    cdef readonly str path

    cdef int check_heads(self, str data) except -1
    cdef int sync_heads(self) except -1
    cdef int check_pages(self, bint deep = *) except -1
    cdef int look(self, void* reader, bint deep, Check* check) noexcept nogil
    cdef object damaged(self, const Check* check)
    cdef list open_dbs(self, tuple names, int format_version)
    cdef int stamp(self, Dbi meta, int format_version) except -1
    cdef int write_stamp(self, Dbi meta, int format_version, int epoch) except -1
    cdef object read(self, Dbi dbi, bytes name)
    cdef bint find(self, void* cursor, Val* key, Val* data) except -1
    cdef int write(self, Dbi dbi, bytes name, bytes value) except -1
    cdef void* begin_read(self) except NULL
    cdef void end_read(self) noexcept nogil
    cdef void* begin_cursor(self, Dbi dbi) except NULL
    cdef void end_cursor(self, void* cursor) noexcept nogil
    cdef int forget_dead_readers(self) noexcept nogil
    cdef void drop_pages(self) noexcept nogil
    cdef uint64_t used_bytes(self, void* txn, Dbi databases) noexcept nogil
    cdef void acquire(self) noexcept
    cdef void release(self) noexcept

cdef bint is_full(int fd, int rc) noexcept nogil
cdef object error_of(int fd, int rc, str what)
cdef int check(int rc, str what) except -1
