"""Which endpoints a door may have: those that nobody outside this machine can reach. Pure."""

from __future__ import annotations

import ipaddress
import os
import re

IPC_PATH_BYTES_MAX = 107

_TCP = re.compile(r"tcp://(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5}|\*)")
_SERVED = (
    "only loopback (tcp://127.0.0.1:PORT, tcp://[::1]:PORT) and ipc (ipc://PATH) are served until "
    "keys are configured"
)


def refused(name: str, endpoint: str) -> str:
    """Why this endpoint is not served; "" if it is."""
    tcp = _TCP.fullmatch(endpoint)
    if tcp:
        try:
            host = ipaddress.ip_address(tcp[1] or tcp[2])
        except ValueError:
            host = None
        if host is not None and host.is_loopback and (tcp[3] == "*" or int(tcp[3]) < 65_536):
            return ""
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        size = len(os.fsencode(path))
        if size > IPC_PATH_BYTES_MAX:
            return (
                f"{name} is {endpoint!r}, a path of {size} bytes; the limit is {IPC_PATH_BYTES_MAX}"
            )
        # @ is the abstract namespace, which has no file modes; * would be a folder of libzmq's own.
        if path and path[0] not in "@*" and "\0" not in path:
            return ""
    return f"{name} is {endpoint!r}; {_SERVED}"
