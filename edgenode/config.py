"""Every limit and switch of a node: its name, unit, range and default; and how it is read.

Order: the command line over the environment (`MINOOTS__SECTION__KEY`) over the TOML file over the
defaults here. Everything that is wrong is told at once, each with its path, value and remedy.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgenode.doors.endpoint import refused
from minoots.wire.times import format_duration, parse_duration

MIB = 1 << 20

# In the data directory, beside the store.
NODE_ID_FILE = "node.id"
READY_FILE = "minoots.json"  # while the node serves


class ConfigError(Exception):
    """The configuration cannot be used; `faults` says each thing that is wrong."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def _int(default: int, low: int, high: int, doc: str) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "doc": doc})


def _span(default: str, low: str, high: str, doc: str) -> Any:
    """A duration: written `250ms`, held in ns."""
    meta = {"low": parse_duration(low), "high": parse_duration(high), "doc": doc, "span": True}
    return field(default=parse_duration(default), metadata=meta)


def _text(default: str, doc: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"doc": doc, "choices": choices})


@dataclass(frozen=True, slots=True)
class NodeSection:
    """Who the node is."""

    id: str = _text(
        "", "name in every event's source; empty: made once and kept in the data folder"
    )


@dataclass(frozen=True, slots=True)
class DoorsSection:
    """Where it listens: tcp on loopback, or ipc."""

    control: str = _text("tcp://127.0.0.1:7410", "endpoint of the control door")
    stream: str = _text("tcp://127.0.0.1:7411", "endpoint of the stream door")
    events: str = _text("tcp://127.0.0.1:7412", "endpoint of the events door")
    http: str = _text("", "endpoint of the HTTP door; not served yet, so it must be empty")


@dataclass(frozen=True, slots=True)
class LogSection:
    """What the log keeps."""

    retention: int = _span("7d", "1m", "3650d", "events younger than this are kept")
    bytes_max: int = _int(
        64 << 30, 16 * MIB, 1 << 44, "log and tables together; creates are refused at 90 % of it"
    )
    slice_delay: int = _span(
        "5s",
        "1ms",
        "1m",
        "an event waits so long before the tables follow, and up to half as long again",
    )
    slice_max: int = _int(65_536, 64, 1_048_576, "events that make the tables follow at once")
    overlay_max: int = _int(
        500_000, 1_000, 50_000_000, "timers newer than the tables; at this creates wait"
    )
    receipt_delay: int = _span("100ms", "1ms", "10s", "how long a receipt may wait for a commit")
    idem_keep: int = _span("24h", "1m", "720h", "how long an idempotency key is kept")
    idem_max: int = _int(10_000_000, 1_000, 1_000_000_000, "keys kept, of requests and of timers")


@dataclass(frozen=True, slots=True)
class EngineSection:
    """How time is kept."""

    horizon: int = _span("5m", "10s", "24h", "timers due within this are held in memory")
    armed_max: int = _int(
        262_144, 1_000, 50_000_000, "timers held in memory; above, the horizon shrinks"
    )
    lead_min: int = _span("2ms", "0ms", "1s", "shortest time by which a fire is committed ahead")
    lead_max: int = _span("100ms", "1ms", "5s", "longest time by which a fire is committed ahead")
    herd_max: int = _span(
        "2s", "0ms", "2s", "longest time by which many fires due at once are begun earlier"
    )
    spin_max: int = _span("150us", "0us", "1ms", "longest time spent spinning before an instant")
    spin_percent: int = _int(5, 0, 100, "share of one processor that spinning may cost")
    realtime: str = _text(
        "auto",
        "SCHED_FIFO for the thread that fires; on: refuse to start without",
        ("auto", "on", "off"),
    )
    overload_after: int = _span(
        "50ms", "1ms", "10s", "creates wait while a due timer has been waiting for longer"
    )
    misfire_after: int = _span(
        "1s", "10ms", "1h", "a fire later than this was missed, and is flagged"
    )


@dataclass(frozen=True, slots=True)
class ClockSection:
    """What is believed of UTC."""

    hold_above: int = _span(
        "1h",
        "1s",
        "3650d",
        "UTC set by more holds wall-clock timers until it is accepted",
    )
    reference: str = _text(
        "kernel", "what the error of UTC is known from: kernel, or a node's control door"
    )
    poll: int = _span("16s", "1s", "1h", "between two questions to a reference")
    slew_max_ppm: int = _int(500, 1, 100_000, "how fast UTC may be put right by a reference")
    wander_ppm: int = _int(15, 1, 1_000, "how fast the error grows while nothing is known")


