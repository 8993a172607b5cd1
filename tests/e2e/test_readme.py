"""The README's example, pasted as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.harness import Node

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    text = README.read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    printed = re.search(r"prints\n\n```\n(.*?)```", text, re.DOTALL)
    assert example is not None
    assert printed is not None
    with Node(tmp_path / "data") as node:
        done = subprocess.run(
            [sys.executable, "-c", example[1]],
            env={**os.environ, "MINOOTS_DATA": str(node.folder)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.stderr == ""
    assert done.stdout == printed[1]


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
