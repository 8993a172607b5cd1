from libc.stdint cimport int64_t, uint8_t, uint64_t

from engine._ahead cimport Ahead
from engine._commit cimport Job, LogDbs, Step
from engine._lmdb cimport Environment
from engine._threads cimport pthread_cond_t, pthread_mutex_t

cdef class LmdbLog:
    cdef Environment env
    cdef LogDbs dbs
    # Shared with the thread, under `lock`.
    cdef pthread_mutex_t lock
    cdef pthread_cond_t wake
    cdef Job[2] jobs                # by number % 2
    cdef uint64_t submitted         # number of the newest batch that was handed over
    cdef uint64_t finished          # ... that is written; what is between is under way
    cdef uint64_t first_seq, last_seq, bytes_used
    cdef int64_t at_ns
    cdef uint64_t floor
    cdef uint8_t[32] chain
    cdef int failed                 # LMDB's or the system's error number
    cdef Step failed_at
    cdef bint stop, signalled
    # The caller's side.
    cdef uint64_t submitted_seq
    cdef uint64_t released          # batches whose bytes were let go
    cdef list held                  # of (first_seq, events), by number % 2
    cdef object thread
    cdef int event_fd
    cdef readonly int epoch

    cdef int let_go(self) except -1
    cdef int raise_failed(self) except -1
    cdef int open_state(self) except -1
    cdef list seals(self, uint64_t from_commit, uint64_t limit)
    # The thread's side.
    cdef Ahead ahead
    cdef void write_on(self) noexcept nogil
    cdef void publish(self, Job* job, int rc, Step step) noexcept nogil
