"""A worker as a process, for test_workers: says what it got before it acknowledges it, and what was
acknowledged after. `python worker_process.py DATA CONSUMER FILE`; SIGTERM drains it."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from minoots import AsyncClient

TASKS = 16


async def main(data: str, name: str, path: Path) -> None:
    with path.open("w", buffering=1) as out:
        async with AsyncClient(data=data) as client, client.consumer(name, prefetch=64) as consumer:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, consumer.stop)

            async def work() -> None:
                async for message in consumer:
                    print("got", message.event.seq, message.attempt, file=out)
                    await asyncio.sleep(0.004)
                    if await message.ack():
                        print("acked", message.event.seq, message.attempt, file=out)

            await asyncio.gather(*(work() for _ in range(TASKS)))
        print("left", 0, 0, file=out)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
