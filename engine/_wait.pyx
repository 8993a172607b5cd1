"""Waiting: until a descriptor is readable or CLOCK_BOOTTIME has reached an instant.

`poll`, `epoll_wait` and asyncio wait in whole milliseconds, which costs 0.5 to 0.75 ms at the
median; ppoll takes nanoseconds. Its timeout is relative and counts on CLOCK_MONOTONIC, so the time
that is left is read just before, and again when it returns early: an instant is never reported
before it has come. MONOTONIC stands still while the machine is suspended and BOOTTIME does not,
hence no single ppoll waits longer than SLICE_NS: after a suspend the instant is late by that much
at most.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint64_t
from posix.time cimport clock_gettime, timespec
from posix.unistd cimport read, write

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents

    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, const void *sigmask)
    enum:
        POLLIN
        POLLNVAL

cdef extern from "<sys/eventfd.h>" nogil:
    int c_eventfd "eventfd"(unsigned int count, int flags)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value, ...)
    enum:
        PR_SET_TIMERSLACK

cdef extern from "<malloc.h>" nogil:
    int mallopt(int what, int value)
    enum:
        M_MMAP_THRESHOLD

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_BOOTTIME
        CLOCK_REALTIME

cdef enum:
    FDS_MAX = 32  # positions in the mask that `wait` returns

cdef int64_t NS = 1_000_000_000
cdef int64_t SLICE_NS = NS


cdef inline int64_t clock_ns(int clock) noexcept nogil:
    cdef timespec at
    clock_gettime(clock, &at)
    return at.tv_sec * NS + at.tv_nsec


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: ns since the machine started, suspends included; nothing steps it."""
    return clock_ns(CLOCK_BOOTTIME)


def realtime_ns() -> int:
    """CLOCK_REALTIME: ns since the epoch, UTC as the kernel believes it."""
    return clock_ns(CLOCK_REALTIME)


def eventfd() -> int:
    """Make an eventfd: non-blocking, closed on exec; the caller closes it. Raises OSError."""
    cdef int fd = c_eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    if fd < 0:
        PyErr_SetFromErrno(OSError)
    return fd


def eventfd_set(int fd) -> None:
    """Make the eventfd readable; setting it twice is setting it once. Raises OSError."""
    cdef uint64_t one = 1
    # EAGAIN: its counter is full, so it is readable already.
    if write(fd, &one, sizeof(one)) < 0 and errno != EAGAIN:
        PyErr_SetFromErrno(OSError)


def eventfd_clear(int fd) -> None:
    """Make the eventfd unreadable; it need not be readable before. Raises OSError."""
    cdef uint64_t count
    if read(fd, &count, sizeof(count)) < 0 and errno != EAGAIN:
        PyErr_SetFromErrno(OSError)


def set_timer_slack(unsigned long ns) -> bool:
    """Ask the kernel to wake this thread within `ns` of its timers; False if it refuses.

    The default is 50,000; 0 restores it. Saves 45-65 us a wake-up. No effect under SCHED_FIFO,
    which has none.
    """
    return prctl(PR_SET_TIMERSLACK, ns) == 0


def map_large(int size_bytes) -> bool:
    """Have malloc map each block from this size on by itself, so that it is given back when freed.

    Left alone, glibc moves that bound up to 32 MiB as blocks are freed, and what a start read stays
    resident in the heap's holes: 24 bytes for each timer that it armed.
    """
    return mallopt(M_MMAP_THRESHOLD, size_bytes) == 1


@cython.final
cdef class Waiter:
    """Waits for a fixed set of descriptors, one thread at a time."""

    cdef pollfd fds[FDS_MAX]
    cdef unsigned long count

    def __cinit__(self, fds):
        """fds: descriptors to watch; bit i of what `wait` returns stands for fds[i]."""
        cdef unsigned long i
        self.count = len(fds)
        if self.count > FDS_MAX:
            raise ValueError(f"{self.count} descriptors to wait for; the limit is {FDS_MAX}")
        for i in range(self.count):
            self.fds[i].fd = fds[i]
            self.fds[i].events = POLLIN

    def wait(self, int64_t deadline_ns) -> int:
        """Wait until a descriptor is readable or BOOTTIME reaches `deadline_ns`; return who is.

        deadline_ns: on CLOCK_BOOTTIME; in the past: only look; negative: no deadline.
        Returns a bit mask by position: 0 at the deadline, never before it, except after a signal,
        whose Python handlers have then run. A descriptor at its end or in error counts as readable.
        Raises OSError, ValueError for a closed descriptor, and what signal handlers raise.
        """
        cdef int ready
        # Only a wait is worth giving up the GIL, which may take milliseconds to come back.
        if 0 <= deadline_ns <= clock_ns(CLOCK_BOOTTIME):
            ready = self.look(0)
        else:
            with nogil:
                ready = self.look_until(deadline_ns)
        if ready < 0:
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()
            return 0
        return self.mask() if ready else 0

    cdef int look(self, int64_t wait_ns) noexcept nogil:
        """One ppoll: how many descriptors are ready, or -1 and errno."""
        cdef timespec timeout
        timeout.tv_sec = wait_ns // NS
        timeout.tv_nsec = wait_ns % NS
        return ppoll(self.fds, self.count, &timeout, NULL)

    cdef int look_until(self, int64_t deadline_ns) noexcept nogil:
        cdef int ready
        cdef int64_t left_ns = self.left_ns(deadline_ns)
        while True:
            ready = self.look(left_ns)
            if ready != 0:
                return ready
            left_ns = self.left_ns(deadline_ns)
            if left_ns == 0:
                return 0

    cdef int64_t left_ns(self, int64_t deadline_ns) noexcept nogil:
        """How long to wait now: 0 at the deadline, never more than a slice."""
        if deadline_ns < 0:
            return SLICE_NS
        return min(max(deadline_ns - clock_ns(CLOCK_BOOTTIME), <int64_t>0), SLICE_NS)

    cdef object mask(self):
        cdef uint64_t bits = 0
        cdef unsigned long i
        for i in range(self.count):
            if self.fds[i].revents & POLLNVAL:
                # It would be ready at each call from now on, and the loop would spin.
                raise ValueError(f"descriptor {self.fds[i].fd} is closed; it can't be waited for")
            if self.fds[i].revents:
                bits |= <uint64_t>1 << i
        return bits
