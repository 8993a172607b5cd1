"""The one module that reaches LMDB: its C API, taken from the extension of py-lmdb.

py-lmdb takes and drops the GIL at each put, and its wheel has neither header nor library to link.
But its extension carries LMDB 0.9 with every function exported under a private prefix, `mdb09_`. So
we look those up once, at import, and check both versions: another py-lmdb may carry another LMDB.
Considered instead: mdb.c compiled into our own extension (a second copy of LMDB to keep up to date,
11,000 lines that are not ours), and Debian's liblmdb (not position-independent, and a different
version on each host).

It must never open an environment twice in one process (LMDB's file locks would be lost at the first
close), nor pass MDB_NOSYNC, MDB_NOMETASYNC or MDB_WRITEMAP: each of them loses acknowledged data.
"""

import os
import struct
import zlib
from pathlib import Path

import lmdb
import lmdb.cpython

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from posix.dlfcn cimport RTLD_LAZY, dlerror, dlopen, dlsym

from libc.errno cimport EDQUOT, EFBIG, EIO, ENOMEM, ENOSPC
from libc.stdint cimport uint64_t
from libc.string cimport memset

from engine._pages cimport (
    MOVED,
    NO_MEMORY,
    Check,
    check_heads,
    check_trees,
    goes_on,
    is_within,
)
from engine._threads cimport MADV_DONTNEED, madvise

from engine.errors import StoreCorrupt, StoreFailed, StoreFull, StoreTooNew

cdef extern from "<dlfcn.h>" nogil:
    int RTLD_NOLOAD

cdef extern from "<sys/statvfs.h>" nogil:
    cdef struct statvfs_t "statvfs":
        unsigned long f_bsize
        unsigned long f_bavail
    int fstatvfs(int fd, statvfs_t* found)

cdef extern from "<sys/resource.h>" nogil:
    cdef struct rlimit_t "rlimit":
        unsigned long rlim_cur
    int RLIMIT_FSIZE
    int getrlimit(int resource, rlimit_t* found)

cdef extern from "<sys/stat.h>" nogil:
    cdef struct stat_t "stat":
        long st_size
    int fstat(int fd, stat_t* found)

PY_LMDB = "3.0.0"
LMDB = (0, 9, 36)
ADVICE = f"install lmdb=={PY_LMDB}"
MODE = 0o600
MAP_BYTES = 1 << 40  # address space only: the caller keeps a quota
DATABASES_MAX = 8
STAMP = struct.Struct("<IIQ")  # checksum, format version, epoch

cdef enum:
    FULL_BYTES = 0x10_0000  # an EIO with less room than this means that it is full
    META_PAGES = 2
    LOOKS_MAX = 64       # at a file whose head is overwritten meanwhile

_opened = set()  # of (device, inode): one environment, one opening


cdef void* find(void* library, bytes name) except NULL:
    cdef void* found = dlsym(library, b"mdb09_" + name)
    if found is NULL:
        raise ImportError(f"lmdb has no symbol mdb09_{name.decode()}; {ADVICE}")
    return found


cdef int load() except -1:
    if lmdb.__version__ != PY_LMDB:
        raise ImportError(f"lmdb is {lmdb.__version__}, not {PY_LMDB}; {ADVICE}")
    cdef bytes path = os.fsencode(lmdb.cpython.__file__)
    cdef void* so = dlopen(path, RTLD_NOLOAD | RTLD_LAZY)
    if so is NULL:
        raise ImportError(f"{dlerror().decode()}; {ADVICE}")
    lm.env_create = <int (*)(void**) noexcept nogil>find(so, b"env_create")
    lm.env_open = <int (*)(void*, const char*, unsigned int, int) noexcept nogil>find(
        so, b"env_open"
    )
    lm.env_close = <void (*)(void*) noexcept nogil>find(so, b"env_close")
    lm.env_set_mapsize = <int (*)(void*, size_t) noexcept nogil>find(so, b"env_set_mapsize")
    lm.env_set_maxdbs = <int (*)(void*, Dbi) noexcept nogil>find(so, b"env_set_maxdbs")
    lm.env_get_fd = <int (*)(void*, int*) noexcept nogil>find(so, b"env_get_fd")
    lm.env_info = <int (*)(void*, EnvironmentInfo*) noexcept nogil>find(so, b"env_info")
    lm.env_stat = <int (*)(void*, Stat*) noexcept nogil>find(so, b"env_stat")
    lm.reader_check = <int (*)(void*, int*) noexcept nogil>find(so, b"reader_check")
    lm.txn_begin = <int (*)(void*, void*, unsigned int, void**) noexcept nogil>find(
        so, b"txn_begin"
    )
    lm.txn_commit = <int (*)(void*) noexcept nogil>find(so, b"txn_commit")
    lm.txn_abort = <void (*)(void*) noexcept nogil>find(so, b"txn_abort")
    lm.txn_reset = <void (*)(void*) noexcept nogil>find(so, b"txn_reset")
    lm.txn_renew = <int (*)(void*) noexcept nogil>find(so, b"txn_renew")
    lm.txn_id = <size_t (*)(void*) noexcept nogil>find(so, b"txn_id")
    load_data(so)
    return 0


