"""`coralline.inventory/v1`: the boards of a lab and their meters, as a YAML file.

schema: coralline.inventory/v1
meters:
  hub: {kind: ina226, at: usb-vbus, bus: 1, shunt_ohm: 0.01, accuracy_percent: 1.2}
boards:
  host: {kind: host, threads_per_stage: 1}
  chain:
    kind: coral-local
    devices: "usb:0, usb:1"
    tags: {edgetpu: 2, usb3: 1}
    meter: hub
    power: {kind: uhubctl, location: 1-1, port: 2}
    cooldown: {pause_s: 120, ambient_celsius: 23}

Tags say what a board has, and how many of it; a job may ask for them in place of a board. `power`
switches it when it no longer answers: `hardware_lab.power`. `cooldown` says how cool it must be
before a job: `hardware_lab.cooldown`, which has what holds where nothing is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import yaml

from coralline.errors import UserError, read_text
from hardware_lab.boards import Board, board_kinds
from hardware_lab.cooldown import DEFAULTS, Cooldown
from hardware_lab.meters import Meter, meter_kinds
from hardware_lab.power import PowerSwitch, switch_kinds

SCHEMA = "coralline.inventory/v1"
TAG = re.compile(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?")
BESIDE = ("tags", "power", "cooldown")
"""What a board's entry may have beside the options of its kind."""

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
    """A lab.

    Attributes:
        boards: By name, in the file's order.
        tags: Of each board.
        meters: By name.
        power: The switches of the boards that have one.
        cooldown: Of the boards that get warm.
    """

    boards: Mapping[str, Board]
    tags: Mapping[str, Tags]
    meters: Mapping[str, Meter] = field(default_factory=dict)
    power: Mapping[str, PowerSwitch] = field(default_factory=dict)
    cooldown: Mapping[str, Cooldown] = field(default_factory=dict)

    def board(self, name: str) -> Board:
        """A board by name.

        Raises:
            UserError: The lab has no such board.
        """
        if name not in self.boards:
            raise UserError(f"board {name!r} is not known; choose {', '.join(self.boards)}")
        return self.boards[name]

    def meter(self, name: str) -> Meter:
        """A meter by name.

        Raises:
            UserError: The lab has no such meter.
        """
        if name not in self.meters:
            known = ", ".join(self.meters) or "none is in the inventory, under `meters`"
            raise UserError(f"meter {name!r} is not known; choose {known}")
        return self.meters[name]

    def meeting(self, demand: Demand) -> list[str]:
        """The names of the boards that may do what is demanded."""
        return meeting(self.tags, demand)

    def check(self, demand: Demand) -> None:
        """See that a board could do what is demanded.

        Raises:
            UserError: None could.
        """
        check_demand(self.tags, demand)


def meeting(boards: Mapping[str, Tags], demand: Demand) -> list[str]:
    """The names of the boards, of which the tags are given, that may do what is demanded."""
    return [
        name
        for name, tags in boards.items()
        if demand.board in (None, name)
        and all(tags.get(tag, 0) >= count for tag, count in demand.needs.items())
    ]


