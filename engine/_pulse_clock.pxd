"""The pulse's clock, how it sleeps, and how early it asks to be woken."""

from libc.stdint cimport int64_t
from posix.time cimport clock_gettime, nanosleep, timespec

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, const void *sigmask)
    int POLLIN

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_BOOTTIME

cdef enum:
    NS = 1_000_000_000
    REACH_UP_NS = 1_800    # a step of 2 us times 0.9
    REACH_DOWN_NS = 200    # ... times 0.1
    REACH_FIRST_NS = 50_000
    STALL_NS = 50_000_000  # lateness above this says nothing of the next wake-up
    CREDIT_NS_MAX = 20_000_000

cdef struct Reach:
    int64_t ns, ns_max                # how long before an instant to wake up
    int64_t credit_ns, credit_at_ns   # spinning that is allowed now
    int64_t spin_ns                   # spinning that was done
    int percent


cdef inline int64_t boot_ns() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_BOOTTIME, &at)
    return <int64_t>at.tv_sec * NS + at.tv_nsec


cdef inline void nap(int64_t ns) noexcept nogil:
    cdef timespec wanted
    wanted.tv_sec, wanted.tv_nsec = 0, ns
    nanosleep(&wanted, NULL)


cdef inline void reach_begin(Reach *reach, int64_t ns_max, int percent, int64_t now_ns) noexcept nogil:
    reach.ns_max, reach.percent = ns_max, percent
    reach.ns = min(<int64_t>REACH_FIRST_NS, ns_max)
    reach.credit_ns, reach.credit_at_ns, reach.spin_ns = 0, now_ns, 0


cdef inline int64_t reach_now(Reach *reach, int64_t now_ns) noexcept nogil:
    """How long before an instant to wake up and spin, if that may be paid for."""
    reach.credit_ns += (now_ns - reach.credit_at_ns) * reach.percent // 100
    reach.credit_ns = min(reach.credit_ns, <int64_t>CREDIT_NS_MAX)
    reach.credit_at_ns = now_ns
    return reach.ns if reach.credit_ns > 0 else 0


cdef inline void reach_spent(Reach *reach, int64_t spin_ns) noexcept nogil:
    reach.spin_ns += spin_ns
    reach.credit_ns -= spin_ns


cdef inline void reach_learn(Reach *reach, int64_t late_ns) noexcept nogil:
    """The thread was woken `late_ns` after the instant that it had asked for."""
    if late_ns < 0 or late_ns >= STALL_NS:
        return
    if late_ns > reach.ns:
        reach.ns = min(reach.ns + REACH_UP_NS, reach.ns_max)
    else:
        reach.ns = max(reach.ns - REACH_DOWN_NS, <int64_t>0)
