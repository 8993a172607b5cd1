"""The README's example, pasted as it is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from minoots import Client
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


def test_the_worker_works_until_it_is_told_to_stop(tmp_path: Path) -> None:
    example = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    with Node(tmp_path / "data") as node, Client(data=node.folder) as client:
        client.schedule("tea", after="0s")
        process = subprocess.Popen(
            [sys.executable, "-c", example],
            env={**os.environ, "MINOOTS_DATA": str(node.folder)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "pouring tea attempt 1\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        process.stdout.close()
        assert client.consumers.info("kettle").acked == 1


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
