"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell starts what it puts in the background with SIGINT ignored, and so would be each process
# that a test starts, some of which are to end by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
