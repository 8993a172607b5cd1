"""What the process asks of the machine, and goes on without."""

from __future__ import annotations

import pytest

from edgenode import process


def test_a_kernel_that_may_not_be_asked_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> None:
        raise PermissionError(1, "Operation not permitted")

    said = []
    monkeypatch.setattr(process, "ntp_state", refused)
    monkeypatch.setattr(process, "_refused", set())
    monkeypatch.setattr(process, "say", lambda *words, **more: said.append((words, more)))
    assert process._kernel_state() == (False, 0)
    assert process._kernel_state() == (False, 0)
    [(words, more)] = said
    assert words == ("warning", "clock_state_refused")
    assert more["remedy"] == "permit adjtimex"
