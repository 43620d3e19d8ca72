"""A model that cannot be had: why, handed from step to step in the place of the result.

KFP has no list of the results of those iterations of a loop that succeeded: one that fails ends
the run. A step that must not end it leaves the reason in its output folder instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from components.steps import current_step, say
from coralline.errors import CorallineError, DeviceError, UserError, parse_json, read_text
from coralline.files import write_text

_FILE = "missing.json"


@dataclass(frozen=True)
class Missing:
    """Why a model is missing.

    Attributes:
        model: As the pipeline was given it.
        step: That found out.
        message: Of its error, one line.
        at: When, ISO 8601, UTC: a reason may come from the cache.
    """

    model: str
    step: str
    message: str
    at: str


class _PassedError(UserError):
    """The input of a step is a reason."""

    def __init__(self, reason: Missing) -> None:
        super().__init__(f"{reason.model}: {reason.message}")
        self.reason = reason


@contextmanager
def noted(out: Path, model: str) -> Iterator[None]:
    """Leave an error of the block that was raised on purpose in `out`, in the place of raising it.

    But not one that may be gone at the next try: KFP would take the reason from its cache then.

    Args:
        out: Folder that the step writes.
        model: As the pipeline was given it; empty to raise.
    """
    try:
        yield
    except CorallineError as error:
        if not model or (isinstance(error, DeviceError) and error.retryable):
            raise
        if isinstance(error, _PassedError):
            reason = error.reason
        else:
            at = datetime.now(UTC).isoformat(timespec="seconds")
            reason = Missing(model, current_step(), " ".join(str(error).split()), at)
            say("missing", model=model, error=reason.message)
        write_text(out / _FILE, json.dumps(asdict(reason)) + "\n")


def unless_missing(folder: Path) -> Path:
    """The folder, for a block of `noted` to read.

    Raises:
        UserError: The step before left a reason in it, which `noted` passes on.
    """
    reason = read_missing(folder)
    if reason is not None:
        raise _PassedError(reason)
    return folder


def read_missing(folder: Path) -> Missing | None:
    """The reason that a step left in its folder; None where it left a result."""
    file = folder / _FILE
    if not file.exists():
        return None
    return Missing(**parse_json(read_text(file, "the reason of a missing model"), str(file)))
