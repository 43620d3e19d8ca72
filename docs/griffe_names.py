"""Docstrings as mkdocstrings reads them: an entry for several names becomes one for each."""

from __future__ import annotations

import re
from typing import Any

import griffe

SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)$", re.MULTILINE)


class OneEntryAName(griffe.Extension):
    """Rewrite `a, b: text` of a section to `a: text` and `b: text`."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = SEVERAL.sub(_each, obj.docstring.value)


def _each(found: re.Match[str]) -> str:
    indent, names, text = found.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
