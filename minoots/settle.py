"""Acknowledgements on their way: many in one request, sent again until the node has taken them.

The first one leaves at once; those that come while a request is under way share the next one. So a
lone acknowledgement waits for nothing, and a thousand cost one commit. Each request has one
idempotency key for all its attempts, over restarts of the node too: what was acknowledged is
acknowledged once, and is never called stale because its own reply was lost.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import NamedTuple, Protocol, TypeVar

from minoots import consumer_verbs as verbs
from minoots.consumer_verbs import Settled
from minoots.requests import Request, idem_key
from minoots.wire.bodies import DELIVERIES_MAX
from minoots.wire.problems import MinootsError, Refused, Unreachable

T = TypeVar("T")

PAUSE_S, PAUSE_S_MAX = 0.05, 1.0  # between attempts at a node that is away


class Ask(Protocol):
    """Sends a request and awaits its result: `AsyncClient.call`."""

    async def __call__(self, request: Request[T], *, idem: str | None = None) -> T: ...


class Verdict(NamedTuple):
    """What is said about a delivery: `ack`, `nack` (with a delay, a reason), `term`, or `return`: a
    nack of what was not worked on."""

    op: str
    delay: str | None = None
    reason: str = ""


class _Said(NamedTuple):
    delivery: str
    heard: asyncio.Future[bool] | None


class Settler:
    """Tells the node what became of deliveries. For one event loop.

    counts: how many counted, by verb; stale: how many did not, because they had been delivered
    again since. failure: what the node refused for good.
    """

    def __init__(self, ask: Ask, name: str) -> None:
        self._ask = ask
        self._name = name
        self._queues: dict[Verdict, deque[_Said]] = {}
        self._tasks: dict[Verdict, asyncio.Task[None]] = {}
        self._open = 0
        self.counts = {"ack": 0, "nack": 0, "term": 0, "return": 0}
        self.stale = 0
        self.failure: MinootsError | None = None

    def put(self, verdict: Verdict, delivery: str) -> None:
        """Have it told soon."""
        self._put(verdict, _Said(delivery, None))

    async def tell(self, verdict: Verdict, delivery: str) -> bool:
        """Have it told, and wait until the node has it on disk; False if it did not count."""
        heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._put(verdict, _Said(delivery, heard))
        return await heard

    def _put(self, verdict: Verdict, said: _Said) -> None:
        self._open += 1
        self._queues.setdefault(verdict, deque()).append(said)
        if verdict not in self._tasks:
            self._tasks[verdict] = asyncio.ensure_future(self._send(verdict))

    async def flush(self, limit_s: float) -> None:
        """Wait until all of it is told. Raises Unreachable after `limit_s`, and gives up then."""
        tasks = set(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=limit_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._open:
            raise Unreachable(
                f"consumer {self._name!r}: what became of {self._open} deliveries could not be "
                f"told in {limit_s:g} s; they come again"
            )

    async def _send(self, verdict: Verdict) -> None:
        queue = self._queues[verdict]
        try:
            while queue:
                some = [queue.popleft() for _ in range(min(len(queue), DELIVERIES_MAX))]
                await self._settle(verdict, some)
        finally:
            del self._queues[verdict], self._tasks[verdict]
            for said in queue:
                if said.heard is not None:
                    said.heard.cancel()

    async def _settle(self, verdict: Verdict, some: list[_Said]) -> None:
        try:
            settled = await self._until_taken(
                self._request(verdict, [one.delivery for one in some])
            )
        except MinootsError as error:
            self._open -= len(some)
            self.failure = error
            for said in some:
                if said.heard is not None and not said.heard.done():
                    said.heard.set_exception(error)
            return
        except asyncio.CancelledError:
            for said in some:
                if said.heard is not None:
                    said.heard.cancel()
            raise
        self._open -= len(some)
        self.counts[verdict.op] += settled.count
        self.stale += len(settled.stale)
        stale = set(settled.stale)
        for said in some:
            if said.heard is not None and not said.heard.done():
                said.heard.set_result(said.delivery not in stale)

    async def _until_taken(self, request: Request[Settled]) -> Settled:
        idem, pause_s = idem_key(os.urandom(16)), PAUSE_S
        while True:
            try:
                return await self._ask(request, idem=idem)
            except Unreachable:
                pass
            except Refused as refused:
                if not refused.retryable:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def _request(self, verdict: Verdict, deliveries: list[str]) -> Request[Settled]:
        if verdict.op == "ack":
            return verbs.ack(self._name, deliveries)
        if verdict.op == "term":
            return verbs.term(self._name, deliveries, verdict.reason)
        return verbs.nack(self._name, deliveries, verdict.delay, verdict.reason)
