"""Print the compiled modules that have a stub, for stubtest."""

from pathlib import Path

for stub in sorted(Path().glob("e*/**/_*.pyi")):
    if stub.with_suffix(".pyx").exists():
        print(".".join(stub.with_suffix("").parts))
