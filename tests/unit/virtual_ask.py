"""A virtual node behind the interface that the SDK's consumers ask by; see `Virtual`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec

from edgenode.virtual import VirtualNode
from minoots import Refused, Unreachable
from minoots.arguments import definition
from minoots.consumer import AsyncConsumer
from minoots.consumers import setup
from minoots.requests import Request, read_reply
from minoots.verbs import schedule
from minoots.wire.problems import Problem

T = TypeVar("T")


class Virtual:
    """Asks a virtual node as an AsyncClient would; a pull that finds nothing waits a moment."""

    def __init__(self) -> None:
        self.node = VirtualNode()
        self.asked: list[tuple[str, str | None, Any]] = []
        self.lost: list[str] = []  # ops whose next reply is lost on its way
        self.away = False
        self.gate = asyncio.Event()  # pulls wait until it is set
        self.gate.set()

    async def __call__(self, request: Request[T], *, idem: str | None = None) -> T:
        await asyncio.sleep(0)
        if self.away:
            await asyncio.sleep(0.005)
            raise Unreachable("away")
        body = msgspec.json.decode(request.body)
        if request.op == "consumer.pull":
            body["wait"] = "0s"
            await self.gate.wait()
        self.asked.append((request.op, idem, body))
        header = {"op": request.op} | ({} if idem is None else {"idem": idem})
        frames = [b"MZP1", b"Q", b"c", msgspec.json.encode(header), msgspec.json.encode(body)]
        (answer,) = self.node.request(frames)
        reply = read_reply(answer)
        assert reply is not None
        if request.op in self.lost:
            self.lost.remove(request.op)
            raise Unreachable("the reply is lost")
        if reply.kind == b"E":
            raise Refused.of(msgspec.json.decode(reply.body, type=Problem))
        result = request.read(reply.body)
        if result == []:
            await asyncio.sleep(0.002)
        return result

    async def schedule(self, *names: str) -> None:
        for name in names:
            await self(schedule(definition(name, after="1h")))

    def ops(self, op: str) -> list[Any]:
        return [body for asked, _, body in self.asked if asked == op]


def consumer(ask: Virtual, name: str = "c", *, prefetch: int = 100, **config: Any) -> AsyncConsumer:
    return AsyncConsumer(ask, setup(name, config or {"since": "start"}), prefetch=prefetch)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)
