"""Charts as inline SVG with title and description: lines over x, horizontal bars, and intervals of arms.

Colours, text and grid follow the page's style sheet, so that one drawing serves light, dark and print; series differ
in shape and dash too. Sizes are in units of a 480 wide view box, which stays readable when scaled to a phone.
"""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from weathered.audit.result import Chart, Series
from weathered.report.svg import (
    COLOURS,
    dash,
    element,
    labels,
    line,
    marker,
    share_ticks,
    shorten,
    text,
    tick_texts,
    ticks,
)
from weathered.report.text import Cell, cell, finite

WIDTH = 480.0
LABEL = 20
"""Characters of a row's label before it is cut; the whole name is in the table beside the chart."""


class Drawing(NamedTuple):
    """A chart to place: the SVG, a legend of (mark, name), and its numbers as a table."""

    title: str
    svg: Markup
    legend: tuple[tuple[Markup, str], ...]
    description: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def draw(chart: Chart) -> Drawing:
    """A chart of an audit or of the curves, with its table alternative."""
    body, height = _bars(chart) if chart.kind == "bar" else _lines(chart)
    legend = tuple((_legend_mark(chart.kind, i), s.name) for i, s in enumerate(chart.series))
    columns = ("series", chart.x_label, chart.y_label, "low", "high")
    rows = [
        tuple(cell(value) for value in (series.name, x, y, _at(series.low, i), _at(series.high, i)))
        for series in chart.series
        for i, (x, y) in enumerate(zip(series.x, series.y, strict=True))
    ]
    svg = frame(chart.title, chart.description, body, height)
    return Drawing(chart.title, svg, legend if len(legend) > 1 else (), chart.description, columns, tuple(rows))


