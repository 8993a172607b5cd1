"""A whole node over its sockets: durable creates, lateness at a subscriber, a herd, memory.

    python -m bench.node [--small] [--out DIR]

Every reply counted here came after its fsync. Clients are processes of their own on the same two
cores, so what is measured is the node and its client together.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import zmq

from bench import load
from bench.children import begin, result_of
from bench.report import machine, percentiles
from minoots.cli.demo import ephemeral_node

NS = 1_000_000_000


def doors_of(folder: Path) -> dict[str, str]:
    """The endpoints of a node that serves."""
    found: dict[str, str] = json.loads((folder / "minoots.json").read_bytes())["doors"]
    return found


def rss_mb(pid: int) -> dict[str, float]:
    """Resident memory of a process: in all, and without pages of files."""
    fields = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(("VmRSS", "RssAnon", "RssFile")):
            name, _, rest = line.partition(":")
            fields[name] = int(rest.split()[0]) / 1024
    return {"all": fields["VmRSS"], "anonymous": fields["RssAnon"], "files": fields["RssFile"]}


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def ask(endpoint: str, op: str, body: Any = None) -> Any:
    """One request on a socket of its own."""
    context: zmq.Context[Any] = zmq.Context()
    socket = load.dealer(context, endpoint)
    header = json.dumps({"op": op}).encode()
    socket.send_multipart((b"MZP1", b"Q", b"x", header, json.dumps(body or {}).encode()))
    reply = socket.recv_multipart()
    context.destroy(linger=0)
    return json.loads(reply[4])


def creates(doors: dict[str, str], pid: int, scale: int) -> dict[str, Any]:
    """Durable creates per second through the control door."""
    control = doors["control"]
    found: dict[str, Any] = {}
    cases: list[tuple[str, str, list[tuple[int, ...]]]] = [
        ("single, 256 in flight", "single", [(40_000 * scale // 10, 256)]),
        ("schedule_many 500 x 8", "many", [(200_000 * scale // 10, 8, 500)]),
        ("ten clients, single, 26 each", "single", [(4_000 * scale // 10, 26)] * 10),
        ("ten clients, many 500 x 1", "many", [(20_000 * scale // 10, 1, 500)] * 10),
        ("single, 1 in flight", "single", [(500 * scale // 10, 1)]),
    ]
    for name, kind, numbers in cases:
        clients = [load.spawn(kind, control, *each) for each in numbers]
        begin(*clients)
        used_s, began_ns = cpu_s(pid), time.monotonic_ns()
        results = [result_of(client) for client in clients]
        seconds = max(result["seconds"] for result in results)
        total = sum(result["per_second"] * result["seconds"] for result in results)
        took_s = (time.monotonic_ns() - began_ns) / NS
        found[name] = {
            "per_second": round(total / seconds),
            "latency_ms": results[0]["latency_ms"],
            "refused": sum(result["refused"] for result in results),
            "node_cpu": round((cpu_s(pid) - used_s) / took_s, 2),
        }
        print(f"  {name}: {found[name]['per_second']:,}/s {results[0]['latency_ms']}", flush=True)
    return found


def beside_bulk(doors: dict[str, str], scale: int) -> dict[str, Any]:
    """A lone small request while another client saturates the node with bulk."""
    bulk = load.spawn("many", doors["control"], 300_000 * scale // 10, 8, 500)
    small = load.spawn("lone", doors["control"], 150 * scale // 10)
    begin(bulk, small)
    alone = result_of(small)
    rate = result_of(bulk)
    found = {"latency_ms": alone["latency_ms"], "bulk_per_second": round(rate["per_second"])}
    print(f"  lone request beside bulk: {found}", flush=True)
    return found


class Subscriber:
    """Hears expirations, and how late each came: at the door (stamp) and here (our clock)."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = 0
        self._socket.subscribe(b"t/default/e/timer.expired/")
        self._socket.subscribe(b"t/default/~/hb")
        self._socket.connect(endpoint)
        self._socket.poll(5_000)

    def hear(self, count: int, seconds: float) -> dict[str, Any]:
        """Until `count` came or `seconds` are over."""
        door_us: list[float] = []
        here_us: list[float] = []
        last_ns = early = 0
        until = time.monotonic() + seconds
        while len(here_us) < count and time.monotonic() < until:
            if not self._socket.poll(50):
                continue
            topic, stamp, body = self._socket.recv_multipart()
            now_ns = time.time_ns()
            if b"/e/" not in topic:
                continue
            fired_ns = int.from_bytes(stamp[8:16], "big")
            due_ns = due_of(body)
            early += fired_ns < due_ns
            door_us.append((fired_ns - due_ns) / 1e3)
            here_us.append((now_ns - due_ns) / 1e3)
            last_ns = max(last_ns, now_ns)
        return {
            "heard": len(here_us),
            "early": early,
            "door_us": percentiles(door_us),
            "subscriber_us": percentiles(here_us),
            "last_after_due_ms": max(here_us, default=0) / 1e3,
        }

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)


def due_of(body: bytes) -> int:
    """`data.due` of an event's JSON, in ns."""
    at = body.index(b'"due":"') + 7
    text = body[at : at + 30].decode()
    seconds = time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    return int(seconds) * NS + int(text[20:29])


