"""Lengths of time: numbers, `timedelta` and text."""

import unittest
from datetime import timedelta
from fractions import Fraction

from verrou import InvalidTtl
from verrou._durations import nanoseconds

SECOND = 10**9


class DurationTest(unittest.TestCase):
    def test_lengths_are_converted_exactly(self):
        for length, seconds in (
            (None, None),
            (0, 0),
            (30, 30),
            (0.25, Fraction(1, 4)),
            (Fraction(1, 10**9), Fraction(1, 10**9)),
            (timedelta(days=200_000, microseconds=1), 200_000 * 86400 + Fraction(1, 10**6)),
            ("30s", 30),
            ("0s", 0),
            ("1m 30s", 90),
            ("1m30s", 90),
            (" 2 H ", 7200),
            ("500ms", Fraction(1, 2)),
            ("1.5h", 5400),
            (".5m", 30),
            ("7us 8ns", Fraction(7008, 10**9)),
            ("1day 1week", 8 * 86400),
        ):
            with self.subTest(length):
                expected = None if seconds is None else seconds * SECOND
                self.assertEqual(nanoseconds(length, InvalidTtl), expected)

    def test_other_values_are_refused(self):
        values = ["", "30", "s", "-5s", "5 s x", "1M", "five minutes", "1s,2s", "5s\0", "9" * 40 + "s", "1e3s", "none"]
        values += [-1, 1 << 64, float("nan"), float("-inf"), b"5s", [], {}, object(), timedelta(seconds=-1), "600000d"]
        for value in values:
            with self.subTest(value), self.assertRaises(InvalidTtl):
                nanoseconds(value, InvalidTtl)

    def test_an_ambiguous_unit_is_named(self):
        with self.assertRaisesRegex(InvalidTtl, "ambiguous: write `1m`"):
            nanoseconds("1M", InvalidTtl)
