"""How the reports write numbers: few digits, a unit, and one sign for what is not there."""

from __future__ import annotations

import math

ABSENT = "—"


def plain(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits; powers of ten only below 1e-4 and from 1e6 on."""
    if not math.isfinite(value):
        return _odd(value)
    if value == 0:
        return "0"
    mantissa, power = f"{value:.{digits - 1}e}".split("e")  # rounded first: 0.9996 is 1.00
    exponent = int(power)
    if not -4 <= exponent < 6:
        return _minus(f"{mantissa}e{exponent}")
    return _minus(f"{value:.{max(0, digits - 1 - exponent)}f}")


def fixed(value: float, decimals: int = 2) -> str:
    """`value` with a fixed number of decimals, so that a column of errors in percent lines up."""
    return _minus(f"{value:.{decimals}f}") if math.isfinite(value) else _odd(value)


def signed(value: float, decimals: int | None = None) -> str:
    """A difference, always with its sign; three significant digits where `decimals` is None."""
    text = plain(value) if decimals is None else fixed(value, decimals)
    return f"+{text}" if value > 0 and math.isfinite(value) else text


def plus_minus(mean: float, std: float) -> str:
    """`mean ± std`, both to the decimal place of the second digit of `std`."""
    if not (math.isfinite(mean) and math.isfinite(std)) or std <= 0:
        return plain(mean)
    if abs(mean) >= 1e6 or max(abs(mean), std) < 1e-4:
        return f"{plain(mean)} ± {plain(std, 2)}"
    decimals = min(6, max(0, 1 - math.floor(math.log10(std))))
    return f"{fixed(mean, decimals)} ± {fixed(std, decimals)}"


def count(value: float) -> str:
    """A whole number with its thousands set apart: 66,954."""
    return f"{value:,.0f}" if math.isfinite(value) else _odd(value)


def magnitude(value: float) -> str:
    """A large count with an SI prefix: 1.2 M, 53 k."""
    return _scaled(value, 1000.0, ("", " k", " M", " G", " T", " P"))


def memory(value: float) -> str:
    """Bytes with a binary prefix: 1.2 MiB."""
    return _scaled(value, 1024.0, (" B", " KiB", " MiB", " GiB", " TiB"))


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: 1.2 µs, 85 ms, 12.3 s, 4 min 10 s, 2 h 5 min."""
    if not math.isfinite(seconds):
        return _odd(seconds)
    if seconds <= 0:
        return "0 s"
    for unit, scale in (("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            return f"{_brief(seconds / scale)} {unit}"
    if seconds < 119.5:
        return f"{_brief(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return _odd(value)
    step = 0
    while abs(value) >= 0.9995 * base and step < len(units) - 1:
        value, step = value / base, step + 1
    whole = step == 0 and float(value).is_integer()
    return (f"{value:.0f}" if whole else _brief(value)) + units[step]


def _brief(value: float) -> str:
    return plain(value, 2 if abs(value) < 9.95 else 3)


def _minus(text: str) -> str:
    text = text.replace("-", "−", 1) if text.startswith("-") else text
    return text.removeprefix("−") if not text.strip("−0.") else text  # no −0.00


def _odd(value: float) -> str:
    return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
