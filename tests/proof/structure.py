"""Which bytes of an LMDB file lead to its records: heads, lists of nodes, page numbers, free pages.

Written from the layouts of mdb.c in LMDB 0.9, and not from `engine/_pages.pyx`, which is judged by
flips of these bytes. Only what the newest head leads to: a flip elsewhere hits nothing.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator

PAGE = struct.Struct("<QHHHH")  # number, pad, kind, lower, upper
NODE = struct.Struct("<HHHH")  # low, high, flags, bytes of the key
TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branches, leaves, overflows, entries, root
HEAD = struct.Struct(f"<IIQQ{TREE.size}s{TREE.size}sQQ")  # ..., free, main, last page, commit
BRANCH, LEAF = 1, 2
BIG, SUBTREE = 1, 2
NO_PAGE = (1 << 64) - 1


def structure(data: bytes) -> array[int]:
    """Offsets of the bytes, each once."""
    size = TREE.unpack(HEAD.unpack_from(data, PAGE.size)[4])[0]
    heads = [HEAD.unpack_from(data, at + PAGE.size) for at in (0, size)]
    found = array("L")
    for at in (0, size):
        found.extend(range(at, at + PAGE.size + HEAD.size))
    newest = max(heads, key=lambda head: head[-1])
    roots = [newest[4], newest[5]]
    for number, root in enumerate(roots):
        for page in _pages(data, size, TREE.unpack(root)[-1]):
            found.extend(_bytes(data, page))
            if number == 1:
                roots.extend(_trees(data, page))
    return found


def _pages(data: bytes, size: int, root: int) -> Iterator[int]:
    """Where the branches and leaves of a tree lie."""
    waiting = [] if root == NO_PAGE else [root * size]
    while waiting:
        page = waiting.pop()
        yield page
        if PAGE.unpack_from(data, page)[2] == BRANCH:
            for at in _nodes(data, page):
                low, high, flags, _ = NODE.unpack_from(data, at)
                waiting.append((low | high << 16 | flags << 32) * size)


def _nodes(data: bytes, page: int) -> list[int]:
    lower = PAGE.unpack_from(data, page)[3]
    count = (lower - PAGE.size) // 2
    return [page + at for at in struct.unpack_from(f"<{count}H", data, page + PAGE.size)]


def _bytes(data: bytes, page: int) -> Iterator[int]:
    """Those of one page: what a leaf's nodes hold is not among them."""
    _, _, kind, lower, _ = PAGE.unpack_from(data, page)
    yield from range(page, page + lower)
    for at in _nodes(data, page):
        flags, key_bytes = NODE.unpack_from(data, at)[2:]
        end = at + NODE.size + (key_bytes if kind == BRANCH else 8 * (flags == BIG))
        yield from range(at, end)


def _trees(data: bytes, page: int) -> Iterator[bytes]:
    for at in _nodes(data, page):
        _, _, flags, key_bytes = NODE.unpack_from(data, at)
        if flags & SUBTREE:
            tree = at + NODE.size + key_bytes
            yield data[tree : tree + TREE.size]