def frame(title: str, description: str, body: Markup, height: float) -> Markup:
    """The outer SVG with its text alternative."""
    words = element("title", title) + element("desc", description)
    label = f"{title}. {description}"
    return element("svg", words + body, viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img", aria_label=label)


def _at(column: Sequence[float] | None, i: int) -> float | None:
    return column[i] if column is not None and finite(column[i]) else None


def _legend_mark(kind: str, number: int) -> Markup:
    if kind == "bar":
        body = element("rect", x=2.0, y=3.0, width=20.0, height=10.0, class_=f"bar s{number % COLOURS}")
    else:
        body = element(
            "line", x1=0.0, y1=8.0, x2=24.0, y2=8.0, class_=f"line s{number % COLOURS}", stroke_dasharray=dash(number)
        ) + marker(12, 8, number)
    return element("svg", body, viewBox="0 0 24 16", class_="key", aria_hidden="true")


def _numbers(series: Sequence[Series]) -> list[float]:
    columns = [column for s in series for column in (s.y, s.low, s.high) if column is not None]
    return [value for column in columns for value in column if finite(value)]


def _lines(chart: Chart) -> tuple[Markup, float]:
    height, right, top, bottom = 300.0, WIDTH - 14, 10.0, 252.0
    names = list(dict.fromkeys(x for s in chart.series for x in s.x if isinstance(x, str)))
    positions = [[float(names.index(x)) if isinstance(x, str) else float(x) for x in s.x] for s in chart.series]
    found_x = [x for row in positions for x in row] or [0.0]
    found_y = _numbers(chart.series) or [0.0]
    y_ticks = ticks(0, 1) if chart.diagonal else share_ticks(min(found_y), max(found_y), chart.y_label)
    # room for the ticks at a phone's size of type, and for the axis's name beside them
    left = 28 + 9.0 * max(len(words) for words in tick_texts(y_ticks))
    x_ticks = ticks(0, 1) if chart.diagonal else ticks(min(found_x), max(found_x), 6)
    if not chart.diagonal and all(x.is_integer() for x in found_x):
        x_ticks = [x for x in x_ticks if abs(x - round(x)) < 1e-9]
    x_low, x_high = (0.0, 1.0) if chart.diagonal else (min(found_x), max(found_x))
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (right - left)

    def py(y: float) -> float:
        return bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    parts: list[Markup] = []
    for y, words in zip(y_ticks, tick_texts(y_ticks), strict=True):
        parts += [line(left, py(y), right, py(y), "grid"), text(left - 8, py(y) + 4.5, words, "tick", "end")]
    shown = list(enumerate(names)) if names else list(zip(x_ticks, tick_texts(x_ticks), strict=True))
    for x, words in shown:
        if x_low <= x <= x_high:
            parts.append(text(px(x), bottom + 19, shorten(words, 12), "tick", "middle"))
    parts.append(line(left, bottom, right, bottom, "axis"))
    parts.append(text((left + right) / 2, height - 6, chart.x_label, "label", "middle"))
    parts.append(
        element(
            "text",
            chart.y_label,
            class_="label",
            text_anchor="middle",
            transform=f"translate(13 {(top + bottom) / 2:.0f}) rotate(-90)",
        )
    )
    if chart.diagonal:
        parts.append(line(px(0), py(0), px(1), py(1), "reference"))
    for number, (series, xs) in enumerate(zip(chart.series, positions, strict=True)):
        parts += _one_line(series, [px(x) for x in xs], py, number, whiskers=chart.diagonal)
    return Markup("").join(parts), height


def _one_line(series: Series, xs: list[float], py, number: int, whiskers: bool) -> list[Markup]:
    colour, parts = f"s{number % COLOURS}", []
    known = [i for i in range(len(xs)) if _at(series.low, i) is not None and _at(series.high, i) is not None]
    if whiskers:
        parts += [
            line(xs[i], py(_at(series.low, i)), xs[i], py(_at(series.high, i)), f"whisker {colour}") for i in known
        ]
    elif len(known) > 1:
        edge = [(xs[i], py(_at(series.high, i))) for i in known] + [
            (xs[i], py(_at(series.low, i))) for i in known[::-1]
        ]
        parts.append(element("polygon", points=_points(edge), class_=f"band {colour}"))
    path = [(x, py(y)) for x, y in zip(xs, series.y, strict=True) if finite(y)]
    if len(path) > 1:
        parts.append(element("polyline", points=_points(path), class_=f"line {colour}", stroke_dasharray=dash(number)))
    every = max(1, len(path) // 12)
    parts += [marker(x, y, number, 3.6) for i, (x, y) in enumerate(path) if i % every == 0 or i == len(path) - 1]
    return parts


def _points(path: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in path)


def _bars(chart: Chart) -> tuple[Markup, float]:
    names = list(dict.fromkeys(str(x) for s in chart.series for x in s.x))
    count, bar = len(chart.series), 18.0 if len(chart.series) == 1 else 11.0
    gap = 7.0 if count == 1 else 12.0
    left, right, top = _label_width(names), WIDTH - 16, 6.0
    bottom = top + len(names) * (count * bar + gap)
    x_ticks = ticks(min(0.0, *_numbers(chart.series), 0.0), max(0.0, *_numbers(chart.series), 0.0))

    def px(value: float) -> float:
        return left + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left)

    parts = _vertical_grid(x_ticks, px, top, bottom)
    for row, name in enumerate(labels(names, LABEL)):
        middle = top + row * (count * bar + gap) + gap / 2 + count * bar / 2
        parts.append(text(left - 8, middle + 4.5, name, "tick", "end"))
    for number, series in enumerate(chart.series):
        for i, (name, y) in enumerate(zip(series.x, series.y, strict=True)):
            if not finite(y):
                continue
            upper = top + names.index(str(name)) * (count * bar + gap) + gap / 2 + number * bar
            start, end = sorted((px(0), px(y)))
            parts.append(
                element(
                    "rect",
                    x=start,
                    y=upper + 1,
                    width=max(end - start, 1.0),
                    height=bar - 2,
                    class_=f"bar s{number % COLOURS}",
                )
            )
            low, high = _at(series.low, i), _at(series.high, i)
            if low is not None and high is not None:
                parts.append(line(px(low), upper + bar / 2, px(high), upper + bar / 2, "error"))
    parts.append(text((left + right) / 2, bottom + 40, chart.y_label, "label", "middle"))
    return Markup("").join(parts), bottom + 48


def _label_width(names: Sequence[str]) -> float:
    return 14 + 9.4 * min(LABEL, max((len(name) for name in names), default=1))


def _vertical_grid(x_ticks: list[float], px, top: float, bottom: float) -> list[Markup]:
    parts: list[Markup] = []
    for value, words in zip(x_ticks, tick_texts(x_ticks), strict=True):
        parts += [
            line(px(value), top, px(value), bottom, "grid"),
            text(px(value), bottom + 19, words, "tick", "middle"),
        ]
    return parts


class Interval(NamedTuple):
    """One row of an interval chart: a name, its mean, its interval where known, and the value of each seed."""

    name: str
    value: float
    low: float
    high: float
    dots: tuple[float, ...]


def draw_intervals(
    title: str, description: str, x_label: str, rows: Sequence[Interval], reference: str | None = None
) -> Markup:
    """Means with intervals and one dot per seed, a row per arm; `reference` names the arm whose mean is a line."""
    step, top = 40.0, 8.0
    left, right = _label_width([row.name for row in rows]), WIDTH - 16
    bottom = top + step * len(rows)
    seen = [v for row in rows for v in (row.value, row.low, row.high, *row.dots) if finite(v)]
    x_ticks = share_ticks(min(seen), max(seen), x_label)
    names = labels([row.name for row in rows], LABEL)

    def px(value: float) -> float:
        return left + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left)

    parts = _vertical_grid(x_ticks, px, top, bottom)
    parts += [line(px(row.value), top, px(row.value), bottom, "reference") for row in rows if row.name == reference]
    for number, row in enumerate(rows):
        middle = top + step * (number + 0.5)
        colour = "s6" if row.name == reference else "s0"
        parts.append(text(left - 8, middle + 4.5, names[number], "tick strong", "end"))
        if finite(row.low) and finite(row.high):
            parts.append(line(px(row.low), middle, px(row.high), middle, f"interval {colour}"))
        parts += [element("circle", cx=px(v), cy=middle + 12, r=2.6, class_=f"dot {colour}") for v in row.dots]
        parts.append(element("circle", cx=px(row.value), cy=middle, r=5.5, class_=f"mark {colour}"))
    parts.append(text((left + right) / 2, bottom + 40, x_label, "label", "middle"))
    return frame(title, description, Markup("").join(parts), bottom + 48)
