"""MINOOTS for programs: schedule timers on a node, and watch what they do.

    from minoots import Client

    with Client() as client:
        client.schedule("tea", after="4m", payload={"cups": 2})
        for event in client.watch(types=["timer.expired"]):
            print(event.name, event.lateness_us)

What is exported is loaded when first used, so that `minoots --help` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minoots.aio import AsyncClient as AsyncClient
    from minoots.arguments import definition as definition
    from minoots.client import Client as Client
    from minoots.done import DoneKeys as DoneKeys
    from minoots.event import Event as Event
    from minoots.wire.bodies import Target as Target
    from minoots.wire.bodies import TimerView as TimerView
    from minoots.wire.definition import Definition as Definition
    from minoots.wire.problems import (
        ActionNotAllowed as ActionNotAllowed,
    )
    from minoots.wire.problems import (
        AlreadyExists as AlreadyExists,
    )
    from minoots.wire.problems import (
        AlreadyTerminal as AlreadyTerminal,
    )
    from minoots.wire.problems import (
        BadFrame as BadFrame,
    )
    from minoots.wire.problems import (
        BadJson as BadJson,
    )
    from minoots.wire.problems import (
        BadSchedule as BadSchedule,
    )
    from minoots.wire.problems import (
        BeyondHorizon as BeyondHorizon,
    )
    from minoots.wire.problems import (
        ClockUnsynchronised as ClockUnsynchronised,
    )
    from minoots.wire.problems import (
        ConsumerBusy as ConsumerBusy,
    )
    from minoots.wire.problems import (
        DeadlineExceeded as DeadlineExceeded,
    )
    from minoots.wire.problems import (
        DueInPast as DueInPast,
    )
    from minoots.wire.problems import (
        EpochChanged as EpochChanged,
    )
    from minoots.wire.problems import (
        Forbidden as Forbidden,
    )
    from minoots.wire.problems import (
        IdempotencyKeyReused as IdempotencyKeyReused,
    )
    from minoots.wire.problems import (
        Internal as Internal,
    )
    from minoots.wire.problems import (
        MinootsError as MinootsError,
    )
    from minoots.wire.problems import (
        NoFutureOccurrence as NoFutureOccurrence,
    )
    from minoots.wire.problems import (
        NotFound as NotFound,
    )
    from minoots.wire.problems import (
        NotLeader as NotLeader,
    )
    from minoots.wire.problems import (
        OutOfRetention as OutOfRetention,
    )
    from minoots.wire.problems import (
        Overloaded as Overloaded,
    )
    from minoots.wire.problems import (
        PayloadSchemaMismatch as PayloadSchemaMismatch,
    )
    from minoots.wire.problems import (
        ProtocolError as ProtocolError,
    )
    from minoots.wire.problems import (
        QuotaExceeded as QuotaExceeded,
    )
    from minoots.wire.problems import (
        RateLimited as RateLimited,
    )
    from minoots.wire.problems import (
        ReadOnly as ReadOnly,
    )
    from minoots.wire.problems import (
        Refused as Refused,
    )
    from minoots.wire.problems import (
        RevisionConflict as RevisionConflict,
    )
    from minoots.wire.problems import (
        StorageFull as StorageFull,
    )
    from minoots.wire.problems import (
        TooLarge as TooLarge,
    )
    from minoots.wire.problems import (
        Unauthenticated as Unauthenticated,
    )
    from minoots.wire.problems import (
        UnknownOp as UnknownOp,
    )
    from minoots.wire.problems import (
        Unreachable as Unreachable,
    )
    from minoots.wire.problems import (
        UnsupportedVersion as UnsupportedVersion,
    )
    from minoots.wire.problems import (
        Validation as Validation,
    )
    from minoots.working import GiveUp as GiveUp
    from minoots.working import Retry as Retry
    from minoots.working import worker as worker

    __version__: str

_HOMES = {
    "AsyncClient": "minoots.aio",
    "Client": "minoots.client",
    "Definition": "minoots.wire.definition",
    "DoneKeys": "minoots.done",
    "Event": "minoots.event",
    "GiveUp": "minoots.working",
    "Retry": "minoots.working",
    "Target": "minoots.wire.bodies",
    "TimerView": "minoots.wire.bodies",
    "definition": "minoots.arguments",
    "worker": "minoots.working",
}
_PROBLEMS = "minoots.wire.problems"

__all__ = [
    "ActionNotAllowed",
    "AlreadyExists",
    "AlreadyTerminal",
    "AsyncClient",
    "BadFrame",
    "BadJson",
    "BadSchedule",
    "BeyondHorizon",
    "Client",
    "ClockUnsynchronised",
    "ConsumerBusy",
    "DeadlineExceeded",
    "Definition",
    "DoneKeys",
    "DueInPast",
    "EpochChanged",
    "Event",
    "Forbidden",
    "GiveUp",
    "IdempotencyKeyReused",
    "Internal",
    "MinootsError",
    "NoFutureOccurrence",
    "NotFound",
    "NotLeader",
    "OutOfRetention",
    "Overloaded",
    "PayloadSchemaMismatch",
    "ProtocolError",
    "QuotaExceeded",
    "RateLimited",
    "ReadOnly",
    "Refused",
    "Retry",
    "RevisionConflict",
    "StorageFull",
    "Target",
    "TimerView",
    "TooLarge",
    "Unauthenticated",
    "UnknownOp",
    "Unreachable",
    "UnsupportedVersion",
    "Validation",
    "__version__",
    "definition",
    "worker",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("minoots")
        except PackageNotFoundError:  # run from a folder, not installed
            return "0+unknown"
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    # The exceptions, one for each code of the contract: minoots.NotFound, minoots.Overloaded.
    if name[:1].isupper():
        problems = import_module(_PROBLEMS)
        if isinstance(getattr(problems, name, None), type):
            return getattr(problems, name)
    raise AttributeError(f"module 'minoots' has no attribute {name!r}")
