"""The workloads, run on every peer that is installed, and the table made of them.

    minoots bench peers [--small]

Creates go in rounds, A B C A B C, so that a bad spell of the disk meets everyone; their medians
count. A server is started over an empty folder for each workload and killed after it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.beanstalkd import Beanstalkd
from bench.peers.bullmq import Bullmq
from bench.peers.nats import Nats
from bench.peers.ours import Minoots
from bench.peers.peer import NS, Absent, Ledger, Peer, Refused, Timer, disk_bytes, end, memory_bytes
from bench.peers.postgresql import Postgresql
from bench.peers.redis import Redis
from bench.peers.wire import chunks
from bench.report import machine, percentiles

ONLY_VARIABLE = "MINOOTS_PEERS"  # words, comma between them: peers whose name holds one of them
OURS = "MINOOTS, schedule_many 500 x 8"
OURS_AFTER = "MINOOTS, the same, `after` for `at`"
REDIS = "Redis, always"
BEANSTALKD = "beanstalkd -f 0"
FAR_NS = 6 * 3600 * NS
SCHEDULE_RUN = 100  # timers a call, where they are due soon: a delay counts from when it is sent
GROWS = 4


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of each workload."""

    rounds: int
    create_s: float  # about how long a round of creates lasts
    creates_max: int
    lateness: int
    lateness_s: int
    herd: int
    pending: int
    kill: int
    kill_s: int
    lead_s: float  # between the last create and the first timer due, at least
    settle_s: float  # before memory is looked at
    wait_s: float  # what has not come this long after it was due is missing
    twice_s: float  # how long after the last one a duplicate may come


FULL = Scale(
    rounds=3,
    create_s=2.0,
    creates_max=200_000,
    lateness=10_000,
    lateness_s=30,
    herd=10_000,
    pending=100_000,
    kill=3_000,
    kill_s=3,
    lead_s=2.0,
    settle_s=8.0,
    wait_s=15.0,
    twice_s=6.0,
)
SMALL = Scale(
    rounds=1,
    create_s=0.1,
    creates_max=5_000,
    lateness=200,
    lateness_s=2,
    herd=200,
    pending=1_000,
    kill=200,
    kill_s=2,
    lead_s=1.0,
    settle_s=0.5,
    wait_s=5.0,
    twice_s=2.0,
)


def peers() -> list[Peer]:
    """Everyone, MINOOTS first."""
    return [
        Minoots(OURS),
        Minoots(OURS_AFTER, relative=True, creates_only=True),
        Minoots("MINOOTS, single, 256 in flight", single=True, creates_only=True),
        Redis(REDIS, "fsync", "always"),
        Redis("Redis, always, variadic", "fsync", "always", variadic=True, creates_only=True),
        Redis("Redis, everysec", "<= 1 s behind", "everysec"),
        Beanstalkd(BEANSTALKD, "fsync", 0),
        Beanstalkd("beanstalkd", "<= 50 ms behind", None),
        Nats("NATS schedules, sync always", "fsync", "always"),
        Nats(
            "NATS schedules, sync always, atomic batches",
            "fsync",
            "always",
            batched=True,
            creates_only=True,
        ),
        Nats("NATS schedules", "page cache, fsync every 2 minutes", '"2m"', creates_only=True),
        Bullmq(),
        Postgresql(),
    ]


@contextmanager
def started(peer: Peer) -> Iterator[Path]:
    """A peer over an empty folder, which goes with it."""
    with tempfile.TemporaryDirectory(prefix="minoots-peer-") as temporary:
        # Some servers run under an account of their own and must get through.
        folder = Path(temporary) / "store"
        folder.mkdir()
        for each in (Path(temporary), folder):
            each.chmod(0o755)
        try:
            peer.start(folder)
            yield folder
        finally:
            peer.stop()


def far(count: int) -> list[Timer]:
    """Timers that are not due while anything is measured."""
    due_ns = time.time_ns() + FAR_NS
    return [Timer(k, due_ns + k * 1_000_000) for k in range(count)]


