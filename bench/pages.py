"""Where a stopped node's bytes are: the pages of each database of its two files.

    python -m bench.pages DIR

It walks every page, as `mdb_stat` does, and also adds up what the pages hold, so that their fill is
known. Read only; the node must be stopped. py-lmdb carries the very LMDB that the store uses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lmdb

DATABASES = {
    "log": ("events", "receipts", "commits", "meta"),
    "tables": ("timers", "due", "names", "done", "notes", "meta"),
}
META_PAGES = 2


def of_store(folder: Path, *, contents: bool = False) -> dict[str, Any]:
    """For each file its bytes, those in use, and its databases; `contents` reads every entry."""
    found: dict[str, Any] = {}
    for name, databases in DATABASES.items():
        path = folder / name
        with lmdb.open(str(path), readonly=True, max_dbs=8, lock=True) as env:
            found[name] = of_file(env, databases, contents)
            found[name]["file_bytes"] = (path / "data.mdb").stat().st_size
    return found


def of_file(env: Any, databases: tuple[str, ...], contents: bool) -> dict[str, Any]:
    """One environment."""
    found: dict[str, Any] = {}
    page_bytes = env.stat()["psize"]
    pages = META_PAGES
    with env.begin() as txn:
        for name in databases:
            try:
                handle = env.open_db(name.encode(), txn=txn, create=False)
            except lmdb.NotFoundError:
                continue
            stat = txn.stat(handle)
            of_db = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            pages += of_db
            found[name] = {
                "entries": stat["entries"],
                "depth": stat["depth"],
                "bytes": of_db * page_bytes,
                "branch_pages": stat["branch_pages"],
                "leaf_pages": stat["leaf_pages"],
                "overflow_pages": stat["overflow_pages"],
            }
            if contents:
                found[name] |= contents_of(txn.cursor(handle), stat, page_bytes)
    return {"used_bytes": pages * page_bytes, "databases": found}


def contents_of(cursor: Any, stat: dict[str, int], page_bytes: int) -> dict[str, float]:
    """Bytes of keys and values, and how full its leaves are of them, with LMDB's node heads."""
    keys = values = nodes = 0
    for key, value in cursor:
        keys += len(key)
        values += len(value)
        if len(key) + len(value) < page_bytes // 2:
            nodes += (len(key) + len(value) + 8 + 1 & ~1) + 2
    leaves = max(stat["leaf_pages"], 1) * (page_bytes - 16)
    return {"key_bytes": keys, "value_bytes": values, "leaf_fill": round(nodes / leaves, 3)}


if __name__ == "__main__":
    print(json.dumps(of_store(Path(sys.argv[1]), contents=True), indent=1))