def late_beside_bulk(doors: dict[str, str], rate: int, seconds: int, scale: int) -> dict[str, Any]:
    """The same while a client saturates the node with schedule_many."""
    bulk = load.spawn("many", doors["control"], 80_000 * scale, 8, 500)
    schedule_evenly(doors, rate, seconds)
    begin(bulk)
    heard = hear(doors, rate * seconds, seconds + 10)
    return heard | {"bulk_per_second": round(result_of(bulk)["per_second"])}


def lateness(doors: dict[str, str], rate: int, seconds: int) -> dict[str, Any]:
    """`rate` fires a second, spread evenly, scheduled two seconds before."""
    schedule_evenly(doors, rate, seconds)
    return hear(doors, rate * seconds, seconds + 10)


def schedule_evenly(doors: dict[str, str], rate: int, seconds: int) -> None:
    """Timers due one after the other, from two seconds ahead on."""
    begin_ns = time.time_ns() + 2 * NS
    count = rate * seconds
    for first in range(0, count, 500):
        timers = [
            at_timer(begin_ns + k * NS // rate) for k in range(first, min(first + 500, count))
        ]
        ask(doors["control"], "timer.schedule_many", {"timers": timers})


def herd(doors: dict[str, str], count: int) -> dict[str, Any]:
    """`count` timers due at one instant."""
    due_ns = time.time_ns() + (2 + count // 20_000) * NS
    for _ in range(0, count, 500):
        timers = [at_timer(due_ns)] * min(500, count)
        ask(doors["control"], "timer.schedule_many", {"timers": timers})
    return hear(doors, count, 15)


def hear(doors: dict[str, str], count: int, seconds: float) -> dict[str, Any]:
    """What a new subscriber hears."""
    subscriber = Subscriber(doors["events"])
    try:
        return subscriber.hear(count, seconds)
    finally:
        subscriber.close()


def at_timer(due_ns: int) -> dict[str, Any]:
    """A timer due at an instant."""
    seconds, ns = divmod(due_ns, NS)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{ns:09}Z"
    return {"name": "jitter", "schedule": {"kind": "at", "instant": text}, "payload": {"k": 1}}


def pending(folder: Path, count: int) -> dict[str, Any]:
    """Memory with `count` timers pending, and the restart to serving."""
    with ephemeral_node(folder) as process:
        doors = doors_of(folder)
        client = load.spawn("many", doors["control"], count, 8, 500)
        begin(client)
        rate = result_of(client)["per_second"]
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if ask(doors["control"], "stats")["tables"]["behind"] == 0:
                break
            time.sleep(0.2)
        filled = rss_mb(process.pid)
        disk = sum(path.stat().st_blocks * 512 for path in folder.rglob("*.mdb"))
        process.kill()
        process.wait()
    (folder / "minoots.json").unlink(missing_ok=True)
    began_ns = time.monotonic_ns()
    with ephemeral_node(folder) as process:
        seconds = (time.monotonic_ns() - began_ns) / NS
        doors = doors_of(folder)
        stats = ask(doors["control"], "stats")
        again = rss_mb(process.pid)
    return {
        "timers": count,
        "fill_per_second": round(rate),
        "rss_mb_filled": filled,
        "rss_mb_restarted": again,
        "disk_bytes_a_timer": round(disk / count),
        "restart_s": round(seconds, 2),
        "pending_after_restart": stats["timers"]["pending"],
    }


def run(small: bool = False) -> dict[str, Any]:
    """Every case; `small` in a few seconds, to see that it runs."""
    scale = 1 if small else 10
    result: dict[str, Any] = {"machine": machine(), "small": small}
    with tempfile.TemporaryDirectory(prefix="minoots-bench-") as temporary:
        folder = Path(temporary) / "data"
        with ephemeral_node(folder) as process:
            doors = doors_of(folder)
            result["idle_rss_mb"] = rss_mb(process.pid)
            rate = 1_000 if not small else 200
            result[f"lateness at {rate}/s"] = lateness(doors, rate, 1 if small else 10)
            print(f"  lateness: {result[f'lateness at {rate}/s']}", flush=True)
            beside = late_beside_bulk(doors, rate, 1 if small else 5, scale)
            result[f"lateness at {rate}/s beside bulk"] = beside
            print(f"  lateness beside bulk: {beside}", flush=True)
            count = 10_000 if not small else 1_000
            result[f"herd of {count}"] = herd(doors, count)
            print(f"  herd: {result[f'herd of {count}']}", flush=True)
            result["creates"] = creates(doors, process.pid, scale)
            result["lone beside bulk"] = beside_bulk(doors, scale)
            result["stats"] = ask(doors["control"], "stats")
        result["pending"] = pending(Path(temporary) / "more", 1_000_000 if not small else 20_000)
        print(f"  pending: {result['pending']}", flush=True)
    return result


def plot(result: dict[str, Any], path: Path) -> None:
    """Durable creates per second by case, and lateness."""
    from bench.plot import bars

    about = result["machine"]
    note = f"{about['cpu']}, {about['cores']} cores, {about['date']}, commit {about['commit']}"
    creates = {name: case["per_second"] for name, case in result["creates"].items()}
    name = next(name for name in result if name.startswith("lateness"))
    late = {
        f"{where} {q}": result[name][key][q]
        for where, key in (("leaving", "door_us"), ("at a subscriber", "subscriber_us"))
        for q in ("p50", "p99", "p999")
    }
    panels = [
        ("Durable creates through the control door", "timers/s, each fsynced", creates),
        (name.capitalize(), "us after the due instant", late),
    ]
    bars(path, panels, note)
