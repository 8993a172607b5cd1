"""What a node says to its operator: one line an event on stderr, for people or (`--json`) machines.

    2026-11-22T09:00:00.123Z info serving control=tcp://127.0.0.1:7410 ...

Fields are facts of the node; payloads, labels and keys of clients are never among them.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

logger = logging.getLogger("minoots")


def say(level: str, event: str, **fields: object) -> None:
    """Log one event with its fields. level: debug, info, warning, error."""
    logger.log(logging.getLevelName(level.upper()), event, extra={"fields": fields})


def _stamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03}Z"


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        parts = [_stamp(record), record.levelname.lower(), record.getMessage()]
        parts += [f"{key}={_value(value)}" for key, value in fields.items()]
        if record.exc_info:
            parts.append("\n" + self.formatException(record.exc_info))
        return " ".join(parts)


def _value(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not any(c in text for c in ' "='):
        return text
    return orjson.dumps(text).decode()


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def setup(*, json: bool, level: str = "info") -> None:
    """Send the log to stderr."""
    target = logging.StreamHandler(sys.stderr)
    target.setFormatter(_Json() if json else _Text())
    logger.handlers[:] = [target]
    logger.setLevel(level.upper())
    logger.propagate = False
