"""Which timers are in memory: those due inside the horizon, and no more than armed_max of them.

The horizon moves with time, a tenth of its span at once: what comes into it is read from the due
index of the tables, and from the hot set for what the tables do not hold yet. The index opens whole
hours, so it is read page by page between other work, and the horizon moves once all is read. When
more timers are armed than allowed the span is halved and what lies beyond it is disarmed; it is on
disk.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgenode.config import EngineSection
from edgenode.ledger import TICK_NS, Ledger
from engine.clock import tick_at_or_after
from engine.record import Scale

SPAN_NS_MIN = 10_000_000_000
PAGE_ENTRIES = 8_192  # of the due index, looked at in one go: about 1 ms


@dataclass(slots=True)
class _Opening:
    """A stretch of time that is being read. after: where the page before ended."""

    to_ns: int
    scale: Scale = Scale.STEADY
    after: bytes = b""


class Horizon:
    """Keeps `ledger.horizon_ns`, the steady instant up to which timers are armed."""

    def __init__(self, ledger: Ledger, engine: EngineSection) -> None:
        self._ledger = ledger
        self._hot = ledger.hot
        self._span_ns_max = engine.horizon
        self._span_ns = engine.horizon
        self._armed_max = engine.armed_max
        self._opening: _Opening | None = None

    def open(self) -> None:
        """Arm all that is overdue or inside the horizon, in growing steps."""
        now_ns = self._ledger.now.steady_ns
        end_ns = now_ns + SPAN_NS_MIN
        self._load(0, end_ns)
        step_ns = SPAN_NS_MIN
        while end_ns < now_ns + self._span_ns and self._hot.armed_count < self._armed_max:
            from_ns, end_ns = end_ns, min(end_ns + step_ns, now_ns + self._span_ns)
            self._load(from_ns, end_ns)
            step_ns *= 2
        self._span_ns = max(end_ns - now_ns, SPAN_NS_MIN)
        self._shrink()

    @property
    def is_opening(self) -> bool:
        """Whether a stretch is being read: `extend` has more to do, and the hot set must keep what
        the tables have caught up with meanwhile."""
        return self._opening is not None

    def extend(self) -> None:
        """Move on, if a tenth of the span has passed since the last time; a page at a time."""
        now_ns, end_ns = self._ledger.now.steady_ns, self._ledger.horizon_ns
        if self._opening is None:
            if end_ns - now_ns > self._span_ns - self._span_ns // 10:
                return
            if self._hot.armed_count < self._armed_max // 4:
                self._span_ns = min(self._span_ns * 2, self._span_ns_max)
            self._opening = _Opening(now_ns + self._span_ns)
        if self._read_page(self._opening, end_ns):
            self._close(end_ns, self._opening.to_ns)

    def _read_page(self, opening: _Opening, from_ns: int) -> bool:
        """Arm a page of what the tables hold; whether it was the last."""
        shift_ns = self._shift_ns(opening.scale)
        ids, dues, opening.after = self._ledger.tables.due(
            opening.scale,
            from_ns + shift_ns,
            opening.to_ns + shift_ns,
            opening.after,
            PAGE_ENTRIES,
        )
        if ids:
            self._hot.load(ids, dues, opening.scale, -shift_ns, TICK_NS)
        if not opening.after and opening.scale == Scale.STEADY:
            opening.scale = Scale.WALL
            return False
        return not opening.after

    def _close(self, from_ns: int, to_ns: int) -> None:
        self._opening = None
        self._ledger.horizon_ns = to_ns
        for scale in Scale:
            shift_ns = self._shift_ns(scale)
            self._hot.load_newer(from_ns + shift_ns, to_ns + shift_ns, scale, -shift_ns, TICK_NS)
        self._shrink()

    def stepped(self) -> None:
        """UTC was stepped: timers of the wall clock are due at other steady instants now."""
        self._opening = None
        self._hot.disarm_scale(Scale.WALL)
        self._load_scale(Scale.WALL, 0, self._ledger.horizon_ns)

    @property
    def next_ns(self) -> int:
        """When `extend` has something to do again (steady)."""
        if self._opening is not None:
            return self._ledger.now.steady_ns
        return self._ledger.horizon_ns - self._span_ns + self._span_ns // 10

    def _load(self, from_ns: int, to_ns: int) -> None:
        self._ledger.horizon_ns = max(to_ns, self._ledger.horizon_ns)
        self._load_scale(Scale.STEADY, from_ns, to_ns)
        self._load_scale(Scale.WALL, from_ns, to_ns)

    def _load_scale(self, scale: Scale, from_ns: int, to_ns: int) -> None:
        shift_ns = self._shift_ns(scale)
        from_ns, to_ns = (from_ns + shift_ns if from_ns else 0), to_ns + shift_ns
        from_ns = max(from_ns, self._ledger.held.before_ns[scale])  # what is held is not armed
        ids, dues, _ = self._ledger.tables.due(scale, from_ns, to_ns)
        if ids:
            self._hot.load(ids, dues, scale, -shift_ns, TICK_NS)
        self._hot.load_newer(from_ns, to_ns, scale, -shift_ns, TICK_NS)

    def _shift_ns(self, scale: Scale) -> int:
        return self._ledger.now.shift_ns if scale == Scale.WALL else 0

    def _shrink(self) -> None:
        now_ns = self._ledger.now.steady_ns
        while self._hot.armed_count > self._armed_max and self._span_ns > SPAN_NS_MIN:
            self._span_ns = max(self._span_ns // 2, SPAN_NS_MIN)
            self._ledger.horizon_ns = now_ns + self._span_ns
            self._hot.disarm_beyond(tick_at_or_after(self._ledger.horizon_ns, TICK_NS))
