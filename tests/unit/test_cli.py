"""The command line: what it prints, how it refuses, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_node import FakeNode

from minoots.cli import cli, moments, refusals, show
from minoots.wire.problems import Unreachable, refusal
from minoots.wire.times import SECOND, parse_instant

Run = Callable[..., Result]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    with FakeNode(data=tmp_path) as fake:
        yield fake


@pytest.fixture
def run(node: FakeNode, tmp_path: Path) -> Run:
    env = {"MINOOTS_DATA": str(tmp_path), "COLUMNS": "80", "NO_COLOR": "1"}

    def command(*words: str, code: int = 0, stdin: str | None = None, columns: int = 80) -> Result:
        given = env | {"COLUMNS": str(columns)}
        result = CliRunner().invoke(cli, words, env=given, input=stdin, prog_name="minoots")
        assert result.exit_code == code, result.output + result.stderr
        return result

    return command


def told(result: Result) -> Any:
    return json.loads(result.stdout)


def test_a_timers_life(run: Run) -> None:
    first = run("schedule", "tea", "--in", "4m", "--label", "a=b", "--payload", '{"x": 1}')
    assert first.stdout.startswith("scheduled tea  tmr_")
    assert "  due in 4m (" in first.stdout
    view = told(run("get", "tea", "--json"))
    assert view["payload"] == {"x": 1}
    assert view["labels"] == {"a": "b"}
    shown = run("get", view["id"]).stdout
    assert "schedule    after 4m" in shown
    assert '{"x": 1}' in shown
    assert "due in 1h 4m" in run("extend", "tea", "1h").stdout
    assert run("pause", "tea").stdout.endswith("  1h 4m left\n")
    run("resume", "tea")
    assert "due in 2d" in run("reschedule", "tea", "--in", "2d").stdout
    assert run("cancel", "tea").stdout.startswith("cancelled tea")
    lines = run("history", view["id"]).stdout.splitlines()
    assert lines[0].split() == ["SEQ", "EVENT", "#", "WHEN", "LATE"]
    assert lines[-1].split()[1] == "cancelled"
    assert told(run("history", view["id"], "--json"))["events"][0]["type"].endswith("scheduled.v1")


def test_a_key_and_a_spread(run: Run) -> None:
    run("schedule", "remind", "--in", "30m", "--key", "cart-7", "--on-conflict", "extend",
        "--spread", "5m:hashed")  # fmt: skip
    view = told(run("get", "remind", "--json"))
    assert (view["key"], view["spread"]) == ("cart-7", {"window": "5m", "mode": "hashed"})
    run("schedule", "b", "--in", "30m", "--spread", "5m")
    assert told(run("get", "b", "--json"))["spread"]["mode"] == "random"
    assert "not of the contract" in run("schedule", "b", "--in", "1s", "--spread", "5m:x",
                                        code=2).stderr  # fmt: skip


def test_forecast_and_explain(run: Run) -> None:
    for minutes in (1, 1, 1, 9, 34):
        run("schedule", "f", "--in", f"{minutes}m", "--label", f"of={minutes % 2}")
    shown = run("forecast", "--to", "2h", "--bin", "10m", "--by", "of").stdout.splitlines()
    assert [line.split()[1:] for line in shown[:6]] == [
        ["FIRES"],
        ["4", "█" * 49],
        ["0"],
        ["0"],
        ["1", "█" * 12 + "▎"],
        ["0", "8", "times", "10m"],
    ]
    assert shown[-1] == "5 fires, at most 4 in 10m"
    assert [line.split()[:2] for line in shown[6:9]] == [["OF", "FIRES"], ["1", "4"], ["0", "1"]]
    told_bins = told(run("forecast", "--bin", "10m", "--json"))
    assert (told_bins["total"], told_bins["bins"][0]) == (5, 4)
    assert run("forecast", "--to", "2m", "--label", "of=9").stdout.endswith("\n0 fires\n")
    id = told(run("schedule", "why", "--in", "4m", "--json"))["id"]
    run("pause", "why")
    lines = run("explain", "why").stdout.splitlines()
    assert lines[0] == f"why  {id}  after 4m"
    assert [line.split("  ")[-1].split(",")[0] for line in lines[2:4]] == ["made", "paused"]
    assert lines[-1].endswith(f"are left; let it go on with: minoots resume {id}")
    assert told(run("explain", id, "--json"))["id"] == id


def test_when(run: Run, node: FakeNode) -> None:
    run("schedule", "a", "--at", "2030-01-02 09:00", "--tz", "Europe/Berlin")
    assert told(run("get", "a", "--json"))["due"] == "2030-01-02T08:00:00.000000000Z"
    run(
        "schedule",
        "b",
        "--every",
        "5m",
        "--mode",
        "fixed_delay",
        "--max",
        "3",
        "--until",
        "2030-01-01",
    )
    assert node._find({"name": "b"})["max_occurrences"] == 3
    dues = told(run("schedule", "c", "--every", "1h", "--dry-run", "--count", "2", "--json"))[
        "dues"
    ]
    assert parse_instant(dues[1]) - parse_instant(dues[0]) == 3_600 * SECOND
    assert len(node.timers) == 2
    assert len(run("next", "b", "--count", "3").stdout.splitlines()) == 4
    assert len(told(run("next", "--every", "1s", "--json"))["dues"]) == 5


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("schedule", "x"), "give --in, --at or --every"),
        (("schedule", "x", "--in", "1m", "--every", "1m"), "--in and --every are given"),
        (("schedule", "x", "--in", "1m", "--mode", "fixed_rate"), "go with --every, not with --in"),
        (("schedule", "x", "--in", "soon"), "duration is 'soon'"),
        (("schedule", "x", "--at", "soon"), "time is 'soon'"),
        (("schedule", "x", "--at", "09:00", "--tz", "Mars"), "tz is 'Mars'"),
        (("schedule", "x", "--in", "1m", "--payload", "{"), "payload is not JSON"),
        (("schedule", "x", "--in", "1m", "--payload", "@/nope"), "No such file"),
        (("schedule", "x", "--in", "1m", "--label", "a"), "label is 'a'; write KEY=VALUE"),
        (("cancel",), "name timers, or give a filter"),
        (("cancel", "x", "--all"), "name timers, or give a filter"),
        (("next", "x", "--in", "1m"), "not both"),
        (("watch", "x", "--name", "y"), "give one"),
        (("work", "c", "--", "no-such-command"), "there is no command 'no-such-command'"),
        (("work", "c"), "Missing argument '-- COMMAND...'"),
        (("work", "c", "--delay", "soon", "--", "true"), "duration is 'soon'"),
        (("consumer", "create", "c", "--since", "start", "--last"), "give one"),
        (("consumer", "create", "c", "--backoff", "1s,soon"), "duration is 'soon'"),
        (("dlq", "drop", "a", "b"), "'a' is a consumer: name one, or only ids"),
        (("dlq", "redrive", "a/1", "--label", "x=y"), "go with a consumer, not with ids"),
        (("log", "--since", "1m", "--from-seq", "3"), "give one"),
        (("--timeout", "0", "stats"), "is not above 0"),
        (("nonsense",), "No such command"),
    ],
)
def test_usage_errors(run: Run, words: tuple[str, ...], error: str) -> None:
    result = run(*words, code=2)
    assert error in result.stderr
    assert result.stdout == ""


def test_payloads_from_files_and_pipes(run: Run, tmp_path: Path, node: FakeNode) -> None:
    file = tmp_path / "payload.json"
    file.write_text('["from a file"]')
    run("schedule", "a", "--in", "1h", "--payload", f"@{file}")
    run("schedule", "b", "--in", "1h", "--payload", "-", stdin='"from a pipe"')
    assert node._find({"name": "a"})["payload"] == ["from a file"]
    assert node._find({"name": "b"})["payload"] == "from a pipe"


def test_problems_are_told_with_what_to_do(run: Run, node: FakeNode) -> None:
    result = run("get", "nope", code=1)
    assert result.stderr.splitlines() == [
        "minoots: not_found: there is no timer 'nope'",
        "  to do: see what there is: minoots list",
    ]
    assert result.stdout == ""
    problem = json.loads(run("--json", "get", "nope", code=1).stderr)
    assert problem["code"] == "not_found"
    past = run("schedule", "x", "--at", "2020-01-01T00:00:00Z", code=1).stderr
    assert "  at /schedule/instant" in past
    node.mute = True
    assert "no reply to stats in 0.1 s" in run("stats", "--timeout", "0.1", code=1).stderr
    found = json.loads(run("stats", "--timeout", "100ms", "--json", code=1).stderr)
    assert found["code"] == "unreachable"
    none = run("--data", "/nope", "stats", code=1).stderr
    assert "no node serves from /nope; start one with `minoots run --data /nope`" in none
    faults = refusal("validation", "two are wrong", errors=[])
    assert refusals.lines(faults) == ["minoots: validation: two are wrong"]
    assert refusals.lines(Unreachable("gone")) == ["minoots: gone"]


def test_lists(run: Run) -> None:
    assert run("list").stderr == "no timers\n"
    for at in range(5):
        run("schedule", f"timer-{at}", "--in", f"{at + 1}h", "--label", f"n={at}")
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATE", "DUE"]
    assert lines[1].split()[1:] == ["timer-0", "scheduled", "in", "1h"]
    assert max(len(line) for line in lines) <= 80
    assert len(lines) == 6
    wide = run("list", columns=140).stdout.splitlines()
    assert wide[0].split() == ["ID", "NAME", "STATE", "DUE", "#", "SCHEDULE", "LABELS"]
    assert "after 1h" in wide[1]
    assert "n=0" in wide[1]
    exact = run("list", "--utc", "--label", "n=2").stdout.splitlines()
    assert len(exact) == 2
    assert exact[1].rstrip().endswith("Z")
    limited = run("list", "--limit", "2")
    assert "the first 2; see more with --limit or --all" in limited.stderr
    assert len(told(run("list", "--json", "--all"))["items"]) == 5
    assert len(told(run("list", "--json", "--limit", "2"))["items"]) == 2
    run("schedule", "n" * 90, "--in", "9h")
    for words in (("list",), ("list", "--utc")):
        lines = run(*words).stdout.splitlines()
        assert all(len(line.split()[0]) == 30 for line in lines[1:])
        assert max(len(line) for line in lines) <= 80
    run("cancel", "n" * 90)
    assert told(run("list", "--json", "--name-prefix", "x")) == {"items": []}
    snapshot = run("snapshot")
    assert "5 timers as of 1:7; go on with: minoots watch --since 1:7" in snapshot.stderr
    assert told(run("snapshot", "--json"))["as_of"] == {"epoch": 1, "seq": 7}
    assert len(told(run("list", "--json", "--due-before", "3h30m"))["items"]) >= 3


def test_cancelling_by_filter_says_how_many_first(run: Run, node: FakeNode) -> None:
    for name in ("a1", "a2", "b1"):
        run("schedule", name, "--in", "1h")
    result = run("cancel", "--name-prefix", "a", code=2)
    assert "2 timers match; add --yes to cancel" in result.stderr
    assert len(node._pending()) == 3
    assert run("cancel", "--name-prefix", "a", "--yes").stdout == "cancelled 2 timers\n"
    assert told(run("cancel", "--all", "--yes", "--json")) == {"count": 1}
    assert run("cancel", "--all").stderr == "no timer matches\n"


def test_many_at_once(run: Run) -> None:
    for name in ("a1", "a2", "b"):
        run("schedule", name, "--in", "1h", "--label", f"of={name[0]}")
    shown = run("pause", "--label", "of=a", "--dry-run").stdout.splitlines()
    assert shown[0] == "2 timers match; nothing is paused"
    assert [line.split()[1] for line in shown[1:]] == ["NAME", "a1", "a2"]
    assert told(run("list", "--state", "paused", "--json"))["items"] == []
    assert run("pause", "--label", "of=a", "--yes").stdout == "paused 2 timers\n"
    assert run("resume", "--all", "--yes").stdout == "resumed 2 timers\n"
    assert run("shift", "b", "a1", "--by", "-10m").stdout == "shifted 2 timers\n"
    assert "due  " in run("get", "b").stdout
    assert "in 50m" in run("get", "b").stdout
    assert run("shift", "--all", "--by", "1d", code=2).stderr.count("3 timers match; add --yes")
    result = run("relabel", "--all", "--yes", "--set", "x=y", "--remove", "of")
    assert (result.stdout, result.stderr) == (
        "relabelled 3 timers\n",
        "1 stay as they are: a limit forbids it\n",
    )
    assert told(run("get", "b", "--json"))["labels"] == {"x": "y"}
    dry = told(run("cancel", "--all", "--dry-run", "--json"))
    assert (dry["count"], len(dry["sample"])) == (3, 3)
    assert "goes with a filter" in run("pause", "b", "--dry-run", code=2).stderr
    assert "relabel takes set or remove" in run("relabel", "--all", "--yes", code=2).stderr


def test_several_timers_at_once(run: Run, node: FakeNode) -> None:
    for name in ("a", "b"):
        run("schedule", name, "--in", "1h")
    result = run("pause", "a", "nope", "b", code=1)
    assert result.stdout.count("paused") == 2
    assert "not_found" in result.stderr
    run("trigger", "b", code=0)
    assert run("resume", "a", "--idem", "k").stdout.startswith("resumed a")
    assert "done before" in run("resume", "a", "--idem", "k").stdout


def test_watch_and_log(run: Run) -> None:
    run("schedule", "tea", "--in", "10ms")
    run("schedule", "cake", "--in", "1h")
    lines = run("watch", "--since", "start", "--count", "3").stdout.splitlines()
    kinds = [(line.split()[1], line.split()[2]) for line in lines]
    assert sorted(kinds) == [("expired", "tea"), ("scheduled", "cake"), ("scheduled", "tea")]
    assert max(len(line) for line in lines) <= 80
    assert run("log", "te*", "--type", "expired").stdout.split()[1:3] == ["expired", "tea"]
    found = [json.loads(line) for line in run("log", "tea", "--json").stdout.splitlines()]
    assert found[1]["data"]["lateness_us"] >= 0
    assert len(run("log", "--from-seq", "1").stdout.splitlines()) == 2
    assert len(run("log", "--since", "1h", "--limit", "1").stdout.splitlines()) == 1
    assert len(run("log", "--since", "1:2").stdout.splitlines()) == 1
    assert run("log", "--follow", "--limit", "2", "--utc").stdout.count("Z ") == 2
    assert run("watch", "--for", "10ms").stdout == ""
    run("watch", "--for", "10ms", "--count", "1", code=1)
    assert run("watch", "tea", "--since", "start", "--count", "1", "--json", columns=120).stdout


def test_the_node_itself(run: Run, node: FakeNode) -> None:
    assert "lateness_us.p99  90" in run("stats").stdout
    assert told(run("stats", "--json"))["timers"] == {"pending": 0, "armed": 0}
    assert run("health").stdout == "status  ok\n"
    assert "node fake (0.0-fake): 2 answers" in run("ping", "--count", "2").stdout
    assert len(told(run("ping", "--json"))["us"]) == 5
    assert "the node's clock is" in run("time-sync", "--samples", "2").stdout
    assert told(run("time-sync", "--json"))["samples"] == 8
    assert told(run("schema", "hello")) == {"type": "object"}
    assert "doors.control" in run("hello").stdout
    assert told(run("hello", "--json"))["node_id"] == "fake"
    assert run("version").stdout.startswith("minoots ")
    assert told(run("version", "--json"))["protocol"] == "MZP/1"
    node.verbs["health"] = lambda node, body: {"status": "read_only"}
    run("health", code=1)


def test_the_clock_and_agreeing_with_it(run: Run, node: FakeNode) -> None:
    assert "340" in run("clock").stdout
    assert "nothing to accept: UTC is not in doubt" in run("clock", "--accept").stdout
    node.clock_held = True
    assert told(run("clock", "--json")) == {
        "accepted": False,
        "state": "following",
        "error_us": 340,
        "held": True,
    }
    assert run("clock", "--accept").stdout.endswith("UTC is accepted\n")
    assert not node.clock_held


def test_a_misfire_policy(run: Run, node: FakeNode) -> None:
    options = ("--misfire", "fire_all", "--grace", "5s", "--max-lateness", "1h")
    run("schedule", "m", "--every", "1m", *options, "--max-catchup", "9", "--catchup-rate", "2.5")
    asked = {"policy": "fire_all", "grace": "5s", "max_lateness": "1h"}
    (timer,) = node.timers.values()
    assert timer["misfire"] == asked | {"max_catchup": 9, "catchup_rate": 2.5}
    shown = run("get", "m").stdout
    assert "policy fire_all, grace 5s, max_lateness 1h, max_catchup 9, catchup_rate 2.5" in shown
    run("schedule", "m", "--in", "1m", "--misfire", "often", code=2)


def test_a_budget_of_lateness(run: Run, node: FakeNode) -> None:
    run("schedule", "strict", "--in", "4m", "--lateness-budget", "5ms")
    (timer,) = node.timers.values()
    assert timer["lateness_budget"] == "5ms"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    script = run("completion", shell).stdout
    assert "_MINOOTS_COMPLETE" in script
    assert "minoots" in script


def test_names_cannot_talk_to_the_terminal() -> None:
    assert show.plain("a\x1b[31mb\n") == "a\ufffd\\[31mb\ufffd"


# ----------------------------------------------------------------------------------------- times

NOW_NS = parse_instant("2026-03-01T10:00:00Z")


@pytest.mark.parametrize(
    ("text", "tz", "instant"),
    [
        ("2026-11-22T09:00:00+01:00", None, "2026-11-22T09:00:00+01:00"),
        ("2026-11-22 09:00", "UTC", "2026-11-22T09:00:00.000000000Z"),
        ("2026-11-22T9:00:30", "Europe/Berlin", "2026-11-22T08:00:30.000000000Z"),
        ("2026-11-22", "UTC", "2026-11-22T00:00:00.000000000Z"),
        ("11:00", "UTC", "2026-03-01T11:00:00.000000000Z"),
        ("9:59", "UTC", "2026-03-02T09:59:00.000000000Z"),
        ("10:00:00", "UTC", "2026-03-02T10:00:00.000000000Z"),
        ("11:30", "Europe/Berlin", "2026-03-01T10:30:00.000000000Z"),
        ("2026-10-25 02:30", "Europe/Berlin", "2026-10-25T00:30:00.000000000Z"),  # the first
    ],
)
def test_instants_as_people_write_them(text: str, tz: str | None, instant: str) -> None:
    assert moments.instant_of(text, tz=tz, now_ns=NOW_NS) == instant


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("2026-03-29 02:30", "clocks go forward"),
        ("2026-02-30 09:00", "day"),
        ("25:00", "hour must be in 0"),
        ("tomorrow", "write RFC 3339"),
    ],
)
def test_instants_that_make_no_sense(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        moments.instant_of(text, tz="Europe/Berlin", now_ns=NOW_NS)


@pytest.mark.parametrize(
    ("distance_s", "text"),
    [
        (0.9, "now"),
        (-0.9, "now"),
        (4.2, "in 4s"),
        (239.99, "in 4m"),
        (238, "in 3m 58s"),
        (-12, "12s ago"),
        (4_800, "in 1h 20m"),
        (3_599.9, "in 1h"),
        (90 * 86_400, "in 90d"),
        (-86_400 - 7_200, "1d 2h ago"),
    ],
)
def test_relative_times(distance_s: float, text: str) -> None:
    assert moments.relative(NOW_NS + int(distance_s * SECOND), NOW_NS) == text


def test_lengths_and_lateness() -> None:
    assert moments.ago_or_instant("10m", tz=None, now_ns=NOW_NS) == "2026-03-01T09:50:00.000000000Z"
    assert [moments.lateness(us) for us in (85, 1_250, 3_400_000, 150_000_000)] == [
        "+85us",
        "+1.2ms",
        "+3.4s",
        "+2m30s",
    ]
    assert moments.span(250_000_000) == "250ms"
    assert moments.exact(NOW_NS + 1_500) == "2026-03-01T10:00:00.0000015Z"


# ------------------------------------------------------------------------------- as a process

PROGRAM = "from minoots.cli import cli; cli(prog_name='minoots')"


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    env = os.environ | {"MINOOTS_DATA": str(tmp_path), "PYTHONPATH": str(root)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def test_ctrl_c_ends_quietly(node: FakeNode, tmp_path: Path) -> None:
    node.tell("timer.expired")
    process = start(tmp_path, "watch", "--since", "start")
    assert process.stdout is not None
    assert "expired" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 130
    assert errors == ""


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_a_reader_that_goes_away_ends_it_quietly(
    node: FakeNode, tmp_path: Path, words: tuple[str, ...]
) -> None:
    node.run(lambda: [node._append("timer.expired", node._blank()) for _ in range(2_000)])
    process = start(tmp_path, "log", *words)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(5) == 0
    assert errors == ""


def test_help_is_quick() -> None:
    root = Path(__file__).parents[2]
    code = (
        "import sys; from minoots.cli import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit: print(sorted({'zmq','rich','orjson','asyncio'} & set(sys.modules)))"
    )
    began = time.monotonic()
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - began < 2
