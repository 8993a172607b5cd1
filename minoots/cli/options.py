"""Options that several verbs share: when, which timers, which events; and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from minoots.wire.bodies import EventFilter, TimerFilter

F = TypeVar("F", bound=Callable[..., Any])


def _stack(command: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def when(command: F) -> F:
    """--in, --at, --every and what goes with them."""
    return _stack(
        command,
        (
            click.option("--in", "after", metavar="TIME", help="After a while: 10m, 1h30m, 2w."),
            click.option(
                "--at", metavar="T", help="At an instant: RFC 3339, '2026-11-22 09:00', 09:00."
            ),
            click.option("--every", metavar="TIME", help="Again and again, without drift."),
            click.option(
                "--mode",
                type=click.Choice(["fixed_rate", "fixed_delay"]),
                help="With --every: from the grid, or from the last fire.",
            ),
            click.option("--anchor", metavar="T", help="With --every: where the grid begins."),
            click.option("--tz", metavar="ZONE", help="Of local times; without it the machine's."),
        ),
    )


def missed(command: F) -> F:
    """--misfire and what goes with it."""
    return _stack(
        command,
        (
            click.option(
                "--misfire",
                type=click.Choice(["fire_once", "fire_all", "skip", "escalate"]),
                help="What becomes of fires that were missed.",
            ),
            click.option("--grace", metavar="TIME", help="Later than this is missed."),
            click.option("--max-lateness", metavar="TIME", help="Later than this is skipped."),
            click.option(
                "--max-catchup", type=int, metavar="N", help="With fire_all: the newest N fire."
            ),
            click.option(
                "--catchup-rate", type=float, metavar="N", help="With fire_all: N a second."
            ),
        ),
    )


def misfire_of(misfire: str | None, **more: Any) -> dict[str, Any] | None:
    """The misfire policy that the options mean; None if they say nothing."""
    given = {name: value for name, value in more.items() if value is not None}
    if misfire is not None:
        given["policy"] = misfire
    return given or None


def which_timers(command: F) -> F:
    """--name-prefix, --label, --state, --due-before."""
    return _stack(
        command,
        (
            click.option("--name-prefix", metavar="TEXT", default="", help="Names that begin so."),
            click.option(
                "--label", "labels", metavar="K=V", multiple=True, help="May be repeated."
            ),
            click.option(
                "--state",
                "states",
                multiple=True,
                type=click.Choice(["scheduled", "armed", "paused"]),
                help="May be repeated.",
            ),
            click.option("--due-before", metavar="T", help="Due before an instant or within 10m."),
        ),
    )


def whole(command: F) -> F:
    """--all, --yes, --dry-run: of verbs that change all that a filter finds."""
    return _stack(
        command,
        (
            click.option("--all", "everything", is_flag=True, help="Every timer there is."),
            click.option("--yes", is_flag=True, help="Do not ask."),
            click.option("--dry-run", is_flag=True, help="Only count them, and show some."),
        ),
    )


def which_events(command: F) -> F:
    """FILTER, --type, --name, --label."""
    return _stack(
        command,
        (
            click.argument("pattern", metavar="[FILTER]", required=False),
            click.option(
                "--type",
                "types",
                metavar="TYPE",
                multiple=True,
                help="Such as expired; repeatable.",
            ),
            click.option("--name", metavar="NAME", help="Exactly this name."),
            click.option(
                "--label", "labels", metavar="K=V", multiple=True, help="May be repeated."
            ),
        ),
    )


def keyed(command: F) -> F:
    """--key, --on-conflict, --spread."""
    return _stack(
        command,
        (
            click.option("--key", metavar="KEY", help="One timer that has not ended for each key."),
            click.option(
                "--on-conflict",
                type=click.Choice(["reject", "replace", "keep", "earliest", "latest", "extend"]),
                help="What to do with the timer that has the key.",
            ),
            click.option(
                "--spread",
                metavar="TIME[:MODE]",
                help="Later by up to TIME: random, hashed, emptiest.",
            ),
        ),
    )


def more_of(
    lateness_budget: str | None, key: str | None, on_conflict: str | None, spread: str | None
) -> dict[str, Any]:
    """The members of a definition that these options give."""
    given: dict[str, Any] = {
        "lateness_budget": lateness_budget,
        "key": key,
        "on_conflict": on_conflict,
    }
    if spread is not None:
        window, _, mode = spread.partition(":")
        given["spread"] = {"window": window, "mode": mode or "random"}
    return {name: value for name, value in given.items() if value is not None}


def changing(command: F) -> F:
    """--idem and --if-match."""
    return _stack(
        command,
        (
            click.option("--idem", metavar="KEY", help="Idempotency key: the same is done once."),
            click.option(
                "--if-match", type=int, metavar="REVISION", help="Only if it is this revision."
            ),
        ),
    )


def labels_of(pairs: Sequence[str]) -> dict[str, str]:
    """Labels of `k=v` texts. Raises ValueError."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not key or not sign:
            raise ValueError(f"label is {pair!r}; write KEY=VALUE")
        found[key] = value
    return found


