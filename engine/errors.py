"""What can go wrong in the engine.

EngineError
 ├── WheelFull        the wheel holds its capacity of live timers
 ├── StoreLocked      another process has this data directory open
 ├── StoreFailed      a write or sync failed: everything after the last durable commit never was
 │    └── StoreFull   ... because there is no room
 ├── StoreCorrupt     a checksum, a count or the hash chain does not agree
 ├── StoreTooNew      written by a later version of the program
 └── RealtimeRefused  the kernel does not schedule as the configuration insists
"""


class EngineError(Exception):
    """The root of what the engine raises for its callers to deal with."""


class WheelFull(EngineError):
    """The wheel holds `capacity` live timers."""


class RealtimeRefused(EngineError):
    """The kernel refuses the scheduling that the configuration insists on."""


class StoreLocked(EngineError):
    """Another process has the data directory open; `pid` is its process, 0 if unknown."""

    def __init__(self, message: str, pid: int = 0) -> None:
        super().__init__(message)
        self.pid = pid


class StoreFailed(EngineError):
    """A write or sync failed; what was submitted after the last durable commit never happened."""


class StoreFull(StoreFailed):
    """The file system, the map or the quota has no room."""


class StoreCorrupt(EngineError):
    """Stored bytes do not agree with their checksum, count or hash chain."""


class StoreTooNew(EngineError):
    """The files were written by a later version of the program."""
