"""How large is the compiled node, how soon does it serve, and what does it hold in memory?

    python -m bench.binary [--small]

The forms that are built (`make binary`, `make deb`) beside the program of the virtual environment,
interleaved. Ready: from the start of the process until minoots.json is there, on a new data
directory; cold: with the program's files out of the page cache. Memory: resident, of all processes
of the form, when it has just become ready. One file unpacks itself into the folder for temporary
files, 700 files: once where that is on a disk, once on a tmpfs. Each figure has its goal; `goals`
says which are met.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.report import ROOT, machine, write

DIST = ROOT / "dist"
TOOK = ROOT / "build" / "package" / "took.json"
FORMS = {
    "venv": [sys.executable, "-m", "edgenode"],
    "folder": [str(DIST / "minoots.dist" / "minoots")],
    "one file": [str(DIST / "minoots")],
    "one file, tmpfs": ["env", "TMPDIR=/dev/shm", str(DIST / "minoots")],
}
# (figure, form) -> the most that it may be.
GOALS = {
    ("mb", "folder"): 65,
    ("mb", "one file"): 20,
    ("mb", "deb"): 20,
    ("ready_ms", "folder"): 300,
    ("ready_ms", "one file"): 500,
    ("ready_ms", "one file, tmpfs"): 500,
    ("rss_mb", "folder"): 70,
    ("rss_mb", "one file"): 90,
    ("build_s", "all"): 600,
}
START_S = 30.0


def files_of(form: str) -> list[Path]:
    """The files that a form consists of; none where it is not built."""
    if form == "deb":
        return list(DIST.glob("minoots_*.deb"))
    if form.startswith("one file"):
        return [path for path in (DIST / "minoots",) if path.is_file()]
    return [path for path in (DIST / "minoots.dist").rglob("*") if path.is_file()]


def forget(paths: list[Path]) -> None:
    """Take files out of the page cache, as far as nobody else uses them."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def help_ms(command: list[str]) -> float:
    """How long `--help` takes."""
    began_ns = time.monotonic_ns()
    subprocess.run([*command, "--help"], stdout=subprocess.DEVNULL, check=True)
    return (time.monotonic_ns() - began_ns) / 1e6


def start(command: list[str], folder: Path) -> tuple[float, float]:
    """Start a node and stop it; (ms until it was ready, MB that it held then)."""
    doors = [f"--{door}=tcp://127.0.0.1:0" for door in ("control", "stream", "events")]
    ready = folder / "minoots.json"
    with folder.with_suffix(".log").open("wb") as log:
        began_ns = time.monotonic_ns()
        process = subprocess.Popen(
            [*command, "run", "--data", str(folder), *doors], stdout=log, stderr=log
        )
        try:
            while not ready.exists():
                if process.poll() is not None or time.monotonic_ns() - began_ns > START_S * 1e9:
                    raise RuntimeError(folder.with_suffix(".log").read_text())
                time.sleep(0.001)
            took_ms = (time.monotonic_ns() - began_ns) / 1e6
            pids = {process.pid, json.loads(ready.read_bytes())["pid"]}
            held_mb = sum(_resident_bytes(pid) for pid in pids) / 1e6
        finally:
            process.terminate()
            process.wait(20)
    return took_ms, held_mb


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run(small: bool = False) -> dict[str, Any]:
    """Measure what is built; a form that is not built has no figures."""
    times = 2 if small else 15
    here = {form: command for form, command in FORMS.items() if form == "venv" or files_of(form)}
    taken: dict[str, dict[str, list[float]]] = {form: {} for form in here}

    def note(form: str, figure: str, value: float) -> None:
        taken[form].setdefault(figure, []).append(value)

    with tempfile.TemporaryDirectory(prefix="minoots-bench-") as temporary:
        for k in range(times):
            for form, command in here.items():
                note(form, "help_ms", help_ms(command))
                took_ms, held_mb = start(command, Path(temporary) / f"warm {k} {form}")
                note(form, "ready_ms", took_ms)
                note(form, "rss_mb", held_mb)
                if form != "venv":
                    forget(files_of(form))
                    took_ms, _ = start(command, Path(temporary) / f"cold {k} {form}")
                    note(form, "cold_ready_ms", took_ms)
    forms: dict[str, dict[str, float]] = {
        form: {figure: round(statistics.median(values), 1) for figure, values in figures.items()}
        for form, figures in taken.items()
    }
    for form in ("folder", "one file", "deb"):
        if paths := files_of(form):
            size = sum(path.stat().st_size for path in paths) / 1e6
            forms.setdefault(form, {})["mb"] = round(size, 1)
    if TOOK.exists():
        took = json.loads(TOOK.read_text())
        forms["all"] = {"build_s": round(sum(took.values()), 1)} | {
            f"{part}_s": spent for part, spent in took.items()
        }
    return {"machine": machine(), "times": times, "forms": forms, "goals": goals(forms)}


def goals(forms: dict[str, dict[str, float]]) -> dict[str, str]:
    """Each goal: what it is, what was found, and whether that is enough."""
    said = {}
    for (figure, form), most in GOALS.items():
        found = forms.get(form, {}).get(figure)
        verdict = "not built" if found is None else "met" if found <= most else "missed"
        said[f"{form}: {figure} <= {most}"] = f"{verdict} ({found})"
    return said


if __name__ == "__main__":
    result = run("--small" in sys.argv)
    print(json.dumps(result, indent=1))
    if "--small" not in sys.argv:
        write(result, ROOT / "bench" / "results", "binary")
