"""Problems as people read them: code, detail, what is wrong where, and what to do."""

from __future__ import annotations

import sys

import click

from minoots.wire.problems import MinootsError, Refused, Unreachable

ADVICE = {
    "not_found": "see what there is: minoots list",
    "already_terminal": "see how it ended: minoots history ID",
    "revision_conflict": "read it again, minoots get ID, and decide anew",
    "idempotency_key_reused": "use another --idem, or send exactly what was sent before",
    "due_in_past": "give a later instant, or --in",
    "bad_schedule": "try it without scheduling: minoots schedule NAME ... --dry-run",
    "out_of_retention": "the log begins later; leave --since out, or use minoots snapshot",
    "epoch_changed": "the log was restored from a backup; read it from its start",
    "storage_full": "make room on the node's disk",
    "read_only": "see why: minoots health",
    "overloaded": "try again later, or give a longer --timeout",
    "rate_limited": "try again later, or give a longer --timeout",
    "deadline_exceeded": "give a longer --timeout",
    "forbidden": "ask the node's operator for a key with another role",
    "unauthenticated": "ask the node's operator for a key",
    "unknown_op": "the node is older than this program: minoots hello",
    "internal": "look into the node's log",
}


def tell(error: MinootsError, *, as_json: bool) -> None:
    """Write a problem to stderr: JSON for programs, lines for people."""
    if as_json:
        import msgspec

        problem = error.problem if isinstance(error, Refused) else _as_problem(error)
        sys.stderr.write(msgspec.json.encode(problem).decode() + "\n")
        return
    for line in lines(error):
        click.echo(line, err=True)


def lines(error: MinootsError) -> list[str]:
    """The lines for people."""
    if not isinstance(error, Refused):
        return [f"minoots: {error}"]
    found = [f"minoots: {error.code}: {error.detail or error.problem.title}"]
    for fault in error.errors:
        if fault.detail != error.detail:
            found.append(f"  {fault.pointer or '/'}: {fault.detail}")
        else:
            found.append(f"  at {fault.pointer or '/'}")
    advice = ADVICE.get(error.code)
    if advice:
        found.append(f"  to do: {advice}")
    return found


def _as_problem(error: MinootsError) -> dict[str, str]:
    code = "unreachable" if isinstance(error, Unreachable) else "protocol_error"
    return {"code": code, "detail": str(error)}
