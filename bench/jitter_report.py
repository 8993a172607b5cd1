"""What a run of `bench/jitter.py` says: goals reached or not, a page in words, the curves.

Everything is computed from the result, which may as well be one that was read from its JSON file.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LOADS = ("idle", "a busy process", "10,000 creates/s")
STEADY = 1_000  # fires a second where loads are compared
RATIO_MAX = 1.5
P50_US_MAX = 5.0
TRANSITS_MAX = 1.5
CREATES_RATIO_MAX = 2.0
CREATES_MIN = 9_800  # a second, for the load to count as 10,000
IDLE_SHARE_MAX = 0.005
SPIN_SHARE_MAX = 0.05
HERD_S_MAX = {10_000: 0.1, 100_000: 0.6}


class Goal(NamedTuple):
    """One figure to reach, and what was found."""

    text: str
    limit: str
    found: str
    reached: bool | None  # None: this run cannot tell


def us(value: float) -> str:
    """A lateness with a unit that fits."""
    if value >= 1e6:
        return f"{value / 1e6:.3g} s"
    if value >= 1e3:
        return f"{value / 1e3:.3g} ms"
    return f"{value:.3g} us"


def share(value: float) -> str:
    """A share of a core."""
    return f"{value:.2%} of a core"


def none(count: int) -> str:
    """A count in a sentence."""
    return f"{count:,}" if count else "none"


def pick(result: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The cases with these properties that heard anything; `herd` is 0 unless it is asked for."""
    wanted = {"herd": 0} | wanted
    return [
        case
        for case in result["cases"].values()
        if case["count"] and all(case[name] == value for name, value in wanted.items())
    ]


def goals(result: dict[str, Any]) -> list[Goal]:
    """Each goal of the issue that this bench can judge."""
    return [
        *_against_floor(result),
        _median(result),
        *_heard(result),
        *_counts(result),
        _creates(result),
        *_cost(result),
        *_herds(result),
    ]


def _against_floor(result: dict[str, Any]) -> Iterator[Goal]:
    for load in LOADS:
        floor = pick(result, what="floor", load=load)
        ours = pick(result, what="release", load=load, rate=STEADY)
        text = f"release p99 against the floor's, {load}"
        if not floor or not all("ratio_to_floor" in case for case in ours):
            yield Goal(text, f"<= {RATIO_MAX} x", "not measured", None)
            continue
        found = [
            f"{case['transport']} {case['ratio_to_floor']['p99']:.2f} x ({us(case['p99'])})"
            for case in ours
        ]
        worst = max(case["ratio_to_floor"]["p99"] for case in ours)
        said = f"{', '.join(found)}; floor {us(floor[0]['p99'])}"
        yield Goal(text, f"<= {RATIO_MAX} x", said, worst <= RATIO_MAX)


def _median(result: dict[str, Any]) -> Goal:
    ours = pick(result, what="release", load="idle", rate=STEADY)
    found = ", ".join(f"{case['transport']} {us(case['p50'])}" for case in ours)
    policy = str(result["pulse"].get("policy", ""))
    reached: bool | None = all(case["p50"] <= P50_US_MAX for case in ours)
    if policy and "fifo" not in policy.lower():
        found += f" (the node ran under policy {policy})"
        reached = None
    return Goal("release p50 under SCHED_FIFO, idle", f"<= {us(P50_US_MAX)}", found, reached)


def _heard(result: dict[str, Any]) -> Iterator[Goal]:
    for load in LOADS:
        said, reached = [], True
        for case in pick(result, what="subscriber", load=load, rate=STEADY):
            bare = pick(result, what="bare transit", load=load, transport=case["transport"])
            floor = pick(result, what="floor", load=load)
            if not bare or not floor:
                continue
            limit = floor[0]["p99"] + TRANSITS_MAX * bare[0]["p99"]
            said.append(f"{case['transport']} {us(case['p99'])} (limit {us(limit)})")
            reached = reached and case["p99"] <= limit
        text = f"p99 at a subscriber, {load}"
        limit_text = f"<= floor + {TRANSITS_MAX} x bare PUB/SUB"
        yield Goal(text, limit_text, ", ".join(said) or "not measured", reached if said else None)


def _counts(result: dict[str, Any]) -> Iterator[Goal]:
    early, lost = result["early"], result["expected"] - result["heard"]
    heard = f"{result['heard']:,}"
    yield Goal(
        "timers early, at release or at the subscriber", "0", f"{early:,} of {heard}", not early
    )
    said = f"{lost:,} of {result['expected']:,}, {result['doubled']:,} twice"
    yield Goal("timers not heard, or heard twice", "0", said, not lost and not result["doubled"])


