"""The configuration: what is wrong is told with its key, its value and what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgenode.config import ConfigError, load


def faults(**environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(None, environ, {})
    return caught.value.faults


def test_a_reference_is_the_kernel_or_a_control_door() -> None:
    for text in ("kernel", "", "tcp://127.0.0.1:7410", "ipc:///run/other.sock"):
        assert load(None, {"MINOOTS__CLOCK__REFERENCE": text}, {}).clock.reference == text
    assert faults(MINOOTS__CLOCK__REFERENCE="ntp.example") == [
        "clock.reference is 'ntp.example'; write 'kernel', '' or a control door such as "
        "'tcp://127.0.0.1:7410'"
    ]


def test_all_that_is_wrong_is_told_at_once() -> None:
    found = faults(
        MINOOTS__CLOCK__HOLD_ABOVE="1ms",
        MINOOTS__ENGINE__SPIN_PERCENT="200",
        MINOOTS__ENGINE__REALTIME="maybe",
    )
    assert found == [
        "MINOOTS__ENGINE__SPIN_PERCENT: is 200; the range is 0 to 100",
        "MINOOTS__ENGINE__REALTIME: is 'maybe'; choose one of auto, on, off",
        "MINOOTS__CLOCK__HOLD_ABOVE: is '1ms'; the range is 1s to 521w3d",
    ]


def test_a_fault_of_the_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "minoots.toml"
    path.write_text(
        "# what we changed\n"
        "clock.poll = 5\n"
        "\n"
        "[log]  # the log\n"
        'retention = "1s"\n'
        "  idem_max=true\n"
        "[ engine ]\n"
        'lead_min = "1ms"\n'
        "spin = 1\n"
        "[lgo]\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    told = [fault.removeprefix(f"{path}:").split("; ")[0] for fault in caught.value.faults]
    assert told == [
        "10: [lgo] is not a section",
        "5: log.retention: is '1s'",
        "6: log.idem_max: is True",
        "9: engine.spin: no such key",
        "2: clock.poll: is 5",
    ]


def test_every_door_that_would_not_be_served_is_told() -> None:
    found = faults(
        MINOOTS__DOORS__CONTROL="http://127.0.0.1", MINOOTS__DOORS__EVENTS="tcp://0.0.0.0:1"
    )
    assert [text.partition(";")[0] for text in found] == [
        "doors.control is 'http://127.0.0.1'",
        "doors.events is 'tcp://0.0.0.0:1'",
    ]
    assert all("only loopback" in text for text in found)
