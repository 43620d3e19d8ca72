"""Cron expressions as Kubeflow's scheduler reads them: six fields, seconds first.

The fields are those of github.com/robfig/cron version 1, which the scheduler uses: `*`, `?`,
numbers, names of months and days, lists, ranges and steps. Kubeflow's client sends any string;
one that does not parse then makes a schedule that never fires, and one of five fields is read
with its minutes as seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from coralline.errors import UserError

_MONTHS = dict(
    zip("jan feb mar apr may jun jul aug sep oct nov dec".split(), range(1, 13), strict=True)
)
_DAYS = dict(zip("sun mon tue wed thu fri sat".split(), range(7), strict=True))

_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("seconds", 0, 59, {}),
    ("minutes", 0, 59, {}),
    ("hours", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _DAYS),
)

_PART = re.compile(r"(?P<low>\*|\?|\w+)(?:-(?P<high>\w+))?(?:/(?P<step>\w+))?")

_HORIZON_DAYS = 366 * 8
"""29 February may be eight years away (2096 to 2104)."""


@dataclass(frozen=True)
class Cron:
    """A checked cron expression.

    Attributes:
        text: As it is sent.
        fields: Values of seconds, minutes, hours, days of month, months, days of week.
        any_day: Whether day of month and day of week are left open (`*` or `?`). Where both are
            given, a day that meets either counts.
    """

    text: str
    fields: tuple[frozenset[int], ...]
    any_day: tuple[bool, bool]

    def next_after(self, moment: datetime) -> datetime | None:
        """The first time after `moment`, or None when none lies in the next eight years."""
        seconds, minutes, hours = (sorted(field) for field in self.fields[:3])
        for offset in range(_HORIZON_DAYS):
            day = (moment + timedelta(days=offset)).replace(
                hour=0, minute=0, second=0, microsecond=0
            )
            if not self._on(day):
                continue
            for hour in hours:
                for minute in minutes:
                    for second in seconds:
                        found = day.replace(hour=hour, minute=minute, second=second)
                        if found > moment:
                            return found
        return None

    def _on(self, day: datetime) -> bool:
        of_month = day.day in self.fields[3]
        of_week = day.isoweekday() % 7 in self.fields[5]
        met = of_month and of_week if any(self.any_day) else of_month or of_week
        return day.month in self.fields[4] and met


def parse_cron(text: str) -> Cron:
    """Check an expression.

    Raises:
        UserError: It names the field, what is wrong with it, and what may stand there.
    """
    words = text.split()
    if len(words) != len(_FIELDS):
        names = ", ".join(name for name, *_ in _FIELDS)
        hint = f'; for {text!r} with seconds write "0 {text}"' if len(words) == 5 else ""
        raise UserError(f"--cron {text!r}: has {len(words)} fields, not six: {names}{hint}")
    cron = Cron(
        " ".join(words),
        tuple(_values(text, word, *field) for word, field in zip(words, _FIELDS, strict=True)),
        (_open(words[3]), _open(words[5])),
    )
    if cron.next_after(datetime(2026, 1, 1)) is None:
        raise UserError(f"--cron {text!r}: never comes: no month there has such a day of month")
    return cron


def _open(word: str) -> bool:
    return any(part[0] in "*?" for part in word.split(","))


def _values(
    text: str, word: str, name: str, lowest: int, highest: int, names: dict[str, int]
) -> frozenset[int]:
    def fail(why: str) -> UserError:
        also = f" or {next(iter(names))} to {list(names)[-1]}" if names else ""
        return UserError(
            f"--cron {text!r}: {name} {word!r}: {why}; use * or {lowest} to {highest}{also}, "
            "as N, N-M, */STEP or a list with commas"
        )

    def number(said: str) -> int:
        value = names.get(said.lower())
        if value is None:
            if not said.isascii() or not said.isdigit():
                raise fail(f"{said!r} is not a number")
            value = int(said)
        if not lowest <= value <= highest:
            raise fail(f"{said} is out of range")
        return value

    values: set[int] = set()
    for part in word.split(","):
        found = _PART.fullmatch(part)
        if found is None:
            raise fail(f"cannot be read at {part!r}")
        low, high, step = found["low"], found["high"], found["step"]
        if low in "*?":
            if high:
                raise fail(f"{low} cannot start a range")
            first, last = lowest, highest
        else:
            first = number(low)
            # N/STEP means from N on, as in robfig/cron.
            last = number(high) if high else highest if step else first
        if last < first:
            raise fail(f"{low} comes after {high}")
        if step and not (step.isascii() and step.isdigit() and int(step) > 0):
            raise fail(f"the step {step!r} is not a positive number")
        values.update(range(first, last + 1, int(step or 1)))
    return frozenset(values)
