"""All consumers of a node, and what of them has changed in the open turn."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgenode.call import Call
from edgenode.consumers.deadlines import Deadlines
from edgenode.consumers.plan import Plan
from edgenode.consumers.state import Consumer, Key, Waiting
from minoots.wire.bodies import ConsumerConfig

INACTIVE, LOOK = "inactive", "look"  # deadlines that are of the consumer itself


@dataclass(slots=True)
class Consumers:
    """See the module. touched: whose stored state no longer holds. hungry: those that somebody
    waits for. listed: whether the list of their names is to be stored anew. gone: keys of notes
    that are to be forgotten. copies: of dead letters' events, to be stored, by key."""

    deadlines: Deadlines[tuple[Consumer, object]]
    by_key: dict[Key, Consumer] = field(default_factory=dict)
    touched: set[Key] = field(default_factory=set)
    hungry: dict[Key, Consumer] = field(default_factory=dict)
    listed: bool = False
    gone: list[bytes] = field(default_factory=list)
    copies: dict[bytes, bytes] = field(default_factory=dict)

    def get(self, tenant: str, name: str) -> Consumer | None:
        """The consumer with this name."""
        return self.by_key.get((tenant, name))

    def make(
        self, tenant: str, config: ConsumerConfig, plan: Plan, created_ns: int, cursor: int
    ) -> Consumer:
        """One more consumer."""
        consumer = Consumer(tenant, config, plan, created_ns, cursor, self.deadlines, self.touched)
        self.by_key[consumer.key] = consumer
        return consumer

    def remove(self, consumer: Consumer) -> None:
        """Forget a consumer and its deadlines."""
        del self.by_key[consumer.key]
        self.hungry.pop(consumer.key, None)
        self.touched.discard(consumer.key)
        for held in consumer.each():
            self.deadlines.disarm(held.handle)
        for waiting in consumer.waiting:
            self.deadlines.disarm(waiting.handle)
        self.deadlines.disarm(consumer.inactive_handle)
        self.listed = True

    def active(self, consumer: Consumer, now_ns: int) -> None:
        """Somebody uses it: it is not deleted for being idle."""
        consumer.active_ns = now_ns
        if consumer.plan.inactive_ns and not consumer.inactive_handle:
            due_ns = now_ns + consumer.plan.inactive_ns
            consumer.inactive_handle = self.deadlines.arm(due_ns, (consumer, INACTIVE))

    @property
    def floor(self) -> int | None:
        """What none of them needs any more, up to this seq; None: there are none."""
        return min((consumer.floor for consumer in self.by_key.values()), default=None)

    @property
    def is_changed(self) -> bool:
        """Whether something is to be stored."""
        return bool(self.touched or self.gone or self.copies or self.listed)

    def wait(self, consumer: Consumer, waiting: Waiting) -> None:
        """Have a pull wait."""
        waiting.handle = self.deadlines.arm(waiting.until_ns, (consumer, LOOK))
        consumer.waiting.append(waiting)
        self.hungry[consumer.key] = consumer

    def end_wait(self, consumer: Consumer, waiting: Waiting) -> None:
        """The pull has been answered."""
        self.deadlines.disarm(waiting.handle)
        consumer.waiting.remove(waiting)
        if not consumer.waiting:
            self.hungry.pop(consumer.key, None)

    def take_waiting(self) -> list[Call]:
        """All pulls that wait; they do not wait any more."""
        calls = []
        for consumer in list(self.hungry.values()):
            for waiting in list(consumer.waiting):
                calls.append(waiting.call)
                self.end_wait(consumer, waiting)
        return calls
