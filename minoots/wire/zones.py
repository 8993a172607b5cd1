"""Time zones by their IANA names, wherever their rules are.

Those of the system go first: they may be newer. Else those of the tzdata package, which the
compiled node has as `zones.zip`: one file to unpack at a start instead of six hundred.
"""

from __future__ import annotations

import io
import re
import zipfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, ZoneInfoNotFoundError

PACKED = "zones.zip"
SAMPLE = "Europe/Berlin"
UNTOLD = "?"

_NAME = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+){0,2}")


def zone(name: str) -> ZoneInfo:
    """The zone of that name. Raises ZoneInfoNotFoundError, a KeyError."""
    if not _NAME.fullmatch(name):
        raise ZoneInfoNotFoundError(f"{name[:80]!r} is no name of a time zone")
    try:
        return ZoneInfo(name)
    except (ValueError, OSError) as error:  # a folder, or no file of zones
        raise ZoneInfoNotFoundError(f"there is no time zone {name!r}") from error
    except ZoneInfoNotFoundError:
        return _packed(name)


@cache
def _packed(name: str) -> ZoneInfo:
    archive = _archive()
    try:
        if archive is None:
            raise KeyError(name)
        return ZoneInfo.from_file(io.BytesIO(archive.read(name)), key=name)
    except KeyError:
        raise ZoneInfoNotFoundError(f"there is no time zone {name!r}") from None


def _archive() -> zipfile.ZipFile | None:
    try:
        data = (files("tzdata") / PACKED).read_bytes()
    except (ImportError, OSError):
        return None
    return zipfile.ZipFile(io.BytesIO(data))


def release() -> str:
    """The release of the rules that are used, such as 2026f; `?` if the system's do not say, "" if
    there are none."""
    for folder in map(Path, TZPATH):
        said = folder / "tzdata.zi"
        if said.exists():
            found = re.match(r"#\s*version\s+(\S+)", said.read_text(encoding="ascii"))
            return found[1] if found else UNTOLD
        if (folder / SAMPLE).exists():
            return UNTOLD
    try:
        from tzdata import IANA_VERSION
    except ImportError:
        return ""
    return str(IANA_VERSION)


def pack(source: Path, target: Path) -> int:
    """Write the zones in the folder `source`/zoneinfo, of the tzdata package, into one file, the
    same bytes each time; how many they are."""
    folder = source / "zoneinfo"
    found = [path for path in folder.rglob("*") if path.is_file()]
    names = [
        path.relative_to(folder).as_posix() for path in found if path.read_bytes()[:4] == b"TZif"
    ]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(names):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, (folder / name).read_bytes())
    return len(names)
