from engine._hot import HotSet
from engine.clock import Now

def expire(
    hot: HotSet,
    id: bytes,
    stored: bytes,
    stored_seq: int,
    events: list[bytes],
    seq: int,
    now: Now,
    wheel_tick: int,
    tick_ns: int,
    misfire_after_ns: int,
    serving_since_ns: int,
    horizon_ns: int,
    wall_held: bool,
    held_before_ns: tuple[int, int],
) -> tuple[int, bool, bool] | None: ...
