"""From the log to whoever pulls: finds what is new, delivers what is ready, wakes what waits.

All of it happens in the open turn: a reply with messages leaves when what the consumer holds from
then on is durable, so an attempt is never counted twice, whatever is killed.
"""

from __future__ import annotations

from edgenode import call as calls
from edgenode.call import Call
from edgenode.consumers import notes
from edgenode.consumers.dead import REASON_CHARS_MAX, Dead
from edgenode.consumers.room import INACTIVE
from edgenode.consumers.state import Consumer, Message, Standing, Waiting
from edgenode.ledger import Ledger
from engine.errors import StoreCorrupt
from engine.record import Kind, check_event
from minoots.wire.problems import refusal
from minoots.wire.times import format_instant

PAGE_EVENTS = 256
PAGE_BYTES = 1 << 20
LOOK_EVENTS = 8_192  # of the log that are looked at for one consumer before others go on
REPLY_BYTES_MAX = 4 << 20
SERVE_MESSAGES = 1_024  # that are sent to those who wait before others go on
DEAD_MAX = 100_000  # of one consumer; above, deliveries go on beyond max_deliver
NEVER_NS = 1 << 62
IDLE_CURSOR = 65_536  # events that a cursor may run ahead of what is stored of it


_Out = tuple[Message, bytes, int]  # with its record, and when it fired if that is a copy


