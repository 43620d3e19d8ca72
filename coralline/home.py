"""Where Coralline keeps what it makes."""

from __future__ import annotations

import os
from pathlib import Path


def home_folder() -> Path:
    """Runs, lab and local MLflow data: $CORALLINE_HOME, or .coralline in the working folder."""
    return Path(os.environ.get("CORALLINE_HOME") or ".coralline").absolute()
