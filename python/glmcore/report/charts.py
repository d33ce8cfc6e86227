"""Charts as SVG text, readable in light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 14, 40
NUM_COLOURS = 6
"""Colours of lines that the page has."""
MAX_POINTS = 600
"""Longer series are thinned by averaging neighbours."""


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    """None leaves a gap."""
    colour: int
    """Number of the page's colour."""
    low: Sequence[float] = ()
    """Lower bound at each x, for a line with a shaded range; never thinned, so for short lines."""
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Band:
    """A named stretch of the x axis."""

    label: str
    start: float
    end: float


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    bands: Sequence[Band] = (),
    *,
    zero: bool = False,
) -> str:
    """A line chart.

    Args:
        title: What it shows, for people who cannot see it.
        series: Lines; those without points are left out.
        x_label: Name and unit of the x axis.
        y_label: Name and unit of the y axis.
        bands: Stretches of the x axis to name.
        zero: Start the y axis at 0.
    """
    lines = [_thin(line) for line in series]
    xs = [x for line in lines for x, y in zip(line.x, line.y, strict=True) if y is not None]
    ys = [y for line in lines for y in (*line.y, *line.low, *line.high) if y is not None]
    if not xs:
        return f'<p class="missing">{escape(title)}: no data yet</p>'
    x_axis = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_axis = _Axis(0.0 if zero else min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    parts = [_open(title)]
    parts += [_band(band, x_axis, index) for index, band in enumerate(bands)]
    parts += _grid(x_axis, y_axis, x_label, y_label)
    parts += [_range(line, x_axis, y_axis) for line in lines if line.low]
    parts += [_polyline(line, x_axis, y_axis) for line in lines if line.x]
    parts.append("</svg>")
    legend = "".join(
        f'<span class="key"><i class="c{line.colour}"></i>{escape(line.label)}</span>' for line in lines if line.x
    )
    return f'<div class="legend">{legend}</div>{"".join(parts)}'


def interval_chart(title: str, bars: Sequence[tuple[str, float, float, float]], y_label: str) -> str:
    """Bars with intervals: (label, value, low, high), values from 0 to 1."""
    if not bars:
        return f'<p class="missing">{escape(title)}: no data yet</p>'
    y_axis = _Axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    parts = [_open(title), *_grid(None, y_axis, "", y_label)]
    step = (WIDTH - LEFT - RIGHT) / len(bars)
    for index, (label, value, low, high) in enumerate(bars):
        middle = LEFT + step * (index + 0.5)
        top, base = y_axis(value), y_axis(0.0)
        parts.append(
            f'<rect class="bar c{index}" x="{middle - 40:.1f}" y="{top:.1f}" width="80" height="{base - top:.1f}"/>'
            f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y_axis(low):.1f}" y2="{y_axis(high):.1f}"/>'
            f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(label)}</text>'
            f'<text class="value" x="{middle + 48:.1f}" y="{top + 4:.1f}">{value:.3f} [{low:.3f}, {high:.3f}]</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


def heat_map(title: str, rows: Sequence[Sequence[float]], row_label: str, column_label: str) -> str:
    """Cells as dark as their value; the value is in each cell's tooltip."""
    if not rows:
        return f'<p class="missing">{escape(title)}: no data yet</p>'
    highest = max(max(row) for row in rows) or 1.0
    width, height = (WIDTH - LEFT - RIGHT) / len(rows[0]), min(28.0, (HEIGHT - TOP - BOTTOM) / len(rows))
    parts = [_open(title)]
    for r, row in enumerate(rows):
        y = TOP + r * height
        parts.append(f'<text x="{LEFT - 8}" y="{y + height / 2 + 4:.1f}" text-anchor="end">{row_label} {r + 1}</text>')
        parts += [
            f'<rect class="cell" x="{LEFT + c * width:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{height - 1:.1f}" '
            f'fill-opacity="{value / highest:.3f}"><title>{row_label} {r + 1}, {column_label} {c + 1}: {value:.4f}</title></rect>'
            for c, value in enumerate(row)
        ]
    bottom = TOP + len(rows) * height
    parts.append(
        f'<text x="{WIDTH / 2}" y="{bottom + 20:.1f}" text-anchor="middle">{escape(column_label)}</text></svg>'
    )
    return "".join(parts)


class _Axis:
    """Maps values to places between two ends, over a range widened to round numbers."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if high <= low:
            low, high = low - 0.5, high + 0.5
        rough = (high - low) / 5
        magnitude = 10.0 ** math.floor(math.log10(rough))
        self.step = next(step * magnitude for step in (1, 2, 5, 10) if step * magnitude >= rough)
        self.low = math.floor(low / self.step) * self.step
        self.high = math.ceil(high / self.step) * self.step
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + index * self.step for index in range(count + 1)]


def _open(title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'


def _grid(x_axis: _Axis | None, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    parts: list[str] = []
    for tick in y_axis.ticks():
        y = y_axis(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in x_axis.ticks() if x_axis else ():
        parts.append(
            f'<text x="{x_axis(tick) if x_axis else 0:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(tick)}</text>'
        )
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(13 {(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return parts


def _band(band: Band, x_axis: _Axis, index: int) -> str:
    start, end = x_axis(band.start), x_axis(band.end)
    return (
        f'<rect class="band{index % 2}" x="{start:.1f}" y="{TOP}" width="{max(end - start, 0):.1f}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/>'
        f'<text class="band-label" x="{(start + end) / 2:.1f}" y="{TOP + 12}" text-anchor="middle">{escape(band.label)}</text>'
    )


def _range(line: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    there = [f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in zip(line.x, line.high, strict=True)]
    back = [f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in zip(line.x, line.low, strict=True)]
    return f'<polygon class="range c{line.colour}" points="{" ".join([*there, *reversed(back)])}"/>'


def _polyline(line: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    points = [f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in zip(line.x, line.y, strict=True) if y is not None]
    return f'<polyline class="line c{line.colour}" data-label="{escape(line.label)}" points="{" ".join(points)}"/>'


def _thin(line: Series) -> Series:
    if line.low:
        return line
    kept = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
    size = -(-len(kept) // MAX_POINTS) or 1
    chunks = [kept[i : i + size] for i in range(0, len(kept), size)]
    means = [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]
    return Series(line.label, [x for x, _ in means], [y for _, y in means], line.colour)


def _short(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.10g}" if value == round(value, 10) else f"{value:.4g}"
