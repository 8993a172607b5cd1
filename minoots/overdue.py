"""`client.overdue`: what was overdue at the node's start and is held, and what becomes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Protocol, TypeVar

from minoots import arguments, verbs
from minoots.arguments import Duration
from minoots.requests import Request
from minoots.wire.bodies import TimerFilter

T = TypeVar("T")

Timers = TimerFilter | Mapping[str, Any] | None


class Call(Protocol):
    """Sends a request and waits for its result: `Client.call`."""

    def __call__(self, request: Request[T], *, idem: str | None = None) -> T: ...


class AsyncCall(Protocol):
    """The same for asyncio: `AsyncClient.call`."""

    def __call__(self, request: Request[T], *, idem: str | None = None) -> Awaitable[T]: ...


def _report(timers: Timers, older_than: Duration | None, sample: int) -> Request[dict[str, Any]]:
    long = None if older_than is None else arguments.duration_text(older_than)
    return verbs.overdue(arguments.timer_filter(timers), long, sample)


def _order(word: str, timers: Timers, order: dict[str, Any]) -> Request[int]:
    return verbs.overdue_order(f"overdue.{word}", arguments.overdue_order(timers, **order))


class Overdue:
    """The verbs about held timers. order: older_than, rate (a second), dry_run (count alone)."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def report(
        self, filter: Timers = None, *, older_than: Duration | None = None, sample: int = 5
    ) -> dict[str, Any]:
        """Why timers are held, and how many of which age."""
        return self._call(_report(filter, older_than, sample))

    def fire(self, filter: Timers = None, *, idem: str | None = None, **order: Any) -> int:
        """Let go of what is held; how many those are."""
        return self._call(_order("fire", filter, order), idem=idem)

    def skip(self, filter: Timers = None, *, idem: str | None = None, **order: Any) -> int:
        """Skip what is held, so that it will not fire; how many."""
        return self._call(_order("skip", filter, order), idem=idem)


class AsyncOverdue:
    """The same for asyncio."""

    def __init__(self, call: AsyncCall) -> None:
        self._call = call

    async def report(
        self, filter: Timers = None, *, older_than: Duration | None = None, sample: int = 5
    ) -> dict[str, Any]:
        """See `Overdue.report`."""
        return await self._call(_report(filter, older_than, sample))

    async def fire(self, filter: Timers = None, *, idem: str | None = None, **order: Any) -> int:
        """See `Overdue.fire`."""
        return await self._call(_order("fire", filter, order), idem=idem)

    async def skip(self, filter: Timers = None, *, idem: str | None = None, **order: Any) -> int:
        """See `Overdue.skip`."""
        return await self._call(_order("skip", filter, order), idem=idem)
