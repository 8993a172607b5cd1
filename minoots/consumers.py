"""`client.consumers` and `client.dlq`: the verbs of durable consumers, one by one.

For work that goes on, `client.consumer(name)` does the pulling and telling; these are for programs
that decide themselves when to pull, and for looking after consumers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from minoots import consumer_verbs as verbs
from minoots.arguments import Duration
from minoots.consumer_verbs import (
    ConsumerView,
    DeadLetter,
    Delivered,
    Settled,
    config_of,
    deliveries_of,
)
from minoots.requests import Request
from minoots.settle import Ask
from minoots.wire.bodies import PAGE_MAX, ConsumerConfig, EventFilter

T = TypeVar("T")

# Inside the classes, `list` is a verb.
Messages = list[Delivered]
Told = str | Delivered | Iterable[str | Delivered]
Events = EventFilter | Mapping[str, Any] | None


class Call(Protocol):
    """Sends a request and waits for its result: `Client.call`."""

    def __call__(self, request: Request[T], *, idem: str | None = None) -> T: ...


def _filter(events: Events) -> EventFilter:
    if events is None:
        return EventFilter()
    return events if isinstance(events, EventFilter) else EventFilter(**events)


def setup(name: str, config: Mapping[str, Any]) -> Request[ConsumerView]:
    """What `client.consumer(name, **config)` begins with: the one that is there, or it is made."""
    return verbs.create(config_of(name, **config)) if config else verbs.info(name)


class Consumers:
    """The verbs of consumers. Settling returns how many counted, and which were `stale`."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def create(
        self, name: str | ConsumerConfig, *, idem: str | None = None, **config: Any
    ) -> ConsumerView:
        """Make a consumer; the same again is no error. The members of `config` are those of
        `minoots.consumer_verbs.config_of`. Raises AlreadyExists if there is another of the name."""
        asked = name if isinstance(name, ConsumerConfig) else config_of(name, **config)
        return self._call(verbs.create(asked), idem=idem)

    def info(self, name: str) -> ConsumerView:
        """A consumer, and how many events are pending. Raises NotFound."""
        return self._call(verbs.info(name))

    def delete(self, name: str, *, idem: str | None = None) -> ConsumerView:
        """End a consumer with its dead letters. Raises NotFound."""
        return self._call(verbs.delete(name), idem=idem)

    def list(self) -> Iterator[ConsumerView]:
        """All consumers, in the order of their names."""
        cursor: str | None = None
        while True:
            page = self._call(verbs.list_page(PAGE_MAX, cursor))
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def pull(self, name: str, batch: int = 1, wait: Duration = 0) -> Messages:
        """Up to `batch` (1,000) messages, as soon as there is one; none after `wait` (up to 5m).

        Asked once: if the reply is lost (Unreachable), its messages come again after ack_wait.
        """
        return self._call(verbs.pull(name, batch, wait))

    def ack(self, name: str, messages: Told, *, idem: str | None = None) -> Settled:
        """They are done."""
        return self._call(verbs.ack(name, deliveries_of(messages)), idem=idem)

    def nack(
        self,
        name: str,
        messages: Told,
        *,
        delay: Duration | None = None,
        reason: str = "",
        idem: str | None = None,
    ) -> Settled:
        """To be delivered again, after `delay`, or the backoff, or at once."""
        request = verbs.nack(name, deliveries_of(messages), delay, reason)
        return self._call(request, idem=idem)

    def term(
        self, name: str, messages: Told, *, reason: str = "", idem: str | None = None
    ) -> Settled:
        """Never to be delivered again: dead-lettered."""
        return self._call(verbs.term(name, deliveries_of(messages), reason), idem=idem)

    def progress(self, name: str, messages: Told) -> Settled:
        """Still at it: ack_wait begins anew."""
        return self._call(verbs.progress(name, deliveries_of(messages)))


