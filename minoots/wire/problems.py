"""Problems: the one table of refusals (RFC 9457 members plus the contract's own).

MinootsError
 ├── Refused            the node answered with a problem; one subclass for each code
 ├── Unreachable        no node answered
 └── ProtocolError      what came back is not of the protocol
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

TYPE_BASE = "https://minoots.io/problems/"


class Fault(msgspec.Struct, omit_defaults=True, frozen=True):
    """One member that is wrong: `pointer` is a JSON pointer (RFC 6901) into the body."""

    pointer: str
    detail: str


class Problem(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The body of an `E` reply."""

    type: str = ""
    title: str = ""
    status: int = 0
    detail: str = ""
    code: str
    retryable: bool = False
    retry_after_ms: int | None = None
    errors: list[Fault] = []


class Code(NamedTuple):
    """One row of the table: HTTP status, title, and whether the same request may succeed later."""

    status: int
    title: str
    retryable: bool


CODES: dict[str, Code] = {
    "bad_frame": Code(400, "the frames are not of the protocol", False),
    "bad_json": Code(400, "not JSON", False),
    "validation": Code(422, "a member has a wrong type or value", False),
    "unknown_op": Code(404, "no such verb", False),
    "unsupported_version": Code(400, "another version of the protocol", False),
    "unauthenticated": Code(401, "no known key", False),
    "forbidden": Code(403, "not allowed to this principal", False),
    "not_found": Code(404, "no such thing", False),
    "already_exists": Code(409, "there is one already, and it differs", False),
    "already_terminal": Code(409, "the timer has ended, or its expiration is committed", False),
    "revision_conflict": Code(412, "the timer has another revision", False),
    "idempotency_key_reused": Code(422, "the key stands for another request", False),
    "quota_exceeded": Code(429, "a quota is used up", True),
    "rate_limited": Code(429, "too many requests", True),
    "too_large": Code(413, "above a size limit", False),
    "due_in_past": Code(422, "the instant has passed", False),
    "beyond_horizon": Code(422, "the instant is too far away", False),
    "bad_schedule": Code(422, "the schedule cannot be used", False),
    "no_future_occurrence": Code(422, "the schedule has no occurrence left", False),
    "payload_schema_mismatch": Code(422, "the payload does not fit its schema", False),
    "action_not_allowed": Code(403, "this action is not allowed", False),
    "out_of_retention": Code(410, "older than the log reaches", False),
    "epoch_changed": Code(409, "the log was restored from a backup", False),
    "consumer_busy": Code(409, "another holds the consumer", True),
    "not_leader": Code(421, "another node decides this", True),
    "read_only": Code(503, "the node takes no writes", True),
    "storage_full": Code(507, "no room is left", True),
    "clock_unsynchronised": Code(503, "the clock cannot be trusted", True),
    "overloaded": Code(503, "too much is waiting", True),
    "deadline_exceeded": Code(504, "the request's own deadline passed", True),
    "internal": Code(500, "a fault of the node", True),
}


class MinootsError(Exception):
    """The root of what this package raises."""


class Unreachable(MinootsError):
    """No node answered in time at this address."""


class ProtocolError(MinootsError):
    """What came back is not of the protocol."""


class Refused(MinootsError):
    """The node refused. `code`, `detail`, `errors`, `retryable`, `retry_after_ms` say why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem
        self.code = problem.code
        self.detail = problem.detail
        self.errors = problem.errors
        self.retryable = problem.retryable
        self.retry_after_ms = problem.retry_after_ms

    @staticmethod
    def of(problem: Problem) -> Refused:
        """The exception for a problem: the class named as its code is, in CamelCase."""
        return REFUSALS.get(problem.code, Refused)(problem)


def refusal(
    code: str,
    detail: str,
    *,
    pointer: str = "",
    retry_after_ms: int | None = None,
    errors: list[Fault] | None = None,
) -> Refused:
    """The exception that a node's code raises to answer with a problem of the table."""
    status, title, retryable = CODES[code]
    if errors is None:
        errors = [Fault(pointer, detail)] if pointer else []
    problem = Problem(
        type=TYPE_BASE + code,
        title=title,
        status=status,
        detail=detail,
        code=code,
        retryable=retryable,
        retry_after_ms=retry_after_ms,
        errors=errors,
    )
    return Refused.of(problem)


class BadFrame(Refused): ...


class BadJson(Refused): ...


class Validation(Refused): ...


class UnknownOp(Refused): ...


class UnsupportedVersion(Refused): ...


class Unauthenticated(Refused): ...


class Forbidden(Refused): ...


class NotFound(Refused): ...


class AlreadyExists(Refused): ...


class AlreadyTerminal(Refused): ...


class RevisionConflict(Refused): ...


class IdempotencyKeyReused(Refused): ...


class QuotaExceeded(Refused): ...


class RateLimited(Refused): ...


class TooLarge(Refused): ...


class DueInPast(Refused): ...


class BeyondHorizon(Refused): ...


class BadSchedule(Refused): ...


class NoFutureOccurrence(Refused): ...


class PayloadSchemaMismatch(Refused): ...


class ActionNotAllowed(Refused): ...


class OutOfRetention(Refused): ...


class EpochChanged(Refused): ...


class ConsumerBusy(Refused): ...


class NotLeader(Refused): ...


class ReadOnly(Refused): ...


class StorageFull(Refused): ...


class ClockUnsynchronised(Refused): ...


class Overloaded(Refused): ...


class DeadlineExceeded(Refused): ...


class Internal(Refused): ...


def _class_name(code: str) -> str:
    return "".join(word.capitalize() for word in code.split("_"))


REFUSALS: dict[str, type[Refused]] = {code: globals()[_class_name(code)] for code in CODES}
