"""The format of numbers in reports: few digits, a unit, and one sign for an unknown value."""

from __future__ import annotations

import math

ABSENT = "—"


def format_number(
    value: float | None, digits: int = 3, *, decimals: int | None = None, signed: bool = False
) -> str:
    """Formats a number. All other functions of this module and all tables use it.

    Args:
      value: the number. None gives a dash; a number that is not finite gives "NaN", "∞" or "−∞".
      digits: the number of significant digits. Below 1e-4 and from 1e6 on it writes powers of ten.
      decimals: the number of digits after the decimal point instead of `digits`; None: use
        `digits`.
      signed: whether a positive number has a sign.

    Returns:
      The text.

    Example:
      >>> format_number(0.012345), format_number(2.0, decimals=2, signed=True)
      ('0.0123', '+2.00')
    """
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if decimals is not None:
        text = f"{value:.{decimals}f}"
    elif value == 0:
        text = "0"
    else:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")  # round first: 0.9996 becomes 1.00
        exponent = int(power)
        fixed = f"{value:.{max(0, digits - 1 - exponent)}f}"
        text = fixed if -4 <= exponent < 6 else f"{mantissa}e{exponent}"
    if text.startswith("-"):
        text = f"−{text[1:]}" if text.strip("-0.") else text[1:]  # no −0.00
    return f"+{text}" if signed and value > 0 else text


def plus_minus(mean: float, std: float) -> str:
    """Formats `mean ± std`, both to the decimal place of the second digit of `std`.

    Args:
      mean: the mean.
      std: the standard deviation. If it is 0 or not finite, only the mean is written.

    Returns:
      The text.
    """
    if not (math.isfinite(mean) and math.isfinite(std)) or std <= 0:
        return format_number(mean)
    if abs(mean) >= 1e6 or max(abs(mean), std) < 1e-4:
        return f"{format_number(mean)} ± {format_number(std, 2)}"
    decimals = min(6, max(0, 1 - math.floor(math.log10(std))))
    return f"{format_number(mean, decimals=decimals)} ± {format_number(std, decimals=decimals)}"


def cosine(value: float) -> str:
    """Formats a cosine with five decimals, because 0.99998 is not 1.

    Args:
      value: the cosine.

    Returns:
      The text.
    """
    return format_number(value, decimals=5)


def percent(value: float) -> str:
    """Formats a share in percent, without the sign. Only exact 0 and 1 become "0" and "100".

    Args:
      value: the share, 0 to 1.

    Returns:
      The text.
    """
    if not math.isfinite(value) or value in (0.0, 1.0):
        return format_number(100 * value, decimals=0)
    if value > 0.999:
        return ">99.9"
    return "<0.1" if value < 0.001 else format_number(100 * value, decimals=1)


def share(value: float | None) -> str:
    """Formats a share with its unit, such as "99.6 %".

    Args:
      value: the share, 0 to 1; None gives a dash.

    Returns:
      The text.
    """
    return f"{percent(value)} %" if value is not None and math.isfinite(value) else ABSENT


def setting(value: float) -> str:
    """Formats a number that a user chose, such as β, as short as possible: "0.2", "1e-5".

    Args:
      value: the number.

    Returns:
      The text.
    """
    if not math.isfinite(value):
        return format_number(value)
    text = f"{value:.5g}"
    if "e" in text:
        mantissa, power = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g}e{int(power)}"
    return f"−{text[1:]}" if text.startswith("-") else text


def count(value: float) -> str:
    """Formats a whole number with separators of thousands: 66,954.

    Args:
      value: the number.

    Returns:
      The text.
    """
    return f"{value:,.0f}" if math.isfinite(value) else format_number(value)


def magnitude(value: float) -> str:
    """Formats a large count with an SI prefix: 1.2 M, 53 k.

    Args:
      value: the count.

    Returns:
      The text.
    """
    return _scaled(value, 1000.0, ("", " k", " M", " G", " T", " P"))


def memory(value: float) -> str:
    """Formats bytes with a binary prefix: 1.2 MiB.

    Args:
      value: the number of bytes.

    Returns:
      The text.
    """
    return _scaled(value, 1024.0, (" B", " KiB", " MiB", " GiB", " TiB"))


def duration(seconds: float) -> str:
    """Formats a time in a suitable unit: 1.2 µs, 85 ms, 12.3 s, 4 min 10 s, 2 h 5 min.

    Args:
      seconds: the time in seconds.

    Returns:
      The text.
    """
    if not math.isfinite(seconds):
        return format_number(seconds)
    if seconds <= 0:
        return "0 s"
    for unit, scale in (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if seconds < (119.5 if unit == "s" else 999.5 * scale):
            return f"{_brief(seconds / scale)} {unit}"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def plural(number: int, noun: str) -> str:
    """A number with its noun, such as "1 seed" or "5 seeds".

    Args:
      number: the number.
      noun: the singular of the noun.

    Returns:
      The text.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return format_number(value)
    step = 0
    while abs(value) >= 0.9995 * base and step < len(units) - 1:
        value, step = value / base, step + 1
    whole = step == 0 and float(value).is_integer()
    return (f"{value:.0f}" if whole else _brief(value)) + units[step]


def _brief(value: float) -> str:
    return format_number(value, 2 if abs(value) < 9.95 else 3)
