"""`minoots overdue` and the clients' methods behind it, on a fake node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_node import FakeNode

from minoots import AsyncClient, Client
from minoots.cli import cli
from minoots.cli import overdue as words
from minoots.wire.problems import Refused

REPORT = {
    "held": True,
    "why": "12 timers came due",
    "since": "2027-01-15T08:00:00.000000000Z",
    "count_at_start": 12,
    "fired": 0,
    "skipped": 0,
    "tenants": {
        "default": {
            "count": 12,
            "oldest": "2027-01-14T08:00:00.000000000Z",
            "newest": "2027-01-15T07:59:00.000000000Z",
            "ages": [
                {
                    "older_than": "1m",
                    "count": 1,
                    "due_from": "2027-01-15T07:50:00Z",
                    "due_to": "2027-01-15T07:59:00Z",
                },
                {
                    "older_than": "6h",
                    "count": 11,
                    "due_from": None,
                    "due_to": "2027-01-15T02:00:00Z",
                },
            ],
            "sample": [{"id": "tmr_1", "name": "a[b", "due": "2027-01-14T08:00:00.000000000Z"}],
        }
    },
    "orders": [{"word": "skip", "filter": {}, "rate": 2.5, "count": 3}],
    "clock": {"held": False, "held_by_ns": 0, "due_if_accepted": 0},
}


class Orders:
    """Stands for the node: keeps what was ordered."""

    def __init__(self, node: FakeNode) -> None:
        self.given: list[tuple[str, dict[str, Any]]] = []
        self.report: dict[str, Any] = json.loads(json.dumps(REPORT))
        self.asked: list[dict[str, Any]] = []
        node.verbs["overdue_report"] = self._report
        for word in ("fire", "skip"):
            node.verbs[f"overdue_{word}"] = self._order(word)

    def _report(self, node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(_short(body))
        return self.report

    def _order(self, word: str) -> Callable[[FakeNode, dict[str, Any]], dict[str, Any]]:
        def take(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
            self.given.append((word, _short(body)))
            return {"count": 4}

        return take


def _short(body: dict[str, Any]) -> dict[str, Any]:
    """Without a filter that is empty."""
    return {name: value for name, value in body.items() if value != {}}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    with FakeNode(data=tmp_path) as fake:
        yield fake


@pytest.fixture
def orders(node: FakeNode) -> Orders:
    return Orders(node)


@pytest.fixture
def run(orders: Orders, tmp_path: Path) -> Callable[..., Result]:
    env = {"MINOOTS_DATA": str(tmp_path), "COLUMNS": "80", "NO_COLOR": "1"}

    def command(*given: str, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(cli, ("overdue", *given), env=env, input=stdin)
        assert result.exit_code == code, result.output
        return result

    return command


Run = Callable[..., Result]


def test_without_a_word_it_reports(run: Run, orders: Orders) -> None:
    shown = run().stdout
    assert "held since 2027-01-15T08:00:00.000000000Z: 12 timers came due" in shown
    assert "more than 6h" in shown
    assert "a[b" in shown
    assert "under way: skip 3, 2.5 a second" in shown
    assert json.loads(run("report", "--json").stdout) == REPORT
    run("report", "--older-than", "2h", "--label", "a=b", "--sample", "0")
    assert orders.asked[-1] == {"filter": {"labels": {"a": "b"}}, "older_than": "2h", "sample": 0}


def test_nothing_held_and_a_clock_in_doubt(run: Run, orders: Orders) -> None:
    orders.report |= {"held": False, "clock": {"held": True, "due_if_accepted": 7}}
    shown = run().stdout
    assert "nothing is held" in shown
    assert "UTC is in doubt: 7 timers of the wall clock come due" in shown


def test_an_order_says_how_many_first(run: Run, orders: Orders) -> None:
    assert "4 timers would fire; add --yes" in run("fire", code=2).stderr
    assert run("skip", "--dry-run", "--name-prefix", "x").stdout == "would skip: 4 timers\n"
    assert [body.get("dry_run") for _, body in orders.given] == [True, True]
    orders.given.clear()
    assert run("fire", "--yes", "--rate", "9").stdout == "ordered to fire: 4 timers\n"
    assert json.loads(run("skip", "--yes", "--older-than", "1d", "--json").stdout) == {"count": 4}
    assert orders.given == [("fire", {"rate": 9.0}), ("skip", {"older_than": "1d"})]


def test_ask_goes_through_the_ages(
    run: Run, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "needs a terminal" in run("ask", code=2).stderr
    monkeypatch.setattr(words, "on_terminal", lambda: True)
    told = run("ask", "--rate", "5", stdin="skip\nfire\n")
    assert "11 timers overdue for more than 6h" in told.stderr
    assert told.stdout == "ordered to skip: 4 timers\nordered to fire: 4 timers\n"
    oldest, youngest = REPORT["tenants"]["default"]["ages"][::-1]  # type: ignore[index]
    assert orders.given == [
        ("skip", {"filter": {"due_to": oldest["due_to"]}}),
        (
            "fire",
            {
                "filter": {"due_from": youngest["due_from"], "due_to": youngest["due_to"]},
                "rate": 5.0,
            },
        ),
    ]
    orders.given.clear()
    run("ask", stdin="\nleave\n")
    assert orders.given == []
    orders.report["held"] = False
    assert run("ask").stdout == "nothing is held\n"


def test_both_clients_order_and_report(node: FakeNode, orders: Orders) -> None:
    with Client(node.doors["control"]) as client:
        assert client.overdue.report(older_than=60)["count_at_start"] == 12
        assert client.overdue.fire({"name_prefix": "a"}, rate=2, idem="k") == 4
        assert client.overdue.skip(older_than="2h", dry_run=True) == 4
        with pytest.raises(TypeError):
            client.overdue.skip(soon=True)
        node.verbs["overdue_fire"] = _refuse
        with pytest.raises(Refused):
            client.overdue.fire()

    async def talk() -> None:
        async with AsyncClient(node.doors["control"]) as aio:
            assert (await aio.overdue.report({"labels": {"a": "b"}}, sample=1))["held"]
            assert await aio.overdue.skip(rate=1.5) == 4
            node.verbs["overdue_fire"] = orders._order("fire")
            assert await aio.overdue.fire(older_than="1h") == 4

    asyncio.run(talk())
    assert orders.asked == [
        {"older_than": "1m"},
        {"filter": {"labels": {"a": "b"}}, "sample": 1},
    ]
    assert orders.given == [
        ("fire", {"filter": {"name_prefix": "a"}, "rate": 2.0}),
        ("skip", {"older_than": "2h", "dry_run": True}),
        ("skip", {"rate": 1.5}),
        ("fire", {"older_than": "1h"}),
    ]


def _refuse(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    from minoots.wire.problems import refusal

    raise refusal("validation", "no")
