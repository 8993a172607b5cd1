"""A node that starts by fork: a process that has imported everything and does nothing else.

Importing takes most of a node's start. A zygote has done it once; each node is a child of it that
runs the program from its `main` on, as a process of its own that kill -9 ends like any other. So a
kill costs some 30 ms instead of 300. What the harness does not do by it is the start of the
interpreter; one life in twenty of the kill loop is made the long way.

    start LOG ARG...   -> pid
    wait PID           -> the status, as os.waitpid has it
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


class Forked:
    """A child of the zygote, as far as the harness needs a `subprocess.Popen`."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self._zygote = zygote
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":
                return self.wait()
        return self._code

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self._code is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(int(self._zygote.ask(["wait", str(self.pid)])))
        return self._code


class Zygote:
    """The zygote's process, and how it is talked to."""

    def __init__(self, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "tests.proof.zygote"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, words: list[str]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def start(self, command: list[str], log: Path, env: dict[str, str]) -> Forked:
        """As `harness.spawn`; the environment is the zygote's."""
        return Forked(self, int(self.ask(["start", str(log), *command])))

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *exc: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait(10)


def serve() -> None:
    """Be the zygote, until stdin ends."""
    import gc

    import edgenode.__main__ as program
    import edgenode.serve  # noqa: F401  # what a node needs

    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        words = json.loads(line)
        if words[0] == "start":
            print(_start(program, words[1], words[2:]), flush=True)
        else:
            print(os.waitpid(int(words[1]), 0)[1], flush=True)


def _start(program: object, log: str, command: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for fd, number in ((nothing, 0), (out, 1), (out, 2)):
            os.dup2(fd, number)
        sys.argv = ["minoots", *command]
        program.main()  # type: ignore[attr-defined]
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(bool(exit.code))
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