class DeadLetters:
    """The verbs of dead letters."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def list(self, consumer: str, filter: Events = None) -> Iterator[DeadLetter]:
        """A consumer's dead letters, in the order of their seq. filter: as of `replay`."""
        cursor: str | None = None
        while True:
            page = self._call(verbs.dead_page(consumer, _filter(filter), PAGE_MAX, cursor))
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def redrive(
        self,
        consumer: str | None = None,
        filter: Events = None,
        *,
        ids: Sequence[str] | None = None,
        dry_run: bool = False,
        idem: str | None = None,
    ) -> int:
        """Have dead letters delivered again, as often as before: by `ids`, or those of a
        consumer that pass a filter; how many. dry_run: only count."""
        request = verbs.dead_take("dlq.redrive", ids, consumer, filter, dry_run=dry_run)
        return self._call(request, idem=idem)

    def drop(
        self,
        consumer: str | None = None,
        filter: Events = None,
        *,
        ids: Sequence[str] | None = None,
        dry_run: bool = False,
        idem: str | None = None,
    ) -> int:
        """Forget dead letters; chosen as by `redrive`."""
        request = verbs.dead_take("dlq.drop", ids, consumer, filter, dry_run=dry_run)
        return self._call(request, idem=idem)


class AsyncConsumers:
    """Consumers, awaited."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def create(
        self, name: str | ConsumerConfig, *, idem: str | None = None, **config: Any
    ) -> ConsumerView:
        """Make a consumer; see `Consumers.create`."""
        asked = name if isinstance(name, ConsumerConfig) else config_of(name, **config)
        return await self._ask(verbs.create(asked), idem=idem)

    async def info(self, name: str) -> ConsumerView:
        """A consumer, and how many events are pending. Raises NotFound."""
        return await self._ask(verbs.info(name))

    async def delete(self, name: str, *, idem: str | None = None) -> ConsumerView:
        """End a consumer with its dead letters. Raises NotFound."""
        return await self._ask(verbs.delete(name), idem=idem)

    async def list(self) -> AsyncIterator[ConsumerView]:
        """All consumers, in the order of their names."""
        cursor: str | None = None
        while True:
            page = await self._ask(verbs.list_page(PAGE_MAX, cursor))
            for view in page.items:
                yield view
            cursor = page.next_cursor
            if cursor is None:
                return

    async def pull(self, name: str, batch: int = 1, wait: Duration = 0) -> Messages:
        """Up to `batch` messages; see `Consumers.pull`."""
        return await self._ask(verbs.pull(name, batch, wait))

    async def ack(self, name: str, messages: Told, *, idem: str | None = None) -> Settled:
        """They are done."""
        return await self._ask(verbs.ack(name, deliveries_of(messages)), idem=idem)

    async def nack(
        self,
        name: str,
        messages: Told,
        *,
        delay: Duration | None = None,
        reason: str = "",
        idem: str | None = None,
    ) -> Settled:
        """To be delivered again, after `delay`, or the backoff, or at once."""
        request = verbs.nack(name, deliveries_of(messages), delay, reason)
        return await self._ask(request, idem=idem)

    async def term(
        self, name: str, messages: Told, *, reason: str = "", idem: str | None = None
    ) -> Settled:
        """Never to be delivered again: dead-lettered."""
        return await self._ask(verbs.term(name, deliveries_of(messages), reason), idem=idem)

    async def progress(self, name: str, messages: Told) -> Settled:
        """Still at it: ack_wait begins anew."""
        return await self._ask(verbs.progress(name, deliveries_of(messages)))


class AsyncDeadLetters:
    """DeadLetters, awaited."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def list(self, consumer: str, filter: Events = None) -> AsyncIterator[DeadLetter]:
        """A consumer's dead letters, in the order of their seq."""
        cursor: str | None = None
        while True:
            page = await self._ask(verbs.dead_page(consumer, _filter(filter), PAGE_MAX, cursor))
            for dead in page.items:
                yield dead
            cursor = page.next_cursor
            if cursor is None:
                return

    async def redrive(
        self,
        consumer: str | None = None,
        filter: Events = None,
        *,
        ids: Sequence[str] | None = None,
        dry_run: bool = False,
        idem: str | None = None,
    ) -> int:
        """Have dead letters delivered again; see `DeadLetters.redrive`."""
        request = verbs.dead_take("dlq.redrive", ids, consumer, filter, dry_run=dry_run)
        return await self._ask(request, idem=idem)

    async def drop(
        self,
        consumer: str | None = None,
        filter: Events = None,
        *,
        ids: Sequence[str] | None = None,
        dry_run: bool = False,
        idem: str | None = None,
    ) -> int:
        """Forget dead letters; chosen as by `redrive`."""
        request = verbs.dead_take("dlq.drop", ids, consumer, filter, dry_run=dry_run)
        return await self._ask(request, idem=idem)
