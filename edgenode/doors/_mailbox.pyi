from collections.abc import Sequence
from typing import Any, Self, final

import zmq

@final
class Mailbox:
    dropped_full: int
    dropped_gone: int
    fd: int
    socket: zmq.Socket[Any]
    def __new__(cls, socket: zmq.Socket[Any]) -> Self: ...
    def drain(self, limit: int, frames_max: int = 12) -> list[tuple[bytes, ...]]: ...
    def send(self, messages: Sequence[tuple[bytes, ...]]) -> int: ...
    def pending(self) -> int: ...
