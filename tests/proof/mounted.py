"""A disk that forgets, as a file system: served by FUSE, in a process of its own.

    python -m tests.proof.mounted AT [all|meta|names]

One request at a time, in the order in which the kernel sends them, so a cut has its place among
them. It is asked for by an attribute of the root, `user.cut`, that is set to KIND SEED AFTER: it
comes as the AFTERth change or sync from then on is asked for, which does not happen any more; a
write may still leave a part of itself. From there on every request fails with EIO. When the file
system is unmounted, a line on stdin has it mounted again, with what the cut has left and a page
cache that is empty. stdout has a line for each mount, and one for each cut.

The word behind AT plants a bug: `all` acknowledges syncs and does nothing, `meta` does not heed
O_DSYNC, `names` the syncs of directories.

The kernel's page cache is used, so that LMDB's map works, and every write comes here before it
returns; O_DSYNC is seen in the flags of `open`. Locks are the kernel's. What is written through a
map comes when the kernel likes: the node has only LMDB's lock file so, which a start makes anew. A
file that has no name any more cannot be used.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import stat
import sys
import traceback
from dataclasses import asdict, dataclass
from typing import Any

from tests.proof.forgetful import Change, Directory, Disk, File, Node

PR_SET_PDEATHSIG = 1
BLOCKS = 1 << 18  # that there are, and that are said to be free
KEPT_S = 3600  # nobody changes anything behind the kernel's back


@dataclass(slots=True)
class Open:
    """direct: each write is its own sync. synced: none has been since the last fsync; what the
    kernel sends behind such a write is no sync of the whole file."""

    file: File
    direct: bool
    synced: bool = True


class FileSystem:
    """The requests; `mfusepy` calls them by their names. dead: cut, and not mounted again."""

    use_ns = True

    def __init__(self, swallow: str = "") -> None:
        self.disk = Disk()
        self.swallow = swallow
        self._open: dict[int, Open] = {}
        self._opened = 0
        self.dead = False
        self._left = 0  # changes and syncs until the cut; 0: none is asked for
        self._kind, self._draw = "", random.Random()

    # ------------------------------------------------------------------------------- the cut

    def _cut(self) -> None:
        self.dead = True
        losses = self.disk.cut(self._kind, self._draw)
        tell({"cut": {name: asdict(loss) for name, loss in losses.items()}})

    def _turn(self) -> bool:
        """Whether the cut comes at this change or sync."""
        self._left -= self._left > 0
        return self._kind != "" and self._left == 0

    def _step(self) -> None:
        """Before a change that happens whole or not at all, or a sync."""
        self._alive()
        if self._turn():
            self._cut()
            self._alive()

    def _alive(self) -> None:
        if self.dead:
            raise OSError(errno.EIO, "the power is cut")

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        if (path, name) != ("/", "user.cut"):
            raise OSError(errno.ENOTSUP, name)
        if not self.dead:
            self._kind, seed, after = value.decode().split()
            self._draw, self._left = random.Random(int(seed)), int(after)
            if not self._left:
                self._cut()
        return 0

    def init_with_config(self, connection: Any, config: Any) -> None:
        self.dead, self._kind, self._open = False, "", {}
        tell({"mounted": True})

    # ------------------------------------------------------------------------------- names

    def _find(self, path: str) -> Node:
        self._alive()
        node: Node | None = self.disk.root
        for word in path.split("/"):
            if word:
                node = node.seen.get(word) if isinstance(node, Directory) else None
        if node is None:
            raise OSError(errno.ENOENT, path)
        return node

    def _place(self, path: str) -> tuple[Directory, str]:
        above, _, name = path.rpartition("/")
        directory = self._find(above or "/")
        assert isinstance(directory, Directory)
        return directory, name

    def _name(self, path: str, node: Node | None) -> None:
        """Give a name to a node, or to none."""
        self._step()
        directory, name = self._place(path)
        directory.change(self.disk.next(), {name: node})

    def mkdir(self, path: str, mode: int) -> int:
        self._name(path, Directory(stat.S_IFDIR | mode))
        return 0

    def create(self, path: str, mode: int, flags: int) -> int:
        file = File(path.rpartition("/")[2], stat.S_IFREG | stat.S_IMODE(mode))
        self._name(path, file)
        return self._opens(file, flags)

    def unlink(self, path: str) -> int:
        self._name(path, None)
        return 0

    def rmdir(self, path: str) -> int:
        node = self._find(path)
        assert isinstance(node, Directory)
        if node.seen:
            raise OSError(errno.ENOTEMPTY, path)
        self._name(path, None)
        return 0

    def rename(self, old: str, new: str) -> int:
        self._step()
        (directory, name), (there, fresh) = self._place(old), self._place(new)
        if directory is not there:
            raise OSError(errno.EXDEV, new)
        directory.change(self.disk.next(), {name: None, fresh: directory.seen[name]})
        return 0

    def readdir(self, path: str, handle: int) -> list[str]:
        node = self._find(path)
        assert isinstance(node, Directory)
        return [".", "..", *node.seen]

    def fsyncdir(self, path: str, datasync: int, handle: int) -> int:
        self._step()
        if self.swallow not in ("all", "names"):
            self._find(path).sync()
        return 0

    # ------------------------------------------------------------------------------- files

    def _opens(self, file: File, flags: int) -> int:
        self._opened += 1
        direct = bool(flags & os.O_DSYNC)
        self._open[self._opened] = Open(file, direct)
        return self._opened

    def open(self, path: str, flags: int) -> int:
        file = self._find(path)
        assert isinstance(file, File)
        if flags & os.O_TRUNC:
            self.truncate(path, 0)
        return self._opens(file, flags)

    def release(self, path: str, handle: int) -> int:
        self._open.pop(handle, None)
        return 0

    def read(self, path: str, size: int, at: int, handle: int) -> bytes:
        self._alive()
        return bytes(self._open[handle].file.seen[at : at + size])

    def write(self, path: str, data: bytes, at: int, handle: int) -> int:
        self._alive()
        held, cut = self._open[handle], self._turn()
        durable = held.direct and not (cut or self.swallow in ("all", "meta"))
        held.file.change(Change(self.disk.next(), at, data, durable))
        held.synced = not held.direct
        if cut:
            self._cut()
        self._alive()
        return len(data)

    def truncate(self, path: str, size: int, handle: int | None = None) -> int:
        file = self._find(path)
        assert isinstance(file, File)
        self._step()
        file.change(Change(self.disk.next(), size, None))
        return 0

    def fsync(self, path: str, datasync: int, handle: int) -> int:
        self._step()
        held = self._open[handle]
        if held.synced and self.swallow != "all":
            held.file.sync()
        held.synced = True
        return 0

    # ------------------------------------------------------------------------------- the rest

    def getattr(self, path: str, handle: int | None = None) -> dict[str, int]:
        node = self._open[handle].file if handle in self._open else self._find(path)
        self._alive()
        size = len(node.seen) if isinstance(node, File) else 0
        return {
            "st_mode": node.mode,
            "st_nlink": 1 if isinstance(node, File) else 2,
            "st_size": size,
            "st_blocks": -(-size // 512),
        }

    def chmod(self, path: str, mode: int) -> int:
        node = self._find(path)
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        self._alive()
        sizes = dict.fromkeys(("f_bsize", "f_frsize"), 4096)
        return sizes | dict.fromkeys(("f_blocks", "f_bfree", "f_bavail"), BLOCKS)


def tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def once(system: FileSystem, at: str) -> None:
    """Serve until it is unmounted."""
    from mfusepy import FUSE

    options = {"foreground": True, "nothreads": True, "kernel_cache": True, "hard_remove": True}
    try:
        FUSE(system, at, attr_timeout=KEPT_S, entry_timeout=KEPT_S, **options)
    except RuntimeError:
        # Seldom, libfuse's loop ends with an error where a node that was killed is unmounted from.
        if not system.dead:
            raise
        traceback.print_exc()


def serve(at: str, swallow: str) -> None:
    """Serve, and after each unmount once more if a line on stdin asks for it."""
    # Whoever started this may be killed: then libfuse ends on this signal, and unmounts.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    system = FileSystem(swallow)
    once(system, at)
    while sys.stdin.readline():
        once(system, at)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
