"""A durable consumer as an asynchronous iterator of messages; `minoots.blocking` has its twin.

    async with client.consumer("mailer", types=["expired"]) as consumer:
        async for message in consumer:
            await send(message.event)
            await message.ack()

Three things go on beside the program's own work: messages are pulled ahead, up to `prefetch`;
`progress` is asked for all of them that are in hand, so that none comes again while it is worked
on; what became of them is told, many in a request. A message that is not settled comes again, here
or to another worker of the same consumer: with the same dedupe key and a higher `attempt`.

Pulls are plain long polls, one under way at a time. A pull that waits means that there is nothing
to deliver, so more credit than it carries would bring nothing sooner; and where the connection or
this process breaks, no more than one batch is on its way to nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import islice

from minoots import consumer_verbs as verbs
from minoots.arguments import Duration, duration_text
from minoots.consumer_verbs import ConsumerView, waits_s
from minoots.event import Event
from minoots.hand import Hand, InHand
from minoots.requests import Request
from minoots.settle import PAUSE_S, PAUSE_S_MAX, Ask, Settler, Verdict
from minoots.transport import monotonic_s
from minoots.wire.bodies import DELIVERIES_MAX, ConsumerConfig
from minoots.wire.problems import MinootsError, Refused, Unreachable
from minoots.wire.times import SECOND, parse_duration

PREFETCH_DEFAULT = 100
WAIT_DEFAULT = "1s"  # of a long poll: how long a stop may have to wait for the node
KEEP_DEFAULT = "1h"
FLUSH_S = 10.0  # that leaving a consumer may take to tell what became of its messages

_AT_ONCE = "0s"
_UNREAD = "handed back unread by a worker that stopped"


class AsyncMessage:
    """One delivery of an event. Settle it: `ack`, `nack` or `term`.

    Each of them waits until the node has it on disk, and returns False if it did not count: the
    message had been delivered again since, or settled.
    """

    __slots__ = ("_consumer", "_event", "_held")

    def __init__(self, consumer: AsyncConsumer, held: InHand) -> None:
        self._consumer = consumer
        self._held = held
        self._event: Event | None = None

    @property
    def event(self) -> Event:
        """What happened; its `dedupe_key` is the same at every delivery."""
        if self._event is None:
            self._event = self._held.delivered.event
        return self._event

    @property
    def raw(self) -> bytes:
        """The event's JSON as it came."""
        return bytes(self._held.delivered.raw)

    @property
    def delivery(self) -> str:
        """What the node calls this delivery."""
        return self._held.delivered.delivery

    @property
    def attempt(self) -> int:
        """The number of this delivery, from 1."""
        return self._held.delivered.attempt

    @property
    def is_last(self) -> bool:
        """Whether it is dead-lettered, rather than delivered again, if it is not acknowledged."""
        return self._consumer.hand.is_last(self._held.delivered)

    @property
    def lost(self) -> bool:
        """Whether it is known to have been delivered again: another may be working on it."""
        return self._held.lost

    async def ack(self) -> bool:
        """It is done."""
        return await self._consumer.settle(self, Verdict("ack"))

    def ack_soon(self) -> None:
        """It is done; do not wait for the node. `consumer.stale` counts those that came too late,
        and leaving the consumer waits until all are told."""
        self._consumer.settle_soon(self, Verdict("ack"))

    async def nack(self, delay: Duration | None = None, reason: str = "") -> bool:
        """It could not be done: to be delivered again, after `delay`; without one after the
        consumer's backoff, or at once if it has none. The last time it is dead-lettered, with
        `reason`."""
        text = None if delay is None else duration_text(delay)
        return await self._consumer.settle(self, Verdict("nack", text, reason))

    async def term(self, reason: str = "") -> bool:
        """It can never be done: dead-lettered with `reason`."""
        return await self._consumer.settle(self, Verdict("term", None, reason))

    async def progress(self) -> bool:
        """It is still being worked on, and may take ack_wait from now; done by itself meanwhile."""
        return await self._consumer.progress(self.delivery)


