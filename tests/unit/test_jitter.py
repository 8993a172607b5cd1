"""What the jitter bench makes of samples: percentiles, goals, the page, the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bench import command, floor, jitter, percentile
from bench._floor import wakes
from bench.jitter import BUSY, CREATING, IDLE, Case, Found, Last
from bench.jitter_report import Goal, goals
from bench.subscriber import bare_body, due_ns
from edgenode.__main__ import cli

US = 1_000


def samples(most_us: float) -> percentile.Samples:
    """A hundred, evenly spread up to `most_us`."""
    return (np.arange(1, 101) * most_us * US / 100).astype(np.int64)


def found(**late_us: float) -> Found:
    """A run in which all went well but for what is given."""
    made = Found(expected=600, heard=600, ahead_ms=[100.0], creates_per_second=[10_000.0])
    made.policies = {"floor": "made up", "subscriber": "fifo 50"}
    made.idle_cpu, made.firing_cpu, made.firing_spin = [0.001], [0.2], [0.01]
    for load in (IDLE, BUSY, CREATING):
        made.add(Case("floor", load), samples(50))
        made.add(Case("asyncio", load), samples(900))
        made.add(Case("bare transit", load, "ipc"), samples(100))
        late = late_us.get("creating" if load == CREATING else "other", 4)
        made.add(Case("release", load, "ipc", 1_000), samples(late))
        made.add(Case("subscriber", load, "ipc", 1_000), samples(late_us.get("heard", 150)))
    for count, last_s in ((10_000, 0.05), (100_000, late_us.get("herd_s", 0.5))):
        for what in ("release", "subscriber"):
            case = Case(what, IDLE, "ipc", herd=count)
            made.herds[case] = [Last(last_s, count)]
    return made


def judged(made: Found) -> dict[str, Any]:
    """The result as `run` gives it."""
    result: dict[str, Any] = {
        "machine": dict.fromkeys(("cpu", "cores", "kernel", "python", "date", "commit"), "made up"),
        "rounds": 1,
        "took_s": 1,
        "load_before": 0.1,
        "stolen_share": 0.0,
        **jitter.results(made, jitter.SMALL),
    }
    return result | {"goals": [goal._asdict() for goal in goals(result)]}


def missed(made: Found) -> list[Goal]:
    return [goal for goal in goals(judged(made)) if not goal.reached]


def test_all_goals_are_reached() -> None:
    assert not missed(found())
    page = jitter.verdict(judged(found()))
    assert "**14 of 14 goals reached.** Of 600 timers none fired early, none went unheard" in page
    assert "**no**" not in page


@pytest.mark.parametrize(
    ("late_us", "goal"),
    [
        ({"other": 80}, "release p99 against the floor's, idle"),
        ({"other": 80}, "release p50 under SCHED_FIFO, idle"),
        ({"creating": 9}, "release p99 beside 10,000 creates/s"),
        ({"heard": 210}, "p99 at a subscriber, a busy process"),
        ({"herd_s": 0.61}, "herd of 100,000: the last one out"),
    ],
)
def test_a_goal_is_missed(late_us: dict[str, float], goal: str) -> None:
    wrong = {one.text: one for one in missed(found(**late_us))}
    assert wrong[goal].reached is False
    assert f"| {goal} |" in jitter.verdict(judged(found(**late_us)))


def test_counts_are_judged() -> None:
    made = found()
    made.samples[Case("release", IDLE, "ipc", 1_000)][0][0] = -1
    made.heard = 599
    made.herds[Case("subscriber", IDLE, "ipc", herd=10_000)] = [Last(0.05, 9_999)]
    made.idle_cpu, made.firing_spin = [0.006], []
    made.creates_per_second = [9_000.0]
    said = {goal.text: (goal.found, goal.reached) for goal in missed(made)}
    assert said["timers early, at release or at the subscriber"] == ("1 of 599", False)
    assert said["timers not heard, or heard twice"] == ("1 of 600, 0 twice", False)
    heard = "ipc 0.050 s (heard 0.050 s, not all)"
    assert said["herd of 10,000: the last one out"] == (heard, False)
    assert said["the idle node"] == ("0.60% of a core", False)
    assert said["spinning at 1,000 fires/s"][1] is None
    assert said["release p99 beside 10,000 creates/s"][1] is None
    assert judged(made)["early"] == 1


def test_the_policy_of_the_node_is_told() -> None:
    made = found(other=80)
    made.pulse = {"policy": "other"}
    said = {goal.text: goal.reached for goal in goals(judged(made))}
    assert said["release p50 under SCHED_FIFO, idle"] is None
    made.pulse = {"policy": "fifo 80", "locked": True}
    said = {goal.text: goal.reached for goal in goals(judged(made))}
    assert said["release p50 under SCHED_FIFO, idle"] is False
    assert "; node: fifo 80, locked." in jitter.verdict(judged(made))


def test_early_timers_fail_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jitter, "run", lambda small: judged(found()) | {"early": 3})
    ran = CliRunner().invoke(cli, ["bench", "jitter", "--small"])
    assert ran.exit_code == 1
    assert "3 timers fired before they were due" in ran.output


def test_the_page_and_the_curves_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jitter, "run", lambda small: judged(found()))
    command.run("jitter", small=True, out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"jitter.{form}" for form in ("json", "md", "png", "svg")
    }
    assert json.loads((tmp_path / "jitter.json").read_text())["goals"]


def test_percentiles_are_of_rounds() -> None:
    one = percentile.summary([samples(100), samples(200), samples(1_000)])
    assert (one["p50"], one["p99"], one["max"], one["count"]) == (100, 198, 1_000, 300)
    assert one["curve"][0] == (1, 1)
    assert one["curve"][-1] == (300, 1_000)
    assert percentile.summary([samples(0)[:0]]) == {"count": 0, "early": 0}
    floors = [samples(50), samples(400), samples(500)]
    assert percentile.ratio([samples(100), samples(200), samples(1_000)], floors, 99) == 2


def test_the_floor_is_read() -> None:
    text = "Thread 0 Interval: 1500\n       0:       0:    7519\n       0:       1:    12\n# end\n"
    assert floor.verbose_samples(text).tolist() == [7519, 12]
    late = np.full(5, -1, np.int64)
    wakes(np.full(5, 100_000, np.int64), late)
    assert (late > 0).all()
    with pytest.raises(ValueError, match="6 wake-ups need as many results, not 5"):
        wakes(np.full(6, 100_000, np.int64), late)


def test_a_due_instant_is_read() -> None:
    assert due_ns(bare_body(1_795_910_400_123_456_789)) == 1_795_910_400_123_456_789


@pytest.mark.parametrize(
    ("script", "policy", "count"),
    [
        ("printf '0: 0: 7000\\n0: 1: 9000\\n'", "cyclictest, fifo 80", 2),
        ("echo 'Unable to change scheduling policy!' >&2; exit 1", "not permitted", 5),
        (None, "not installed", 5),
    ],
)
def test_the_floor_without_cyclictest(
    script: str | None, policy: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cyclictest"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(floor.shutil, "which", lambda name, path: script and str(tmp_path / name))
    late, said = floor.lowest(5)
    assert policy in said
    assert len(late) == count
