"""Decides the plain `timer.schedule` requests that stand in a row: what one costs, less the calls.

A request for one timer takes a microsecond to become a record and three times as long to be passed
from function to function. Here those that came together are read in one call and answered in
another; between the two, `Ledger.create_drafts` writes them as it writes those of `schedule_many`.
Whatever is not plain ends the row, and goes the way through `Node.accept`, which alone refuses; the
answers are the same, byte by byte (tests/unit/test_singles.py).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stddef cimport size_t

from edgenode._draft cimport Terms, draft_whole, read_terms

from edgenode.call import Answer
from minoots.wire import frames as _wire

cdef enum:
    FRAMES = 6                    # peer, magic, kind, corr, header, body

cdef bytes MAGIC = _wire.MAGIC
cdef bytes QUERY = _wire.QUERY
cdef bytes FINAL = _wire.FINAL
cdef Py_ssize_t CORR_BYTES_MAX = _wire.CORR_BYTES_MAX
cdef Py_ssize_t BODY_BYTES_MAX = _wire.BODY_BYTES_MAX


cdef bint is_ascii(bytes text) noexcept:
    cdef const char* at = PyBytes_AS_STRING(text)
    cdef size_t k
    for k in range(<size_t>PyBytes_GET_SIZE(text)):
        if at[k] & 0x80:
            return False
    return True


cdef bytes body_of(tuple frames, set headers):
    """The body of a request that is framed as it should be, with one of `headers`; else None."""
    cdef int k
    if PyTuple_GET_SIZE(frames) != FRAMES:
        return None
    for k in range(FRAMES):
        if not PyBytes_CheckExact(<object>PyTuple_GET_ITEM(frames, k)):
            return None
    cdef bytes body = <bytes>PyTuple_GET_ITEM(frames, 5)
    if (
        <bytes>PyTuple_GET_ITEM(frames, 1) != MAGIC
        or <bytes>PyTuple_GET_ITEM(frames, 2) != QUERY
        or PyBytes_GET_SIZE(<object>PyTuple_GET_ITEM(frames, 3)) > CORR_BYTES_MAX
        or <object>PyTuple_GET_ITEM(frames, 4) not in headers
        or PyBytes_GET_SIZE(body) > BODY_BYTES_MAX
        or not is_ascii(body)
    ):
        return None
    return body


def read_singles(
    list came not None, Py_ssize_t at, Py_ssize_t limit, set headers not None, principal, now,
    limits,
) -> list:
    """The drafts of the requests in a row from `came[at]` on, at most `limit`, that are plain.

    came: (door, frames, who asks). headers: those that say `timer.schedule` and nothing else.
    principal: whose requests these may be; anybody else's end the row. now: a clock.Now. limits: a
    config.LimitsSection. 1 us each.
    """
    cdef Terms terms
    cdef list drafts = []
    cdef tuple one
    cdef bytes body, made
    cdef Py_ssize_t end = min(<Py_ssize_t>len(came), at + limit)
    read_terms(&terms, now, limits)
    while at < end:
        one = came[at]
        if <object>PyTuple_GET_ITEM(one, 2) is not principal:
            break
        body = body_of(<tuple>PyTuple_GET_ITEM(one, 1), headers)
        if body is None:
            break
        made = draft_whole(body, &terms)
        if made is None:
            break
        drafts.append(made)
        at += 1
    return drafts


def answer_singles(
    list came not None, Py_ssize_t at, list views not None, list answers not None
) -> None:
    """Add to `answers` those of the requests from `came[at]` on: a view each, in their order."""
    cdef tuple one, frames
    cdef Py_ssize_t k
    for k in range(<Py_ssize_t>len(views)):
        one = came[at + k]
        frames = <tuple>PyTuple_GET_ITEM(one, 1)
        answers.append(
            Answer(
                <object>PyTuple_GET_ITEM(one, 0),
                (
                    <object>PyTuple_GET_ITEM(frames, 0),
                    MAGIC,
                    FINAL,
                    <object>PyTuple_GET_ITEM(frames, 3),
                    b"{}",
                    views[k],
                ),
            )
        )
