from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coralline.errors import UserError
from pipelines.cron import parse_cron

NOW = datetime(2026, 11, 21, 4, 30, 15)  # a Saturday


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("0 0 2 * * *", datetime(2026, 11, 22, 2)),
        ("0 0 2 * * 1-5", datetime(2026, 11, 23, 2)),
        ("0 30 4 ? * sun,WED", datetime(2026, 11, 22, 4, 30)),
        ("*/20 * * * * ?", datetime(2026, 11, 21, 4, 30, 20)),
        ("0 10/20 * * * *", datetime(2026, 11, 21, 4, 50)),
        ("0 0 0 29 FEB *", datetime(2028, 2, 29)),
        # Both kinds of day: either will do.
        ("0 0 0 30 * MON", datetime(2026, 11, 23)),
        ("0 0 0 22 * MON", datetime(2026, 11, 22)),
        ("0 0 0 22,* * MON", datetime(2026, 11, 23)),
        ("0 30 4 21 11 *", datetime(2027, 11, 21, 4, 30)),
    ],
)
def test_next(text: str, after: datetime) -> None:
    assert parse_cron(text).next_after(NOW) == after


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 2 * * *", r'has 5 fields, not six: seconds, .*write "0 0 2 \* \* \*"'),
        ("bogus", "has 1 fields, not six"),
        ("@daily", "has 1 fields"),
        ("", "has 0 fields"),
        ("60 0 2 * * *", "seconds '60': 60 is out of range; use .* 0 to 59"),
        ("0 x 2 * * *", "minutes 'x': 'x' is not a number"),
        ("0 0 24 * * *", "hours '24'"),
        ("0 0 2 0 * *", "day of month '0': 0 is out of range"),
        ("0 0 2 L * *", "day of month 'L'"),
        ("0 0 2 * 13 *", "month '13'.* or jan to dec"),
        ("0 0 2 * * 7", "day of week '7'"),
        ("0 0 2 * * fri-mon", "fri comes after mon"),
        ("0 */0 2 * * *", "the step '0' is not a positive number"),
        ("0 1,,2 2 * * *", "minutes '1,,2': cannot be read at ''"),
        ("0 *-5 2 * * *", r"\* cannot start a range"),
        ("0 0 2 31 2 *", "never comes"),
        ("0 ² 2 * * *", "minutes '²'"),
    ],
)
def test_a_wrong_field_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_cron(text)


@given(st.integers(0, 59), st.integers(0, 59), st.integers(0, 23), st.datetimes(max_value=NOW))
def test_daily(second: int, minute: int, hour: int, moment: datetime) -> None:
    found = parse_cron(f"{second} {minute} {hour} * * *").next_after(moment)
    assert found is not None
    assert 0 < (found - moment).total_seconds() <= 86400
    assert (found.hour, found.minute, found.second) == (hour, minute, second)


@given(st.text(max_size=20))
def test_nothing_else_is_raised(text: str) -> None:
    try:
        parse_cron(text)
    except UserError as error:
        assert str(error).startswith("--cron ")
