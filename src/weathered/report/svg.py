"""Pieces of charts: escaped SVG elements, axes with round ticks, marks that differ in shape as well as colour."""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

COLOURS = 7
"""Series colours in the style sheet; further series repeat them with another shape and dash."""

DASHES = ("none", "7 3", "2 3", "9 3 2 3")


def element(name: str, content: str = "", **attributes: str | float) -> Markup:
    """An SVG element; attribute values are escaped, text content must be escaped by the caller or be Markup.

    Underscores in attribute names become hyphens, and `class_` becomes class.
    """
    listed = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{listed}>{escape(content)}</{name}>")


def _short(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def text(x: float, y: float, words: str, class_: str, anchor: str = "start") -> Markup:
    return element("text", words, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def shorten(words: str, most: int) -> str:
    """A label that fits, cut with an ellipsis."""
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def labels(names: Sequence[str], most: int) -> list[str]:
    """Labels that fit; where cutting the end leaves two alike, the beginnings of those are cut instead."""
    cut = [shorten(name, most) for name in names]
    return [
        label if cut.count(label) == 1 or len(name) <= most else "…" + name[1 - most :].lstrip()
        for name, label in zip(names, cut, strict=True)
    ]


def share_ticks(low: float, high: float, label: str) -> list[float]:
    """As `ticks`, but without those outside 0 to 100 where the label says that values inside are per cent."""
    found = ticks(low, high)
    inside = label.endswith("in %") and low >= 0 and high <= 100
    return [value for value in found if 0 <= value <= 100] if inside else found


def marker(x: float, y: float, number: int, size: float = 4.0) -> Markup:
    """Circle, square, triangle or diamond in the colour of series `number`."""
    class_, shape = f"mark s{number % COLOURS}", number % 4
    if shape == 0:
        return element("circle", cx=float(x), cy=float(y), r=size, class_=class_)
    corners = {
        1: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2: [(0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
        3: [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
    }[shape]
    points = " ".join(f"{x + size * dx:.2f},{y + size * dy:.2f}" for dx, dy in corners)
    return element("polygon", points=points, class_=class_)


def dash(number: int) -> str:
    """The dash pattern of series `number`."""
    return DASHES[number % len(DASHES)]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About `about` round steps (1, 2 or 5 times a power of 10) from at most `low` to at least `high`."""
    if high <= low:
        spread = abs(low) or 1.0
        low, high = low - spread / 2, high + spread / 2
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Tick labels with as many decimals as their step needs."""
    step = abs(values[1] - values[0]) if len(values) > 1 else 1.0
    decimals = max(0, min(6, -math.floor(math.log10(step) + 1e-9)))
    return [f"{value + 0.0:.{decimals}f}".replace("-", "−") for value in values]
