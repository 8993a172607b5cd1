"""The thread behind the tables: it follows the log in slices, and forgets what is told to forget.

A slice is made when `slice_entries` events wait, or the oldest has waited `slice_age_ns`, or when
`follow` asks for it. The thread reads whole commits from the log (`_slice.pyx`), folds them to one
row for each timer (`_fold.pyx`) and commits them with the position they reach, in one transaction.
So after any crash the tables stand at the end of some commit, and go on from there.

The log's commits wait while a slice is being synced, for the disk is one. So a slice is written in
pieces: PIECE_MAX events, fewer where that takes longer than COMMIT_NS; and they are spread over half
the time in which the slice came together. Large ones dirty fewer pages: where `slice_entries` wait,
or there is a hurry, whole slices are written without rest.

Once an hour it looks whether the pages of both files hold together (`_pages.pyx`).
It must never read more of the log than `follow` said is durable, and never forget a finished timer
whose last event the log still holds. Like the log's, it stops for good at an error.
"""

import threading

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from engine._fold cimport (
    TABLES_DATABASES,
    Fold,
    Standing,
    check_standing,
    fold_free,
    fold_reindex,
    fold_slice,
    put_standing,
)
from engine._forget cimport fold_forget, fold_sweep
from engine._lmdb cimport (
    NOTFOUND,
    RDONLY,
    Environment,
    Stat,
    Val,
    check,
    error_of,
    lm,
)
from engine._log cimport LmdbLog
from engine._pages cimport Check
from engine._slice cimport (
    LOG_PAGE_DAMAGED,
    LOG_UNREADABLE,
    RIGHT,
    TABLES_PAGE_DAMAGED,
    TABLES_UNWRITABLE,
    Fault,
    Wrong,
    exception_of,
    slice_clear,
    slice_free,
    slice_gather,
    slice_gather_finished,
    slice_sort,
    wrong,
)
from engine._threads cimport (
    CLOCK_MONOTONIC,
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    eventfd,
    eventfd_read,
    eventfd_write,
    monotonic_ns,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_timedwait,
    pthread_cond_wait,
    pthread_condattr_init,
    pthread_condattr_setclock,
    pthread_condattr_t,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    timespec,
)
from engine._threads cimport close as close_fd

from engine.errors import StoreCorrupt
from engine.store import Applied
from engine.threads import block_signals

FORMAT_VERSION = 1

cdef enum:
    PIECE_MAX = 8_192
    PIECE_MIN = 2_048     # below, a piece dirties nearly as many pages as it has events
    COMMIT_NS = 8_000_000
    SWEEP_LOOKS = 4096    # notes that a sweep looks at, or a 64th of all of them if that is more

