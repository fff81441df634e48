"""Logs as JSON lines: time, level, what, and the facts of the event as fields of their own.

A worker writes one canonical line a batch ("batch"), and lines for claims, irregularities,
roll-backs and halts. Field names are those of docs/operations.md.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One line of JSON a record.

    >>> record = logging.makeLogRecord({"name": "streams", "msg": "batch", "records": 3})
    >>> line = json.loads(JsonFormatter().format(record))
    >>> line["what"], line["records"]
    ('batch', 3)
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; facts are what was given as `extra`."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "what": record.getMessage(),
        }
        if not record.name.startswith("streams"):
            line["by"] = record.name
        line.update((k, v) for k, v in vars(record).items() if k not in _STANDARD)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, separators=(",", ":"))


def configuration(level: str) -> dict[str, object]:
    """A dictConfig: ours at `level`, the drivers' from warnings on, all as JSON on stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "streams.logs.JsonFormatter"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": sys.stderr,
                "formatter": "json",
            }
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            "streams": {"level": level},
            # Both log each lost connection and retry as an error; what follows from it is ours.
            "aiokafka": {"level": "CRITICAL" if level != "DEBUG" else "DEBUG"},
            "kafka": {"level": "CRITICAL" if level != "DEBUG" else "DEBUG"},
            "faust": {"level": "ERROR"},
            "mode": {"level": "ERROR"},
        },
    }
