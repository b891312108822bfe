"""Lengths of time are read as they are written by hand, and written in two units at most."""

from __future__ import annotations

import pytest

from gencls_core.durations import duration, seconds_of


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (-5, "0 ms"),
        (0.02, "20 ms"),
        (9.96, "10.0 s"),
        (61.4, "1 min 1 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (2 * 86400 + 5 * 3600 + 59, "2 d 5 h"),
    ],
)
def test_written(seconds, written):
    assert duration(seconds) == written


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5", 0.5), ("1.5h", 5400)]
)
def test_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "ten minutes", "5 m", "1d", "-3s", "3s!"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(ValueError, match="90s, 10m, 1h30m"):
        seconds_of(text)
