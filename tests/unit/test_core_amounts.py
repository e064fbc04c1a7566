import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.core.amounts import (
    format_bytes,
    format_duration,
    format_step,
    parse_bytes,
    parse_duration,
    parse_step,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("30s", 30), ("1h30m", 5400), ("7d", 604800), ("1w", 604800), ("250ms", 0.25), ("1.5h", 5400),
     ("90", 90), (90, 90), (0.5, 0.5), ("0", 0), (0, 0), (" 1h 30m ", 5400), ("45m", 2700)],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "1x", "-5s", -5, "1h30", True, None, "1 day", math.nan, math.inf, "nan", "1e3", [], "9" * 40]
)
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (44, "44s"), (94, "1m34s"), (180, "3m"), (17280, "4h48m"), (3600, "1h"), (3601, "1h"), (360000, "4d4h"),
     (86400, "1d"), (59.9, "59s"), (0.35, "0.35s"), (-180, "-3m"), (math.nan, "?"), (math.inf, "?")],
)
def test_durations_are_shown_in_two_units(seconds, text):
    assert format_duration(seconds) == text


@given(st.integers(0, 10**9))
def test_a_shown_duration_never_exceeds_the_real_one(seconds):
    assert parse_duration(format_duration(seconds)) <= seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GiB", 8 * 2**30), ("8G", 8 * 2**30), ("8GB", 8 * 10**9), ("1.5TiB", 3 * 2**39), ("512", 512), ("512B", 512),
     (512, 512), ("0", 0), ("500 MB", 500 * 10**6), ("1kib", 1024), ("9007199254740993", 9007199254740993)],
)
def test_bytes_are_read(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", -1, "8XB", "8 gigs", True, None, "1e9"])
def test_what_is_no_amount_of_bytes_is_refused(text):
    with pytest.raises(ValueError, match="no amount of bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (512, "512 B"), (1023, "1023 B"), (1024, "1 KiB"), (9 * 2**30, "9 GiB"), (int(13.6 * 2**30), "13.6 GiB"),
     (412 * 2**30, "412 GiB"), (2**20 - 1, "1 MiB"), (2**40, "1 TiB"), (2**70, "1024 EiB"), (-1024, "-1 KiB"),
     (int(99.96 * 1024), "100 KiB")],
)
def test_bytes_are_shown_in_iec_units(count, text):
    assert format_bytes(count) == text


@given(st.integers(0, 10**15))
def test_shown_bytes_are_within_a_tenth_of_the_unit(count):
    assert abs(parse_bytes(format_bytes(count)) - count) <= max(1, count * 0.051)


@pytest.mark.parametrize(
    ("step", "text"),
    [(0, "0"), (1, "1"), (385000, "385k"), (12345, "12345"), (1000, "1k"), (2_000_000, "2M"), (1_500_000, "1500k")],
)
def test_steps_are_shown_short_where_nothing_is_lost(step, text):
    assert format_step(step) == text


@given(st.integers(0, 10**17))
def test_a_shown_step_names_exactly_that_step(step):
    assert parse_step(format_step(step)) == step


@pytest.mark.parametrize("text", ["", "k", "1.5k", "-3", "3K", "٣", "385 k", "x"])
def test_what_is_no_step_is_refused(text):
    with pytest.raises(ValueError, match="no step"):
        parse_step(text)
