"""Durations, bytes and steps as people write and read them."""

import math
import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,9})?\s?(?:ms|s|m|h|d|w)\s?){1,6}", re.ASCII)
_DURATION_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s?(ms|s|m|h|d|w)", re.ASCII)
_PLAIN = re.compile(r"\d{1,15}(?:\.\d{1,9})?", re.ASCII)

_BYTES = {"": 1, "b": 1}
_BYTES |= {f"{p}b": 1000 ** (i + 1) for i, p in enumerate("kmgtpe")}
_BYTES |= {f"{p}ib": 1024 ** (i + 1) for i, p in enumerate("kmgtpe")}
_BYTES |= {p: 1024 ** (i + 1) for i, p in enumerate("kmgtpe")}  # as du, ls -h and systemd read a bare "8G"
_AMOUNT = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s?([a-z]{0,3})", re.IGNORECASE | re.ASCII)

_STEP = re.compile(r"(\d{1,18})([kM]?)", re.ASCII)
_STEP_UNITS = {"": 1, "k": 1000, "M": 1_000_000}


def parse_duration(value: str | int | float) -> float:
    """Seconds of "30s", "1h30m", "7d" or a plain number of seconds. Raises ValueError."""
    text = str(value).strip()
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number or _PLAIN.fullmatch(text):
        seconds = float(value)
    elif _DURATION.fullmatch(text):
        seconds = math.fsum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text))
    else:
        raise ValueError(f"{value!r} is no duration: write 30s, 45m, 24h, 7d or 1h30m")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{value!r} is no duration: it must be finite and not negative")
    return seconds


def format_duration(seconds: float) -> str:
    """The two largest units, rounded down: "44s", "1m34s", "3m", "4d4h"."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if 0 < seconds < 1:
        return f"{seconds:.2g}s"
    rest = int(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        parts.append((count, unit))
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = parts[first : first + 2]
    return "".join(f"{count}{unit}" for i, (count, unit) in enumerate(shown) if count or i == 0)


def parse_bytes(value: str | int) -> int:
    """Bytes of "8GiB", "8G" (both 1024³), "8GB" (1000³) or a plain number. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2].lower() not in _BYTES:
        raise ValueError(f"{value!r} is no amount of bytes: write 500MB, 8GiB or 1.5TiB")
    number, unit = match[1], _BYTES[match[2].lower()]
    return int(number) * unit if number.isdigit() else int(float(number) * unit)


def format_bytes(count: int | float) -> str:
    """IEC units with three figures or so: "512 B", "9 GiB", "13.6 GiB", "412 GiB"."""
    if count < 0:
        return f"-{format_bytes(-count)}"
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while len(units) > 1 and round(amount, 0 if amount >= 99.95 else 1) >= 1024:
        amount /= 1024
        units.pop(0)
    text = f"{amount:.0f}" if amount >= 99.95 else f"{amount:.1f}".removesuffix(".0")
    return f"{text} {units[0]}"


def format_step(step: int) -> str:
    """Short where nothing is lost: 385000 is "385k", 12345 is "12345"; `parse_step` gives back the same number."""
    for unit in ("M", "k"):
        if step and step % _STEP_UNITS[unit] == 0:
            return f"{step // _STEP_UNITS[unit]}{unit}"
    return str(step)


def parse_step(text: str) -> int:
    """The step of "385k", "2M" or "12345". Raises ValueError."""
    match = _STEP.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no step: write 12345, 385k or 2M")
    return int(match[1]) * _STEP_UNITS[match[2]]


def ordinal(n: int) -> str:
    """"2nd"."""
    teen = n % 100 in (11, 12, 13)
    return f"{n}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"
