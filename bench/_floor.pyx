"""The machine's own floor: a loop in C that sleeps to an instant and looks how late it woke.

What cyclictest measures, without it: clock_nanosleep to absolute instants, no Python between, no
spinning. A wake-up that comes after the next instant makes that one late as well, as it would be
for a timer that is due then.
"""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<time.h>" nogil:
    int TIMER_ABSTIME
    int clock_nanosleep(int clock, int flags, const timespec* until, timespec* left)

cdef extern from "<sys/prctl.h>" nogil:
    int PR_SET_TIMERSLACK
    int prctl(int option, unsigned long value)

cdef extern from "<sys/mman.h>" nogil:
    int MCL_CURRENT
    int MCL_FUTURE
    int mlockall(int flags)

cdef enum:
    NS = 1_000_000_000
    LEAD_NS = 1_000_000  # before the first instant


def prepare() -> bool:
    """Timer slack of 1 ns for this thread, and memory locked; whether locking was permitted."""
    prctl(PR_SET_TIMERSLACK, 1)
    return mlockall(MCL_CURRENT | MCL_FUTURE) == 0


def wakes(const int64_t[::1] gaps_ns, int64_t[::1] late_ns) -> None:
    """Sleep to instants that lie `gaps_ns` apart; how late each wake-up was goes to `late_ns`.

    Takes the sum of the gaps, all of it without the GIL.
    """
    cdef Py_ssize_t count = gaps_ns.shape[0]
    cdef Py_ssize_t i
    cdef int64_t until_ns
    cdef timespec at
    if late_ns.shape[0] < count:
        raise ValueError(f"{count} wake-ups need as many results, not {late_ns.shape[0]}")
    with nogil:
        clock_gettime(CLOCK_MONOTONIC, &at)
        until_ns = <int64_t>at.tv_sec * NS + at.tv_nsec + LEAD_NS
        for i in range(count):
            until_ns += gaps_ns[i]
            at.tv_sec = until_ns // NS
            at.tv_nsec = until_ns % NS
            while clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) != 0:
                pass  # a signal came
            clock_gettime(CLOCK_MONOTONIC, &at)
            late_ns[i] = <int64_t>at.tv_sec * NS + at.tv_nsec - until_ns
