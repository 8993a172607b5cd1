"""A virtual node with short ways to work on one of its durable consumers."""

from __future__ import annotations

from typing import Any

import orjson

from edgenode.config import Config
from edgenode.virtual import VirtualNode
from tests.sim.driver import Driver

FIRES = {"filter": {"types": ["timer.expired"]}}


class Work(Driver):
    """A driver with short ways to work on one consumer, `w`. Pulls may wait beside its requests."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        if config is not None:
            self.node = VirtualNode(config=config)
        self._others: list[list[bytes]] = []

    def send(self, op: str, body: Any = None, **header: Any) -> tuple[str, dict[str, Any]]:
        self._others += self.node.answers()
        raw = orjson.dumps(body or {})
        asked = [b"MZP1", b"Q", b"ask", orjson.dumps({"op": op, **header}), raw]
        answers = self.node.request(asked)
        (mine,) = [answer for answer in answers if answer[2] == b"ask"]
        self._others += [answer for answer in answers if answer[2] != b"ask"]
        return mine[1].decode(), orjson.loads(mine[4])

    def make(self, name: str = "w", **config: Any) -> dict[str, Any]:
        return self.ask("consumer.create", {"name": name} | FIRES | config)

    def pull(self, batch: int = 100, name: str = "w") -> list[dict[str, Any]]:
        return self.ask("consumer.pull", {"name": name, "batch": batch})["messages"]

    def ack(self, *messages: dict[str, Any], op: str = "ack", **more: Any) -> dict[str, Any]:
        asked = {"name": "w", "deliveries": [one["delivery"] for one in messages]}
        return self.ask(f"consumer.{op}", asked | more)

    def info(self, name: str = "w") -> dict[str, Any]:
        return self.ask("consumer.info", {"name": name})

    def fire(self, count: int, prefix: str = "t") -> None:
        """`count` timers fire, now."""
        for k in range(count):
            self.after("10ms", f"{prefix}{k}")
        self.pass_(1)

    def post(self, corr: bytes, name: str = "w", **body: Any) -> None:
        """A pull that may wait."""
        raw = orjson.dumps({"name": name} | body)
        self.node.post([b"MZP1", b"Q", corr, b'{"op":"consumer.pull"}', raw])

    def heard(self) -> list[tuple[bytes, bytes, list[str]]]:
        """(kind, corr, names of the timers) of the answers since the last time."""
        found = []
        answers, self._others = self._others + self.node.answers(), []
        for _, kind, corr, _, body in answers:
            messages = orjson.loads(body).get("messages", [])
            found.append((kind, corr, names(messages)))
        return found


def names(messages: list[dict[str, Any]]) -> list[str]:
    return [one["event"]["data"]["name"] for one in messages]
