"""`coralline.inventory/v1`: the boards of a lab, as a YAML file.

schema: coralline.inventory/v1
boards:
  host: {kind: host, threads_per_stage: 1}
  chain: {kind: coral-local, devices: "usb:0, usb:1", tags: {edgetpu: 2, usb3: 1}}

Tags say what a board has, and how many of it; a job may ask for them in place of a board.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml

from coralline.errors import UserError, read_text
from hardware_lab.boards import Board, board_kinds

SCHEMA = "coralline.inventory/v1"
TAG = re.compile(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?")

Tags = Mapping[str, int]
"""What a board has, or a job needs: a count, at least 1, by name."""


@dataclass(frozen=True)
class Demand:
    """Which boards may make a measurement.

    Attributes:
        board: This one alone; None for any.
        needs: It has at least as many of each.
    """

    board: str | None = None
    needs: Tags = field(default_factory=dict)

    def to_text(self) -> str:
        """The same text for the same demand."""
        return json.dumps({"board": self.board, "needs": self.needs}, sort_keys=True)

    @classmethod
    def of_text(cls, text: str) -> Demand:
        """The demand that `to_text` wrote."""
        return cls(**json.loads(text))

    def __str__(self) -> str:
        needs = ", ".join(f"{tag} {count}" for tag, count in sorted(self.needs.items()))
        if self.board is None:
            return f"any with {needs}" if needs else "any"
        return f"{self.board} with {needs}" if needs else self.board


def parse_needs(texts: Sequence[str]) -> dict[str, int]:
    """Tags and counts from `usb3` or `edgetpu=4`.

    Raises:
        UserError: A text is neither.
    """
    needs = {}
    for text in texts:
        tag, equals, count = text.partition("=")
        if not TAG.fullmatch(tag) or (equals and not re.fullmatch("[1-9][0-9]{0,8}", count)):
            raise UserError(f"need {text!r} is not a tag, as in usb3, or a count, as in edgetpu=4")
        needs[tag] = int(count or 1)
    return needs


@dataclass(frozen=True)
class Inventory:
    """The boards, and their tags, by name in the file's order."""

    boards: Mapping[str, Board]
    tags: Mapping[str, Tags]

    def board(self, name: str) -> Board:
        """A board by name.

        Raises:
            UserError: The lab has no such board.
        """
        if name not in self.boards:
            raise UserError(f"board {name!r} is not known; choose {', '.join(self.boards)}")
        return self.boards[name]

    def meeting(self, demand: Demand) -> list[str]:
        """The names of the boards that may do what is demanded."""
        return [
            name
            for name, tags in self.tags.items()
            if demand.board in (None, name)
            and all(tags.get(tag, 0) >= count for tag, count in demand.needs.items())
        ]

    def check(self, demand: Demand) -> None:
        """See that a board could do what is demanded.

        Raises:
            UserError: None could.
        """
        if self.meeting(demand):
            return
        if demand.board is not None:
            self.board(demand.board)
        most: dict[str, int] = {}
        for tags in self.tags.values():
            for tag, count in tags.items():
                most[tag] = max(most.get(tag, 0), count)
        has = ", ".join(f"{tag} (up to {count})" for tag, count in sorted(most.items()))
        raise UserError(f"no board is {demand}; the tags in the inventory: {has or 'none'}")


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
        found = {}
        tags: dict[str, Tags] = {}
        for name, node in self._mapping(boards, "`boards`").items():
            options = self._mapping(node, f"board {name!r}")
            tags[name] = self._tags(name, options.pop("tags", None))
            found[name] = self._board(name, node, options)
        if not found:
            self._fail(boards, "`boards` is empty; name at least one board")
        return Inventory(found, tags)

    def _tags(self, name: str, node: yaml.Node | None) -> Tags:
        if node is None:
            return {}
        tags = {}
        for tag, count in self._mapping(node, f"board {name!r}: tags").items():
            if not TAG.fullmatch(tag):
                self._fail(count, f"board {name!r}: tag {tag!r} must be of a-z, 0-9, '.', '_', '-'")
            tags[tag] = self._value(f"board {name!r}: tag {tag}", count, "int")
            if tags[tag] < 1:
                self._fail(count, f"board {name!r}: tag {tag} is {tags[tag]}; it must be above 0")
        return tags

    def _board(self, name: str, node: yaml.Node, options: dict[str, yaml.Node]) -> Board:
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
                options_known = ", ".join((*known, "tags"))
                self._fail(
                    value, f"board {name!r}: option {key!r} is not known; choose {options_known}"
                )
            values[key] = self._value(f"board {name!r}: {key}", value, str(known[key].type))
        for key, option in known.items():
            if key not in values and option.default is MISSING:
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
