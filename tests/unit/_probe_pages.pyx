"""What `engine/_pages.pyx` says of a file, for `test_pages.py`."""

import os

from libc.string cimport memset

from engine._pages cimport Check, check_heads, check_trees


def wrong(str path, int txn, bint deep) -> str:
    """What is wrong with the file at `path`, whose newest commit is `txn`; "" if nothing is."""
    cdef Check check
    cdef int rc
    memset(&check, 0, sizeof(Check))
    check.fd = os.open(path, os.O_RDONLY)
    try:
        check.deep = deep
        rc = check_heads(&check, True) or check_trees(&check, <unsigned long>txn)
    finally:
        os.close(check.fd)
    if rc > 0:
        return "the head is of another commit"
    return f"page {check.page}: {check.wrong.decode()}" if rc else ""
