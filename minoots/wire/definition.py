"""A timer definition: what a client asks for (contract, section 2)."""

from __future__ import annotations

from typing import Literal

import msgspec

NAME_BYTES_MAX = 255
LABELS_MAX = 32
LABEL_KEY_BYTES_MAX = 63
LABEL_VALUE_BYTES_MAX = 255
PAYLOAD_BYTES_MAX = 65_536
KEY_BYTES_MAX = 128


class After(msgspec.Struct, tag_field="kind", tag="after", forbid_unknown_fields=True):
    """Once, when `duration` has passed on a clock that no wall-clock step can move."""

    duration: str


class At(msgspec.Struct, tag_field="kind", tag="at", forbid_unknown_fields=True):
    """Once, at an instant of the wall clock (RFC 3339)."""

    instant: str


class AtLocal(
    msgspec.Struct, tag_field="kind", tag="at_local", forbid_unknown_fields=True, omit_defaults=True
):
    """Once, at a local date and time of a zone."""

    local: str
    tz: str
    disambiguation: Literal["compatible", "earlier", "later", "raise"] = "compatible"


class Every(
    msgspec.Struct, tag_field="kind", tag="every", forbid_unknown_fields=True, omit_defaults=True
):
    """Again and again: the k-th due is anchor + k * interval (fixed_rate), or `interval` after
    the fire before it was committed (fixed_delay). The anchor is the instant of scheduling unless
    given."""

    interval: str
    anchor: str | None = None
    mode: Literal["fixed_rate", "fixed_delay"] = "fixed_rate"


class Cron(
    msgspec.Struct, tag_field="kind", tag="cron", forbid_unknown_fields=True, omit_defaults=True
):
    """By a cron expression in a zone."""

    expr: str
    tz: str = "UTC"
    calendar: str | None = None


class Rrule(
    msgspec.Struct, tag_field="kind", tag="rrule", forbid_unknown_fields=True, omit_defaults=True
):
    """By RFC 5545 recurrence rules."""

    dtstart_local: str
    tz: str
    rrule: list[str] = []
    rdate: list[str] = []
    exdate: list[str] = []


class Heartbeat(
    msgspec.Struct,
    tag_field="kind",
    tag="heartbeat",
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """A dead-man's switch: fires when a beat is missing."""

    period: str | None = None
    cron: str | None = None
    grace: str | None = None


class OnEvent(
    msgspec.Struct, tag_field="kind", tag="on_event", forbid_unknown_fields=True, omit_defaults=True
):
    """After another event."""

    filter: dict[str, msgspec.Raw]
    delay: str | None = None
    debounce: str | None = None
    throttle: str | None = None


Schedule = After | At | AtLocal | Every | Cron | Rrule | Heartbeat | OnEvent

SUPPORTED_KINDS = ("after", "at", "every")


class Misfire(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What becomes of fires that were missed, because the node was down or overloaded.

    grace: a duration; a fire that is later is missed. max_lateness: one that is later is skipped.
    max_catchup, catchup_rate (per second): with fire_all alone.
    """

    policy: Literal["fire_once", "fire_all", "skip", "escalate"] = "fire_once"
    grace: str | None = None
    max_lateness: str | None = None
    max_catchup: int | None = None
    catchup_rate: float | None = None


class Spread(msgspec.Struct, forbid_unknown_fields=True):
    """How a herd is taken apart: the due is moved later by less than `window`; `random`, `hashed`
    (always the same for a key or name), or `emptiest` (where the fewest timers are due)."""

    window: str
    mode: Literal["random", "hashed", "emptiest"] = "random"


OnConflict = Literal["reject", "replace", "keep", "earliest", "latest", "extend"]

NULL = msgspec.Raw(b"null")


class Definition(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """An immutable blueprint of a timer; the body of `timer.schedule`.

    name: up to NAME_BYTES_MAX bytes, need not be unique. labels: up to LABELS_MAX pairs of text.
    payload: any JSON up to PAYLOAD_BYTES_MAX, handed back with every event. max_occurrences: at
    least 1. expires_at: RFC 3339; no occurrence is due at or after it. lateness_budget: a duration;
    an expiration that leaves later than that is told by `timer.late` as well. misfire: what becomes
    of fires that were missed. key: up to KEY_BYTES_MAX bytes, held by one timer that has not ended;
    on_conflict says what happens to a second one. spread: moves the due.
    """

    schedule: Schedule
    name: str = ""
    labels: dict[str, str] = {}
    payload: msgspec.Raw = msgspec.field(default_factory=lambda: NULL)
    max_occurrences: int | None = None
    expires_at: str | None = None
    lateness_budget: str | None = None
    key: str | None = None
    on_conflict: OnConflict | None = None
    spread: Spread | None = None
    misfire: Misfire | None = None
    action_bundle: msgspec.Raw | None = None
    agent_binding: msgspec.Raw | None = None
    escalation: msgspec.Raw | None = None
    payload_schema: msgspec.Raw | None = None
    retention: str | None = None


# Members of a definition that later versions use; a node that lacks them says so by name.
RESERVED_MEMBERS = (
    "action_bundle",
    "agent_binding",
    "escalation",
    "payload_schema",
    "retention",
)
