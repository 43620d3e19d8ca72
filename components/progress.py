"""How a component tells a person who waits how far it is.

Apart from components.face, because KFP's runtime inside a step has no decorators to import.
"""

import json
import sys

PROGRESS = "coralline-progress "
"""Starts such a line of a component's log; JSON follows."""


def progress(what: str, done: int, total: int) -> None:
    """Say that `done` of `total` parts of `what` are finished."""
    line = json.dumps({"what": what, "done": done, "total": total})
    sys.stdout.write(f"{PROGRESS}{line}\n")
    sys.stdout.flush()
