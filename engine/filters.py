"""Whether a timer passes a filter: what `_scan.pyx` asks of rows, asked of a timer in Python."""

from __future__ import annotations

from engine.record import Image, Scale, unpack_blob
from engine.store import Filter


def passes(filter: Filter, image: Image, blob: bytes) -> bool:
    """Whether all conditions of the filter hold. 2 us."""
    if image.tenant != filter.tenant or (filter.states and image.state not in filter.states):
        return False
    if filter.due_from_ns or filter.due_to_ns:
        if not image.due_ns:
            return False
        due_ns = image.due_ns + (filter.scale_shift_ns if image.scale == Scale.STEADY else 0)
        if due_ns < filter.due_from_ns or (filter.due_to_ns and due_ns >= filter.due_to_ns):
            return False
    parts = unpack_blob(blob)
    if not parts.name.startswith(filter.name_prefix):
        return False
    return all(needle in parts.labels for needle in filter.labels)
