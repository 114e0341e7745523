"""Sizes, times, counts and shares as short text for people."""

import math
from collections.abc import Sequence

DASH = "\u2013"
"""An en dash, shown where nothing was measured."""
MOST = 1e15
"""Numbers from here on, of a faulty or lying client, are written with an exponent."""


def count_text(value: float | None) -> str:
    """Return a whole number with its thousands separated.

    >>> count_text(12345.4)
    '12,345'
    """
    if value is None:
        return DASH
    return f"{round(value):,}" if abs(value) < MOST else f"{value:.3g}"


def number_text(value: float | None, digits: int = 3) -> str:
    """Return a number with a fixed count of decimals."""
    if value is None:
        return DASH
    return f"{value:.{digits}f}" if abs(value) < MOST else f"{value:.3g}"


def percent_text(value: float | None, signed: bool = False) -> str:
    """Return a share of 1 in percent; a signed one is a difference, in points.

    >>> percent_text(0.1234), percent_text(-0.02, signed=True)
    ('12.3%', '-2.0')
    """
    if value is None or math.isnan(value):
        return DASH
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}%"


def bytes_text(value: float | None) -> str:
    """Return a size in decimal units: 1 kB is 1,000 bytes.

    >>> bytes_text(3_152_000)
    '3.2 MB'
    """
    return _scaled(value, ["B", "kB", "MB", "GB", "TB"])


def flops_text(value: float | None) -> str:
    """Return floating-point operations; a multiplication and an addition count as two."""
    return _scaled(value, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"])


def seconds_text(value: float | None) -> str:
    """Return a length of time in its two largest units.

    >>> seconds_text(3725)
    '1 h 02 min'
    """
    if value is None:
        return DASH
    if value < 60 or not value < MOST:
        return f"{value:.1f} s" if abs(value) < MOST else f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names in a row; of many, the first ones and the number of the others.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def shortened(name: str, most: int) -> str:
    """Return a name without its middle, if it has more characters than that.

    >>> shortened("the-northern-branch", 11)
    'the-n…ranch'
    """
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"


def time_unit(longest: float) -> tuple[float, str]:
    """Return the unit for an axis of times up to `longest` seconds: its seconds and its name."""
    units = ((10_800.0, 3600.0, "hours"), (180.0, 60.0, "minutes"))
    return next(((s, name) for least, s, name in units if longest >= least), (1.0, "seconds"))


def _scaled(value: float | None, units: list[str]) -> str:
    if value is None:
        return DASH
    if not abs(value) < MOST**2:
        return f"{value:.3g} {units[0]}"
    power = min(int(math.log10(abs(value)) // 3), len(units) - 1) if abs(value) >= 1 else 0
    scaled = value / 1000**power
    return f"{scaled:.{0 if power == 0 or scaled >= 100 else 1}f} {units[power]}"
