"""What each of our threads does before it lets go of the GIL."""

from __future__ import annotations

import signal

# A thread causes these itself: blocked, they end the process without a word.
OWN_FAULTS = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}


def block_signals() -> None:
    """Leave signals to the thread that can act on them, but for what this one causes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - OWN_FAULTS)