class Delivery:
    """Looks after the consumers of a ledger. One page of the log is kept: many read the newest."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._room = ledger.consumers
        self._page_seq = 0
        self._page: list[bytes] = []
        self.is_behind = False  # there is more to send than one pass may

    @property
    def next_ns(self) -> int:
        """The steady instant at which `serve` has something to do, if nothing comes; far away if
        there is none."""
        next_ns = self._room.deadlines.next_ns
        return NEVER_NS if next_ns is None else next_ns

    # ------------------------------------------------------------------------------- finding

    def find_new(self, consumer: Consumer, wanted: int) -> None:
        """Hold up to `wanted` more messages, as far as the log has them and there is room."""
        end, looked = self._ledger.left_seq, 0
        while wanted > 0 and consumer.cursor <= end and looked < LOOK_EVENTS:
            if not consumer.has_room:
                return
            page, at = self._page_at(consumer.cursor, end)
            stop = min(len(page), at + end - consumer.cursor + 1)
            base = consumer.cursor - at
            looked += stop - at
            for found in consumer.plan.match.among(page, at):
                if found >= stop:
                    break
                if not consumer.has_room or wanted <= 0:
                    stop = found
                    break
                if not _is_own(consumer, page[found]):
                    wanted -= self._hold(consumer, base + found, page[found])
            consumer.cursor = base + stop

    def _hold(self, consumer: Consumer, seq: int, data: bytes) -> bool:
        """Hold one; whether it can be delivered at once."""
        held = Message(seq, timer=notes.timer_of(data) if consumer.plan.ordered else b"")
        consumer.admit(held)
        return held.standing == Standing.READY

    def _page_at(self, seq: int, end: int) -> tuple[list[bytes], int]:
        """Records that include the one at `seq`, and its place among them."""
        at = seq - self._page_seq
        if not 0 <= at < len(self._page):
            count = min(PAGE_EVENTS, end - seq + 1)
            self._page = self._ledger.log.events(seq, count, PAGE_BYTES)
            self._page_seq, at = seq, 0
            if not self._page:
                raise StoreCorrupt(f"event {seq} is gone, and a consumer waits for it")
        return self._page, at

    # ------------------------------------------------------------------------------- delivering

    def take(self, consumer: Consumer, limit: int) -> list[bytes]:
        """Up to `limit` messages as JSON; they are out from now on. 4 us each.

        Raises StoreCorrupt, and then none of them is.
        """
        out: list[_Out] = []
        try:
            size = self._take_ready(consumer, out, limit, 0)
            if len(out) < limit and size < REPLY_BYTES_MAX:
                self.find_new(consumer, limit - len(out))
                self._take_ready(consumer, out, limit, size)
        except StoreCorrupt:
            for held, _, _ in out:
                held.attempt -= 1
                consumer.put_back(held, self._ledger.now.steady_ns, 0)
            raise
        consumer.counts.delivered += len(out)
        consumer.counts.redelivered += sum(held.attempt > 1 for held, _, _ in out)
        return self._messages(out)

    def _take_ready(self, consumer: Consumer, out: list[_Out], limit: int, size: int) -> int:
        """Add what is ready to `out`, up to `limit` of them or REPLY_BYTES_MAX; their size."""
        while len(out) < limit and size < REPLY_BYTES_MAX:
            held = consumer.deliver(self._ledger.now.steady_ns)
            if held is None:
                break
            out.append((held, b"", -1))
            data, fired_ns = self._event(consumer, held)
            check_event(held.seq, data)
            out[-1] = (held, data, fired_ns)
            size += len(data)
        return size

    def _messages(self, out: list[_Out]) -> list[bytes]:
        ledger, messages = self._ledger, []
        fired_of = self._receipts([held.seq for held, _, _ in out if not held.copied])
        deadlines: dict[int, bytes] = {}
        for held, data, copied_ns in out:
            deadline = deadlines.get(held.until_ns)
            if deadline is None:
                deadline = format_instant(held.until_ns + ledger.now.shift_ns).encode()
                deadlines[held.until_ns] = deadline
            fired_ns = copied_ns if held.copied else fired_of.get(held.seq, -1)
            messages.append(
                b'{"delivery":"%d.%d.%d","seq":%d,"attempt":%d,"ack_deadline":"%b","event":%b}'
                % (
                    ledger.identity.epoch,
                    held.seq,
                    held.attempt,
                    held.seq,
                    held.attempt,
                    deadline,
                    ledger.encoder.event(held.seq, data, fired_ns, held.attempt),
                )
            )
        return messages

    def _receipts(self, seqs: list[int]) -> dict[int, int]:
        """When those among them that are expiries fired."""
        if not seqs:
            return {}
        ledger, found = self._ledger, {}
        if seqs[-1] - seqs[0] < 16 * len(seqs):
            found = ledger.log.receipts(seqs[0], seqs[-1])
        else:
            for seq in seqs:
                found |= ledger.log.receipts(seq, seq)
        newer = ((seq, ledger.fired_ns(seq)) for seq in seqs)
        return found | {seq: fired_ns for seq, fired_ns in newer if fired_ns is not None}

    def _event(self, consumer: Consumer, held: Message) -> tuple[bytes, int]:
        """The record of a message, and when it fired if it is a copy that says so."""
        if held.copied:
            return notes.event_of(self.copy(consumer, held.seq))
        at = held.seq - self._page_seq
        if 0 <= at < len(self._page):
            return self._page[at], -1
        data = self._ledger.record(held.seq)
        if data is None:
            raise StoreCorrupt(f"event {held.seq} is gone, and {consumer.name!r} holds it")
        return data, -1

    # ------------------------------------------------------------------------------- waiting

    def wait(self, consumer: Consumer, call: Call, wanted: int, until_ns: int, push: bool) -> None:
        """Have a pull wait; another attempt of the same takes its place."""
        for waiting in consumer.waiting:
            if (waiting.call.peer, waiting.call.corr) == (call.peer, call.corr):
                self._room.end_wait(consumer, waiting)
                break
        self._room.wait(consumer, Waiting(call, wanted, until_ns, push))

    def serve(self) -> None:
        """Do what deadlines ask for, and give those that wait what has come."""
        while ran_out := self._room.deadlines.expire(self._ledger.now.steady_ns):
            for consumer, what in ran_out:
                self._run_out(consumer, what)
        self.is_behind = False
        if not self._room.hungry:
            return
        left = SERVE_MESSAGES
        for consumer in list(self._room.hungry.values()):
            try:
                left -= self._feed(consumer, left)
            except StoreCorrupt as error:
                self._refuse_waiting(consumer, "internal", str(error))
            if left <= 0:
                self.is_behind = True
                return

    def _feed(self, consumer: Consumer, most: int) -> int:
        """Give the pulls that wait for a consumer what there is; how many messages."""
        given = 0
        while consumer.waiting and given < most:
            if not consumer.has_ready and consumer.cursor > self._ledger.left_seq:
                break
            waiting = consumer.waiting[0]
            messages = self.take(consumer, min(waiting.left, most - given))
            if not messages:
                self.is_behind |= consumer.has_room and consumer.cursor <= self._ledger.left_seq
                break
            given += len(messages)
            self._give(consumer, waiting, messages)
        return given

    def _give(self, consumer: Consumer, waiting: Waiting, messages: list[bytes]) -> None:
        answers, body = self._ledger.answers, body_of(messages)
        waiting.left -= len(messages)
        if not waiting.push:
            self._room.end_wait(consumer, waiting)
            answers.append(calls.final(waiting.call, body))
            return
        answers.append(calls.partial(waiting.call, body))
        if waiting.left:
            consumer.waiting.rotate(-1)
        else:
            self._room.end_wait(consumer, waiting)
            answers.append(calls.final(waiting.call, body_of([])))

    def end_waits(self) -> None:
        """Answer all who wait: nothing comes any more."""
        for call in self._room.take_waiting():
            self._ledger.answers.append(calls.final(call, body_of([])))

    def _refuse_waiting(self, consumer: Consumer, code: str, detail: str) -> None:
        problem = refusal(code, f"consumer {consumer.name!r}: {detail}")
        for waiting in list(consumer.waiting):
            self._room.end_wait(consumer, waiting)
            call = waiting.call
            self._ledger.answers.append(calls.problem(call.door, call.peer, call.corr, problem))

    def _run_out(self, consumer: Consumer, what: object) -> None:
        now_ns = self._ledger.now.steady_ns
        if isinstance(what, Message):
            if what.standing == Standing.LATER:
                consumer.put_back(what, now_ns, 0)
            elif consumer.is_exhausted(what):
                self.bury(consumer, what, f"not acknowledged in time, {what.attempt} times")
            else:
                consumer.put_back(what, now_ns, 0)
        elif what == INACTIVE:
            self._end_if_idle(consumer, now_ns)
        else:
            for waiting in [one for one in consumer.waiting if one.until_ns <= now_ns]:
                self._room.end_wait(consumer, waiting)
                self._ledger.answers.append(calls.final(waiting.call, body_of([])))

    def _end_if_idle(self, consumer: Consumer, now_ns: int) -> None:
        consumer.inactive_handle = 0
        idle_since_ns = now_ns if consumer.waiting else consumer.active_ns
        if now_ns - idle_since_ns >= consumer.plan.inactive_ns:
            self.delete(consumer, "inactive_threshold")
        else:
            due_ns = idle_since_ns + consumer.plan.inactive_ns
            consumer.inactive_handle = self._room.deadlines.arm(due_ns, (consumer, INACTIVE))

    # ------------------------------------------------------------------------------- the dead

    def bury(self, consumer: Consumer, held: Message, reason: str) -> None:
        """Dead-letter a message, with a copy of its event; the log says so.

        With DEAD_MAX of them, or an event that is damaged, it is to be delivered again instead:
        nothing is dropped, and who pulls what is damaged is told.
        """
        ledger = self._ledger
        if len(consumer.dead) >= DEAD_MAX or not self._keep_copy(consumer, held):
            consumer.put_back(held, ledger.now.steady_ns, consumer.wait_ns(held))
            return
        reason = reason[:REASON_CHARS_MAX]
        consumer.settle(held)
        consumer.dead.add(Dead(held.seq, held.attempt, reason, ledger.now.utc_ns))
        ledger.tell(
            Kind.DEAD_LETTERED,
            calls.encode(
                {
                    "consumer": consumer.name,
                    "seq": held.seq,
                    "attempts": held.attempt,
                    "reason": reason,
                }
            ),
        )

    def _keep_copy(self, consumer: Consumer, held: Message) -> bool:
        """Have the event kept for as long as the message is dead; False if it is damaged."""
        if held.copied:
            return True
        try:
            data, _ = self._event(consumer, held)
            check_event(held.seq, data)
        except StoreCorrupt:
            return False
        fired_ns = self._receipts([held.seq]).get(held.seq, -1)
        key = notes.key_of(consumer, b"dead", held.seq)
        self._room.copies[key] = notes.copy_of(data, fired_ns)
        return True

    def copy(self, consumer: Consumer, seq: int) -> bytes:
        """The copy of a dead letter's event. Raises StoreCorrupt."""
        key = notes.key_of(consumer, b"dead", seq)
        content = self._room.copies.get(key) or self._ledger.content(key)
        if not content:
            raise StoreCorrupt(f"the copy of event {seq}, a dead letter, is not there")
        return content

    def redrive(self, consumer: Consumer, dead: Dead) -> None:
        """Have a dead letter delivered again: attempts go on counting, limits begin anew."""
        consumer.dead.remove(dead.seq)
        data, _ = notes.event_of(self.copy(consumer, dead.seq))
        timer = notes.timer_of(data) if consumer.plan.ordered else b""
        known = dead.attempts
        held = Message(dead.seq, attempt=known, copied=True, before=known, timer=timer)
        consumer.admit(held)

    def drop(self, consumer: Consumer, dead: Dead) -> None:
        """Forget a dead letter."""
        consumer.dead.remove(dead.seq)
        self.forget_copy(consumer, dead.seq)
        consumer.touch()

    def forget_copy(self, consumer: Consumer, seq: int) -> None:
        """Nobody needs the copy of an event any more."""
        key = notes.key_of(consumer, b"dead", seq)
        self._room.copies.pop(key, None)
        self._room.gone.append(key)

    # ------------------------------------------------------------------------------- the end of it

    def ack(self, consumer: Consumer, held: Message) -> None:
        """It is done."""
        consumer.settle(held)
        consumer.counts.acked += 1
        if held.copied:
            self.forget_copy(consumer, held.seq)

    def delete(self, consumer: Consumer, reason: str) -> None:
        """End a consumer and all that it holds; the log says so."""
        self._refuse_waiting(consumer, "not_found", f"it was deleted, by {reason}")
        gone = self._room.gone
        gone += [notes.key_of(consumer, b"piece", number) for number in consumer.dead.pieces]
        gone.append(notes.key_of(consumer))
        for seq in [*(dead.seq for dead in consumer.dead.after(0)), *consumer.again]:
            self.forget_copy(consumer, seq)
        self._room.remove(consumer)
        told = {"consumer": consumer.name, "reason": reason}
        self._ledger.tell(Kind.CONSUMER_DELETED, calls.encode(told))

    # ------------------------------------------------------------------------------- regular work

    def upkeep(self) -> None:
        """Store cursors that have run far ahead: else a start would look at all of it again."""
        for consumer in self._room.by_key.values():
            if consumer.cursor - consumer.noted_cursor > IDLE_CURSOR:
                consumer.touch()


def _is_own(consumer: Consumer, data: bytes) -> bool:
    """Whether a record tells of the consumer's own dead letters: that would go on for ever."""
    return data[5] == Kind.DEAD_LETTERED and b'"consumer":"%b",' % consumer.name.encode() in data


def body_of(messages: list[bytes]) -> bytes:
    """The reply that carries messages."""
    return b'{"messages":[%b]}' % b",".join(messages)
