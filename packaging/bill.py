"""What is inside the binary, and under which licence: a CycloneDX bill of materials, and the texts.

The Python distributions come from the environment that the binary was built in; the shared
libraries from the folder itself. Each library must be named here, so none comes in unnoticed; and
nothing under a licence of the GPL family may, unless it has an exception for what it is part of.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

import binary
from stamp import DIST, WORK, Stamp, stamp

FOLDER = DIST / "minoots.dist"
TEXTS = re.compile(r"(licen[cs]e|copying|notice)", re.IGNORECASE)
REFUSED = re.compile(r"(GPL|SSPL|BUSL|Commons-Clause)")
EXCEPTED = re.compile(r"WITH |exception", re.IGNORECASE)

# The licence where the distribution's metadata only describe it.
LICENCE_OF = {
    "markdown-it-py": "MIT",
    "mdurl": "MIT",
    "sortedcontainers": "Apache-2.0",
    "rich": "MIT",
    "pynacl": "Apache-2.0 AND ISC",  # ISC: the libsodium that is linked into it
}
# File name in the folder -> (component, SPDX licence, Debian package it was copied from).
LIBRARIES = {
    r"libpython3\.": ("cpython", "Python-2.0", ""),
    r"libzmq": ("libzmq", "MPL-2.0", ""),
    r"libsodium": ("libsodium", "ISC", ""),
    r"lib(crypto|ssl)\.": ("openssl", "Apache-2.0", "libssl3"),
    r"libz\.": ("zlib", "Zlib", "zlib1g"),
    r"libbz2\.": ("bzip2", "bzip2-1.0.6", "libbz2-1.0"),
    r"liblzma\.": ("xz", "0BSD", "liblzma5"),
    r"libffi\.": ("libffi", "MIT", "libffi8"),
    r"libuuid\.": ("libuuid", "BSD-3-Clause", "libuuid1"),
    r"libexpat\.": ("expat", "MIT", "libexpat1"),
    r"libstdc\+\+\.|libgcc_s\.": (
        "gcc-runtime",
        "GPL-3.0-only WITH GCC-exception-3.1",
        "libgcc-s1",
    ),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One component: what it is, and the texts that must go with it."""

    name: str
    version: str
    licence: str
    purl: str
    texts: tuple[str, ...]


def parts() -> list[Part]:
    """All components. Ends the build where one is unknown, or may not be inside."""
    python = WORK / "venv/bin/python"
    site = binary.site_of(python)
    found = [_of_distribution(dist) for dist in binary.needed(site).values()]
    found.append(_nuitka(site))
    found += _libraries(site)
    if wrong := faults(found):
        sys.exit("packaging: " + "; ".join(wrong))
    return sorted(found, key=lambda part: part.name)


def faults(found: list[Part]) -> list[str]:
    """What may not be inside, a line each."""
    return [
        f"{part.name} is under {part.licence}; it may not be inside"
        for part in found
        if REFUSED.search(part.licence) and not EXCEPTED.search(part.licence)
    ]


def _of_distribution(dist: Distribution) -> Part:
    name = re.sub(r"[-_.]+", "-", dist.name).lower()
    said = dist.metadata
    told = [said[field] for field in ("License-Expression", "License") if field in said]
    licence = LICENCE_OF.get(name) or next(iter(told), "")
    if not licence or "\n" in licence:
        sys.exit(f"packaging: {name} does not name its licence; write it into bill.LICENCE_OF")
    purl = f"pkg:pypi/{name}@{dist.version}" if name != "minoots" else f"pkg:generic/{name}"
    return Part(name, dist.version, licence, purl, _texts(dist))


def _texts(dist: Distribution) -> tuple[str, ...]:
    """The licences of a distribution, but not those of what is left out (tornado)."""
    return tuple(
        Path(str(file.locate())).read_text(errors="replace").strip()
        for file in dist.files or []
        if ".dist-info" in str(file) and TEXTS.search(file.name) and "tornado" not in file.name
    )


