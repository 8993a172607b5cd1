from libc.stdint cimport int64_t, uint64_t

from engine._fold cimport Fold, Standing, TableDbs
from engine._lmdb cimport Environment
from engine._log cimport LmdbLog
from engine._slice cimport Fault, Slice, Wrong
from engine._threads cimport pthread_cond_t, pthread_mutex_t

cdef class Follower:
    cdef Environment env, log_env
    cdef LmdbLog log
    cdef TableDbs dbs
    cdef uint64_t slice_entries
    cdef int64_t slice_age_ns
    # Shared with the thread, under `lock`.
    cdef pthread_mutex_t lock
    cdef pthread_cond_t wake
    cdef Standing standing          # of the newest durable slice
    cdef uint64_t bytes_used
    cdef uint64_t followed, followed_commit, now_commit
    cdef int64_t waiting_since_ns
    cdef uint64_t drain_commit      # up to which pieces follow one another
    cdef uint64_t drain_entries     # how many events that were
    cdef int64_t drain_since_ns, drain_ns, rest_until_ns
    cdef uint64_t expire_below      # what was asked for
    cdef int64_t notes_before_ns
    cdef bint sweep, stop, signalled
    cdef Fault fault
    # The thread's.
    cdef void* log_txn              # its own reader of the log
    cdef void* look_txn             # ... and of the tables
    cdef int64_t look_every_ns, looked_ns
    cdef Slice piece
    cdef Fold fold
    cdef Fault trouble              # becomes `fault` when it is published
    cdef uint64_t used
    cdef uint64_t piece_entries     # events of the next piece
    cdef int64_t commit_ns          # what the last commit took
    # The caller's.
    cdef object thread
    cdef int event_fd

    cdef object applied(self)
    cdef int follow(self, uint64_t last_seq, uint64_t commit, bint now) except -1
    cdef uint64_t expire(self, uint64_t trim_below, int64_t notes_before_ns) except? 0
    cdef int close(self) except -1
    cdef int reindex(self) except -1
    cdef int restart(self, uint64_t seq, uint64_t commit, object state) except -1
    cdef int open_state(self) except -1
    cdef int raise_fault(self) except -1
    cdef void fold_on(self) noexcept nogil
    cdef void begin_drain(self, int64_t now_ns) noexcept nogil
    cdef bint wait_for_work(self) noexcept nogil
    cdef bint slice_is_due(self) noexcept nogil
    cdef bint must_hurry(self) noexcept nogil
    cdef bint is_resting(self) noexcept nogil
    cdef void learn(self, uint64_t entries) noexcept nogil
    cdef bint expiry_is_due(self) noexcept nogil
    cdef bint look_is_due(self) noexcept nogil
    cdef int look(self, Environment env, void* reader, Wrong what) noexcept nogil
    cdef int make_slice(
        self, uint64_t to_commit, uint64_t entries, Standing* standing
    ) noexcept nogil
    cdef int make_expiry(
        self, uint64_t below, int64_t before_ns, Standing* standing
    ) noexcept nogil
    cdef int commit(self, int rc, Standing* standing) noexcept nogil
    cdef void publish(self, int rc, Standing* standing) noexcept nogil
