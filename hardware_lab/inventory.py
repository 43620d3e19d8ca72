"""`coralline.inventory/v1`: the boards of a lab, as a YAML file.

schema: coralline.inventory/v1
boards:
  host: {kind: host, threads_per_stage: 1}
  my-sim: {kind: edgetpu-sim, device: edgetpu-usb}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml

from coralline.errors import UserError, read_text
from hardware_lab.boards import Board, board_kinds

SCHEMA = "coralline.inventory/v1"


@dataclass(frozen=True)
class Inventory:
    """The boards by name, in the file's order."""

    boards: Mapping[str, Board]

    def board(self, name: str) -> Board:
        """A board by name.

        Raises:
            UserError: The lab has no such board.
        """
        if name not in self.boards:
            raise UserError(f"board {name!r} is not known; choose {', '.join(self.boards)}")
        return self.boards[name]


def load_inventory(path: Path | None = None) -> Inventory:
    """Read an inventory file; without a path, the one in the package.

    Raises:
        UserError: Names the file and the line.
    """
    if path is None:
        shipped = resources.files("hardware_lab") / "data" / "inventory.yaml"
        return _Reader("inventory.yaml").read(shipped.read_text(encoding="utf-8"))
    return _Reader(str(path)).read(read_text(path, "an inventory file (.yaml)"))


class _Reader:
    """Reads the nodes of a YAML file, which know their lines, and not only its values."""

    def __init__(self, where: str) -> None:
        self._where = where

    def read(self, text: str) -> Inventory:
        try:
            root = yaml.compose(text, yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UserError(f"{self._where}:{line}: is not YAML ({error.problem})") from None
        except yaml.YAMLError as error:
            raise UserError(f"{self._where}: is not YAML ({error})") from None
        if root is None:
            raise UserError(f"{self._where}: is empty; begin with `schema: {SCHEMA}`")
        top = self._mapping(root, "the inventory")
        schema = top.pop("schema", None)
        if schema is None or schema.value != SCHEMA:
            self._fail(schema or root, f"`schema` must be {SCHEMA}")
        boards = top.pop("boards", None)
        if boards is None:
            self._fail(root, "`boards` is missing")
        for name, node in top.items():
            self._fail(node, f"{name!r} is not known; an inventory has `schema` and `boards`")
        found = {
            name: self._board(name, node)
            for name, node in self._mapping(boards, "`boards`").items()
        }
        if not found:
            self._fail(boards, "`boards` is empty; name at least one board")
        return Inventory(found)

    def _board(self, name: str, node: yaml.Node) -> Board:
        options = self._mapping(node, f"board {name!r}")
        kinds = board_kinds()
        kind = options.pop("kind", None)
        if kind is None:
            self._fail(node, f"board {name!r} has no `kind`; choose {', '.join(kinds)}")
        if kind.value not in kinds:
            self._fail(
                kind,
                f"board {name!r} is of kind {kind.value!r}, which this version has no driver "
                f"for; choose {', '.join(kinds)}",
            )
        made_by = cast(Any, kinds[kind.value])
        known = {field.name: field for field in fields(made_by) if field.name != "name"}
        values = {}
        for key, value in options.items():
            if key not in known:
                self._fail(
                    value, f"board {name!r}: option {key!r} is not known; choose {', '.join(known)}"
                )
            values[key] = self._value(f"board {name!r}: {key}", value, str(known[key].type))
        for key, field in known.items():
            if key not in values and field.default is MISSING:
                self._fail(node, f"board {name!r} lacks {key!r}")
        try:
            board: Board = made_by(name=name, **values)
        except UserError as error:
            self._fail(node, f"board {name!r}: {error}")
        return board

    def _value(self, what: str, node: yaml.Node, wanted: str) -> Any:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
        if wanted == "float" and type(value) is int:
            return float(value)
        if type(value).__name__ != wanted:
            noun = {"int": "a whole number", "float": "a number", "str": "text"}[wanted]
            self._fail(node, f"{what} is {value!r}; it must be {noun}")
        return value

    def _mapping(self, node: yaml.Node, what: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, f"{what} must be a mapping of names to values")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.value in found:
                self._fail(key, f"{key.value!r} is given twice")
            found[key.value] = value
        return found

    def _fail(self, node: yaml.Node, message: str) -> NoReturn:
        raise UserError(f"{self._where}:{node.start_mark.line + 1}: {message}")
