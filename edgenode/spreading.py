"""How much later a spread timer is due: what its definition allows, and who chooses. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import orjson

from engine.record import Blob
from engine.schedule import Rule
from minoots.wire.definition import Spread
from minoots.wire.problems import refusal
from minoots.wire.times import format_duration, parse_duration

SPREAD_NS_MIN = 1_000_000
SPREAD_NS_MAX = 30 * 86_400_000_000_000

# Where a spread timer is due, from 0 on: by the mode, the text that stands for the timer, a UTC
# instant, and the window from there on (ns).
Choose = Callable[[str, str, int, int], int]


def spread_by(spread: Spread, text: str, rule: Rule, due_utc_ns: int, choose: Choose) -> int:
    """By how much a first due moves (ns). text: the timer's key or name. Raises Refused."""
    window_ns = _window(spread)
    if rule.recurring and window_ns > rule.interval_ns:
        raise refusal(
            "validation",
            f"spread.window is {spread.window!r}; a recurring timer's is at most its interval",
            pointer="/spread/window",
        )
    if spread.mode == "hashed" and not text:
        raise refusal(
            "validation",
            "spread.mode is 'hashed', and there is neither key nor name to hash; give one",
            pointer="/spread/mode",
        )
    if rule.expires_ns:
        window_ns = min(window_ns, rule.expires_ns - due_utc_ns)
    return choose(spread.mode, text, due_utc_ns, window_ns)


def _window(spread: Spread) -> int:
    try:
        window_ns = parse_duration(spread.window)
    except ValueError as error:
        raise refusal("validation", str(error), pointer="/spread/window") from None
    if not SPREAD_NS_MIN <= window_ns <= SPREAD_NS_MAX:
        raise refusal(
            "validation",
            f"spread.window is {spread.window!r}; the range is {format_duration(SPREAD_NS_MIN)} "
            f"to {format_duration(SPREAD_NS_MAX)}",
            pointer="/spread/window",
        )
    return window_ns


def spread_of(blob: Blob) -> Spread | None:
    """The spread of a stored definition."""
    if b'"spread":' not in blob.rest:
        return None
    return msgspec.convert(orjson.loads(blob.rest).get("spread"), Spread | None)
