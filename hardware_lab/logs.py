"""How the lab's long-lived processes log: lines for people, or objects for programs."""

from __future__ import annotations

import json
import logging
import sys

from hardware_lab.database import iso

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a line: `at`, `level`, `logger`, `message`, and what the call adds."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line = {
            "at": iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{k: v for k, v in record.__dict__.items() if k not in _STANDARD and v is not None},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr() -> None:
    """From here on: objects, or at a terminal lines for people."""
    handler = logging.StreamHandler()
    if not sys.stderr.isatty():
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("hardware_lab").setLevel(logging.INFO)
