"""`minoots support-bundle`: what somebody who is to help needs to know, and nothing that is secret.

A tar file: versions, the doctor's findings, the configuration in force, sizes of the files, where
log and tables stand, the node's figures, the end of its log lines. No payload, label, name of a
timer or idempotency key is in it; values of the configuration whose key speaks of a secret are left
out, and user and password of an endpoint.
"""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from edgenode import doctor
from edgenode.config import SECTIONS, Config
from edgenode.machine import Facts
from engine._copy import StoreFiles
from engine.errors import EngineError

SECRET = re.compile(r"secret|password|passwd|token|credential|private|(^|[._])keys?($|[._])")
LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
LEFT_OUT = "(left out)"
LOG_BYTES_MAX = 1 << 20
FILE_MODE = 0o600


def write_bundle(
    path: Path,
    config: Config,
    data_dir: Path,
    facts: Facts,
    stats: dict[str, Any],
    log: Path | None,
) -> list[str]:
    """Write the bundle; the names of what is in it. Raises OSError.

    stats: what a running node tells, or why it does not. log: a file of its log lines.
    """
    parts = {
        "doctor.json": doctor.as_json(doctor.findings(facts)).encode(),
        "config.json": _json(redacted(config)),
        "files.json": _json(_files(data_dir)),
        "store.json": _json(_store(data_dir)),
        "stats.json": _json(stats),
    }
    if log is not None:
        parts["log.txt"] = LOGIN.sub("", _tail(log)).encode()
    with path.open("xb") as file:
        path.chmod(FILE_MODE)
        with tarfile.open(fileobj=file, mode="w:gz") as tar:
            for name, content in parts.items():
                entry = tarfile.TarInfo(f"minoots-support/{name}")
                entry.size, entry.mode = len(content), FILE_MODE
                tar.addfile(entry, io.BytesIO(content))
    return list(parts)


def redacted(config: Config) -> dict[str, Any]:
    """Every key as it is in force, without secrets."""
    found: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        values = getattr(config, section)
        for item in fields(cls):
            name, value = f"{section}.{item.name}", getattr(values, item.name)
            found[name] = shown(name, value)
    return found


def shown(name: str, value: Any) -> Any:
    """A value of the configuration as others may see it."""
    if SECRET.search(name) and value:
        return LEFT_OUT
    return LOGIN.sub("", value) if isinstance(value, str) else value


def _files(data_dir: Path) -> dict[str, Any]:
    """Sizes, as they look and on disk."""
    found = {}
    for path in sorted(data_dir.rglob("*")) if data_dir.is_dir() else ():
        if path.is_file():
            stat = path.stat()
            name = str(path.relative_to(data_dir))
            found[name] = {"bytes": stat.st_size, "on_disk": stat.st_blocks * 512}
    return found


def _store(data_dir: Path) -> dict[str, Any]:
    """Where log and tables stand, or why that cannot be told."""
    try:
        files = StoreFiles(data_dir)
    except EngineError as error:
        return {"error": str(error)}
    try:
        standing = files.standing()._asdict()
        del standing["swept"]
        return {"epoch": files.epoch, "log": files.ends()._asdict(), "tables": standing}
    except EngineError as error:
        return {"error": str(error)}
    finally:
        files.close()


def _tail(path: Path) -> str:
    """The last lines of a file."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - LOG_BYTES_MAX))
        text = file.read().decode(errors="replace")
    return text if size <= LOG_BYTES_MAX else text.partition("\n")[2]


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2)
