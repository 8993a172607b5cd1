"""From what a client asks for to what is stored: checks a definition, packs it, finds its due.

Pure. Every refusal names the member, its value, the limit and what to do.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
import orjson

from edgenode import misfire
from edgenode.config import LimitsSection
from edgenode.spreading import Choose, spread_by
from engine import schedule as rules
from engine.clock import Now
from engine.record import Blob, Scale, name_hash, pack_blob, unpack_blob
from engine.schedule import Occurrence, Rule
from minoots.wire import definition as wire
from minoots.wire.problems import Fault, Refused, refusal
from minoots.wire.times import format_duration, format_instant, parse_duration, parse_instant

_encode = msgspec.json.Encoder(order="sorted").encode

# A payload with any of these is parsed strictly: escapes that may be lone surrogates, exponents and
# digits that may be beyond a double.
_SUSPECT = re.compile(rb"\\u|[0-9][eE][+-]?[0-9]{3}|[0-9]{20}")
DEPTH_SUSPECT = 64  # more brackets than this and the payload is parsed to see how deep it is
DEPTH_MAX = 128
BUDGET_NS_MIN = 1_000
BUDGET_NS_MAX = 30 * 86_400_000_000_000


class Plan(NamedTuple):
    """A checked definition: its packed blob, its scale, and the occurrence that comes first.

    spread_ns: by how much that was moved. keyed: what was asked for, if it has a key."""

    blob: bytes
    scale: int
    first: Occurrence
    name_hash: int
    spread_ns: int = 0
    keyed: wire.Definition | None = None


class Timing(NamedTuple):
    """A checked schedule: its rule, its scale, and the occurrence that comes first."""

    rule: Rule
    scale: int
    first: Occurrence


def plan(
    asked: wire.Definition,
    now: Now,
    limits: LimitsSection,
    *,
    number: int = 1,
    choose: Choose | None = None,
) -> Plan:
    """Check a definition and pack it. Raises Refused. 3 us.

    number: of its first occurrence; `max_occurrences` are counted from there. choose: what spreads,
    needed where a definition asks for it.
    """
    most = asked.max_occurrences
    timing = time_of(
        asked.schedule,
        now,
        limits,
        max_occurrences=most if most is None or most < 1 else most + number - 1,
        expires_at=asked.expires_at,
        number=number,
    )
    name = _name(asked.name, limits)
    _check_key(asked)
    _refuse_reserved(asked)
    spread_ns = 0
    if asked.spread is not None:
        assert choose is not None, "nothing to spread with"
        timing, spread_ns = spread_out(
            asked.spread, asked.key or asked.name, timing, now.shift_ns, choose
        )
    blob = pack_blob(
        rules.pack_rule(timing.rule),
        name,
        pack_labels(asked.labels, limits) if asked.labels else b"{}",
        _encode(asked.schedule),
        _payload(asked.payload, limits),
        _rest(asked, timing.rule, number),
    )
    keyed = asked if asked.key is not None else None
    return Plan(blob, timing.scale, timing.first, name_hash(name), spread_ns, keyed)


def spread_out(
    spread: wire.Spread, text: str, timing: Timing, shift_ns: int, choose: Choose
) -> tuple[Timing, int]:
    """The same later inside the window, its grid too; and by how much. text: its key or name.
    Raises Refused."""
    due_utc_ns = timing.first.due_ns + (shift_ns if timing.scale == Scale.STEADY else 0)
    by_ns = spread_by(spread, text, timing.rule, due_utc_ns, choose)
    first = timing.first._replace(due_ns=timing.first.due_ns + by_ns)
    return Timing(rules.shifted(timing.rule, by_ns), timing.scale, first), by_ns


def _check_key(asked: wire.Definition) -> None:
    key = asked.key
    if key is None:
        if asked.on_conflict is not None:
            raise refusal(
                "validation",
                f"on_conflict is {asked.on_conflict!r} and there is no key; give one, or leave it "
                "out",
                pointer="/on_conflict",
            )
        return
    size = len(key.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= wire.KEY_BYTES_MAX or not key.isprintable():
        raise refusal(
            "validation",
            f"key is {key[:40]!r}, {size} bytes; write 1 to {wire.KEY_BYTES_MAX} bytes of "
            "printable text",
            pointer="/key",
        )


def key_of(blob: bytes) -> str | None:
    """The key of a stored definition. 0.3 us, unless there is one."""
    if b'"key":' not in blob:
        return None
    rest = unpack_blob(blob).rest
    return orjson.loads(rest).get("key") if rest else None


def _name(name: str, limits: LimitsSection) -> bytes:
    raw = name.encode("utf-8", "surrogatepass")
    if len(raw) > limits.name_bytes_max:
        raise refusal(
            "too_large",
            f"name is {len(raw)} bytes; the limit is {limits.name_bytes_max} (name_bytes_max)",
            pointer="/name",
        )
    if raw and not name.isprintable():
        raise refusal(
            "validation",
            f"name is {name[:40]!r}; control characters are not allowed, write printable text",
            pointer="/name",
        )
    return raw


def pack_labels(labels: dict[str, str], limits: LimitsSection, pointer: str = "/labels") -> bytes:
    """Labels as they are stored, the keys in order. Raises Refused."""
    if len(labels) > limits.labels_max:
        raise refusal(
            "too_large",
            f"there are {len(labels)} labels; the limit is {limits.labels_max} (labels_max)",
            pointer=pointer,
        )
    for key, value in labels.items():
        if not key or len(key.encode()) > wire.LABEL_KEY_BYTES_MAX:
            raise refusal(
                "validation",
                f"label key is {key[:80]!r}; it must have 1 to {wire.LABEL_KEY_BYTES_MAX} bytes",
                pointer=pointer,
            )
        if len(value.encode()) > wire.LABEL_VALUE_BYTES_MAX:
            raise refusal(
                "too_large",
                f"label {key!r} is {len(value.encode())} bytes; "
                f"the limit is {wire.LABEL_VALUE_BYTES_MAX}",
                pointer=pointer,
            )
    return orjson.dumps(labels, option=orjson.OPT_SORT_KEYS)


def label_needle(key: str, value: str) -> bytes:
    """The bytes that occur in a timer's labels JSON exactly when it has this label.

    Quotes inside keys and values are escaped there, so an unescaped pair is found nowhere else.
    """
    return orjson.dumps({key: value})[1:-1]


def _payload(raw: msgspec.Raw, limits: LimitsSection) -> bytes:
    payload = bytes(raw)
    if len(payload) > limits.payload_bytes_max:
        raise refusal(
            "too_large",
            f"payload is {len(payload)} bytes; "
            f"the limit is {limits.payload_bytes_max} (payload_bytes_max)",
            pointer="/payload",
        )
    if _SUSPECT.search(payload) or payload.count(b"[") + payload.count(b"{") > DEPTH_SUSPECT:
        _check_strictly(payload)
    return payload


def _check_strictly(payload: bytes) -> None:
    """Refuse what other JSON readers stumble over: lone surrogates, deep nesting."""
    try:
        orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise refusal("validation", f"payload: {error}", pointer="/payload") from None
    depth = deepest = 0
    in_text = escaped = False
    for byte in payload:
        if in_text:
            in_text, escaped = byte != 0x22 or escaped, byte == 0x5C and not escaped
        elif byte == 0x22:
            in_text = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    if deepest > DEPTH_MAX:
        raise refusal(
            "too_large",
            f"payload is nested {deepest} deep; the limit is {DEPTH_MAX}",
            pointer="/payload",
        )


def _refuse_reserved(asked: wire.Definition) -> None:
    for member in wire.RESERVED_MEMBERS:
        if getattr(asked, member) is not None:
            raise refusal(
                "validation",
                f"{member} is not supported by this version; leave it out",
                pointer=f"/{member}",
            )


def _rest(asked: wire.Definition, rule: Rule, number: int) -> bytes:
    rest: dict[str, object] = {}
    if asked.max_occurrences is not None:
        rest["max_occurrences"] = asked.max_occurrences + number - 1
    if asked.expires_at is not None:
        rest["expires_at"] = format_instant(parse_instant(asked.expires_at))
    if asked.lateness_budget is not None:
        rest["lateness_budget"] = format_duration(_budget(asked.lateness_budget))
    policy = misfire.packed(asked.misfire, rule)
    if policy is not None:
        rest["misfire"] = policy
    if asked.key is not None:
        rest["key"] = asked.key
    if asked.spread is not None:
        rest["spread"] = {"window": asked.spread.window, "mode": asked.spread.mode}
    return orjson.dumps(rest) if rest else b""


def _budget(text: str) -> int:
    try:
        budget_ns = parse_duration(text)
    except ValueError as error:
        raise refusal("validation", str(error), pointer="/lateness_budget") from None
    if not BUDGET_NS_MIN <= budget_ns <= BUDGET_NS_MAX:
        raise refusal(
            "validation",
            f"lateness_budget is {text!r}; the range is {format_duration(BUDGET_NS_MIN)} to "
            f"{format_duration(BUDGET_NS_MAX)}",
            pointer="/lateness_budget",
        )
    return budget_ns


def budget_of(blob: bytes) -> int:
    """The lateness in ns that a stored definition allows before `late` is told; 0: any. 0.3 us,
    unless there is one."""
    if b'"lateness_budget":' not in blob:
        return 0
    rest = unpack_blob(blob).rest
    text = orjson.loads(rest).get("lateness_budget") if rest else None
    return parse_duration(text) if text is not None else 0


def time_of(
    asked: wire.Schedule,
    now: Now,
    limits: LimitsSection,
    *,
    max_occurrences: int | None = None,
    expires_at: str | None = None,
    number: int = 1,
) -> Timing:
    """Check a schedule and find its first occurrence, which gets `number`. Raises Refused."""
    expires_ns = _expires(expires_at)
    if max_occurrences is not None and not 1 <= max_occurrences <= 0xFFFFFFFF:
        raise refusal(
            "validation",
            f"max_occurrences is {max_occurrences}; it must be 1 to {0xFFFFFFFF}",
            pointer="/max_occurrences",
        )
    kind = type(asked)
    if kind is wire.After:
        timing = _after(asked.duration, now, number, expires_ns)  # type: ignore[union-attr]
    elif kind is wire.At:
        timing = _at(asked.instant, now, number, expires_ns)  # type: ignore[union-attr]
    elif isinstance(asked, wire.Every):
        timing = _every(asked, now, limits, number, max_occurrences or 0, expires_ns)
    else:
        name = kind.__struct_config__.tag
        raise refusal(
            "bad_schedule",
            f"kind {name!r} is not supported yet; use one of {', '.join(wire.SUPPORTED_KINDS)}",
            pointer="/schedule/kind",
        )
    shift_ns = now.shift_ns if timing.scale == Scale.STEADY else 0
    _check_reach(timing, shift_ns, now, limits)
    if rules.allowed(timing.rule, timing.first, shift_ns=shift_ns) is None:
        raise refusal(
            "no_future_occurrence",
            f"the first occurrence would be due at {format_instant(timing.first.due_ns + shift_ns)}"
            " but max_occurrences or expires_at forbids it",
            pointer="/expires_at",
        )
    return timing


def _check_reach(timing: Timing, shift_ns: int, now: Now, limits: LimitsSection) -> None:
    due_ns = timing.first.due_ns + shift_ns
    if due_ns > now.utc_ns + limits.due_max:
        raise refusal(
            "beyond_horizon",
            f"due is more than {format_duration(limits.due_max)} ahead (due_max)",
            pointer="/schedule",
        )


def _expires(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return max(parse_instant(text), 1)  # 0 is the mark for no limit
    except ValueError as error:
        raise refusal("validation", f"expires_at: {error}", pointer="/expires_at") from None


def _one_shot(expires_ns: int) -> Rule:
    return rules.ONE_SHOT._replace(expires_ns=expires_ns) if expires_ns else rules.ONE_SHOT


def _after(text: str, now: Now, number: int, expires_ns: int) -> Timing:
    try:
        due_ns = now.steady_ns + parse_duration(text)
    except ValueError as error:
        raise refusal("bad_schedule", str(error), pointer="/schedule/duration") from None
    return Timing(_one_shot(expires_ns), Scale.STEADY, Occurrence(number, due_ns))


def _at(text: str, now: Now, number: int, expires_ns: int) -> Timing:
    """An instant that has passed is refused: whoever asks for it holds a wrong clock or a wrong
    date, and a surprise fire is the worse answer. A second of grace covers the way here."""
    try:
        due_ns = parse_instant(text)
    except ValueError as error:
        raise refusal("bad_schedule", str(error), pointer="/schedule/instant") from None
    if due_ns < now.utc_ns - PAST_GRACE_NS:
        raise refusal(
            "due_in_past",
            f"instant is {text}; the node's clock says {format_instant(now.utc_ns)}",
            pointer="/schedule/instant",
        )
    return Timing(_one_shot(expires_ns), Scale.WALL, Occurrence(number, due_ns))


PAST_GRACE_NS = 1_000_000_000


def _every(
    asked: wire.Every, now: Now, limits: LimitsSection, number: int, most: int, expires_ns: int
) -> Timing:
    try:
        interval_ns = parse_duration(asked.interval)
    except ValueError as error:
        raise refusal("bad_schedule", str(error), pointer="/schedule/interval") from None
    if not limits.interval_min <= interval_ns <= limits.due_max:
        raise refusal(
            "bad_schedule",
            f"interval is {asked.interval!r}; the range is "
            f"{format_duration(limits.interval_min)} (interval_min) to "
            f"{format_duration(limits.due_max)} (due_max)",
            pointer="/schedule/interval",
        )
    anchor_ns = None
    if asked.anchor is not None:
        try:
            anchor_ns = parse_instant(asked.anchor) - now.shift_ns
        except ValueError as error:
            raise refusal("bad_schedule", str(error), pointer="/schedule/anchor") from None
    rule, first = rules.every(
        interval_ns,
        anchor_ns=anchor_ns,
        mode=rules.FIXED_RATE if asked.mode == "fixed_rate" else rules.FIXED_DELAY,
        now_ns=now.steady_ns,
        number=number,
        max_occurrences=most,
        expires_ns=expires_ns,
    )
    return Timing(rule, Scale.STEADY, first)


def limits_of(blob: Blob) -> tuple[int | None, str | None]:
    """max_occurrences and expires_at of a stored definition."""
    if not blob.rest:
        return None, None
    rest = orjson.loads(blob.rest)
    return rest.get("max_occurrences"), rest.get("expires_at")


def replace_rule(blob: bytes, rule: Rule, schedule: wire.Schedule | None = None) -> bytes:
    """The same definition with another rule and, if given, another schedule."""
    parts = unpack_blob(blob)._replace(rule=rules.pack_rule(rule))
    if schedule is not None:
        parts = parts._replace(schedule=_encode(schedule))
    return pack_blob(*parts)


def slim(blob: bytes, details: bytes = b"") -> bytes:
    """Only what names the timer: for events that do not define it (record.FLAG_SLIM). details: a
    JSON object that the event shows beside it."""
    parts = unpack_blob(blob)
    return pack_blob(b"", parts.name, parts.labels, b"", b"", details)


# What decoding may raise: nesting beyond some thousand levels ends in a RecursionError.
DECODE_ERRORS = (msgspec.DecodeError, RecursionError)


def faults_of(error: Exception) -> Refused:
    """The problem for JSON that does not decode: its type errors carry a JSON pointer."""
    text = str(error)
    if isinstance(error, RecursionError):
        return refusal("too_large", f"nested too deep; a payload may be nested {DEPTH_MAX} deep")
    if isinstance(error, msgspec.ValidationError):
        detail, _, path = text.rpartition(" - at `$")
        if not detail:
            detail, path = text, ""
        pointer = (
            path.rstrip("`")
            .replace("[...]", "")
            .replace(".", "/")
            .replace("[", "/")
            .replace("]", "")
        )
        code = "bad_schedule" if pointer.endswith("/schedule/kind") else "validation"
        if code == "bad_schedule":
            detail += f"; use one of {', '.join(wire.SUPPORTED_KINDS)}"
        detail = f"{pointer}: {detail}" if pointer else detail
        return refusal(code, detail, errors=[Fault(pointer, detail)])
    return refusal("bad_json", f"the body is not JSON: {text}")