def _creates(result: dict[str, Any]) -> Goal:
    text, limit = f"release p99 beside {LOADS[2]}", f"<= {CREATES_RATIO_MAX:.0f} x idle"
    found, ratios = [], []
    for case in pick(result, what="release", load=LOADS[2], rate=STEADY):
        quiet = pick(result, what="release", load="idle", rate=STEADY, transport=case["transport"])
        pairs = zip(case["p99_of_rounds"], quiet[0]["p99_of_rounds"], strict=False)
        ratios.append(statistics.median(a / max(b, 0.001) for a, b in pairs))
        found.append(f"{case['transport']} {ratios[-1]:.2f} x")
    rate = result["creates_per_second"] or 0
    found.append(f"{rate:,.0f} creates/s came in, {result['creates_refused']} refused")
    enough = rate >= CREATES_MIN and not result["creates_refused"]
    return Goal(text, limit, ", ".join(found), max(ratios) <= CREATES_RATIO_MAX if enough else None)


def _cost(result: dict[str, Any]) -> Iterator[Goal]:
    cpu = result["cpu"]
    idle, spin = cpu["idle_share"], cpu["spin_share"]
    text = f"< {IDLE_SHARE_MAX:.1%} of a core"
    yield Goal("the idle node", text, share(idle), idle < IDLE_SHARE_MAX)
    text, limit = f"spinning at {STEADY:,} fires/s", f"<= {SPIN_SHARE_MAX:.0%} of a core"
    firing = f"the whole node {share(cpu['firing_share'])}"
    if spin is None:
        yield Goal(text, limit, f"`stats` does not tell; {firing}", None)
    else:
        yield Goal(text, limit, f"{share(spin)}; {firing}", spin <= SPIN_SHARE_MAX)


def _herds(result: dict[str, Any]) -> Iterator[Goal]:
    for count, limit in HERD_S_MAX.items():
        text, said, reached = f"herd of {count:,}: the last one out", [], True
        ours = [herd for herd in result["herds"].values() if herd["herd"] == count]
        for out, heard in _pairs(ours):
            whole = "" if heard["complete"] else ", not all"
            said.append(
                f"{out['transport']} {out['last_s']:.3f} s (heard {heard['last_s']:.3f} s{whole})"
            )
            reached = reached and heard["complete"] and out["last_s"] <= limit
        yield Goal(
            text, f"<= {limit} s", ", ".join(said) or "not measured", reached if said else None
        )


