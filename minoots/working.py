"""A handler that works off a durable consumer.

    @worker("mailer", types=["expired"], concurrency=8)
    async def mail(message):
        await send(message.event.payload)

    if __name__ == "__main__":
        mail.run()

Returning acknowledges the message. An exception has it delivered again, with the exception's text
as the reason: after the consumer's backoff, or if that has none after 1 s, 2 s, 4 s ... up to a
minute. `raise Retry(delay="5m")` says when, `raise GiveUp("no such address")` dead-letters it at
once. A plain function does as well as an async one; it runs in a thread. SIGTERM and Ctrl-C drain:
nothing new is begun, what is being worked on is finished, the rest is given back at once.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from minoots.aio import AsyncClient
from minoots.arguments import Duration
from minoots.blocking import Message
from minoots.consumer import AsyncConsumer, AsyncMessage, reason_of

if TYPE_CHECKING:
    from minoots.done import DoneKeys  # it opens SQLite, which the compiled node has not

H = TypeVar("H", bound=Callable[..., Any])

DRAIN_S = 30.0  # that handlers may take to finish after a stop
RETRY_S, RETRY_S_MAX = 1, 60


class Retry(Exception):
    """Raised by a handler: deliver it again, after `delay`."""

    def __init__(self, reason: str = "", *, delay: Duration | None = None) -> None:
        super().__init__(reason)
        self.delay = delay


class GiveUp(Exception):
    """Raised by a handler: it can never be done; dead-letter it."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a handler is run. retry: the delay after a failure, instead of the backoff; drain_s: what
    handlers may take to finish after a stop, then they are cancelled and their messages given back;
    threads are left alone. None: as long as it takes."""

    concurrency: int = 1
    retry: Duration | None = None
    drain_s: float | None = DRAIN_S
    done: DoneKeys | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 10_000:
            raise ValueError(f"concurrency is {self.concurrency}; the range is 1 to 10,000")


class Worker(Generic[H]):
    """A handler with the consumer it works for; called, it is the handler itself."""

    def __init__(
        self, handler: H, name: str, options: Options, prefetch: int | None, config: dict[str, Any]
    ) -> None:
        self.handler = handler
        self.name = name
        self._options = options
        self._prefetch = prefetch or 2 * options.concurrency
        self._config = config

    def __call__(self, *args: Any, **named: Any) -> Any:
        """The handler itself: for tests of it."""
        return self.handler(*args, **named)

    def run(self, control: str | None = None, **client: Any) -> dict[str, int]:
        """Work until SIGTERM or Ctrl-C; how many were settled how. The arguments are Client's."""
        return asyncio.run(self._run(control, client))

    async def _run(self, control: str | None, named: dict[str, Any]) -> dict[str, int]:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with AsyncClient(control, **named) as client:
            return await self.serve(client, stop)

    async def serve(self, client: AsyncClient, stop: asyncio.Event | None = None) -> dict[str, int]:
        """Work in this event loop until `stop` is set; how many were settled how.

        Raises what ends a consumer: NotFound when it was deleted, for example.
        """
        async with client.consumer(self.name, prefetch=self._prefetch, **self._config) as consumer:
            handle = self._handle
            if inspect.iscoroutinefunction(self.handler):
                await work_off(consumer, handle, self._options, stop)
                return consumer.counts
            pool = ThreadPoolExecutor(self._options.concurrency, "minoots-worker")
            try:
                handle = partial(self._handle_in_thread, pool, asyncio.get_running_loop())
                await work_off(consumer, handle, self._options, stop)
            finally:
                pool.shutdown(wait=False)
            return consumer.counts

    async def _handle(self, message: AsyncMessage) -> None:
        await self.handler(message)

    async def _handle_in_thread(
        self, pool: ThreadPoolExecutor, loop: asyncio.AbstractEventLoop, message: AsyncMessage
    ) -> None:
        def do(work: Coroutine[Any, Any, Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result()

        await loop.run_in_executor(
            pool, self.handler, Message(message, do, loop.call_soon_threadsafe)
        )


def worker(
    name: str,
    *,
    concurrency: int = 1,
    prefetch: int | None = None,
    retry: Duration | None = None,
    drain_s: float | None = DRAIN_S,
    done: DoneKeys | None = None,
    **config: Any,
) -> Callable[[H], Worker[H]]:
    """Make a Worker of a function that takes a message.

    concurrency: messages worked on at the same time. prefetch: held here; twice the concurrency if
    not said. done: what was done before is acknowledged and not done again. config: as of
    `client.consumer`; without any the consumer has to be there.
    """
    options = Options(concurrency, retry, drain_s, done)
    return lambda handler: Worker(handler, name, options, prefetch, config)


async def work_off(
    consumer: AsyncConsumer,
    handle: Callable[[AsyncMessage], Awaitable[None]],
    options: Options,
    stop: asyncio.Event | None = None,
) -> None:
    """Hand the messages of an open consumer to `handle`, several at a time, until `stop` is set."""
    hands = [
        asyncio.create_task(_work(consumer, handle, options)) for _ in range(options.concurrency)
    ]
    told = asyncio.create_task((stop or asyncio.Event()).wait())
    try:
        await asyncio.wait({told, *hands}, return_when=asyncio.FIRST_COMPLETED)
        consumer.stop()
        await asyncio.wait(hands, timeout=options.drain_s)
    finally:
        told.cancel()
        for hand in hands:
            hand.cancel()
        ended = await asyncio.gather(*hands, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error


async def _work(
    consumer: AsyncConsumer, handle: Callable[[AsyncMessage], Awaitable[None]], options: Options
) -> None:
    async for message in consumer:
        done = options.done
        # The file of what was done may be slow, or held by another process: not in this thread.
        if done is not None and await asyncio.to_thread(done.__contains__, message.event):
            message.ack_soon()
            continue
        try:
            await handle(message)
            if done is not None:
                await asyncio.to_thread(done.add, message.event)
        except Retry as again:
            delay = _retry_delay(consumer, options, message) if again.delay is None else again.delay
            await message.nack(delay, str(again) or "to be tried again")
        except GiveUp as given_up:
            await message.term(str(given_up))
        except Exception as error:  # a handler's faults are the message's, whatever they are
            await message.nack(_retry_delay(consumer, options, message), reason_of(error))
        else:
            message.ack_soon()


def _retry_delay(
    consumer: AsyncConsumer, options: Options, message: AsyncMessage
) -> Duration | None:
    if options.retry is not None or consumer.config.backoff:
        return options.retry
    return min(RETRY_S << min(message.attempt - 1, 16), RETRY_S_MAX)
