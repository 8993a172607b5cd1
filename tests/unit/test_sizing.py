"""What `minoots sizing` answers: arithmetic on measured coefficients, and clear refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest
from click.testing import CliRunner

from bench import coefficients
from edgenode import sizing
from edgenode.__main__ import cli
from edgenode.config import Config, LimitsSection, LogSection
from edgenode.sizing import Coefficients, Point, parse_count, size

MACHINE: dict[str, str | int] = {
    "cpu": "C",
    "cores": 2,
    "kernel": "6",
    "python": "3",
    "commit": "abc",
    "date": "2026-01-02",
}
KNOWN = Coefficients(
    machine=MACHINE,
    timers=1_000_000,
    points=[Point(0, 200, 300), Point(1_000, 1_200, 1_300), Point(4_000, 8_200, 8_300)],
    log_slack=1.0,
    tables_slack=1.1,
    fired_log_bytes=500,
    fired_tables_bytes=50,
    fired_payload_bytes=0,
    base_rss_bytes=30_000_000,
    full_rss_bytes=50_000_000,
    armed_bytes=100,
    start_s=0.4,
    start_timer_s=1e-8,
    start_behind_s=1e-6,
    start_armed_s=1e-6,
    fill_per_s=100_000,
)
DAY_NS = 86_400_000_000_000


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *[("0", 0), ("50000", 50_000), ("1k", 1_000), ("1K", 1_000), ("1.5M", 1_500_000)],
        *[("2G", 2_000_000_000), ("50M", 50_000_000), ("0.25k", 250)],
    ],
)
def test_counts_are_written_in_several_ways(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "x", "-1", "1m", "1 k", "1e6", "k", "1.k", "1kk", "٣", "0x1"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a number; write 50000, 1k, 1\.5M or 2G"):
        parse_count(text)


def test_counts_have_an_end_and_no_parts() -> None:
    with pytest.raises(ValueError, match="is not a whole number"):
        parse_count("1.5")
    with pytest.raises(ValueError, match="is too many; the limit is 10000000000000"):
        parse_count("10001G")


def test_disk_is_the_log_and_the_tables_with_what_their_files_waste() -> None:
    found = size(KNOWN, Config(), 1_000, 500)
    assert found.disk_bytes == 1_000 * 700 + round(1_000 * 800 * 1.1)
    assert found.kept_disk_bytes == round(1_000 * 800 * 1.1)
    assert found.fires_disk_bytes == 0


@pytest.mark.parametrize(
    ("payload_bytes", "log_bytes"), [(0, 200), (500, 700), (1_000, 1_200), (2_500, 4_700)]
)
def test_between_measured_payloads_bytes_are_interpolated(
    payload_bytes: int, log_bytes: int
) -> None:
    assert sizing.interpolated(KNOWN.points, payload_bytes).log_bytes == pytest.approx(log_bytes)


def test_beyond_the_largest_payload_bytes_are_carried_on() -> None:
    assert sizing.interpolated(KNOWN.points, 7_000).tables_bytes == pytest.approx(15_300)


def test_fires_fill_the_log_for_its_retention_and_the_memory_for_the_horizon() -> None:
    config = Config(log=LogSection(retention=DAY_NS))
    found = size(KNOWN, config, 1_000, 1_000, 100)
    fired = 100 * 86_400
    assert found.fires_disk_bytes == round(fired * (500 + 2 * 1_000 + 50 * 1.1))
    assert found.disk_bytes == 1_000 * 1_200 + 1_000 * 1_430 + found.fires_disk_bytes
    assert found.armed == 100 * 300
    assert found.ram_bytes == 80_000_000 + 100 * 30_000


def test_start_and_fill_grow_with_the_timers() -> None:
    found = size(KNOWN, Config(), 10_000_000, 0)
    assert found.start_s == pytest.approx(0.5)
    assert found.start_behind_s == pytest.approx(1.0)  # 500,000 behind: log.overlay_max
    assert found.fill_s == pytest.approx(100)
    assert size(KNOWN, Config(), 1_000, 0).start_behind_s == pytest.approx(0.401, abs=1e-4)


def test_what_passes_a_limit_is_told() -> None:
    limits = replace(LimitsSection(), timers_max=1_000)
    config = Config(limits=limits, log=LogSection(bytes_max=16 << 20, retention=DAY_NS))
    notes = "\n".join(size(KNOWN, config, 2_000_000, 0, 1_000).notes)
    assert "measured with up to 1,000,000 timers" in notes
    assert "more than limits.timers_max (1,000): raise it" in notes
    assert "above 90 % of log.bytes_max (16,777,216)" in notes
    assert "engine.armed_max (262,144) is reached: the horizon shrinks to 262 s" in notes
    assert size(KNOWN, Config(), 1_000, 0).notes == []


def test_the_advised_quota_is_enough() -> None:
    config = Config(log=LogSection(bytes_max=16 << 20))
    note = size(KNOWN, config, 1_000_000, 0).notes[-1]
    wanted = int(note.partition("raise it to ")[2].split(", or")[0].replace(",", ""))
    assert size(KNOWN, Config(log=LogSection(bytes_max=wanted)), 1_000_000, 0).notes == []
    tight = Config(log=LogSection(bytes_max=wanted * 9 // 10 + 1))  # all fits, and creates stop
    assert size(KNOWN, tight, 1_000_000, 0).notes != []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 0, 0), "timers is 0; it must be at least 1"),
        ((1, 65_537, 0), "payload is 65537 bytes; the limit is 65536"),
        ((1, 0, 10_000_001), "the range is 0 to 10000000"),
    ],
)
def test_what_no_node_holds_is_refused(arguments: tuple[int, int, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        size(KNOWN, Config(), *arguments)


def test_the_package_brings_coefficients_that_make_sense() -> None:
    known = sizing.load()
    payloads = [point.payload_bytes for point in known.points]
    assert len(payloads) >= 2
    assert payloads == sorted(set(payloads))
    assert all(point.log_bytes > point.payload_bytes for point in known.points)
    assert set(MACHINE) <= set(known.machine)
    for name in msgspec.structs.fields(Coefficients):
        if name.type in (int, float):
            assert getattr(known, name.name) >= 0, name.name
    assert known.fill_per_s > 0
    assert known.log_slack >= 1
    assert known.tables_slack >= 1


def test_what_the_bench_writes_is_what_the_package_reads(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    monkeypatch.setattr(coefficients, "ROOT", tmp_path)
    results = tmp_path / "bench/results"
    for folder in (results, tmp_path / "edgenode"):
        folder.mkdir(parents=True)
    paths = coefficients.write(msgspec.to_builtins(KNOWN), results)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "bench/results/sizing.json",
        "edgenode/sizing.json",
    ]
    for path in paths:
        assert msgspec.json.decode(path.read_bytes(), type=Coefficients) == KNOWN
    assert coefficients.write(msgspec.to_builtins(KNOWN), tmp_path) == [tmp_path / "sizing.json"]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["sizing", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_tells_figures_and_where_they_come_from() -> None:
    code, out, _ = run("--timers", "50M", "--payload", "200", "--rate", "100")
    known = sizing.load()
    assert code == 0
    assert out.startswith("50,000,000 pending timers, 200 bytes of payload, 100 made and fired")
    for word in ("memory", "disk", "start", "filling", "carried on from there"):
        assert word in out
    assert str(known.machine["date"]) in out
    assert f"commit {known.machine['commit']}" in out


def test_the_command_prints_json() -> None:
    code, out, _ = run("--timers", "1k", "--json")
    found = json.loads(out)
    known = sizing.load()
    expected = size(known, Config(), 1_000, 200)
    assert code == 0
    assert found["disk_bytes"] == expected.disk_bytes
    assert found["ram_bytes"] == expected.ram_bytes
    assert found["coefficients"] == msgspec.to_builtins(known)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--timers", "many"), "minoots: --timers: 'many' is not a number; write 50000, 1k"),
        (("--timers", "0"), "minoots: timers is 0; it must be at least 1"),
        (("--timers", "1k", "--payload", "1M"), "minoots: payload is 1000000 bytes; the limit is"),
        (("--timers", "1k", "--rate", "-5"), "minoots: --rate: '-5' is not a number"),
        ((), "Missing option '--timers'"),
    ],
)
def test_the_command_refuses_nonsense(arguments: tuple[str, ...], says: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert says in err
    assert out == ""
