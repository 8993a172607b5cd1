"""Runs a command for each message of a durable consumer: what `minoots work` does.

The one module of the command line, beside the demonstration, that starts processes. Each command
has a session of its own, so that Ctrl-C and a service manager's SIGTERM reach only this program: it
begins nothing new then, and waits for the commands that run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from typing import Any

import click

from minoots.aio import AsyncClient
from minoots.cli.settings import Settings
from minoots.consumer import AsyncConsumer, AsyncMessage
from minoots.working import GiveUp, Options, Retry, work_off

EX_TEMPFAIL = 75
GRACE_S = 5.0  # between SIGTERM and SIGKILL for a command that took too long


class Runner:
    """Runs the commands, and says on standard error what became of them."""

    def __init__(
        self,
        name: str,
        command: tuple[str, ...],
        hopeless: tuple[int, ...],
        *,
        limit_s: float | None,
        delay: str | None,
        limit: int | None,
        kept: Settings,
    ) -> None:
        self._name = name
        self._command = command
        self._hopeless = hopeless
        self._limit_s = limit_s
        self._delay = delay
        self._limit = limit
        self._kept = kept
        self._begun = 0
        self._stop = asyncio.Event()
        self._killed = False
        self._consumer: AsyncConsumer | None = None

    async def run(self, concurrency: int, config: dict[str, Any]) -> bool:
        """Work until it is told to stop; whether commands were killed for that."""
        self._take_signals()
        kept = self._kept
        try:
            async with (
                AsyncClient(kept.control, data=kept.data, timeout=kept.timeout_s) as client,
                client.consumer(self._name, prefetch=2 * concurrency, **config) as consumer,
            ):
                self._consumer = consumer
                await work_off(
                    consumer, self._handle, Options(concurrency, drain_s=None), self._stop
                )
        except asyncio.CancelledError:
            self._killed = True
        if self._consumer is not None:
            self._tell_end(self._consumer.counts)
        return self._killed

    def _take_signals(self) -> None:
        loop, main = asyncio.get_running_loop(), asyncio.current_task()
        assert main is not None

        def told() -> None:
            if self._stop.is_set():
                main.cancel()
            self._stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told)

    async def _handle(self, message: AsyncMessage) -> None:
        self._begun += 1
        if self._begun == self._limit and self._consumer is not None:
            self._consumer.stop()
            self._stop.set()
        try:
            status = await self._status_of(message)
        except OSError as error:
            self._tell(message, None, "again")
            raise Retry(f"the command cannot be run: {error}") from None
        if status == 0:
            self._tell(message, status, "done")
            return
        if status is None:
            reason = f"the command took longer than {self._limit_s:g} s"
        elif status < 0:
            reason = f"the command was killed by {signal.Signals(-status).name}"
        else:
            reason = f"the command exited with {status}"
        if status in self._hopeless:
            self._tell(message, status, "dead")
            raise GiveUp(reason)
        self._tell(message, status, "again")
        raise Retry(reason, delay=self._delay if status == EX_TEMPFAIL else None)

    async def _status_of(self, message: AsyncMessage) -> int | None:
        """Run the command; None if it took too long."""
        event = message.event
        facts = {
            "MINOOTS_EVENT_ID": event.id,
            "MINOOTS_DEDUPEKEY": event.dedupe_key,
            "MINOOTS_ATTEMPT": str(message.attempt),
            "MINOOTS_TYPE": event.type,
            "MINOOTS_NAME": event.name,
            "MINOOTS_CONSUMER": self._name,
        }
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.PIPE,
            env=os.environ | facts,
            start_new_session=True,
        )
        try:
            await asyncio.wait_for(process.communicate(message.raw + b"\n"), self._limit_s)
        except TimeoutError:
            return None
        finally:
            if process.returncode is None:
                await _end(process)
        return process.returncode

    def _tell(self, message: AsyncMessage, status: int | None, outcome: str) -> None:
        event = message.event
        if self._kept.json:
            line = {
                "event": event.id,
                "dedupe_key": event.dedupe_key,
                "attempt": message.attempt,
                "status": status,
                "outcome": outcome,
            }
            click.echo(json.dumps(line, separators=(",", ":")), err=True)
        elif outcome != "done":
            shown = "-" if status is None else status
            click.echo(f"{outcome}: {event.id} attempt {message.attempt}, status {shown}", err=True)

    def _tell_end(self, counts: dict[str, int]) -> None:
        if self._kept.json:
            click.echo(json.dumps(counts, separators=(",", ":")), err=True)
            return
        click.echo(
            f"{counts['ack']} done, {counts['nack']} to be delivered again, "
            f"{counts['term']} dead-lettered, {counts['stale']} too late",
            err=True,
        )


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a command with all that it has started."""
    for number, grace_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            await asyncio.wait_for(process.wait(), grace_s)
        except TimeoutError:
            continue
        return
