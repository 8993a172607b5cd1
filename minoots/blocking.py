"""The durable consumer for programs without an event loop: `AsyncConsumer` on a thread of its own.

    with client.consumer("mailer", types=["expired"]) as consumer:
        for message in consumer:
            send(message.event)
            message.ack()

A thread is needed in any case: progress is asked for while the program's own code runs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, TypeVar

from minoots.aio import AsyncClient
from minoots.arguments import Duration
from minoots.consumer import AsyncConsumer, AsyncMessage
from minoots.event import Event
from minoots.wire.bodies import ConsumerConfig

T = TypeVar("T")
Do = Callable[[Coroutine[Any, Any, Any]], Any]  # awaited by the loop; its result
Soon = Callable[[Callable[[], None]], object]  # called by the loop, in order


class Message:
    """AsyncMessage for threads: the same members, and the verbs wait instead of being awaited."""

    __slots__ = ("_do", "_message", "_soon")

    def __init__(self, message: AsyncMessage, do: Do, soon: Soon) -> None:
        self._message = message
        self._do = do
        self._soon = soon

    @property
    def event(self) -> Event:
        """What happened; its `dedupe_key` is the same at every delivery."""
        return self._message.event

    @property
    def raw(self) -> bytes:
        """The event's JSON as it came."""
        return self._message.raw

    @property
    def delivery(self) -> str:
        """What the node calls this delivery."""
        return self._message.delivery

    @property
    def attempt(self) -> int:
        """The number of this delivery, from 1."""
        return self._message.attempt

    @property
    def is_last(self) -> bool:
        """Whether it is dead-lettered, rather than delivered again, if it is not acknowledged."""
        return self._message.is_last

    @property
    def lost(self) -> bool:
        """Whether it is known to have been delivered again: another may be working on it."""
        return self._message.lost

    def ack(self) -> bool:
        """It is done; False if that did not count."""
        return bool(self._do(self._message.ack()))

    def ack_soon(self) -> None:
        """It is done; do not wait for the node. Leaving the consumer waits until all are told."""
        self._soon(self._message.ack_soon)

    def nack(self, delay: Duration | None = None, reason: str = "") -> bool:
        """To be delivered again, after `delay`, or the backoff, or at once."""
        return bool(self._do(self._message.nack(delay, reason)))

    def term(self, reason: str = "") -> bool:
        """It can never be done: dead-lettered with `reason`."""
        return bool(self._do(self._message.term(reason)))

    def progress(self) -> bool:
        """It is still being worked on, and may take ack_wait from now; done by itself meanwhile."""
        return bool(self._do(self._message.progress()))


class Consumer:
    """See the module. Made by `Client.consumer`; any number of threads may iterate over it.

    connect: makes a client of its own; begin: a consumer on it. Both run in the thread.
    """

    def __init__(
        self, connect: Callable[[], AsyncClient], begin: Callable[[AsyncClient], AsyncConsumer]
    ) -> None:
        self._connect = connect
        self._begin = begin
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Consumer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="minoots-consumer", daemon=True
        )
        self._thread.start()
        try:
            self._do(self._open())
        except BaseException:
            self._end()
            raise
        return self

    async def _open(self) -> None:
        self._client = self._connect()
        try:
            self._consumer = await self._begin(self._client).__aenter__()
        except BaseException:
            await self._client.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._do(self._close(error))
        finally:
            self._end()

    async def _close(self, error: BaseException | None) -> None:
        try:
            await self._consumer.close(error)
        finally:
            await self._client.close()

    def _end(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise RuntimeError("this consumer is not open; use it by `with`")
        under_way = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return under_way.result()
        except BaseException:
            under_way.cancel()
            raise

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        try:
            return self._message(self._do(self._consumer.__anext__()))
        except StopAsyncIteration:
            raise StopIteration from None

    def _message(self, message: AsyncMessage) -> Message:
        assert self._loop is not None
        return Message(message, self._do, self._loop.call_soon_threadsafe)

    def poll(self, timeout_s: float) -> Message | None:
        """The next message, or None when `timeout_s` has passed, or after `stop`."""
        message = self._do(self._consumer.poll(timeout_s))
        return None if message is None else self._message(message)

    @property
    def config(self) -> ConsumerConfig:
        """Its configuration, as the node has it."""
        return self._consumer.config

    @property
    def counts(self) -> dict[str, int]:
        """How many were settled how; see `AsyncConsumer.counts`."""
        return self._consumer.counts

    def stop(self) -> None:
        """Pull no more, and give back what is not worked on yet; the iteration then ends. May be
        called from another thread, or a signal handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._consumer.stop)
