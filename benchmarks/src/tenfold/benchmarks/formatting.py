"""How numbers, durations and dates are written on the pages."""

from __future__ import annotations

import math
from datetime import datetime

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, *, signed: bool = False, digits: int = 4) -> str:
    """``digits`` significant digits, a true minus sign, powers of ten only where zeros would pile up."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -5 < magnitude < 9:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{_strip(mantissa)} {TIMES} 10{str(int(exponent)).translate(SUPERSCRIPT)}"
    else:
        text = _strip(f"{value:,.{max(0, digits - 1 - magnitude)}f}")
    return _sign(text, signed)


def spread(mean: float, std: float | None, *, unit: str = "") -> str:
    """``mean ± std``, two significant digits of the standard deviation; the mean alone for one seed."""
    suffix = f" {unit}" if unit and unit != "%" else unit
    if std is None or not math.isfinite(std):
        return number(mean) + suffix
    if std == 0:
        return f"{number(mean)} ± 0{suffix}"
    decimals = 1 - math.floor(math.log10(std))
    if decimals > 6 or abs(mean) >= 1e9:
        return f"{number(mean)} ± {number(std, digits=2)}{suffix}"
    decimals = max(0, decimals)
    return f"{_sign(f'{mean:,.{decimals}f}')} ± {std:,.{decimals}f}{suffix}"


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: int | None) -> str:
    """Bytes in binary units."""
    if size is None:
        return "–"
    scaled, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while scaled >= 1024 and len(units) > 1:
        scaled /= 1024
        units.pop(0)
    return f"{scaled:.0f} {units[0]}" if scaled >= 100 or units[0] == "B" else f"{scaled:.1f} {units[0]}"


def date(moment: datetime) -> str:
    """``23 Nov 2025``, the same in every locale."""
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}"


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _strip(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _sign(text: str, signed: bool = False) -> str:
    if text.startswith("-"):
        return MINUS + text[1:]
    return f"+{text}" if signed else text