@cython.final
cdef class Follower:
    """What `LmdbTables` has of `Tables`: see there."""

    def __cinit__(
        self,
        path: str,
        LmdbLog log not None,
        uint64_t slice_entries,
        int64_t slice_age_ns,
        size_t map_bytes,
        int64_t look_every_ns,
    ):
        cdef pthread_condattr_t attributes
        self.event_fd = -1
        pthread_mutex_init(&self.lock, NULL)
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(&self.wake, &attributes)
        self.slice_entries, self.slice_age_ns = slice_entries, slice_age_ns
        self.look_every_ns, self.looked_ns = look_every_ns, monotonic_ns()
        self.piece_entries = min(<uint64_t>PIECE_MAX, slice_entries)
        self.env = Environment(path, map_bytes)
        names = (b"meta", b"timers", b"due", b"names", b"done", b"notes")
        found = self.env.open_dbs(names, FORMAT_VERSION)
        self.dbs.meta, self.dbs.timers, self.dbs.due = found[:3]
        self.dbs.names, self.dbs.done, self.dbs.notes = found[3:]
        self.env.stamp(self.dbs.meta, FORMAT_VERSION)
        self.fold.dbs = self.dbs
        self.open_state()
        self.log, self.log_env = log, log.env
        check(
            lm.txn_begin(self.log_env.env, NULL, RDONLY, &self.log_txn), "cannot read the log"
        )
        lm.txn_reset(self.log_txn)
        check(lm.txn_begin(self.env.env, NULL, RDONLY, &self.look_txn), f"cannot read {path}")
        lm.txn_reset(self.look_txn)
        self.log_env.acquire()
        self.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.event_fd < 0:
            raise OSError("eventfd was refused")
        self.thread = threading.Thread(target=self._run, name="tables", daemon=True)
        self.thread.start()

    def __dealloc__(self):
        # The thread holds a reference to this object, so it has ended by now or never began.
        slice_free(&self.piece)
        fold_free(&self.fold)
        if self.event_fd >= 0:
            close_fd(self.event_fd)
        pthread_cond_destroy(&self.wake)
        pthread_mutex_destroy(&self.lock)

    cdef object applied(self):
        cdef uint64_t count
        pthread_mutex_lock(&self.lock)
        if self.signalled:
            self.signalled = False
            eventfd_read(self.event_fd, &count)
        cdef Standing standing = self.standing
        cdef uint64_t bytes_used = self.bytes_used
        pthread_mutex_unlock(&self.lock)
        self.raise_fault()
        return Applied(
            standing.seq, standing.commit, standing.live_count, standing.notes_count, bytes_used
        )

    cdef int follow(self, uint64_t last_seq, uint64_t commit, bint now) except -1:
        cdef bint wake = now
        pthread_mutex_lock(&self.lock)
        if commit > self.followed_commit:
            if self.followed_commit == self.standing.commit:
                self.waiting_since_ns = monotonic_ns()
                wake = True
            self.followed, self.followed_commit = last_seq, commit
        if now:
            self.now_commit = self.followed_commit
        if wake or (self.slice_is_due() and not self.is_resting()):
            pthread_cond_signal(&self.wake)
        pthread_mutex_unlock(&self.lock)
        return 0

    cdef uint64_t expire(self, uint64_t trim_below, int64_t notes_before_ns) except? 0:
        pthread_mutex_lock(&self.lock)
        self.expire_below = max(self.expire_below, trim_below)
        self.notes_before_ns = max(self.notes_before_ns, notes_before_ns)
        self.sweep = self.standing.notes_count > 0 and self.notes_before_ns > 0
        pthread_cond_signal(&self.wake)
        cdef uint64_t reached = self.standing.done_below
        pthread_mutex_unlock(&self.lock)
        self.env.forget_dead_readers()
        self.log_env.forget_dead_readers()
        return reached

    cdef int close(self) except -1:
        if self.thread is None:
            return 0
        pthread_mutex_lock(&self.lock)
        self.stop = True
        pthread_cond_signal(&self.wake)
        pthread_mutex_unlock(&self.lock)
        self.thread.join()
        self.thread = None
        lm.txn_abort(self.log_txn)
        lm.txn_abort(self.look_txn)
        self.log_env.release()
        self.env.release()
        return 0

    def _run(self) -> None:
        # Signals are for the thread that can act on them.
        block_signals()
        with nogil:
            self.fold_on()

    cdef int raise_fault(self) except -1:
        pthread_mutex_lock(&self.lock)
        cdef Fault fault = self.fault
        pthread_mutex_unlock(&self.lock)
        if fault.wrong == RIGHT:
            return 0
        raise exception_of(&fault, self.env.fd)

    # The thread.

    cdef void fold_on(self) noexcept nogil:
        cdef Standing standing
        cdef uint64_t to_commit, below, entries
        cdef int64_t before_ns
        cdef bint slice
        cdef int rc = 0
        while rc == 0:
            pthread_mutex_lock(&self.lock)
            if not self.wait_for_work():
                pthread_mutex_unlock(&self.lock)
                return
            slice, standing = self.slice_is_due() and not self.is_resting(), self.standing
            if slice and self.drain_commit <= standing.commit:
                self.begin_drain(monotonic_ns())
            to_commit, entries = self.drain_commit, self.piece_entries
            if self.must_hurry():
                to_commit, entries = self.followed_commit, self.slice_entries
            below = min(self.expire_below, self.standing.seq)
            before_ns = self.notes_before_ns if self.sweep else 0
            if not slice:
                self.sweep = False
            pthread_mutex_unlock(&self.lock)
            if self.look_is_due():
                self.looked_ns = monotonic_ns()
                rc = self.look(self.env, self.look_txn, TABLES_PAGE_DAMAGED)
                rc = rc or self.look(self.log_env, self.log_txn, LOG_PAGE_DAMAGED)
            elif slice:
                rc = self.make_slice(to_commit, entries, &standing)
            else:
                rc = self.make_expiry(below, before_ns, &standing)
            self.publish(rc, &standing)

    cdef void begin_drain(self, int64_t now_ns) noexcept nogil:
        """Under the lock; what has been followed up to now is the slice."""
        cdef int64_t came_ns = min(now_ns - self.waiting_since_ns, self.slice_age_ns)
        self.drain_commit, self.drain_since_ns = self.followed_commit, now_ns
        self.drain_entries = max(self.followed - self.standing.seq, <uint64_t>1)
        self.drain_ns = max(came_ns, <int64_t>0) // 2

    cdef bint wait_for_work(self) noexcept nogil:
        """Under the lock; whether there is work, or else it is to stop."""
        cdef timespec until
        cdef int64_t until_ns
        while not self.stop:
            if (self.slice_is_due() and not self.is_resting()) or self.expiry_is_due():
                return True
            if self.look_is_due():
                return True
            if self.followed_commit > self.standing.commit:
                until_ns = self.waiting_since_ns + self.slice_age_ns
                if self.slice_is_due():
                    until_ns = self.rest_until_ns
                until.tv_sec, until.tv_nsec = until_ns // 1_000_000_000, until_ns % 1_000_000_000
                pthread_cond_timedwait(&self.wake, &self.lock, &until)
            else:
                pthread_cond_wait(&self.wake, &self.lock)
        return False

    cdef bint slice_is_due(self) noexcept nogil:
        if self.followed_commit <= self.standing.commit:
            return False
        return (
            self.now_commit > self.standing.commit
            or self.drain_commit > self.standing.commit
            or self.followed - self.standing.seq >= self.slice_entries
            or monotonic_ns() - self.waiting_since_ns >= self.slice_age_ns
        )

    cdef bint must_hurry(self) noexcept nogil:
        if self.now_commit > self.standing.commit:
            return True
        return self.followed - self.standing.seq >= self.slice_entries

    cdef bint is_resting(self) noexcept nogil:
        return not self.must_hurry() and monotonic_ns() < self.rest_until_ns

    cdef bint expiry_is_due(self) noexcept nogil:
        return self.sweep or min(self.expire_below, self.standing.seq) > self.standing.done_below

    cdef bint look_is_due(self) noexcept nogil:
        return monotonic_ns() - self.looked_ns >= self.look_every_ns

    cdef int look(self, Environment env, void* reader, Wrong what) noexcept nogil:
        """Whether the pages of a file still hold together, as they did when it was opened."""
        cdef Check check
        cdef int rc = lm.txn_renew(reader)
        if rc:
            return wrong(&self.trouble, LOG_UNREADABLE, rc, 0)
        rc = env.look(reader, False, &check)
        lm.txn_reset(reader)
        # Where there is no memory for it: later.
        return wrong(&self.trouble, what, 0, check.page) if rc == -1 else 0

    cdef int make_slice(
        self, uint64_t to_commit, uint64_t entries, Standing* standing
    ) noexcept nogil:
        cdef int rc = lm.txn_renew(self.log_txn)
        if rc:
            return wrong(&self.trouble, LOG_UNREADABLE, rc, 0)
        self.piece.seq, self.piece.commit = standing.seq, standing.commit
        self.piece.skip_below = standing.rebuilt_from
        rc = slice_gather(
            &self.piece, self.log_txn, &self.log.dbs, to_commit, entries, &self.trouble
        )
        lm.txn_reset(self.log_txn)
        if rc:
            return rc
        slice_sort(&self.piece)
        rc = lm.txn_begin(self.env.env, NULL, 0, &self.fold.txn)
        if rc:
            return wrong(&self.trouble, TABLES_UNWRITABLE, rc, 0)
        self.fold.lenient = standing.commit < standing.rebuild_to
        rc = fold_slice(&self.fold, &self.piece, &self.trouble)
        standing.seq, standing.commit = self.piece.seq, self.piece.commit
        rc = self.commit(rc, standing)
        self.learn(self.piece.seq - self.piece.begin_seq)
        return rc

    cdef void learn(self, uint64_t entries) noexcept nogil:
        """How many events the next piece may have, now that so many took `commit_ns`."""
        cdef uint64_t most = min(<uint64_t>PIECE_MAX, self.slice_entries)
        cdef uint64_t fits = self.piece_entries + self.piece_entries // 4
        if self.commit_ns > <int64_t>COMMIT_NS:
            fits = entries * <uint64_t>COMMIT_NS // <uint64_t>self.commit_ns
        self.piece_entries = min(max(fits, <uint64_t>PIECE_MIN), most)

    cdef int make_expiry(
        self, uint64_t below, int64_t before_ns, Standing* standing
    ) noexcept nogil:
        """Forget the finished timers whose last event is below `below`, a bounded number."""
        cdef uint64_t reached = standing.done_below
        cdef int rc = lm.txn_renew(self.log_txn)
        if rc:
            return wrong(&self.trouble, LOG_UNREADABLE, rc, 0)
        if below > standing.done_below:
            rc = slice_gather_finished(
                &self.piece,
                self.log_txn,
                &self.log.dbs,
                standing.done_below,
                below,
                &reached,
                &self.trouble,
            )
            standing.done_below = reached
        lm.txn_reset(self.log_txn)
        if rc:
            return rc
        slice_sort(&self.piece)
        rc = lm.txn_begin(self.env.env, NULL, 0, &self.fold.txn)
        if rc:
            return wrong(&self.trouble, TABLES_UNWRITABLE, rc, 0)
        rc = fold_forget(&self.fold, &self.piece, &self.trouble)
        cdef uint64_t looks = max(<uint64_t>SWEEP_LOOKS, standing.notes_count // 64)
        if rc == 0 and before_ns:
            rc = fold_sweep(&self.fold, before_ns, looks, standing, &self.trouble)
        return self.commit(rc, standing)

    cdef int commit(self, int rc, Standing* standing) noexcept nogil:
        if rc:
            lm.txn_abort(self.fold.txn)
            return rc
        rc = put_standing(&self.fold, standing)
        if rc:
            lm.txn_abort(self.fold.txn)
        else:
            self.used = self.env.used_bytes(self.fold.txn, TABLES_DATABASES)
            self.commit_ns = -monotonic_ns()
            rc = lm.txn_commit(self.fold.txn)
            self.commit_ns += monotonic_ns()
        slice_clear(&self.piece)
        self.env.drop_pages()  # both files were read from end to end: they need not count as ours
        self.log_env.drop_pages()
        return wrong(&self.trouble, TABLES_UNWRITABLE, rc, 0) if rc else 0

    cdef void publish(self, int rc, Standing* standing) noexcept nogil:
        cdef uint64_t done = min(standing.seq - self.standing.seq, self.drain_entries)
        pthread_mutex_lock(&self.lock)
        if rc:
            self.fault = self.trouble
        else:
            if standing.commit > self.standing.commit:
                self.rest_until_ns = (
                    monotonic_ns() + self.drain_ns * <int64_t>done // <int64_t>self.drain_entries
                )
                if standing.commit >= self.drain_commit:
                    self.rest_until_ns, self.waiting_since_ns = 0, self.drain_since_ns
            self.standing, self.bytes_used = standing[0], self.used
        if not self.signalled:
            self.signalled = True
            eventfd_write(self.event_fd, 1)
        pthread_mutex_unlock(&self.lock)

    # Opening and rebuilding.

    cdef int open_state(self) except -1:
        """Read how far the tables are; their counts must be those of the trees."""
        cdef Stat timers, notes
        cdef bytes found = self.env.read(self.dbs.meta, b"standing")
        cdef Val data
        cdef void* txn = self.env.begin_read()
        lm.stat(txn, self.dbs.timers, &timers)
        lm.stat(txn, self.dbs.notes, &notes)
        self.bytes_used = self.used = self.env.used_bytes(txn, TABLES_DATABASES)
        self.env.end_read()
        if found is None:
            self.standing.done_below = 1
        else:
            data.size, data.at = len(found), <char*>found
            if check_standing(&data):
                raise StoreCorrupt("the tables' position does not agree with its checksum")
            self.standing = (<Standing*><char*>found)[0]
        if (
            self.standing.live_count != timers.entries
            or self.standing.notes_count != notes.entries
        ):
            raise StoreCorrupt(
                f"the tables hold {timers.entries} timers and {notes.entries} notes; they should "
                f"hold {self.standing.live_count} and {self.standing.notes_count}"
            )
        self.followed, self.followed_commit = self.standing.seq, self.standing.commit
        return 0

    cdef int reindex(self) except -1:
        """Make the due and names indexes anew; LMDB lets one writer in at a time."""
        cdef Fold fold
        cdef Fault fault
        cdef int rc
        memset(&fold, 0, sizeof(Fold))
        memset(&fault, 0, sizeof(Fault))
        fold.dbs = self.dbs
        with nogil:
            rc = lm.txn_begin(self.env.env, NULL, 0, &fold.txn)
            if rc:
                wrong(&fault, TABLES_UNWRITABLE, rc, 0)
            elif fold_reindex(&fold, &fault):
                lm.txn_abort(fold.txn)
            else:
                rc = lm.txn_commit(fold.txn)
                if rc:
                    wrong(&fault, TABLES_UNWRITABLE, rc, 0)
            fold_free(&fold)
        if fault.wrong != RIGHT:
            self.fault = fault
            self.raise_fault()
        return 0

    cdef int restart(self, uint64_t seq, uint64_t commit, object state) except -1:
        """Empty the tables, to follow anew from behind (seq, commit) up to the log's `state`."""
        cdef Standing standing
        cdef int rc
        assert self.followed_commit == self.standing.commit, "the tables are at work"
        memset(&standing, 0, sizeof(Standing))
        standing.seq, standing.commit = seq, commit
        standing.done_below = standing.rebuilt_from = state.first_seq
        standing.rebuild_to = state.commit
        rc = lm.txn_begin(self.env.env, NULL, 0, &self.fold.txn)
        if rc == 0:
            rc = (
                lm.drop(self.fold.txn, self.dbs.timers, 0)
                or lm.drop(self.fold.txn, self.dbs.due, 0)
                or lm.drop(self.fold.txn, self.dbs.names, 0)
                or lm.drop(self.fold.txn, self.dbs.done, 0)
                or lm.drop(self.fold.txn, self.dbs.notes, 0)
            )
            if rc:
                lm.txn_abort(self.fold.txn)
            rc = rc or self.commit(0, &standing)
        if rc:
            raise error_of(self.env.fd, self.trouble.rc or rc, "the tables cannot be emptied")
        self.fold.lost = 0
        pthread_mutex_lock(&self.lock)
        self.standing, self.bytes_used = standing, self.used
        self.followed, self.followed_commit, self.now_commit = seq, commit, 0
        self.drain_commit = 0
        pthread_mutex_unlock(&self.lock)
        return 0
