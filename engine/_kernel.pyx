"""What the kernel says of its clocks, and word from it when somebody sets UTC.

Reads only: nothing here sets a clock, or asks the kernel to discipline one.

UTC can be set at any moment, by a person or by a daemon. Comparing it with a clock that nobody sets
shows a step when one looks; until then every `at` timer is wrong. A timerfd on CLOCK_REALTIME can
be told to end when that clock is set (TFD_TIMER_CANCEL_ON_SET, timerfd_create(2)), so the kernel
wakes us within microseconds. It says only that UTC was set, not by how much: look at the clocks
after it.
"""

cimport cython
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint64_t
from posix.time cimport clock_gettime, itimerspec, timespec
from posix.unistd cimport close, read

from typing import NamedTuple

cdef extern from "<errno.h>" nogil:
    enum:
        ECANCELED

cdef extern from "<sys/timex.h>" nogil:
    struct timex:
        unsigned int modes
        long offset
        long freq
        long maxerror
        long esterror
        int status
        int tai

    enum:
        STA_INS
        STA_DEL
        STA_UNSYNC
        STA_NANO
        TIME_INS
        TIME_DEL
        TIME_OOP
        TIME_WAIT
        TIME_ERROR

cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_adjtimex

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sys/timerfd.h>" nogil:
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new, itimerspec *old)
    enum:
        TFD_CLOEXEC
        TFD_NONBLOCK
        TFD_TIMER_ABSTIME
        TFD_TIMER_CANCEL_ON_SET

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_BOOTTIME
        CLOCK_MONOTONIC
        CLOCK_REALTIME

cdef int64_t NS = 1_000_000_000
cdef int64_t FAR_S = 9_000_000_000  # the year 2255: Linux lets nobody set a clock beyond 2232
cdef int64_t SCALED_PPM = 65_536  # timex.freq is in 2^-16 ppm
cdef enum:
    READINGS = 3


class NtpState(NamedTuple):
    """The kernel's discipline of UTC (adjtimex(2)).

    synchronised: a daemon keeps the clock and vouches for it.
    offset_ns: what the kernel is still slewing away. freq_ppb: the rate it corrects by.
    maxerror_us: bound of UTC's error; grows by 500 ppm until the daemon renews it.
    esterror_us: the daemon's estimate. tai_s: TAI minus UTC, 0 if nobody has told.
    leap: "insert" or "delete" when a second will be at the end of the UTC day, else "".
    status: the STA_* bits.
    """

    synchronised: bool
    offset_ns: int
    freq_ppb: int
    maxerror_us: int
    esterror_us: int
    tai_s: int
    leap: str
    status: int


def ntp_state() -> NtpState:
    """Ask the kernel; changes nothing. Raises OSError where that is forbidden (seccomp)."""
    cdef timex about
    about.modes = 0
    # Not by the C library: it would call clock_adjtime, which containers forbid more often.
    cdef int state = <int>syscall(SYS_adjtimex, &about)
    if state < 0:
        PyErr_SetFromErrno(OSError)
    return ntp_state_of(
        state,
        about.status,
        about.offset,
        about.freq,
        about.maxerror,
        about.esterror,
        about.tai,
    )


def ntp_state_of(
    int state, int status, int64_t offset, int64_t freq, int64_t maxerror, int64_t esterror, int tai
) -> NtpState:
    """What struct timex and the return value mean; `ntp_state` without the call."""
    cdef int64_t unit_ns = 1 if status & STA_NANO else 1000
    # C division cuts towards zero; that is near enough for a thousandth of a ppm.
    return NtpState(
        state != TIME_ERROR and not status & STA_UNSYNC,
        offset * unit_ns,
        freq * 1000 // SCALED_PPM,
        maxerror,
        esterror,
        tai,
        leap_of(state, status),
        status,
    )


cdef str leap_of(int state, int status):
    # The bits stay set after the leap, until the daemon clears them: the state is WAIT then.
    if state == TIME_WAIT:
        return ""
    if state in (TIME_INS, TIME_OOP) or status & STA_INS:
        return "insert"
    if state == TIME_DEL or status & STA_DEL:
        return "delete"
    return ""


cdef inline int64_t clock_ns(int clock) noexcept nogil:
    cdef timespec at
    clock_gettime(clock, &at)
    return at.tv_sec * NS + at.tv_nsec


def monotonic_ns() -> int:
    """CLOCK_MONOTONIC: ns since the machine started, without the time it was suspended."""
    return clock_ns(CLOCK_MONOTONIC)


def suspended_ns() -> int:
    """How long the machine was suspended since it started: BOOTTIME minus MONOTONIC.

    Only its growth says something: in a time namespace it begins at any number, even below 0. Two
    reads without a suspend differ by less than a microsecond: of three, the one that was least
    interrupted counts.
    """
    cdef int64_t before_ns, boot_ns, after_ns, span_ns
    cdef int64_t best_ns = -1
    cdef int64_t suspended = 0
    cdef int i
    with nogil:
        for i in range(READINGS):
            before_ns = clock_ns(CLOCK_MONOTONIC)
            boot_ns = clock_ns(CLOCK_BOOTTIME)
            after_ns = clock_ns(CLOCK_MONOTONIC)
            span_ns = after_ns - before_ns
            if best_ns < 0 or span_ns < best_ns:
                best_ns = span_ns
                suspended = boot_ns - (before_ns + span_ns // 2)
    return suspended


@cython.final
cdef class SetWatch:
    """Becomes readable when UTC is set: by a step, a leap second, or the end of a suspend.

    Slewing does not count. One thread at a time; `close` it, or let it go.
    """

    cdef int fd

    def __cinit__(self):
        """Raises OSError."""
        self.fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.fd < 0:
            PyErr_SetFromErrno(OSError)
        self.arm()

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)

    def fileno(self) -> int:
        """The descriptor to wait for; -1 once closed."""
        return self.fd

    def was_set(self) -> bool:
        """Whether UTC was set since the last call; never blocks. Raises OSError.

        Read the clocks after it: what is set between is told by the next call.
        """
        cdef uint64_t expirations
        cdef ssize_t got
        while True:
            got = read(self.fd, &expirations, sizeof(expirations))
            if got >= 0 or errno == ECANCELED:
                self.arm()
                return True
            if errno == EAGAIN:
                return False
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)

    def close(self) -> None:
        """Close the descriptor; twice is once."""
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1

    cdef int arm(self) except -1:
        cdef itimerspec far
        far.it_interval.tv_sec = far.it_interval.tv_nsec = 0
        far.it_value.tv_sec = FAR_S
        far.it_value.tv_nsec = 0
        # ECANCELED: UTC was set just now. The timer is armed nevertheless.
        if (
            timerfd_settime(self.fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &far, NULL) < 0
            and errno != ECANCELED
        ):
            PyErr_SetFromErrno(OSError)
        return 0
