"""explain: what happened to a timer, why it is as it is, and what comes next, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from minoots.cli.settings import common, settings

if TYPE_CHECKING:
    from minoots.event import Event
    from minoots.wire.bodies import TimerView

STATES = {
    "scheduled": "it waits for its due",
    "armed": "its due is near, and it is ready in the node's memory",
    "firing": "its fire is committed and leaves at its instant; nobody can take that back",
    "paused": "it is not due until somebody resumes it",
    "completed": "it has fired for the last time",
    "failed": "it has failed",
    "cancelled": "it will not fire again",
}
REASONS = {
    "": "",
    "by_client": "a client asked for that",
    "triggered": "a client had it fire ahead of its due",
    "max_occurrences": "it has fired as often as max_occurrences allows",
    "expires_at": "its next due would be at or after expires_at",
    "misfire": "it was missed while the node was down or busy",
}
EVENTS = {
    "timer.scheduled": "made, due {due}",
    "timer.expired": "fired, occurrence {occurrence}",
    "timer.late": "occurrence {occurrence} left later than its lateness_budget allows",
    "timer.cancelled": "cancelled",
    "timer.paused": "paused, it was due {due}",
    "timer.resumed": "resumed, due {due}",
    "timer.rescheduled": "moved, due {due}",
    "timer.relabelled": "its labels changed",
}
EVENTS_SHOWN = 20
DUES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Story:
    """happened: an instant and words for each event, the oldest first."""

    happened: list[tuple[str, str]]
    why: list[str]
    next: list[str]


def story(
    view: TimerView, events: list[Event], dues: list[int], *, now_ns: int, held: bool
) -> Story:
    """The words. dues: those to come (ns). held: the node does not believe its wall clock. Pure."""
    return Story(
        [_event_words(event) for event in events], _why(view), _next(view, dues, now_ns, held)
    )


def _event_words(event: Event) -> tuple[str, str]:
    from minoots.cli import moments
    from minoots.wire.times import parse_instant

    due = moments.exact(event.due_ns) if event.due_ns is not None else "at no time"
    words = EVENTS.get(event.type, event.type.removeprefix("timer."))
    words = words.format(due=due, occurrence=event.occurrence)
    if event.type == "timer.expired":
        if event.lateness_us is not None:
            words += f", {moments.lateness(event.lateness_us)} after its due"
        if event.misfire:
            words += "; a misfire: the node was down or behind at its due"
    return moments.exact(event.fired_ns or parse_instant(event.time)), words


def _why(view: TimerView) -> list[str]:
    lines = [f"{view.state}: {STATES.get(view.state, 'a state this program does not know')}"]
    reason = REASONS.get(view.state_reason, view.state_reason)
    if reason:
        lines.append(f"{view.state_reason}: {reason}")
    return lines


def _next(view: TimerView, dues: list[int], now_ns: int, held: bool) -> list[str]:
    from minoots.cli import moments
    from minoots.wire.definition import At

    if view.state in ("completed", "failed", "cancelled"):
        return ["nothing: it has ended" + (f"; its key {view.key!r} is free" if view.key else "")]
    if view.remaining is not None:
        return [f"{view.remaining} are left; let it go on with: minoots resume {view.id}"]
    lines = []
    if held and isinstance(view.schedule, At):
        lines.append(
            "it does not fire, as the node's wall clock is in doubt: see minoots clock, and agree "
            "with minoots clock --accept"
        )
    elif dues and dues[0] < now_ns and view.state != "firing":
        lines.append("its due has passed: the node is behind, and fires it as soon as it can")
    for at, due_ns in enumerate(dues[:DUES_SHOWN]):
        when = f"{moments.exact(due_ns)}  {moments.relative(due_ns, now_ns)}"
        lines.append(f"occurrence {view.occurrence + at} is due {when}")
    if len(dues) > DUES_SHOWN:
        lines.append("and so on")
    if view.spread is not None:
        lines.append(f"spread: up to {view.spread.window} later, {view.spread.mode}")
    return lines


@click.command()
@click.argument("timer", metavar="ID|NAME")
@common
def explain(timer: str) -> None:
    """Tell what happened to a timer, why it is as it is, and what comes next."""
    from minoots.arguments import next_body
    from minoots.cli import show
    from minoots.transport import wall_ns
    from minoots.verbs import next_dues
    from minoots.wire.times import parse_instant

    kept = settings()
    with kept.client() as client:
        view = client.get(timer)
        events = client.history(view, limit=EVENTS_SHOWN)
        asked = next_body(view, DUES_SHOWN + 1, max_occurrences=None, expires_at=None)
        found = client.call(next_dues(asked))
        held = bool(client.stats().get("clock", {}).get("held"))
    dues = [parse_instant(due) for due in found.dues]
    told = story(view, events, dues, now_ns=wall_ns(), held=held)
    if kept.json:
        show.document({"id": view.id, "name": view.name, **_document(told)})
        return
    click.echo(f"{view.name or '(no name)'}  {view.id}  {show.schedule_text(view.schedule)}")
    click.echo("what happened" + (", the newest" if len(events) == EVENTS_SHOWN else ""))
    for when, words in told.happened:
        click.echo(f"  {when}  {words}")
    for title, lines in (("why", told.why), ("what is next", told.next)):
        click.echo(title)
        for line in lines:
            click.echo(f"  {line}")


def _document(told: Story) -> dict[str, object]:
    happened = [{"at": when, "what": words} for when, words in told.happened]
    return {"happened": happened, "why": told.why, "next": told.next}


COMMANDS = (explain,)
