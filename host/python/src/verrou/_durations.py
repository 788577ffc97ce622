"""Lengths of time: seconds as a number, a `timedelta`, or text such as `1m 30s`."""

import re
from contextlib import suppress
from datetime import timedelta
from fractions import Fraction
from numbers import Real

from .errors import LockError

Duration = float | timedelta | str
"""A number of seconds, a `timedelta`, or text with a unit, such as `30s`, `1m 30s` or `500ms`."""

NANOSECONDS = {
    **dict.fromkeys(("ns", "nsec", "nanos"), 1),
    **dict.fromkeys(("us", "usec", "µs", "micros"), 1_000),
    **dict.fromkeys(("ms", "msec", "millis"), 1_000_000),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1_000_000_000),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60_000_000_000),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3_600_000_000_000),
    **dict.fromkeys(("d", "day", "days"), 86_400_000_000_000),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), 604_800_000_000_000),
}
SPAN = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?|\.\d{1,30})\s*([A-Za-zµ]+)\s*", re.ASCII)


def nanoseconds(length: Duration | None, error: type[LockError]) -> int | None:
    """Converts and checks a length of time: wasmtime-py would cut off excess bits. `None` stays `None`."""
    if length is None:
        return None
    nanos = None
    if isinstance(length, str):
        nanos = parsed(length, error)
    elif isinstance(length, timedelta):
        nanos = length // timedelta(microseconds=1) * 1000
    elif isinstance(length, Real):
        with suppress(ValueError, OverflowError):
            nanos = round(length * 1_000_000_000)
    else:
        raise error(f"{length!r:.80} is not a length of time; write seconds, a `timedelta`, or text such as `30s`")
    if nanos is not None and 0 <= nanos < 1 << 64:
        return nanos
    raise error(f"{str(length):.80} is not a length of time; write seconds, from 0 to 18446744073")


def parsed(text: str, error: type[LockError]) -> int:
    """Returns the nanoseconds of a text such as `1m 30s`, as the command `verrou` reads it."""
    total, end = Fraction(0), 0
    while span := SPAN.match(text, end):
        number, unit = span.groups()
        if unit == "M":
            raise error(f"`{text:.80}` is ambiguous: write `{number}m` for minutes, or days for months")
        if unit.lower() not in NANOSECONDS:
            break
        total += Fraction(number) * NANOSECONDS[unit.lower()]
        end = span.end()
    if end == 0 or end < len(text):
        raise error(f"`{text:.80}` is not a length of time; write a number and its unit, such as `30s` or `1m 30s`")
    return round(total)