cdef int load_data(void* so) except -1:
    lm.dbi_open = <int (*)(void*, const char*, unsigned int, Dbi*) noexcept nogil>find(
        so, b"dbi_open"
    )
    lm.stat = <int (*)(void*, Dbi, Stat*) noexcept nogil>find(so, b"stat")
    lm.drop = <int (*)(void*, Dbi, int) noexcept nogil>find(so, b"drop")
    global _get, _cursor_get
    _get = <int (*)(void*, Dbi, Val*, Val*) noexcept nogil>find(so, b"get")
    lm.get = get_within
    lm.put = <int (*)(void*, Dbi, Val*, Val*, unsigned int) noexcept nogil>find(so, b"put")
    lm.delete = <int (*)(void*, Dbi, Val*, Val*) noexcept nogil>find(so, b"del")
    lm.cursor_open = <int (*)(void*, Dbi, void**) noexcept nogil>find(so, b"cursor_open")
    lm.cursor_close = <void (*)(void*) noexcept nogil>find(so, b"cursor_close")
    _cursor_get = <int (*)(void*, Val*, Val*, int) noexcept nogil>find(so, b"cursor_get")
    lm.cursor_get = cursor_get_within
    lm.cursor_put = <int (*)(void*, Val*, Val*, unsigned int) noexcept nogil>find(
        so, b"cursor_put"
    )
    lm.cursor_del = <int (*)(void*, unsigned int) noexcept nogil>find(so, b"cursor_del")
    lm.strerror = <const char* (*)(int) noexcept nogil>find(so, b"strerror")
    lm.version = <const char* (*)(int*, int*, int*) noexcept nogil>find(so, b"version")
    cdef int major, minor, patch
    lm.version(&major, &minor, &patch)
    if (major, minor, patch) != LMDB:
        raise ImportError(f"lmdb carries LMDB {major}.{minor}.{patch}, not {LMDB}; {ADVICE}")
    return 0


load()


# What is called instead of two of LMDB's functions: a damaged size must not lead behind the file.

cdef int (*_get)(void*, Dbi, Val*, Val*) noexcept nogil
cdef int (*_cursor_get)(void*, Val*, Val*, int) noexcept nogil
cdef size_t page_bytes_max = 0      # of the files opened up to now: data of half of it is in no leaf


cdef int get_within(void* txn, Dbi dbi, Val* key, Val* data) noexcept nogil:
    cdef int rc = _get(txn, dbi, key, data)
    if rc == 0 and data.size > page_bytes_max // 2 and not is_within(data, page_bytes_max):
        return CORRUPTED
    return rc


cdef int cursor_get_within(void* cursor, Val* key, Val* data, int op) noexcept nogil:
    cdef int rc = _cursor_get(cursor, key, data, op)
    if rc == 0 and data.size > page_bytes_max // 2 and not is_within(data, page_bytes_max):
        return CORRUPTED
    return rc


