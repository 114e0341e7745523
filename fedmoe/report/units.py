"""Numbers for people: sizes, times, counts and shares as short text; nothing measured is a dash."""

import math

DASH = "\u2013"
"""An en dash, where nothing was measured."""


def count_text(value: float | None) -> str:
    """A whole number with thousands separated."""
    return DASH if value is None else f"{round(value):,}"


def number_text(value: float | None, digits: int = 3) -> str:
    """A number with a fixed count of decimals."""
    return DASH if value is None else f"{value:.{digits}f}"


def percent_text(value: float | None, signed: bool = False) -> str:
    """A share of 1 in percent; a signed one is a difference and in points."""
    if value is None:
        return DASH
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}%"


def bytes_text(value: float | None) -> str:
    """Bytes in decimal units: 1 kB is 1,000 bytes."""
    return _scaled(value, ["B", "kB", "MB", "GB", "TB"])


def flops_text(value: float | None) -> str:
    """Floating-point operations, a multiplication and an addition counting two."""
    return _scaled(value, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"])


def seconds_text(value: float | None) -> str:
    """A length of time in its two largest units."""
    if value is None:
        return DASH
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def time_unit(longest: float) -> tuple[float, str]:
    """The seconds in the unit in which times up to `longest` are shown, and the unit's name."""
    units = ((10_800.0, 3600.0, "hours"), (180.0, 60.0, "minutes"))
    return next(((s, name) for least, s, name in units if longest >= least), (1.0, "seconds"))


def _scaled(value: float | None, units: list[str]) -> str:
    if value is None:
        return DASH
    power = min(int(math.log10(abs(value)) // 3), len(units) - 1) if abs(value) >= 1 else 0
    scaled = value / 1000**power
    return f"{scaled:.{0 if power == 0 or scaled >= 100 else 1}f} {units[power]}"
