"""Which code is measured, and what came into it between two nights."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

COMMIT = "CORALLINE_COMMIT"
"""Environment variable: of the code, where it does not lie in a git clone, as in an image."""
DIRTY = "-dirty"
MOST = 50
_GIT_S = 30.0


def current_commit(folder: Path) -> str | None:
    """The commit of the clone that a folder lies in, or of $CORALLINE_COMMIT; None if untold.

    With DIRTY at its end where files that git knows were changed since.
    """
    told = os.environ.get(COMMIT)
    if told:
        return told
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return head[0] + (DIRTY if changed else "")


def commits_between(folder: Path, good: str | None, bad: str | None) -> list[str]:
    """A line a commit that `bad` has and `good` has not, the newest first, MOST at most.

    Empty where the folder does not lie in a clone that knows both.
    """
    if good is None or bad is None:
        return []
    last = f"{good.removesuffix(DIRTY)}..{bad.removesuffix(DIRTY)}"
    shown = ("--format=%h %s", f"--max-count={MOST}", "--end-of-options")
    return _git(folder, "log", *shown, last, "--") or []


def _git(folder: Path, *arguments: str) -> list[str] | None:
    try:
        said = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.splitlines() if said.returncode == 0 else None
