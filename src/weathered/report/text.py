"""Numbers as text: values, intervals, p-values, and cells of tables that know how to sort."""

import math
from typing import Any, NamedTuple

UNKNOWN = "–"


class Cell(NamedTuple):
    """Text to show, the key by which the column sorts ("" sorts last), and whether it is a number."""

    text: str
    sort: str
    numeric: bool


def finite(value: Any) -> bool:
    """Whether a value is a number that can be shown."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """A number in a table: integers with thousands marked, others with three decimals or three digits."""
    if not finite(value):
        return UNKNOWN
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.3f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def interval(low: Any, high: Any, digits: int | None = None) -> str:
    """An interval in words, or that it is not known."""
    if not (finite(low) and finite(high)):
        return "not known"
    show = number if digits is None else lambda v: f"{v:.{digits}f}".replace("-", "−")
    return f"{show(low)} to {show(high)}"


def p_value(p: float) -> str:
    """A p-value with three decimals and its sign, never 0 and never broken over two lines: 'p = 0.021', 'p < 0.001'."""
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"


def seconds(value: float) -> str:
    """A duration: 40 ms, 8.4 s, 3 min 20 s, 2 h 05 min; below a millisecond only that it is."""
    if value < 0.0005:
        return "under 1 ms"
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def cell(value: Any) -> Cell:
    """A cell of an audit's table: a number, text, or nothing."""
    if value is None or value == "":
        return Cell(UNKNOWN if value is None else "", "", False)
    if finite(value):
        return Cell(number(value), repr(value), True)
    return Cell(str(value), str(value), False)


class Unit(NamedTuple):
    """How the metric is written: its factor, decimals, and words for values and differences."""

    factor: float
    digits: int
    suffix: str
    difference: str

    @classmethod
    def of(cls, percent: bool) -> "Unit":
        return cls(100.0, 1, "\u00a0%", " points") if percent else cls(1.0, 3, "", "")

    def bare(self, value: float) -> str:
        return f"{value * self.factor:.{self.digits}f}".replace("-", "−") if finite(value) else UNKNOWN

    def value(self, value: float) -> str:
        return self.bare(value) + self.suffix if finite(value) else UNKNOWN

    def gap(self, value: float) -> str:
        """A difference without its sign, with the unit; one too small for the digits is said to be below the last."""
        last = 10.0**-self.digits
        if 0 < abs(value) * self.factor < last / 2:
            return f"less than {last:.{self.digits}f}{self.difference}"
        return self.bare(abs(value)) + self.difference

    def signed(self, value: float) -> str:
        """A difference with its sign and no unit; what rounds to 0 has no sign."""
        if not finite(value):
            return UNKNOWN
        words = f"{value * self.factor:+.{self.digits}f}".replace("-", "−")
        return words if any(digit in words for digit in "123456789") else words[1:]

    def interval(self, low: float, high: float, signed: bool = False) -> str:
        if not (finite(low) and finite(high)):
            return "not known"
        show = self.signed if signed else self.bare
        return f"{show(low)} to {show(high)}"
