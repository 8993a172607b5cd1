"""`minoots demo`: an ephemeral node, a handful of timers, their events as they fire.

The node is a process of its own on free ports in a temporary folder; what is shown comes over its
sockets, as it would to any client. Ends with a line that says what was lost: nothing.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

from minoots.cli.packed import own_command
from minoots.client import Client
from minoots.event import Event
from minoots.transport import monotonic_s
from minoots.wire.problems import MinootsError, Unreachable
from minoots.wire.times import format_instant, parse_instant

START_S = 15.0


@contextmanager
def ephemeral_node(folder: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node on free ports with its data in `folder`, ready to serve; stopped at the end."""
    doors = [f"--{door}=tcp://127.0.0.1:0" for door in ("control", "stream", "events")]
    command = [*own_command(), "run", "--data", str(folder), *doors, *flags]
    log_path = folder.with_suffix(".log")
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
        try:
            _wait_ready(process, folder, log_path)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], folder: Path, log_path: Path) -> None:
    until_s = monotonic_s() + START_S
    while not (folder / "minoots.json").exists():
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            if monotonic_s() < until_s:
                continue
        text = log_path.read_text(errors="replace")
        raise Unreachable(f"the node did not start:\n{text}")


@dataclass
class Tally:
    """What was expected of the timers and what came."""

    expected: int = 0
    lateness_us: list[int] = field(default_factory=list)
    early: int = 0

    def take(self, event: Event) -> None:
        """Count an expiration."""
        if event.fired_ns is None or event.due_ns is None:
            return
        self.early += event.fired_ns < event.due_ns
        self.lateness_us.append((event.fired_ns - event.due_ns) // 1_000)

    def line(self) -> str:
        """The summary."""
        ranked = sorted(self.lateness_us) or [0]
        fired = len(self.lateness_us)
        return (
            f"{fired} fired, {self.early} early, {max(self.expected - fired, 0)} lost; "
            f"lateness p50 {ranked[len(ranked) // 2] / 1000:.3f} ms, max {ranked[-1] / 1000:.3f} ms"
        )


def demo(seconds: float) -> int:
    """Run the demonstration for about `seconds`; the exit code."""
    with tempfile.TemporaryDirectory(prefix="minoots-demo-") as temporary:
        try:
            with ephemeral_node(Path(temporary) / "data") as process:
                return _show(Path(temporary) / "data", process.pid, seconds)
        except MinootsError as error:
            click.echo(f"minoots: {error}", err=True)
            return 1


def _show(folder: Path, pid: int, seconds: float) -> int:
    with Client(data=folder) as watcher, Client(data=folder) as client:
        hello = client.hello()
        click.echo(f"node {hello.node_id} (pid {pid}) serves at {hello.doors['control']}\n")
        click.echo(f"{'event':<18}{'timer':<14}{'due':<14}{'fired':<17}late")
        tally = Tally()
        with watcher.watch(since="start") as watch:
            _schedule_all(client, seconds, tally)
            until_s = monotonic_s() + seconds
            while monotonic_s() < until_s:
                event = watch.poll(min(until_s - monotonic_s(), 0.5))
                if event is not None and event.timer_id:
                    _print(event, tally)
        stats = client.stats()
    click.echo(f"\n{tally.line()}")
    click.echo(
        f"every reply came after its fsync: {stats['log']['seq']} events in "
        f"{stats['log']['commits']} commits"
    )
    lost = tally.expected - len(tally.lateness_us)
    return 0 if lost <= 0 and not tally.early else 1


def _schedule_all(client: Client, seconds: float, tally: Tally) -> None:
    """After, at, every, fixed delay; one is cancelled, one rescheduled, one triggered."""
    step = seconds / 8
    tea = client.schedule("tea", after=step * 2, payload={"say": "tea is ready"})
    at_ns = parse_instant(tea.created_at) + round(step * 3e9)
    client.schedule("standup", at=format_instant(at_ns))
    client.schedule("heartbeat", every=step, max_occurrences=5)
    client.schedule("poll", every=step * 1.5, mode="fixed_delay", max_occurrences=3)
    wrong = client.schedule("wrong-number", after=step * 4, labels={"team": "ops"})
    client.cancel(wrong.id)
    backup = client.schedule("backup-db", after="1h", labels={"team": "ops"})
    client.reschedule(backup.id, after=step * 5)
    deploy = client.schedule("deploy", after="2h")
    client.trigger(deploy.id)
    tally.expected = 1 + 1 + 5 + 3 + 1 + 1


def _print(event: Event, tally: Tally) -> None:
    fired = late = ""
    if event.type == "timer.expired":
        tally.take(event)
        if event.fired is not None and event.due_ns is not None and event.fired_ns is not None:
            fired = f"{event.fired:%H:%M:%S.%f}"
            late = f"{(event.fired_ns - event.due_ns) / 1e6:.3f} ms"
    due = f"{event.due:%H:%M:%S.%f}"[:-3] if event.due else ""
    name = f"{event.name} #{event.occurrence}" if event.occurrence > 1 else event.name
    click.echo(f"{event.type.removeprefix('timer.'):<18}{name:<14}{due:<14}{fired:<17}{late}")
