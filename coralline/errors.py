"""The errors Coralline raises on purpose; each is also the builtin a caller would expect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class CorallineError(Exception):
    """Root of every error raised on purpose."""


class UserError(CorallineError, ValueError):
    """Bad input. The message says what is wrong, where, and what to do."""


class PlanError(CorallineError, ValueError):
    """A plan that breaks a rule of its problem, or a problem no plan can satisfy."""


class DeviceError(CorallineError, RuntimeError):
    """A board, accelerator or tool failed.

    Args:
        retryable: Whether running the same thing again may succeed.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def read_text(path: Path, what: str) -> str:
    """The text of a file, or a UserError that names it.

    Args:
        path: The file.
        what: What the file should hold, as in "a graph JSON file".
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of {what}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory; give the path of {what}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text; give the path of {what}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def parse_json(text: str, where: str) -> Any:
    """The value that a JSON text holds, or a UserError that begins with `where`."""
    try:
        data = json.loads(text)
        # Half a surrogate pair is allowed in JSON and nowhere else: no file can hold it.
        if "\\u" in text:
            json.dumps(data, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(f"{where}: is not JSON ({place})") from None
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply") from None
    except UnicodeEncodeError:
        raise UserError(f"{where}: it holds half a character, \\ud800 to \\udfff") from None
    except ValueError:  # an integer beyond what Python converts
        raise UserError(f"{where}: a number in it has thousands of digits") from None
    return data