def _pairs(herds: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each herd as it left and as it was heard."""
    for out in herds:
        if out["what"] == "release":
            yield from (
                (out, heard)
                for heard in herds
                if (heard["what"], heard["transport"]) == ("subscriber", out["transport"])
            )


# ------------------------------------------------------------------------------------ in words


def verdict(result: dict[str, Any]) -> str:
    """One page, Markdown."""
    about = result["machine"]
    found = [Goal(**goal) for goal in result["goals"]]
    told = [goal for goal in found if goal.reached is not None]
    reached = sum(bool(goal.reached) for goal in told)
    lines = [
        "# How late timers fire on this machine",
        "",
        f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, Python "
        f"{about['python']}; {about['date']}, commit {about['commit']}; {result['rounds']} "
        f"round(s) in {result['took_s']} s. {_quietness(result)} Floor: "
        f"{result['policies']['floor']}; subscriber: {result['policies']['subscriber']}; node: "
        f"{_node_policy(result)}. Figures are medians over the rounds.",
        "",
        f"**{reached} of {len(told)} goals reached.** {_in_words(result)}",
        "",
        "| goal | to reach | found | reached |",
        "|---|---|---|---|",
    ]
    words = {True: "yes", False: "**no**", None: "cannot tell"}
    lines += [f"| {g.text} | {g.limit} | {g.found} | {words[g.reached]} |" for g in found]
    lines += ["", *_loads_table(result), "", *_rates_table(result)]
    lines += [
        "",
        "Bare transit is PUB/SUB alone: plain pyzmq on both sides, events of the same size, the "
        "subscriber's own code and policy. Creating, memory and restart have benches of their own "
        "(`minoots bench node`). p99.99 and max are of all rounds together.",
    ]
    return "\n".join(lines) + "\n"


def _quietness(result: dict[str, Any]) -> str:
    stolen, load = result["stolen_share"], result["load_before"]
    noisy = stolen > 0.01 or load > 0.5
    return (
        f"The machine was {'not ' if noisy else ''}quiet: load {load} before, "
        f"{stolen:.1%} of its time taken by the host."
    )


def _node_policy(result: dict[str, Any]) -> str:
    pulse = result["pulse"]
    if "policy" not in pulse:
        return "a policy that it does not tell"
    return f"{pulse['policy']}{', locked' if pulse.get('locked') else ''}"


def _in_words(result: dict[str, Any]) -> str:
    ours = pick(result, what="release", load="idle", rate=STEADY)[0]
    floor = pick(result, what="floor", load="idle")[0]
    heard = pick(result, what="subscriber", load="idle", rate=STEADY)[0]
    loop = pick(result, what="asyncio", load="idle")[0]
    early, lost = result["early"], result["expected"] - result["heard"]
    return (
        f"Of {result['expected']:,} timers {none(early)} fired early, {none(lost)} went unheard. "
        f"At {STEADY:,} a second on an idle machine they left {us(ours['p50'])} (median), "
        f"{us(ours['p99'])} (p99) and {us(ours['p999'])} (p99.9) after they were due, and "
        f"were heard over {heard['transport']} after {us(heard['p50'])}, {us(heard['p99'])} and "
        f"{us(heard['p999'])}. The machine itself wakes up {us(floor['p50'])}, {us(floor['p99'])} "
        f"and {us(floor['p999'])} late; asyncio's timers, which are not durable, are "
        f"{us(loop['p50'])}, {us(loop['p99'])} and {us(loop['p999'])} late."
    )


def _loads_table(result: dict[str, Any]) -> list[str]:
    names = ("p50", "p90", "p99", "p999", "p9999", "max")
    lines = [
        f"| late by, {STEADY:,}/s | p50 | p90 | p99 | p99.9 | p99.99 | max | count | p99/floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for load in LOADS:
        for what in ("floor", "own loop", "release", "subscriber", "bare transit", "asyncio"):
            rate = STEADY if what in ("release", "subscriber") else 0
            for case in pick(result, what=what, load=load, rate=rate):
                label = ", ".join(word for word in (what, case["transport"], load) if word)
                figures = " | ".join(us(case[name]) for name in names)
                times = case.get("ratio_to_floor", {}).get("p99")
                shown = f"{times:.2f}" if times else ""
                lines.append(f"| {label} | {figures} | {case['count']:,} | {shown} |")
    return lines


def _rates_table(result: dict[str, Any]) -> list[str]:
    rates = sorted({case["rate"] for case in pick(result, what="release", load="idle")})
    lines = [
        "| p50 / p99 / max, idle | " + " | ".join(f"{rate:,}/s" for rate in rates) + " |",
        "|---|" + "---|" * len(rates),
    ]
    for what in ("release", "subscriber"):
        for transport in sorted({case["transport"] for case in pick(result, what=what)}):
            cells = []
            for rate in rates:
                case = pick(result, what=what, load="idle", transport=transport, rate=rate)[0]
                cells.append(" / ".join(us(case[name]) for name in ("p50", "p99", "max")))
            lines.append(f"| {what}, {transport} | {' | '.join(cells)} |")
    return lines


# ------------------------------------------------------------------------------------ as curves


def plot(result: dict[str, Any], path: Path) -> None:
    """Lateness by percentile: SVG to `path`, PNG beside it."""
    from bench.plot import Curve, curves

    colours = dict(zip(LOADS, ("tab:blue", "tab:green", "tab:red"), strict=True))
    ours, beside = {"ipc": "-", "tcp": "--"}, {"ipc": ":", "tcp": "-.", "": ":"}
    looks = {"release": (ours, 1.8), "subscriber": (ours, 1.8), "asyncio": ({"": "-"}, 0.7)}

    def by_load(*whats: str) -> list[Curve]:
        found = []
        for what in whats:
            styles, width = looks.get(what, (beside, 1.2))
            for case in pick(result, what=what, rate=STEADY if styles is ours else 0):
                load, style = case["load"], styles[case["transport"]]
                label = ", ".join(word for word in (what, case["transport"], load) if word)
                found.append(Curve(label, case["curve"], colours[load], style, width))
        return found

    def by_rate(what: str, transport: str) -> list[Curve]:
        cases = pick(result, what=what, load="idle", transport=transport)
        return [
            Curve(f"{case['rate']:,}/s", case["curve"], k / max(len(cases) - 1, 1), "-")
            for k, case in enumerate(sorted(cases, key=lambda case: case["rate"]))
        ]

    about = result["machine"]
    note = (
        f"{about['cpu']}, {about['cores']} cores, {about['date']}, commit {about['commit']}; "
        f"{result['rounds']} round(s)"
    )
    floors = [curve for curve in by_load("floor") if curve.label.endswith("idle")]
    transport = pick(result, what="release", load="idle", rate=STEADY)[0]["transport"]
    panels = [
        (f"At release, {STEADY:,} fires/s", by_load("release", "floor", "asyncio")),
        (f"At a subscriber, {STEADY:,} fires/s", by_load("subscriber", "bare transit")),
        (f"At release by rate, {transport}, idle", by_rate("release", transport) + floors),
        (f"At a subscriber by rate, {transport}, idle", by_rate("subscriber", transport) + floors),
    ]
    curves(path, panels, note)
