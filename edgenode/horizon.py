"""Which timers are in memory: those due inside the horizon, and no more than armed_max of them.

The horizon moves with time, a tenth of its span at once: what comes into it is read from the due
index of the tables, and from the hot set for what the tables do not hold yet. When more timers are
armed than allowed the span is halved and what lies beyond it is disarmed; it is on disk.
"""

from __future__ import annotations

from edgenode.config import EngineSection
from edgenode.ledger import TICK_NS, Ledger
from engine.clock import tick_at_or_after
from engine.record import Scale

SPAN_NS_MIN = 10_000_000_000


class Horizon:
    """Keeps `ledger.horizon_ns`, the steady instant up to which timers are armed."""

    def __init__(self, ledger: Ledger, engine: EngineSection) -> None:
        self._ledger = ledger
        self._hot = ledger.hot
        self._span_ns_max = engine.horizon
        self._span_ns = engine.horizon
        self._armed_max = engine.armed_max

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

    def extend(self) -> None:
        """Move on, if a tenth of the span has passed since the last time."""
        now_ns, end_ns = self._ledger.now.steady_ns, self._ledger.horizon_ns
        if end_ns - now_ns > self._span_ns - self._span_ns // 10:
            return
        if self._hot.armed_count < self._armed_max // 4:
            self._span_ns = min(self._span_ns * 2, self._span_ns_max)
        self._load(end_ns, now_ns + self._span_ns)
        self._shrink()

    def stepped(self) -> None:
        """UTC was stepped: timers of the wall clock are due at other steady instants now."""
        self._hot.disarm_scale(Scale.WALL)
        self._load_scale(Scale.WALL, 0, self._ledger.horizon_ns)

    @property
    def next_ns(self) -> int:
        """When `extend` has something to do again (steady)."""
        return self._ledger.horizon_ns - self._span_ns + self._span_ns // 10

    def _load(self, from_ns: int, to_ns: int) -> None:
        self._ledger.horizon_ns = max(to_ns, self._ledger.horizon_ns)
        self._load_scale(Scale.STEADY, from_ns, to_ns)
        self._load_scale(Scale.WALL, from_ns, to_ns)

    def _load_scale(self, scale: Scale, from_ns: int, to_ns: int) -> None:
        shift_ns = self._ledger.now.shift_ns if scale == Scale.WALL else 0
        from_ns, to_ns = (from_ns + shift_ns if from_ns else 0), to_ns + shift_ns
        ids, dues = self._ledger.tables.due(scale, from_ns, to_ns)
        if ids:
            self._hot.load(ids, dues, scale, -shift_ns, TICK_NS)
        self._hot.load_newer(from_ns, to_ns, scale, -shift_ns, TICK_NS)

    def _shrink(self) -> None:
        now_ns = self._ledger.now.steady_ns
        while self._hot.armed_count > self._armed_max and self._span_ns > SPAN_NS_MIN:
            self._span_ns = max(self._span_ns // 2, SPAN_NS_MIN)
            self._ledger.horizon_ns = now_ns + self._span_ns
            self._hot.disarm_beyond(tick_at_or_after(self._ledger.horizon_ns, TICK_NS))
