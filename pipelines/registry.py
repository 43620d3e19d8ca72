"""The pipelines by name, and their compiled form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coralline.errors import UserError
from coralline.files import replacing

NAMES = ("respect", "nightly")


def load_pipeline(name: str) -> Any:
    """The KFP pipeline function of that name.

    Raises:
        UserError: No pipeline has that name.
    """
    if name not in NAMES:
        raise UserError(f"pipeline {name!r} is not known; choose one of {', '.join(NAMES)}")
    from importlib import import_module

    return getattr(import_module(f"pipelines.{name}"), name)


def compile_pipeline(name: str, out: Path) -> None:
    """Write the pipeline as KFP YAML, whole or not at all."""
    from kfp import compiler

    pipeline = load_pipeline(name)
    with replacing(out) as temporary:
        # The compiler wants to see .yaml at the end of the name.
        yaml = temporary.with_name(temporary.name + ".yaml")
        try:
            compiler.Compiler().compile(pipeline, str(yaml))
            yaml.replace(temporary)
        finally:
            yaml.unlink(missing_ok=True)
