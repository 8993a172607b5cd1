"""Real-time scheduling, timer slack and locked memory for one thread: tried, never insisted on.

SCHED_FIFO may be refused even to root (a control group without real-time budget, no CAP_SYS_NICE);
whoever asks learns it by the error number, and goes on without.
"""

from libc.errno cimport errno

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    pthread_t pthread_self()
    int pthread_setschedparam(pthread_t thread, int policy, const sched_param *parameters)
    int pthread_getschedparam(pthread_t thread, int *policy, sched_param *parameters)

cdef extern from "<sched.h>" nogil:
    struct sched_param:
        int sched_priority
    int SCHED_FIFO, SCHED_OTHER

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value, ...)
    int PR_SET_TIMERSLACK

cdef extern from * nogil:
    """
    #include <sys/syscall.h>
    #include <unistd.h>
    #ifndef MLOCK_ONFAULT
    #define MLOCK_ONFAULT 1
    #endif
    static long mlock_on_fault(void *at, size_t size)
    {
        return syscall(SYS_mlock2, at, size, MLOCK_ONFAULT);
    }
    """
    long mlock_on_fault(void *at, size_t size)

FIFO_PRIORITY = int(PULSE_PRIORITY)
SOCKET_FIFO_PRIORITY = int(SOCKET_PRIORITY)


cdef int be_fifo(int priority) noexcept nogil:
    cdef sched_param wanted
    wanted.sched_priority = priority
    return pthread_setschedparam(pthread_self(), SCHED_FIFO, &wanted)


cdef int be_ordinary() noexcept nogil:
    cdef sched_param wanted
    wanted.sched_priority = 0
    return pthread_setschedparam(pthread_self(), SCHED_OTHER, &wanted)


cdef int set_slack(unsigned long ns) noexcept nogil:
    return 0 if prctl(PR_SET_TIMERSLACK, ns) == 0 else errno


cdef int lock_pages(void *at, size_t size) noexcept nogil:
    return 0 if mlock_on_fault(at, size) == 0 else errno


def fifo_refused() -> int:
    """0 if this process may schedule threads by SCHED_FIFO, else the error number.

    Tried on the calling thread, which gets back the policy it had.
    """
    cdef int policy, refused
    cdef sched_param before
    cdef pthread_t thread = pthread_self()
    pthread_getschedparam(thread, &policy, &before)
    with nogil:  # others wait for the GIL, not for this thread
        refused = be_fifo(1)
        if refused == 0:
            pthread_setschedparam(thread, policy, &before)
    return refused