def check_demand(boards: Mapping[str, Tags], demand: Demand) -> None:
    """See that one of the boards, of which the tags are given, could do what is demanded.

    Raises:
        UserError: None could.
    """
    if meeting(boards, demand):
        return
    if demand.board is not None and demand.board not in boards:
        known = f"choose {', '.join(boards)}" if boards else "there is none at all"
        raise UserError(f"board {demand.board!r} is not known; {known}")
    most: dict[str, int] = {}
    for tags in boards.values():
        for tag, count in tags.items():
            most[tag] = max(most.get(tag, 0), count)
    has = ", ".join(f"{tag} (up to {count})" for tag, count in sorted(most.items()))
    raise UserError(f"no board is {demand}; the tags that boards have: {has or 'none'}")


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
        self._meters: dict[str, Meter] = {}
        self._on: dict[str, Board] = {}  # by the name of its meter

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
        meters = top.pop("meters", None)
        for name, node in top.items():
            self._fail(
                node, f"{name!r} is not known; an inventory has `schema`, `meters` and `boards`"
            )
        for name, node in ({} if meters is None else self._mapping(meters, "`meters`")).items():
            options = self._mapping(node, f"meter {name!r}")
            made_by = self._kind(f"meter {name!r}", node, options, meter_kinds())
            self._meters[name] = self._made(f"meter {name!r}", node, options, made_by, name=name)
        found = {}
        tags: dict[str, Tags] = {}
        power: dict[str, PowerSwitch] = {}
        cooldown: dict[str, Cooldown] = {}
        for name, node in self._mapping(boards, "`boards`").items():
            options = self._mapping(node, f"board {name!r}")
            tags[name] = self._tags(name, options.pop("tags", None))
            switch, cooling = (options.pop(key, None) for key in ("power", "cooldown"))
            if switch is not None:
                power[name] = self._power(f"board {name!r}: power", switch)
            made_by = self._kind(f"board {name!r}", node, options, board_kinds())
            board: Board = self._made(f"board {name!r}", node, options, made_by, BESIDE, name=name)
            found[name] = board
            if cooling is not None:
                cooldown[name] = self._cooldown(f"board {name!r}: cooldown", board.kind, cooling)
            elif board.kind in DEFAULTS:
                cooldown[name] = DEFAULTS[board.kind]
        if not found:
            self._fail(boards, "`boards` is empty; name at least one board")
        return Inventory(found, tags, self._meters, power, cooldown)

    def _power(self, what: str, node: yaml.Node) -> PowerSwitch:
        options = self._mapping(node, what)
        made_by = self._kind(what, node, options, switch_kinds())
        made: PowerSwitch = self._made(what, node, options, made_by)
        return made

    def _cooldown(self, what: str, kind: str, node: yaml.Node) -> Cooldown:
        """What is not given is as it is for other boards of this kind."""
        if kind not in DEFAULTS:
            self._fail(node, f"{what} is of no use: a board of kind {kind!r} does not get warm")
        options = self._mapping(node, what)
        usual = partial(replace, DEFAULTS[kind])
        made: Cooldown = self._made(what, node, options, Cooldown, make=usual)
        return made

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

    def _kind(
        self,
        what: str,
        node: yaml.Node,
        options: dict[str, yaml.Node],
        kinds: Mapping[str, type[Any]],
    ) -> type[Any]:
        kind = options.pop("kind", None)
        if kind is None:
            self._fail(node, f"{what} has no `kind`; choose {', '.join(kinds)}")
        if kind.value not in kinds:
            self._fail(
                kind,
                f"{what} is of kind {kind.value!r}, which this version has no driver "
                f"for; choose {', '.join(kinds)}",
            )
        return kinds[kind.value]

    def _made(
        self,
        what: str,
        node: yaml.Node,
        options: dict[str, yaml.Node],
        made_by: type[Any],
        others: Sequence[str] = (),
        make: Callable[..., Any] | None = None,
        **given: Any,
    ) -> Any:
        """The dataclass that the options make, together with what is given.

        Args:
            others: Options that may be there too, for messages.
            make: Makes it; None for the dataclass itself.
        """
        known = {field.name: field for field in fields(made_by) if field.name not in given}
        values = {}
        for key, value in options.items():
            if key not in known:
                choices = ", ".join((*known, *others))
                self._fail(value, f"{what}: option {key!r} is not known; choose {choices}")
            values[key] = self._value(f"{what}: {key}", value, str(known[key].type))
        for key, option in known.items():
            if key not in values and option.default is MISSING:
                self._fail(node, f"{what} lacks {key!r}")
        try:
            made = (make or made_by)(**given, **values)
        except UserError as error:
            self._fail(node, f"{what}: {error}")
        meter = values.get("meter")
        if meter is not None:
            other = self._on.setdefault(meter.name, made)
            if other.resource != made.resource:
                self._fail(
                    options["meter"],
                    f"{what}: meter {meter.name!r} is on board {other.name!r} already, and would "
                    "see both",
                )
        return made

    def _value(self, what: str, node: yaml.Node, wanted: str) -> Any:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
        wanted = wanted.removesuffix(" | None")
        if wanted == "Meter":
            if not isinstance(value, str) or value not in self._meters:
                known = ", ".join(self._meters) or "none is under `meters`"
                self._fail(node, f"{what} is {value!r}; choose {known}")
            return self._meters[value]
        if wanted == "float" and type(value) is int:
            return float(value)
        if type(value).__name__ != wanted:
            noun = {
                "bool": "true or false",
                "float": "a number",
                "int": "a whole number",
                "str": "text",
            }[wanted]
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