@dataclass(frozen=True, slots=True)
class OverdueSection:
    """What happens to timers that came due while no node served."""

    hold_above: int = _int(
        10_000, 0, 1_000_000_000, "overdue timers at a start; more are held. 0: any are"
    )
    policy: str = _text(
        "hold",
        "of such a set, and of what is overdue after a restore: wait for orders, or fire, or skip",
        ("hold", "fire", "skip"),
    )


@dataclass(frozen=True, slots=True)
class LimitsSection:
    """What one client may ask."""

    payload_bytes_max: int = _int(65_536, 0, 65_536, "a timer's payload as JSON")
    name_bytes_max: int = _int(255, 1, 255, "a timer's name as UTF-8")
    labels_max: int = _int(32, 0, 32, "labels of a timer")
    interval_min: int = _span("10ms", "1ms", "1d", "shortest interval of a recurring timer")
    due_max: int = _span("36525d", "1h", "36525d", "how far ahead a due instant may lie")
    timers_max: int = _int(50_000_000, 1, 1_000_000_000, "timers that have not ended")
    inbox_max: int = _int(4_096, 16, 1_000_000, "requests waiting to be decided")
    inbox_bytes_max: int = _int(64 * MIB, MIB, 1 << 32, "bytes of the requests that wait")
    turn_events_max: int = _int(
        8_192, 64, 1_048_576, "events decided before a commit is waited for"
    )
    drain_max: int = _int(256, 1, 65_536, "requests taken from a door at one time")
    consumers_max: int = _int(1_000, 0, 100_000, "durable consumers")
    connections_max: int = _int(1_024, 1, 65_535, "connections that open files must suffice for")


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, checked."""

    node: NodeSection = field(default_factory=NodeSection)
    doors: DoorsSection = field(default_factory=DoorsSection)
    log: LogSection = field(default_factory=LogSection)
    engine: EngineSection = field(default_factory=EngineSection)
    clock: ClockSection = field(default_factory=ClockSection)
    overdue: OverdueSection = field(default_factory=OverdueSection)
    limits: LimitsSection = field(default_factory=LimitsSection)


_HEADER = re.compile(r"\s*\[\s*([\w-]+)\s*\]")
_KEY = re.compile(r"\s*([\w-]+(?:\s*\.\s*[\w-]+)*)\s*=")

SECTIONS: dict[str, type] = {
    "node": NodeSection,
    "doors": DoorsSection,
    "log": LogSection,
    "engine": EngineSection,
    "clock": ClockSection,
    "overdue": OverdueSection,
    "limits": LimitsSection,
}


def load(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, str]) -> Config:
    """Read a configuration. flags: "section.key" -> text, from the command line.

    Raises ConfigError with every fault; OSError when the file cannot be read.
    """
    faults: list[str] = []
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    if path is not None:
        _take_file(path, values, faults)
    for name, text in environ.items():
        if name.startswith("MINOOTS__"):
            _take_text(
                name.removeprefix("MINOOTS__").lower().replace("__", "."),
                text,
                values,
                faults,
                name,
            )
    for name, text in flags.items():
        _take_text(name, text, values, faults, f"--{name}")
    sections = {name: _section(name, cls, values[name], faults) for name, cls in SECTIONS.items()}
    config = Config(**sections) if not faults else Config()
    if not faults:
        faults.extend(_across(config))
    if faults:
        raise ConfigError(faults)
    return config


def _take_file(path: Path, values: dict[str, dict[str, Any]], faults: list[str]) -> None:
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        faults.append(f"{path}: not TOML: {error}")
        return
    lines = _lines(text)

    def place(name: str) -> str:
        return f"{path}:{lines[name]}" if name in lines else str(path)

    for section, table in document.items():
        if section not in SECTIONS:
            faults.append(
                f"{place(section)}: [{section}] is not a section; known: {', '.join(SECTIONS)}"
            )
        elif not isinstance(table, dict):
            where = place(section)
            faults.append(f"{where}: {section} is {table!r}; write a table, [{section}]")
        else:
            for key, value in table.items():
                name = f"{section}.{key}"
                values[section][key] = (value, f"{place(name)}: {name}", False)


def _lines(text: str) -> dict[str, int]:
    """On which line of TOML each section and "section.key" stands, as far as it is written plainly:
    tomllib does not tell."""
    found: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = f"{header[1]}."
            found.setdefault(header[1], number)
        elif key := _KEY.match(line):
            name = section + re.sub(r"\s", "", key[1])
            found.setdefault(name, number)
            found.setdefault(name.partition(".")[0], number)
    return found


def _take_text(
    name: str, text: str, values: dict[str, dict[str, Any]], faults: list[str], where: str
) -> None:
    section, dot, key = name.partition(".")
    if section not in SECTIONS or not dot:
        faults.append(f"{where}: {section!r} is not a section; known: {', '.join(SECTIONS)}")
    else:
        values[section][key] = (text, where, True)


def _section(name: str, cls: Any, given: dict[str, Any], faults: list[str]) -> Any:
    known = {item.name: item for item in fields(cls)}
    checked = {}
    for key, (value, where, is_text) in given.items():
        if key not in known:
            faults.append(f"{where}: no such key; [{name}] knows: {', '.join(known)}")
            continue
        try:
            checked[key] = _value(known[key], value, is_text=is_text)
        except ValueError as error:
            faults.append(f"{where}: {error}")
    return cls(**checked)


def _value(item: Any, value: Any, *, is_text: bool) -> Any:
    meta = item.metadata
    if "low" not in meta:
        if not isinstance(value, str):
            raise ValueError(f"is {value!r}; write text in quotes")
        if meta["choices"] and value not in meta["choices"]:
            raise ValueError(f"is {value!r}; choose one of {', '.join(meta['choices'])}")
        return value
    if meta.get("span"):
        if not isinstance(value, str):
            raise ValueError(f"is {value!r}; write a duration in quotes, such as '250ms'")
        number = parse_duration(value)
    else:
        if is_text and value.isascii() and value.isdigit():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"is {value!r}; write a whole number")
        number = value
    if not meta["low"] <= number <= meta["high"]:
        raise ValueError(
            f"is {value!r}; the range is {_show(meta, 'low')} to {_show(meta, 'high')}"
        )
    return number


def _show(meta: Mapping[str, Any], which: str) -> str:

    return format_duration(meta[which]) if meta.get("span") else str(meta[which])


def _across(config: Config) -> list[str]:
    faults = []
    if config.engine.lead_min > config.engine.lead_max:
        faults.append("engine.lead_min is above engine.lead_max; lower it")
    for name in ("control", "stream", "events"):
        if fault := refused(f"doors.{name}", getattr(config.doors, name)):
            faults.append(fault)
    if config.doors.http:
        faults.append(f"doors.http is {config.doors.http!r}; it is not served yet, write ''")
    reference = config.clock.reference
    if reference not in ("", "kernel") and not reference.startswith(("tcp://", "ipc://")):
        faults.append(
            f"clock.reference is {reference!r}; write 'kernel', '' or a control door such as "
            "'tcp://127.0.0.1:7410'"
        )
    return faults


def describe() -> list[tuple[str, str, str, str]]:
    """Every key as (name, default, range, meaning), for docs/operating.md and `check-config`."""
    rows = []
    for section, cls in SECTIONS.items():
        for item in fields(cls):
            meta, default = item.metadata, item.default
            assert default is not MISSING
            if "low" in meta:
                shown = _show(
                    {"low": default, **{k: v for k, v in meta.items() if k == "span"}}, "low"
                )
                span = f"{_show(meta, 'low')} to {_show(meta, 'high')}"
            else:
                shown, span = repr(default), " | ".join(meta["choices"]) or "text"
            rows.append((f"{section}.{item.name}", shown, span, meta["doc"]))
    return rows


def example() -> str:
    """A configuration file that changes nothing: each key with its default, commented out."""
    lines = [
        "# The configuration of a MINOOTS node: TOML, read at its start. Each key is shown with",
        "# its default; take the '#' away to change it. `minoots check-config` tells what is bad.",
        "# MINOOTS__SECTION__KEY in the environment is above what is written here.",
    ]
    shown = {name: (span, meaning) for name, _, span, meaning in describe()}
    for section, cls in SECTIONS.items():
        lines += ["", f"[{section}]"]
        for item in fields(cls):
            span, meaning = shown[f"{section}.{item.name}"]
            value: Any = item.default
            if item.metadata.get("span"):
                value = format_duration(value)
            text = str(value) if isinstance(value, int) else f'"{value}"'
            lines += [f"# {meaning} ({span})", f"#{item.name} = {text}"]
    return "\n".join(lines) + "\n"


def data_dir(flag: str | None) -> Path:
    """Where the node keeps its files: --data, MINOOTS_DATA, /var/lib/minoots for root, else XDG."""
    given = flag or os.environ.get("MINOOTS_DATA")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/minoots")
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(state) / "minoots"


def config_file(flag: str | None) -> Path | None:
    """The file to read: --config (must exist), or the usual place if there is one."""
    if flag:
        return Path(flag)
    if os.geteuid() == 0:
        usual = Path("/etc/minoots/minoots.toml")
    else:
        home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        usual = Path(home) / "minoots/minoots.toml"
    return usual if usual.exists() else None
