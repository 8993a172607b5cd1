"""Durable consumers with real processes: workers and the node are killed, and nothing is lost."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minoots import AsyncClient, Client
from tests.e2e import worker_process
from tests.e2e.harness import Node

pytestmark = pytest.mark.timeout(120)

COUNT = 5_000
UNTIL_S = 60.0


def wait_for(what: Callable[[], bool], limit_s: float = UNTIL_S) -> None:
    until = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.02)


class Workers:
    """Worker processes of one consumer, and what they have said."""

    def __init__(self, node: Node, folder: Path, count: int) -> None:
        self.paths = [folder / f"worker-{at}.txt" for at in range(count)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, worker_process.__file__, str(node.folder), "mailer", str(path)],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
            for path in self.paths
        ]

    def said(self, word: str) -> list[tuple[int, int]]:
        """(seq, attempt) of each line of a kind; the last one of a killed worker may be cut."""
        found = []
        for path in self.paths:
            for line in path.read_text().splitlines() if path.exists() else ():
                words = line.split()
                if len(words) == 3 and words[0] == word:
                    found.append((int(words[1]), int(words[2])))
        return found

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def test_three_workers_share_the_work_whatever_is_killed(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node, Client(data=node.folder) as client:
        client.consumers.create("mailer", types=["expired"], ack_wait="2s")
        client.schedule_many([{"name": f"t{at}", "after": "0s"} for at in range(COUNT)])
        with Workers(node, tmp_path, 3) as workers:
            wait_for(lambda: len(workers.said("acked")) > COUNT // 5)
            workers.processes[0].kill()
            wait_for(lambda: len(workers.said("acked")) > COUNT // 2)
            node.kill()
            time.sleep(0.2)
            node.start()
            wait_for(lambda: client.consumers.info("mailer").acked >= COUNT)
            for process in workers.processes[1:]:
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
            got, acked = workers.said("got"), workers.said("acked")
            assert len(workers.said("left")) == 2
        view = client.consumers.info("mailer")
        assert (view.acked, view.dead, view.ack_pending, view.pending) == (COUNT, 0, 0, 0)
        assert len({seq for seq, _ in got}) == COUNT, "some were lost"
        assert len(set(got)) == len(got), "an attempt was delivered twice"
        times = collections.Counter(seq for seq, _ in acked)
        assert max(times.values()) == 1, "one was acknowledged twice"
        # What the killed worker had in hand came again, as another attempt; nothing else is unsaid.
        assert COUNT - 64 <= len(times) <= COUNT
        again = [seq for seq, attempt in got if attempt > 1]
        print(f"{len(got)} deliveries of {COUNT} events, {len(again)} again")
        assert again
        assert node.stop() == 0


def test_a_message_does_not_come_again_while_it_is_worked_on(tmp_path: Path) -> None:
    async def work(folder: Path) -> None:
        async with AsyncClient(data=folder) as client:
            await client.schedule_many([{"name": f"t{at}", "after": "1h"} for at in range(20)])
            config = {"since": "start", "ack_wait": "300ms"}
            async with (
                client.consumer("c", prefetch=20, **config) as slow,
                client.consumer("c", **config) as other,
            ):
                held = [await anext(slow)]
                assert await other.poll(1.5) is None
                held += [await anext(slow) for _ in range(19)]
                assert {message.attempt for message in held} == {1}
                assert all([await message.ack() for message in held])

    with Node(tmp_path / "data") as node:
        asyncio.run(work(node.folder))


def test_a_message_that_is_kept_too_long_comes_again(tmp_path: Path) -> None:
    async def work(folder: Path) -> None:
        async with AsyncClient(data=folder) as client:
            await client.schedule("a", after="1h")
            config = {"since": "start", "ack_wait": "200ms"}
            async with (
                client.consumer("c", prefetch=1, keep="400ms", **config) as stuck,
                client.consumer("c", **config) as other,
            ):
                late = await anext(stuck)
                again = await other.poll(10)
                assert again is not None
                assert again.attempt == 2
                assert not await late.ack()
                assert await again.ack()

    with Node(tmp_path / "data") as node:
        asyncio.run(work(node.folder))


def test_the_consumer_of_threads(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node, Client(data=node.folder) as client:
        client.schedule_many([{"name": f"t{at}", "after": "1h"} for at in range(200)])
        seen: list[str] = []
        with client.consumer("c", since="start") as consumer:

            def work() -> None:
                for message in consumer:
                    seen.append(message.event.name)
                    if len(seen) % 2:
                        message.ack_soon()
                    else:
                        assert message.ack()
                    if len(seen) == 200:
                        consumer.stop()

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        assert sorted(seen) == sorted(f"t{at}" for at in range(200))
        assert consumer.counts == {"ack": 200, "nack": 0, "term": 0, "return": 0, "stale": 0}
        assert client.consumers.info("c").acked == 200
        with pytest.raises(RuntimeError, match="not open"):
            next(consumer)


def test_an_idle_worker_hears_of_a_restart(tmp_path: Path) -> None:
    async def work(node: Node) -> None:
        async with (
            AsyncClient(data=node.folder, timeout=2) as client,
            client.consumer("c", types=["scheduled"]) as consumer,
        ):
            assert await consumer.poll(0.1) is None
            node.kill()
            node.start()
            async with AsyncClient(data=node.folder) as other:
                await other.schedule("a", after="1h")
            message = await consumer.poll(20)
            assert message is not None
            assert message.attempt == 1
            assert await message.ack()

    with Node(tmp_path / "data") as node:
        asyncio.run(work(node))


# ------------------------------------------------------------------------------ minoots work


def minoots(node: Node, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from minoots.cli import cli; cli(prog_name='minoots')", *words],
        env={**os.environ, "MINOOTS_DATA": str(node.folder)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(node: Node, *words: str, code: int = 0) -> str:
    process = minoots(node, *words)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    return out + errors


def test_a_command_for_each_message(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f'cat >> {out}; echo "$MINOOTS_NAME $MINOOTS_ATTEMPT $MINOOTS_TYPE" >> {out}'
    with Node(tmp_path / "data") as node, Client(data=node.folder) as client:
        client.schedule_many([{"name": f"t{at}", "after": "1h"} for at in range(3)])
        words = ("work", "c", "--limit", "3", "--type", "scheduled", "--", "sh", "-c", script)
        assert "3 done, 0 to be delivered again, 0 dead-lettered" in told(node, *words)
        lines = out.read_text().splitlines()
        assert lines[1::2] == [f"t{at} 1 timer.scheduled" for at in range(3)]
        assert lines[0].startswith('{"specversion":"1.0"')
        assert client.consumers.info("c").acked == 3


def test_what_exit_statuses_mean(tmp_path: Path) -> None:
    script = (
        'case "$MINOOTS_NAME.$MINOOTS_ATTEMPT" in '
        "busy.1) exit 75;; bad.1) exit 3;; slow.1) sleep 60;; hopeless.*) exit 65;; esac"
    )
    with Node(tmp_path / "data") as node, Client(data=node.folder) as client:
        for name in ("good", "busy", "bad", "slow", "hopeless"):
            client.schedule(name, after="1h")
        begun = time.monotonic()
        lines = told(
            node,
            *("work", "c", "--json", "--limit", "8", "--concurrency", "2", "--type", "scheduled"),
            *("--run-for", "500ms", "--delay", "200ms", "--backoff", "100ms,100ms"),
            *("--", "sh", "-c", script),
        )
        assert time.monotonic() - begun < 20
        statuses = {
            (item["attempt"], item["status"], item["outcome"])
            for item in map(json.loads, lines.splitlines())
            if "outcome" in item
        }
        assert {(1, 0, "done"), (2, 0, "done"), (1, 75, "again"), (1, 3, "again")} <= statuses
        assert {(1, None, "again"), (1, 65, "dead")} <= statuses
        (dead,) = client.dlq.list("c")
        assert dead.reason == "the command exited with 65"
        # Dead letters and back: one by one, then by filter with the count first.
        assert "hopeless" in told(node, "dlq", "list", "c")
        assert told(node, "dlq", "redrive", dead.id) == "1 dead letter delivered again\n"
        words = ("work", "c", "--limit", "1", "--", "false")
        assert "0 done, 1 to be delivered again" in told(node, *words)
        told(node, "work", "c", "--limit", "1", "--give-up", "1", "--", "false")
        refused = told(node, "dlq", "drop", "c", "--name-prefix", "hope", code=2)
        assert "1 dead letter match; add --yes to drop" in refused
        assert "would be dropped" in told(node, "dlq", "drop", "c", "--dry-run")
        assert '"count": 1' in told(node, "dlq", "drop", "c", "--yes", "--json")
        assert "no dead letter matches" in told(node, "dlq", "drop", "c", "--yes")


def test_sigterm_waits_for_what_runs_and_gives_the_rest_back(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with Node(tmp_path / "data") as node, Client(data=node.folder) as client:
        client.schedule_many([{"name": f"t{at}", "after": "1h"} for at in range(9)])
        script = f"touch {begun}; sleep 1.5"
        words = ("work", "c", "--concurrency", "3", "--type", "scheduled", "--ack-wait", "500ms")
        process = minoots(node, *words, "--", "sh", "-c", script)
        wait_for(begun.exists)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
        assert process.poll() is None
        with client.consumer("c") as other:  # long before an ack_wait could have run out
            found = [other.poll(5) for _ in range(6)]
            assert all(message is not None and message.ack() for message in found)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "3 done" in errors
        view = client.consumers.info("c")
        assert (view.acked, view.dead, view.ack_pending) == (9, 0, 0)


def test_a_second_signal_kills_what_runs(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with Node(tmp_path / "data") as node, Client(data=node.folder) as client:
        client.schedule("a", after="1h")
        process = minoots(
            node, "work", "c", "--since", "start", "--", "sh", "-c", f"touch {begun}; sleep 60"
        )
        wait_for(begun.exists)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 1
        (again,) = client.consumers.pull("c", 5, wait=5)
        assert again.attempt == 2