def _nuitka(site: Path) -> Part:
    """The run time of the compiler: compiled in, under its exception, as gcc's is."""
    (info,) = site.glob("nuitka-*.dist-info")
    dist = Distribution.at(info)
    texts = tuple(text for text in _texts(dist) if text.startswith(("Nuitka Runtime", "Nuitka\n")))
    if not any("Nuitka Runtime Library Exception" in text for text in texts):
        sys.exit("packaging: this Nuitka has no exception for its run time; do not ship with it")
    licence = "AGPL-3.0-only WITH LicenseRef-Nuitka-Runtime-Library-Exception"
    return Part("nuitka-runtime", dist.version, licence, f"pkg:pypi/nuitka@{dist.version}", texts)


def _libraries(site: Path) -> list[Part]:
    """The shared libraries that are no extension modules, one component each."""
    found: dict[str, Part] = {}
    for path in sorted(FOLDER.rglob("*.so*")):
        if not path.name.startswith("lib"):
            continue  # an extension module: of CPython, or of a distribution
        for pattern, (name, licence, package) in LIBRARIES.items():
            if re.match(pattern, path.name):
                found[name] = _library(name, licence, package, site)
                break
        else:
            sys.exit(f"packaging: {path.name} is in the folder; name it in bill.LIBRARIES")
    return list(found.values())


def _library(name: str, licence: str, package: str, site: Path) -> Part:
    if name == "cpython":
        place = Path(sys.base_prefix, f"lib/python3.{sys.version_info.minor}/LICENSE.txt")
        version = platform.python_version()
        return Part(name, version, licence, f"pkg:generic/cpython@{version}", (place.read_text(),))
    if name in ("libzmq", "libsodium"):  # inside pyzmq's wheel, its licence texts too
        line = "import zmq; print(zmq.zmq_version())"
        version = _ask(WORK / "venv/bin/python", "-c", line) if name == "libzmq" else _sodium(site)
        return Part(name, version, licence, f"pkg:generic/{name}@{version}", ())
    version = _ask("dpkg-query", "--show", "--showformat=${Version}", package)
    text = Path(f"/usr/share/doc/{package}/copyright").read_text(errors="replace")
    purl = f"pkg:deb/debian/{package}@{version}"
    return Part(name, version, licence, purl, (text,))


def _sodium(site: Path) -> str:
    """libsodium says its own version."""
    (library,) = (site / "pyzmq.libs").glob("libsodium*")
    line = (
        "import ctypes,sys; f=ctypes.CDLL(sys.argv[1]).sodium_version_string; "
        "f.restype=ctypes.c_char_p; print(f().decode())"
    )
    return _ask(sys.executable, "-c", line, library)


def _ask(*words: str | Path) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def as_json(stamped: Stamp) -> str:
    """The bill of materials: CycloneDX 1.5."""
    found = parts()
    own = next(part for part in found if part.name == "minoots")
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": stamped.built,
            "component": {
                "type": "application",
                "bom-ref": "minoots",
                "name": "minoots",
                "version": stamped.version,
                "licenses": [{"license": {"name": own.licence}}],
                "properties": [{"name": "commit", "value": stamped.commit}],
            },
        },
        "components": [_component(part) for part in found if part is not own],
        "dependencies": [
            {"ref": "minoots", "dependsOn": [part.purl for part in found if part is not own]}
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def _component(part: Part) -> dict[str, object]:
    return {
        "type": "library",
        "bom-ref": part.purl,
        "name": part.name,
        "version": part.version,
        "purl": part.purl,
        "licenses": [{"expression": part.licence}],
    }


def licences() -> str:
    """What is inside and its licence, a line each; then the texts."""
    found = parts()
    lines = ["This program contains:", ""]
    lines += [f"  {part.name} {part.version}: {part.licence}" for part in found]
    for part in found:
        for text in part.texts:
            lines += ["", "=" * 78, f"{part.name} {part.version}", "=" * 78, "", text]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_json(stamp()) if "--json" in sys.argv else licences())
