"""One target, in a process that may crash: its newest input stands in a file that outlives it.

python -m tests.fuzz.child TARGET PLACE SECONDS SEED
python -m tests.fuzz.child TARGET --input FILE
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import mmap
import resource
import struct
import sys
import time
from pathlib import Path
from types import ModuleType

from tests.fuzz.mutate import SIZE_MAX, Mutator, feedback

COUNT = struct.Struct("<QI")  # executions, bytes of the newest input
PLACE_BYTES = COUNT.size + SIZE_MAX
HELD_KB_MAX = 16 << 10  # growth after the first quarter, of what is allocated
RSS_KB_MAX = 512 << 10  # ... and of the process, which keeps pages of which little is in use
BLOCK_BYTES = 64  # of Python, at a guess
MALLINFO2 = ["arena", "ordblks", "smblks", "hblks", "hblkhd"]
MALLINFO2 += ["usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
OURS = ["edgenode", "engine", "minoots", "tests.fuzz.planted"]


def load(guided: bool) -> ModuleType:
    """The targets; with `guided`, so that atheris sees every branch of our Python."""
    if not guided:
        return importlib.import_module("tests.fuzz.targets")
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=OURS, enable_loader_override=False):
        return importlib.import_module("tests.fuzz.targets")


class Place:
    """The file that the parent looks at."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), PLACE_BYTES)
        self.count = 0

    def note(self, data: bytes) -> None:
        """This input comes next."""
        self.count += 1
        shown = data[:SIZE_MAX]
        self._map[: COUNT.size] = COUNT.pack(self.count, len(shown))
        self._map[COUNT.size : COUNT.size + len(shown)] = shown


def seeds_of(name: str, targets: ModuleType) -> list[bytes]:
    """The corpus that is kept, and what the target makes itself."""
    folder = Path(__file__).parent / "corpus" / name
    kept = [path.read_bytes() for path in sorted(folder.glob("*"))] if folder.is_dir() else []
    return [*targets.TARGETS[name].seeds(), *kept]


def mutate(name: str, place: Place, seconds: float, seed: int) -> int:
    """Our own fuzzer, for so long; what it grew by is a leak."""
    targets = load(guided=False)
    target, looks = targets.TARGETS[name], feedback()
    mutator = Mutator(seeds_of(name, targets), target.words, seed)
    began_s, warm = time.monotonic(), None
    for data in mutator:
        place.note(data)
        target.run(data)
        if looks is not None and looks():
            mutator.keep(data)
        if place.count % 64 == 0:
            passed_s = time.monotonic() - began_s
            if warm is None and passed_s > seconds / 4:
                warm = _memory_kb(targets)
            if passed_s > seconds:
                break
    now = _memory_kb(targets)
    held_kb, rss_kb = now[0] - (warm or now)[0], now[1] - (warm or now)[1]
    if held_kb > HELD_KB_MAX or rss_kb > RSS_KB_MAX:
        what = f"leak: {held_kb} KB more are allocated, it grew by {rss_kb} KB"
        print(f"{what} in {place.count} executions", file=sys.stderr)
        return 3
    print(f"kept {len(mutator.kept)}; {held_kb} KB more are allocated", file=sys.stderr)
    return 0


class _Allocated(ctypes.Structure):
    """`struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]


def _memory_kb(targets: ModuleType) -> tuple[int, int]:
    """What is allocated now, and what is in memory: without what the targets keep for a while, and
    what waits to be collected."""
    targets.begin_anew()
    gc.collect()
    program = ctypes.CDLL(None)
    try:
        sanitizer = program.__sanitizer_get_current_allocated_bytes
    except AttributeError:
        program.mallinfo2.restype = _Allocated
        found = program.mallinfo2()
        held = found.uordblks + found.hblkhd + BLOCK_BYTES * sys.getallocatedblocks()
    else:
        sanitizer.restype = ctypes.c_size_t
        held = sanitizer()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return held >> 10, pages * resource.getpagesize() >> 10


def guide(name: str, place: Place, seconds: float, seed: int) -> int:
    """atheris: libFuzzer over the branches of our Python. Never returns."""
    targets = load(guided=True)
    atheris = importlib.import_module("atheris")
    target = targets.TARGETS[name]
    own = Path(sys.argv[2]).with_suffix(".corpus")
    own.mkdir(exist_ok=True)
    for number, data in enumerate(seeds_of(name, targets)):
        (own / f"seed{number}").write_bytes(data)

    def one(data: bytes) -> None:
        place.note(data)
        target.run(data)

    limits = [f"-max_total_time={max(int(seconds), 1)}", f"-seed={seed}", f"-max_len={SIZE_MAX}"]
    limits += ["-timeout=20", "-rss_limit_mb=1500", "-verbosity=0", f"-artifact_prefix={own}/"]
    atheris.Setup([sys.argv[0], *limits, str(own)], one)
    atheris.Fuzz()
    return 0


def main() -> int:
    """See the module."""
    name = sys.argv[1]
    if sys.argv[2] == "--input":
        load(guided=False).TARGETS[name].run(Path(sys.argv[3]).read_bytes())
        return 0
    place, seconds, seed = Place(Path(sys.argv[2])), float(sys.argv[3]), int(sys.argv[4])
    return (guide if sys.argv[5:] == ["guided"] else mutate)(name, place, seconds, seed)


if __name__ == "__main__":
    sys.exit(main())