cdef bint is_full(int fd, int rc) noexcept nogil:
    """Whether `rc` means that there is no room; a short write, which is the first sign, is EIO."""
    cdef statvfs_t room
    cdef rlimit_t limit
    cdef stat_t file
    if rc in (MAP_FULL, ENOSPC, EDQUOT, EFBIG):
        return True
    if rc != EIO or fd < 0 or fstatvfs(fd, &room) or fstat(fd, &file):
        return False
    if room.f_bavail * room.f_bsize < <unsigned long>FULL_BYTES:
        return True
    getrlimit(RLIMIT_FSIZE, &limit)
    # The limit may lie inside the file, which is longer than what is in it (`_ahead.pyx`).
    return <unsigned long>file.st_size + <unsigned long>FULL_BYTES > limit.rlim_cur


cdef object error_of(int fd, int rc, str what):
    """The exception for LMDB's or the system's error number `rc`."""
    text = f"{what}: {lm.strerror(rc).decode()} (code {rc})"
    if is_full(fd, rc):
        return StoreFull(text)
    if rc in (NOTFOUND, PAGE_NOTFOUND, CORRUPTED, INVALID, VERSION_MISMATCH, CURSOR_FULL):
        return StoreCorrupt(text)
    return StoreFailed(text)


cdef int check(int rc, str what) except -1:
    if rc:
        raise error_of(-1, rc, what)
    return 0


cdef int put_bytes(void* txn, Dbi dbi, bytes name, bytes value) noexcept:
    cdef Val key, data
    key.size, key.at = len(name), <char*>name
    data.size, data.at = len(value), <char*>value
    return lm.put(txn, dbi, &key, &data, 0)


