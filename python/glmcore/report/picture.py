"""A chart as a picture of its own: an SVG file that documents can show."""

import re
from collections.abc import Sequence
from html import escape

from glmcore.report.charts import HEIGHT, LEFT, WIDTH, Series, line_chart
from glmcore.report.page import PAGE

HEAD = 26
"""Room above the chart for its legend."""
KEY = 160
"""Width of one entry of the legend."""


def svg_picture(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """A line chart with its legend and the page's colours inside, readable in light and dark.

    Args:
        title: What it shows, for people who cannot see it.
        series: Lines, at least one with points.
        x_label: Name and unit of the x axis.
        y_label: Name and unit of the y axis.
    """
    chart = line_chart(title, series, x_label, y_label)
    [inner] = re.findall(r"<svg [^>]*>(.*)</svg>", chart, flags=re.DOTALL)
    [style] = re.findall(r"<style>.*?</style>", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    shown = [line for line in series if line.x]
    keys = "".join(_key(line, LEFT + place * KEY, -HEAD / 2) for place, line in enumerate(shown))
    size = f'viewBox="0 {-HEAD} {WIDTH} {HEIGHT + HEAD}" width="{WIDTH}" height="{HEIGHT + HEAD}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{style}{inner}{keys}</svg>\n'


def _key(line: Series, x: float, y: float) -> str:
    return (
        f'<polyline class="line c{line.colour}" points="{x},{y} {x + 18},{y}"/>'
        f'<text class="value" x="{x + 24}" y="{y + 4}">{escape(line.label)}</text>'
    )