@dataclass(frozen=True, slots=True)
class When:
    """A schedule as options gave it, with instants made exact."""

    after: str | None
    at: str | None
    every: str | None
    mode: Any
    anchor: str | None

    def given(self) -> dict[str, Any]:
        """The keyword arguments of the client that say the same."""
        return {
            "after": self.after,
            "at": self.at,
            "every": self.every,
            "mode": self.mode,
            "anchor": self.anchor,
        }


def when_of(
    after: str | None,
    at: str | None,
    every: str | None,
    *,
    mode: str | None,
    anchor: str | None,
    tz: str | None,
) -> When:
    """The schedule that is meant. Raises ValueError, in the options' own words."""
    from minoots.arguments import duration_text
    from minoots.cli.moments import instant_of
    from minoots.transport import wall_ns

    given = [n for n, v in (("--in", after), ("--at", at), ("--every", every)) if v is not None]
    if len(given) != 1:
        raise ValueError(
            f"{' and '.join(given)} are given; choose one"
            if given
            else "give --in, --at or --every"
        )
    if every is None and (mode or anchor):
        raise ValueError(f"--mode and --anchor go with --every, not with {given[0]}")
    now_ns = wall_ns()
    for length in (after, every):
        if length is not None:
            duration_text(length)
    return When(
        after,
        None if at is None else instant_of(at, tz=tz, now_ns=now_ns),
        every,
        mode,
        None if anchor is None else instant_of(anchor, tz=tz, now_ns=now_ns),
    )


def timer_filter_of(
    name_prefix: str, labels: Sequence[str], states: Sequence[str], due_before: str | None
) -> TimerFilter:
    """Which timers the options mean. Raises ValueError."""
    from minoots.arguments import timer_filter
    from minoots.cli.moments import instant_of
    from minoots.transport import wall_ns
    from minoots.wire.times import format_instant, parse_duration

    due_to = None
    if due_before is not None:
        now_ns = wall_ns()
        try:
            due_to = format_instant(now_ns + parse_duration(due_before))
        except ValueError:
            due_to = instant_of(due_before, tz=None, now_ns=now_ns)
    return timer_filter(
        states=states, labels=labels_of(labels), name_prefix=name_prefix, due_to=due_to
    )


def event_filter_of(
    pattern: str | None, types: Sequence[str], name: str | None, labels: Sequence[str]
) -> tuple[EventFilter, str | None]:
    """Which events FILTER and the options mean, and the exact name if there is one.

    FILTER is a name, or the beginning of names and a `*`.
    """
    from minoots.watch import type_of
    from minoots.wire.bodies import EventFilter

    prefix = ""
    if pattern is not None:
        if name is not None:
            raise ValueError("FILTER and --name both name the timer; give one")
        if pattern.endswith("*"):
            prefix = pattern[:-1]
        else:
            name = pattern
    kinds = [type_of(kind) for kind in types]
    return EventFilter(types=kinds, labels=labels_of(labels), name_prefix=prefix), name