@cython.final
cdef class Environment:
    """One open LMDB environment: a directory with `data.mdb` and `lock.mdb`.

    readonly: to read beside another process that writes it.
    """

    def __cinit__(self, path: str, size_t map_bytes = 0, bint readonly = False):
        self.path, self.readonly = path, readonly
        self.fd = -1
        found = os.stat(path)
        self.device, self.inode = found.st_dev, found.st_ino
        if (self.device, self.inode) in _opened:
            raise AssertionError(f"{path} is open in this process already")
        check(lm.env_create(&self.env), f"cannot open {path}")
        check(lm.env_set_mapsize(self.env, map_bytes or <size_t>MAP_BYTES), f"cannot map {path}")
        check(lm.env_set_maxdbs(self.env, DATABASES_MAX), f"cannot open {path}")
        self.check_heads(os.path.join(path, "data.mdb"))
        cdef bytes name = os.fsencode(path)
        cdef Stat stat
        cdef int rc = lm.env_open(self.env, name, NOTLS | (RDONLY if readonly else 0), MODE)
        if rc:
            raise error_of(-1, rc, f"cannot open {path}")
        _opened.add((self.device, self.inode))
        self.users = 1
        lm.env_get_fd(self.env, &self.fd)
        check(lm.env_stat(self.env, &stat), f"cannot read {path}")
        global page_bytes_max
        self.page_bytes = stat.page_bytes
        page_bytes_max = max(page_bytes_max, <size_t>stat.page_bytes)
        self.sync_heads()
        check(lm.txn_begin(self.env, NULL, RDONLY, &self.reader), f"cannot read {path}")
        lm.txn_reset(self.reader)
        self.check_pages()
        self.map_at = <char*><size_t>_mapped_at(Path(path) / "data.mdb")

    def __dealloc__(self):
        if self.env is not NULL:
            self.users = 1
            self.release()

    cdef int check_heads(self, str data) except -1:
        """Raise StoreCorrupt if a head of the file is damaged: LMDB might take the other one, which
        is a commit older, or follow it to nowhere."""
        cdef Check check
        cdef int fd
        try:
            fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise error_of(-1, error.errno, f"cannot open {self.path}") from error
        try:
            if os.fstat(fd).st_size:
                memset(&check, 0, sizeof(Check))
                check.fd = fd
                if check_heads(&check, not self.readonly):
                    raise self.damaged(&check)
        finally:
            os.close(fd)
        return 0

    cdef int check_pages(self, bint deep = False) except -1:
        """Raise StoreCorrupt if pages do not hold together (`_pages.pyx`); for the thread that
        reads. deep: the leaves are read, too."""
        cdef Check check
        cdef int rc
        cdef void* reader = self.begin_read()
        with nogil:
            rc = self.look(reader, deep, &check)
        self.end_read()
        if rc == NO_MEMORY:
            raise MemoryError
        if rc:
            raise self.damaged(&check)
        return 0

    cdef int look(self, void* reader, bint deep, Check* check) noexcept nogil:
        """Fill `check` with what is wrong with the pages, -1 if something is; or NO_MEMORY. `reader`:
        a begun transaction, which may be another one afterwards."""
        cdef int looks, rc = 1
        for looks in range(LOOKS_MAX):
            memset(check, 0, sizeof(Check))
            check.fd, check.page_bytes, check.deep = self.fd, self.page_bytes, deep
            rc = check_trees(check, lm.txn_id(reader))
            if rc != MOVED:
                return rc
            lm.txn_reset(reader)
            if lm.txn_renew(reader):
                check.wrong = b"it cannot be read"
                return -1
        return 0  # commits are so fast that no head stands still: later

    cdef object damaged(self, const Check* check):
        tables = "run `minoots reindex --tables`, or " if self.path.endswith("tables") else ""
        return StoreCorrupt(
            f"page {check.page} of {self.path}/data.mdb is damaged: {check.wrong.decode()}; "
            f"{tables}restore from a backup"
        )

    cdef int sync_heads(self) except -1:
        """Bring the heads of a new file to disk before its first commit: LMDB syncs them with it, and
        what a power cut leaves of both at once may have a page and no head."""
        cdef EnvironmentInfo info
        check(lm.env_info(self.env, &info), f"cannot read {self.path}")
        if info.last_txn == 0 and not self.readonly:
            try:
                os.fsync(self.fd)
            except OSError as error:
                raise error_of(self.fd, error.errno, f"cannot sync {self.path}") from error
        return 0

    cdef list open_dbs(self, tuple names, int format_version):
        """The named databases, of which the first is `meta`. They and the format stamp are made
        together, in an environment that has none; later each of them must be there, as they must
        for a reader."""
        cdef void* txn
        cdef Dbi dbi
        cdef Stat stat
        cdef bint fresh
        cdef list found = []
        cdef int rc = lm.txn_begin(self.env, NULL, RDONLY if self.readonly else 0, &txn)
        if rc == 0:
            rc = lm.stat(txn, MAIN_DBI, &stat)
            fresh = stat.entries == 0 and not self.readonly
            for name in names:
                rc = rc or lm.dbi_open(txn, name, CREATE if fresh else 0, &dbi)
                found.append(dbi)
            if rc == 0 and fresh:
                rc = put_bytes(txn, found[0], b"format", pack_stamp(format_version, 1))
            if rc == 0:
                rc = lm.txn_commit(txn)
            else:
                lm.txn_abort(txn)
        if rc:
            raise error_of(self.fd, rc, f"cannot open the tables of {self.path}")
        return found

    cdef int stamp(self, Dbi meta, int format_version) except -1:
        """Check the format version; the epoch."""
        found = self.read(meta, b"format") or b""
        if len(found) != STAMP.size:
            raise StoreCorrupt(f"the format stamp of {self.path} is {len(found)} bytes")
        _, version, epoch = STAMP.unpack(found)
        if found != pack_stamp(version, epoch):
            raise StoreCorrupt(f"the format stamp of {self.path} does not agree with its checksum")
        if version > format_version:
            raise StoreTooNew(
                f"{self.path} has format {version}, newer than {format_version}; upgrade minoots"
            )
        return epoch

    cdef int write_stamp(self, Dbi meta, int format_version, int epoch) except -1:
        return self.write(meta, b"format", pack_stamp(format_version, epoch))

    cdef object read(self, Dbi dbi, bytes name):
        """The value of one key, None if it is not there."""
        cdef Val key, data
        key.size, key.at = len(name), <char*>name
        cdef void* cursor = self.begin_cursor(dbi)
        try:
            if not self.find(cursor, &key, &data):
                return None
            return PyBytes_FromStringAndSize(<char*>data.at, data.size)
        finally:
            self.end_cursor(cursor)

    cdef bint find(self, void* cursor, Val* key, Val* data) except -1:
        """Go to `key`; whether it is there. A page that lists what was deleted is StoreCorrupt: a
        checksum does not tell that."""
        cdef int rc = lm.cursor_get(cursor, key, data, SET_KEY)
        if rc == NOTFOUND:
            return False
        check(rc, f"cannot read {self.path}")
        if not goes_on(NULL, key, self.page_bytes):
            raise StoreCorrupt(f"a page of {self.path} does not list what is on it")
        return True

    cdef int write(self, Dbi dbi, bytes name, bytes value) except -1:
        """Put one key, in a commit of its own."""
        cdef void* txn
        cdef int rc = lm.txn_begin(self.env, NULL, 0, &txn)
        if rc == 0:
            rc = put_bytes(txn, dbi, name, value)
            if rc == 0:
                rc = lm.txn_commit(txn)
            else:
                lm.txn_abort(txn)
        if rc:
            raise error_of(self.fd, rc, f"cannot write {self.path}")
        return 0

    cdef void* begin_read(self) except NULL:
        """See the newest commit until `end_read`; a few microseconds, by one thread only."""
        if self.env is NULL:
            raise AssertionError(f"{self.path} is closed")
        cdef int rc = lm.txn_renew(self.reader)
        if rc:
            raise error_of(self.fd, rc, f"cannot read {self.path}")
        return self.reader

    cdef void end_read(self) noexcept nogil:
        lm.txn_reset(self.reader)

    cdef void* begin_cursor(self, Dbi dbi) except NULL:
        """A read of one database, until `end_cursor`."""
        cdef void* cursor
        cdef int rc = lm.cursor_open(self.begin_read(), dbi, &cursor)
        if rc:
            self.end_read()
            raise error_of(self.fd, rc, f"cannot read {self.path}")
        return cursor

    cdef void end_cursor(self, void* cursor) noexcept nogil:
        lm.cursor_close(cursor)
        self.end_read()

    cdef int forget_dead_readers(self) noexcept nogil:
        """Free the places of readers whose process is gone: while one stands, no page that was in
        use at its time is used again. Their count; some microseconds."""
        cdef int dead = 0
        lm.reader_check(self.env, &dead)
        return dead

    cdef void drop_pages(self) noexcept nogil:
        """Take the file's pages out of this process; they stay in the page cache.

        A reader on another thread faults them in again: that costs it time, nothing else.
        """
        cdef stat_t file
        if self.map_at is not NULL and fstat(self.fd, &file) == 0:
            madvise(self.map_at, file.st_size, MADV_DONTNEED)

    cdef uint64_t used_bytes(self, void* txn, Dbi databases) noexcept nogil:
        """Bytes of the pages in use, as `txn` sees them; pages freed in the file do not count."""
        cdef Stat stat
        cdef uint64_t pages = META_PAGES
        cdef Dbi dbi
        stat.page_bytes = 0
        for dbi in range(databases):
            if lm.stat(txn, dbi, &stat) == 0:
                pages += stat.branch_pages + stat.leaf_pages + stat.overflow_pages
        return pages * stat.page_bytes

    cdef void acquire(self) noexcept:
        """Another one reads this environment: it stays open until both have released it."""
        self.users += 1

    cdef void release(self) noexcept:
        self.users -= 1
        if self.users == 0 and self.env is not NULL:
            if self.reader is not NULL:
                lm.txn_abort(self.reader)
                self.reader = NULL
            _opened.discard((self.device, self.inode))
            lm.env_close(self.env)
            self.env = NULL


def _mapped_at(data: Path) -> int:
    """The address at which this process has mapped `data`; 0 if it cannot be told."""
    found = os.stat(data)
    wanted = (f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}", str(found.st_ino))
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        span, _, _, device, inode, *_ = line.split(maxsplit=5)
        if (device, inode) == wanted:
            return int(span.partition("-")[0], 16)
    return 0


def pack_stamp(version: int, epoch: int) -> bytes:
    """What `meta` holds under b"format": which version wrote it, and the epoch."""
    return STAMP.pack(zlib.crc32(STAMP.pack(0, version, epoch)), version, epoch)
