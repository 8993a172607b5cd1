"""Room ahead of a file's end: zeros that are on disk before they are needed.

LMDB's file grows with each commit that adds pages. A sync must then also bring the file's new size
and extents to disk, which is a commit of the file system's journal; and on ext4 (data=ordered) that
first writes out what every other file has added since. So a commit of the log that takes 0.3 ms
waits for the whole slice that the tables have just written, tens of megabytes.

Pages that were written once are only overwritten: their sync is of data alone. Room that is merely
allocated would not do, as the first write to it changes the extents again.

It must never write where LMDB may: only behind the file's end, by the thread that commits, between
two commits.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint64_t

from engine._lmdb cimport Environment, EnvironmentInfo, lm

cdef extern from "<unistd.h>" nogil:
    ssize_t pwrite(int fd, const void* from_, size_t size, long offset)
    int fdatasync(int fd)

cdef extern from "<fcntl.h>" nogil:
    int POSIX_FADV_DONTNEED
    int posix_fadvise(int fd, long offset, long size, int advice)

cdef extern from "<sys/stat.h>" nogil:
    cdef struct stat_t "stat":
        long st_size
    int fstat(int fd, stat_t* found)

cdef extern from "<sys/statvfs.h>" nogil:
    cdef struct statvfs_t "statvfs":
        unsigned long f_bsize
        unsigned long f_bavail
    int fstatvfs(int fd, statvfs_t* found)

cdef enum:
    STEP_MIN = 0x10_0000         # 1 MiB
    STEP_MAX = 0x40_0000
    STEP_PART = 8                # of the file's size
    SPARE_STEPS = 64             # that the file system must have room for
    PIECE = 0x1_0000

cdef char[PIECE] zeros           # never written to: all of it is the kernel's one page of zeros


cdef int64_t step_of(int64_t end) noexcept nogil:
    """How far to go at once, for a file that is full up to `end`."""
    return min(max(end // STEP_PART & ~<int64_t>(PIECE - 1), STEP_MIN), STEP_MAX)


cdef int write_ahead(Environment env, Ahead* ahead) noexcept nogil:
    """Have the file go on for up to a step behind what is in it; 0, or the system's error number.

    After a commit that added much there is none: it would be written twice, and for the sake of one
    commit. Nor where the disk is nearly full, or refuses: then LMDB finds out by itself.
    """
    cdef EnvironmentInfo info
    cdef stat_t file
    cdef statvfs_t room
    if ahead.off or lm.env_info(env.env, &info) or fstat(env.fd, &file):
        return 0
    cdef int64_t end = <int64_t>(info.last_page + 1) * env.page_bytes
    cdef int64_t grown = end - ahead.end, step = step_of(end)
    ahead.end = end
    if grown > step // 4 or file.st_size - end > step // 2:
        return 0
    if fstatvfs(env.fd, &room) or room.f_bavail * room.f_bsize < <uint64_t>(SPARE_STEPS * step):
        return 0
    cdef int64_t begin = max(<int64_t>file.st_size, end), at = begin
    cdef int64_t to = min(end + step, <int64_t>info.map_bytes)
    cdef ssize_t wrote
    if at >= to:
        return 0
    while at < to:
        wrote = pwrite(env.fd, zeros, min(to - at, <int64_t>PIECE), at)
        if wrote < 0 and errno == EINTR:
            continue
        if wrote <= 0:
            ahead.off = True
            break
        at += wrote
    # An error here is told once: were it not heeded, the next commit's sync might succeed.
    if fdatasync(env.fd):
        return errno
    # The page cache holds them in large folios, and a small write into one makes all of it dirty.
    posix_fadvise(env.fd, begin, at - begin, POSIX_FADV_DONTNEED)
    return 0
