"""A worker process: takes what a peer delivers and writes it into the ledger, until it is killed.

python -m bench.peers.work MODULE PORT LEDGER
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from bench.peers.peer import Ledger, Refused

AGAIN_S = 0.02


def main() -> None:
    """Work; when the store goes away, again and again until it is back."""
    name, port, path = sys.argv[1:]
    ledger = Ledger(Path(path))
    work = importlib.import_module(f"bench.peers.{name}").work
    while True:
        try:
            work(int(port), ledger)
        except (OSError, Refused) as error:
            print(error, flush=True)
            time.sleep(AGAIN_S)


if __name__ == "__main__":
    main()