def create_round(peer: Peer, count: int, scale: Scale) -> tuple[int, float]:
    """One round: (timers, timers/s). The count grows until the round is long enough."""
    with started(peer):
        first, timers = 0, far(scale.creates_max + count)
        while True:
            seconds = peer.create(timers[first : first + count])
            first += count
            if seconds * 2 >= scale.create_s or first + count > scale.creates_max:
                return count, count / seconds
            longer = int(count / seconds * scale.create_s)
            count = min(max(longer, count), count * GROWS, scale.creates_max)


def creates(found: Sequence[Peer], scale: Scale, results: dict[str, Any]) -> None:
    """Rounds over all peers; a peer that cannot start is skipped from then on, with its reason."""
    counts = {peer.name: 500 for peer in found}
    rates: dict[str, list[float]] = {peer.name: [] for peer in found}
    for _ in range(scale.rounds):
        for peer in found:
            if "skipped" in results.get(peer.name, {}):
                continue
            try:
                counts[peer.name], rate = create_round(peer, counts[peer.name], scale)
            except Absent as reason:
                print(f"  {peer.name}: skipped: {reason}", flush=True)
                results[peer.name] = {"skipped": str(reason)}
                continue
            except (OSError, Refused) as error:
                print(f"  {peer.name}: a round failed: {error!r}", flush=True)
                continue
            rates[peer.name].append(rate)
            print(f"  {peer.name}: {rate:,.0f} creates/s ({peer.ack})", flush=True)
    for peer in found:
        if not rates[peer.name]:
            results.setdefault(peer.name, {"skipped": "no round of creates succeeded"})
        else:
            results[peer.name] = {
                "ack": peer.ack,
                "creates_per_second": round(statistics.median(rates[peer.name])),
                "rounds": [round(rate) for rate in rates[peer.name]],
                "timers_a_round": counts[peer.name],
            }


def schedule(peer: Peer, dues_ns: Sequence[int]) -> bool:
    """Create timers, all acknowledged; whether that was so before the first was due."""
    timers = [Timer(key, due_ns) for key, due_ns in enumerate(dues_ns)]
    for run in chunks(timers, SCHEDULE_RUN):
        peer.create(run)
    return time.time_ns() < dues_ns[0]


def lead_ns(count: int, rate: float, scale: Scale) -> int:
    """How far ahead the first timer must be due so that all are in by then."""
    return int((scale.lead_s + 3 * count / rate) * NS)


def wait_all(ledger: Path, count: int, until_ns: int) -> list[tuple[int, int]]:
    """What came once `count` different timers have come, or it is `until_ns`."""
    while True:
        came = Ledger.read(ledger) if ledger.exists() else []
        if len({key for key, _ in came}) >= count or time.time_ns() > until_ns:
            return came
        time.sleep(0.25)


def wait_there(ledger: Path) -> None:
    """Wait until a worker has opened its ledger, and a little more: what it connects to is near."""
    until = time.monotonic() + 10
    while not ledger.exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.2)


def sleep_until(at_ns: int) -> None:
    """Sleep, to the ms or so."""
    time.sleep(max(at_ns - time.time_ns(), 0) / NS)


def heard(
    peer: Peer, ledger: Path, steps_ns: Sequence[int], rate: float, scale: Scale
) -> dict[str, Any]:
    """Schedule, wait, and say how late each timer came to the worker for the first time.

    steps_ns: when each is due, counted from the first one.
    """
    worker = peer.work(ledger)
    try:
        wait_there(ledger)
        begin_ns = time.time_ns() + lead_ns(len(steps_ns), rate, scale)
        dues_ns = [begin_ns + step_ns for step_ns in steps_ns]
        in_time = schedule(peer, dues_ns)
        sleep_until(dues_ns[-1])
        came = wait_all(ledger, len(dues_ns), dues_ns[-1] + int(scale.wait_s * 4 * NS))
    finally:
        end(worker)
    first: dict[int, int] = {}
    for key, at_ns in came:
        first.setdefault(key, at_ns)
    late_ms = [(at_ns - dues_ns[key]) / 1e6 for key, at_ns in first.items()]
    return {
        "timers": len(dues_ns),
        "heard": len(first),
        "early": sum(ms < 0 for ms in late_ms),
        "lateness_ms": {name: round(ms, 3) for name, ms in percentiles(late_ms).items()},
        "scheduled_in_time": in_time,
    }