class AsyncConsumer:
    """See the module. Made by `AsyncClient.consumer`; any number of tasks may iterate over it.

    prefetch: how many messages are held here at most, settled ones not counted. wait: of a long
    poll. keep: how long progress is asked for a message that is worked on; then it comes again.
    """

    def __init__(
        self,
        ask: Ask,
        setup: Request[ConsumerView],
        *,
        prefetch: int = PREFETCH_DEFAULT,
        wait: Duration = WAIT_DEFAULT,
        keep: Duration = KEEP_DEFAULT,
    ) -> None:
        self._ask = ask
        self._setup = setup
        self._wait = duration_text(wait)
        self._keep_s = parse_duration(duration_text(keep)) / SECOND
        # Checked here, before anything is asked; the waits are the consumer's.
        self.hand = Hand(prefetch, (1.0,), max_deliver=0, keep_s=self._keep_s)
        self._prefetch = prefetch
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._stopping = self._asking = False
        self._failure: MinootsError | None = None
        self._back: list[str] = []  # deliveries to be given back

    async def __aenter__(self) -> AsyncConsumer:
        view = await self._ask(self._setup)
        self.config: ConsumerConfig = view.config
        self.hand = Hand(
            self._prefetch,
            waits_s(view.config),
            max_deliver=view.config.max_deliver,
            keep_s=self._keep_s,
        )
        self._settler = Settler(self._ask, view.name)
        self._pulling = asyncio.create_task(self._pull())
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.close(error)

    def __aiter__(self) -> AsyncIterator[AsyncMessage]:
        return self

    async def __anext__(self) -> AsyncMessage:
        while True:
            held = self.hand.give(monotonic_s())
            if held is not None:
                self._room.set()
                return AsyncMessage(self, held)
            failure = self._failure or self._settler.failure
            if failure is not None:
                raise failure
            if self._is_over:
                raise StopAsyncIteration
            self._came.clear()
            await self._came.wait()

    async def poll(self, timeout_s: float) -> AsyncMessage | None:
        """The next message, or None when `timeout_s` has passed, or after `stop`."""
        try:
            return await asyncio.wait_for(self.__anext__(), timeout_s)
        except (TimeoutError, StopAsyncIteration):
            return None

    @property
    def _is_over(self) -> bool:
        # A pull that is under way may still bring messages that are delivered for the last time.
        return self._stopping and (not self.config.max_deliver or self._pulling.done())

    @property
    def counts(self) -> dict[str, int]:
        """How many were settled by `ack`, `nack`, `term`, or given back unread (`return`); and
        `stale`, how many of those did not count."""
        return {**self._settler.counts, "stale": self._settler.stale}

    def stop(self) -> None:
        """Pull no more, and give back what is not worked on yet; the iteration then ends.

        Messages that would be dead-lettered by giving them back are still given to be worked on.
        """
        self._stopping = True
        self._back += self.hand.give_back()
        if not self._asking:
            self._tell_back()  # else when the pull has ended: it would bring them back to us
        self._room.set()
        self._came.set()

    async def close(self, error: BaseException | None = None) -> None:
        """Stop; what is still in hand is to be delivered again. Waits until the node knows.

        error: why, for those that are being worked on. Raises Unreachable if the node stays away.
        """
        self.stop()
        await asyncio.wait({self._pulling})
        self._renewing.cancel()
        waited, worked = self.hand.rest()
        for delivery in waited:
            self._settler.put(Verdict("return", _AT_ONCE, _UNREAD), delivery)
        reason = "not settled by its worker" if error is None else reason_of(error)
        for delivery in worked:
            self._settler.put(Verdict("nack", None, reason), delivery)
        try:
            await self._settler.flush(FLUSH_S)
        except Unreachable:
            if error is None:
                raise

    # ------------------------------------------------------------------------------- settling

    async def settle(self, message: AsyncMessage, verdict: Verdict) -> bool:
        """Tell what became of a message, and wait until the node has it."""
        self._let_go(message.delivery)
        return await self._settler.tell(verdict, message.delivery)

    def settle_soon(self, message: AsyncMessage, verdict: Verdict) -> None:
        """The same without waiting."""
        self._let_go(message.delivery)
        self._settler.put(verdict, message.delivery)

    def _let_go(self, delivery: str) -> None:
        if self.hand.let_go(delivery):
            self._room.set()

    async def progress(self, *deliveries: str) -> bool:
        """Ask for progress; those that were delivered again are lost. False if any was."""
        settled = await self._ask(verbs.progress(self.config.name, list(deliveries)))
        self.hand.lose(settled.stale)
        self._room.set()
        return not settled.stale

    # ------------------------------------------------------------------------------- beside it

    async def _pull(self) -> None:
        pause_s = PAUSE_S
        while not self._stopping:
            wanted = self.hand.wanted
            if not wanted:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                self._asking = True
                messages = await self._ask(verbs.pull(self.config.name, wanted, self._wait))
            except MinootsError as error:
                self._asking = False
                if not _may_pass(error):
                    self._failure = error
                    break
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
                continue
            pause_s, self._asking = PAUSE_S, False
            self.hand.take(messages, monotonic_s())
            self._came.set()
        self._back += self.hand.give_back()
        self._tell_back()
        # Whoever waits looks again, now that this task is over.
        asyncio.get_running_loop().call_soon(self._came.set)

    def _tell_back(self) -> None:
        while self._back:
            self._settler.put(Verdict("return", _AT_ONCE, _UNREAD), self._back.pop())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.hand.tick_s)
            due = iter(self.hand.due(monotonic_s()))
            while some := list(islice(due, DELIVERIES_MAX)):
                try:
                    await self.progress(*some)
                except MinootsError as error:
                    if not _may_pass(error):
                        self._failure = error
                        self._came.set()
                        return


def _may_pass(error: MinootsError) -> bool:
    return isinstance(error, Unreachable) or (isinstance(error, Refused) and error.retryable)


def reason_of(error: BaseException) -> str:
    """An exception in a line, for a nack."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
