from collections.abc import Callable, Sequence
from typing import final

import msgspec

from edgenode._encode import Encoder
from edgenode.config import LimitsSection
from engine._hot import HotSet
from engine.clock import Now

__pyx_capi__: dict[str, object]

def draft(body: bytes, now: Now, limits: LimitsSection) -> bytes | None: ...

@final
class ManyDrafts:
    def __init__(self, body: bytes, now: Now, limits: LimitsSection) -> None: ...
    @property
    def ended(self) -> bool: ...
    @property
    def atomic(self) -> bool: ...
    def take(self, limit: int) -> list[bytes | msgspec.Raw] | None: ...

def write(
    drafts: Sequence[object],
    at: int,
    end: int,
    new_ids: Callable[[int], bytes],
    events: list[bytes],
    first_seq: int,
    now: Now,
    horizon_ns: int,
    tick_ns: int,
    hot: HotSet,
    encoder: Encoder,
    views: list[bytes],
) -> int: ...