def lateness(peer: Peer, rate: float, scale: Scale) -> dict[str, Any]:
    """Timers due one after the other; then as many as a herd due at one instant."""
    found: dict[str, Any] = {}
    with started(peer) as folder:
        count, step_ns = scale.lateness, scale.lateness_s * NS // scale.lateness
        evenly = [k * step_ns for k in range(count)]
        found["lateness"] = heard(peer, folder / "lateness.txt", evenly, rate, scale)
    with started(peer) as folder:
        found["herd"] = heard(peer, folder / "herd.txt", [0] * scale.herd, rate, scale)
    return found


def size(peer: Peer, rate: float, scale: Scale) -> dict[str, Any]:
    """What pending timers take: memory and disk of the servers, over what they took when empty."""
    count = min(scale.pending, max(int(rate * 20) // 500 * 500, 500))
    with started(peer) as folder:
        time.sleep(scale.settle_s / 4)
        memory, disk = memory_bytes(peer.servers()), disk_bytes(folder)
        peer.create(far(count))
        time.sleep(scale.settle_s)
        found = {
            "timers": count,
            "memory_bytes_a_timer": round((memory_bytes(peer.servers()) - memory) / count),
            "disk_bytes_a_timer": round((disk_bytes(folder) - disk) / count),
            "memory_mb_empty": round(memory / 1e6, 1),
        }
    return {"size": found}


def kill(peer: Peer, victim: str, rate: float, scale: Scale) -> dict[str, Any]:
    """kill -9 of the store or the worker amid timers that fall due, started again at once."""
    with started(peer) as folder:
        ledger = folder / f"kill-{victim}.txt"
        worker = peer.work(ledger)
        try:
            wait_there(ledger)
            begin_ns = time.time_ns() + lead_ns(scale.kill, rate, scale)
            step_ns = scale.kill_s * NS // scale.kill
            dues_ns = [begin_ns + k * step_ns for k in range(scale.kill)]
            in_time = schedule(peer, dues_ns)
            sleep_until(begin_ns + scale.kill_s * NS // 2)
            killed_ns = time.time_ns()
            if victim == "store":
                peer.stop()
                peer.start(folder)
            else:
                end(worker)
                worker = peer.work(ledger)
            restart_s = (time.time_ns() - killed_ns) / NS
            sleep_until(dues_ns[-1])
            came = wait_all(ledger, scale.kill, dues_ns[-1] + int(scale.wait_s * NS))
            time.sleep(scale.twice_s)
            came = Ledger.read(ledger)
        finally:
            end(worker)
    keys = [key for key, _ in came]
    found = {
        "acknowledged": scale.kill,
        "missing": scale.kill - len(set(keys)),
        "duplicated": len(keys) - len(set(keys)),
        "early": sum(at_ns < dues_ns[key] for key, at_ns in came),
        "restart_s": round(restart_s, 2),
        "scheduled_in_time": in_time,
    }
    return {f"killed {victim}": found}


def others(peer: Peer, result: dict[str, Any], scale: Scale) -> None:
    """Every workload but creates; one that fails is said, and the others go on."""
    rate = result["creates_per_second"]
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "lateness": partial(lateness, peer, rate, scale),
        "size": partial(size, peer, rate, scale),
    }
    for victim in peer.victims:
        steps[f"killed {victim}"] = partial(kill, peer, victim, rate, scale)
    for name, step in steps.items():
        try:
            came = step()
        except (Absent, OSError, Refused) as error:
            came = {f"{name} failed": repr(error)}
        result |= came
        print(f"  {peer.name}: {came}", flush=True)


def chosen() -> list[Peer]:
    """All peers, or those that the environment names."""
    words = [word for word in os.environ.get(ONLY_VARIABLE, "").lower().split(",") if word]
    return [p for p in peers() if not words or any(word in p.name.lower() for word in words)]


def run(small: bool = False) -> dict[str, Any]:
    """Everything on everyone; `small` in a minute, to see that it runs."""
    return compare(chosen(), SMALL if small else FULL)


def compare(found: Sequence[Peer], scale: Scale) -> dict[str, Any]:
    """All workloads on these peers."""
    results: dict[str, Any] = {}
    began = time.monotonic()
    about = machine()
    creates(found, scale, results)
    for peer in found:
        if "skipped" not in results[peer.name] and not peer.creates_only:
            others(peer, results[peer.name], scale)
    rates = {name: one.get("creates_per_second") for name, one in results.items()}
    ratios = {
        f"{ours} / {name}": round(rates[ours] / rates[name], 2)
        for ours in (OURS, OURS_AFTER)
        for name in (REDIS, BEANSTALKD)
        if rates.get(ours) and rates.get(name)
    }
    took_s = round(time.monotonic() - began)
    return {"machine": about, "took_s": took_s, "ratios": ratios, "peers": results}


def _row(name: str, one: dict[str, Any]) -> str:
    if "skipped" in one:
        return f"| {name} | skipped: {one['skipped'].splitlines()[0][:100]} | | | | | | |"
    cells = [name, one["ack"], f"{one['creates_per_second']:,}"]
    for stage, show in (
        ("lateness", _late),
        ("herd", _last),
        ("size", _bytes),
        ("killed store", _killed),
        ("killed worker", _killed),
    ):
        workload = "lateness" if stage == "herd" else stage  # a herd fails with it
        failed = "failed" if f"{workload} failed" in one else "-"
        cells.append(show(one[stage]) if stage in one else failed)
    return f"| {' | '.join(cells)} |"


def _late(one: dict[str, Any]) -> str:
    return f"{one['lateness_ms']['p50']:,.2f} / {one['lateness_ms']['p99']:,.2f}{_doubts(one)}"


def _last(one: dict[str, Any]) -> str:
    return f"{one['lateness_ms']['max'] / 1000:.2f}{_doubts(one)}"


def _bytes(one: dict[str, Any]) -> str:
    return f"{one['memory_bytes_a_timer']:,} / {one['disk_bytes_a_timer']:,}"


def _killed(one: dict[str, Any]) -> str:
    return f"{one['missing']} / {one['duplicated']}{_doubts(one)}"


def _doubts(one: dict[str, Any]) -> str:
    """What a reader must know beside the figure; mostly nothing."""
    said = []
    if one.get("heard", 0) != one.get("timers", 0):
        said.append(f"{one['heard']:,} of {one['timers']:,} came")
    if one["early"]:
        said.append(f"{one['early']:,} early")
    if not one["scheduled_in_time"]:
        said.append("scheduled late")
    return f" ({', '.join(said)})" if said else ""


def readme_table(result: dict[str, Any]) -> str:
    """The results as Markdown, with the machine, the date and the commit."""
    about = result["machine"]
    lines = [
        f"{about['date']}, commit {about['commit']}: {about['cpu']}, {about['cores']} cores, "
        f"kernel {about['kernel']}, Python {about['python']}; client, worker, server and disk "
        "share the machine.",
        "",
        "| peer | an ack means | creates/s | lateness p50 / p99 ms | herd, last s "
        "| RAM / disk bytes a timer | store killed: missing / twice | worker killed |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(name, one) for name, one in result["peers"].items()),
    ]
    if result["ratios"]:
        said = "; ".join(f"{name}: {ratio} x" for name, ratio in result["ratios"].items())
        lines += ["", f"Creates in this run: {said}."]
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Creates per second and lateness of all."""
    from bench.plot import bars

    about = result["machine"]
    note = f"{about['cpu']}, {about['cores']} cores, {about['date']}, commit {about['commit']}"
    ran = {name: one for name, one in result["peers"].items() if "skipped" not in one}
    rates = {f"{name} ({one['ack']})": one["creates_per_second"] for name, one in ran.items()}
    late = {
        name: one["lateness"]["lateness_ms"]["p99"]
        for name, one in ran.items()
        if "lateness" in one
    }
    panels = [
        ("Creates, by what the acknowledgement means", "timers/s", rates),
        ("Lateness at the worker, p99", "ms", late),
    ]
    bars(path, [panel for panel in panels if panel[2]], note)
