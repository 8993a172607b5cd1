FIFO_PRIORITY: int
SOCKET_FIFO_PRIORITY: int

def fifo_refused() -> int: ...

__pyx_capi__: dict[str, object]
