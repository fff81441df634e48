"""Charts as SVG text, drawn by hand: no library to load, no network to ask.

Colours come from the page's style sheet by class (`s0`, `s1`, … for the models), so that they
follow its light and dark theme; lines and dots differ in dash and shape too, since colour alone
tells nothing to one man in twelve. Everything that comes from outside is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from livevalue.report.scales import Linear, Scale, short

SERIES = 8  # classes of the style sheet, then they begin again
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40


@dataclass(frozen=True, slots=True)
class Series:
    """One line of points; `kind`: the number of its model, or a class such as `oracle`."""

    name: str
    kind: int | str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()  # x, low, high
    dots: bool = True

    @property
    def style(self) -> str:
        """Its class."""
        return f"s{self.kind % SERIES}" if isinstance(self.kind, int) else self.kind


@dataclass(slots=True)
class Chart:
    """A frame with two axes, in which things are drawn."""

    title: str
    x: Scale
    y: Scale
    x_name: str = ""
    y_name: str = ""
    width: int = 420
    height: int = 300
    x_labels: Sequence[tuple[float, str]] | None = None  # instead of ticks
    _parts: list[str] = field(default_factory=list)

    def px(self, x: float) -> float:
        """Pixels from the left."""
        return LEFT + self.x.at(x) * (self.width - LEFT - RIGHT)

    def py(self, y: float) -> float:
        """Pixels from the top."""
        return self.height - BOTTOM - self.y.at(y) * (self.height - TOP - BOTTOM)

    def line(self, one: Series) -> None:
        """Points joined, with dots that say what they are when pointed at."""
        known = [(x, y) for x, y in one.points if math.isfinite(y)]
        if one.band:
            there = [(x, lo, hi) for x, lo, hi in one.band if math.isfinite(lo + hi)]
            upper = [f"{self.px(x):.1f},{self.py(hi):.1f}" for x, _, hi in there]
            lower = [f"{self.px(x):.1f},{self.py(lo):.1f}" for x, lo, _ in reversed(there)]
            self._parts.append(
                f'<polygon class="band {one.style}" points="{_join(upper + lower)}"/>'
            )
        path = [f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in known]
        self._parts.append(f'<polyline class="line {one.style}" points="{_join(path)}"/>')
        if one.dots:
            for x, y in known:
                self.dot(x, y, one, f"{one.name}: {_figure(y)}")

    def dot(self, x: float, y: float, one: Series, says: str) -> None:
        """A mark of the model's own shape."""
        number = one.kind if isinstance(one.kind, int) else 0
        self._parts.append(_mark(self.px(x), self.py(y), number, one.style, says))

    def cloud(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Many small dots as one path."""
        path = "".join(f"M{self.px(x):.1f} {self.py(y):.1f}h0" for x, y in points)
        self._parts.append(f'<path class="cloud {style}" d="{path}"/>')

    def rule(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """A line that is no model: the diagonal, 1, .8."""
        path = [f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points]
        self._parts.append(f'<polyline class="rule {style}" points="{_join(path)}"/>')

    def svg(self) -> str:
        """The chart."""
        size = f'viewBox="0 0 {self.width} {self.height}"'
        name = escape(self.title, quote=True)
        inner = "".join([*self._axes(), *self._parts])
        return f'<svg class="chart" role="img" aria-label="{name}" {size}>{inner}</svg>'

    def _axes(self) -> list[str]:
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        out = []
        for value in self.y.ticks():
            at = self.py(value)
            if not TOP - 1 <= at <= bottom + 1:
                continue
            out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            out.append(_text(LEFT - 6, at + 4, short(value), "tick end"))
        labels = self.x_labels or [(value, short(value)) for value in self.x.ticks()]
        for value, label in labels:
            at = self.px(value)
            if LEFT - 1 <= at <= right + 1:
                out.append(
                    f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}"'
                    f' y2="{bottom + 4}"/>'
                )
                out.append(_text(at, bottom + 16, label, "tick mid"))
        out.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        out.append(_text((LEFT + right) / 2, self.height - 6, self.x_name, "name mid"))
        if self.y_name:
            middle = (TOP + bottom) / 2
            turned = f'transform="rotate(-90 12 {middle:.0f})"'
            out.append(_text(12, middle, self.y_name, "name mid", turned))
        return out


def forest(
    title: str,
    rows: Sequence[tuple[str, int, float, float, float]],
    zero: float | None,
    width: int = 560,
) -> str:
    """Intervals, one below the other: (name, model's number, value, low, high) each."""
    row, head = 26, 8
    left, right = 150, 70
    height = head + row * len(rows) + 26
    ends = [v for _, _, *numbers in rows for v in numbers] + ([] if zero is None else [zero])
    scale = Linear.around(ends)

    def px(value: float) -> float:
        return left + scale.at(value) * (width - left - right)

    bottom = head + row * len(rows)
    out = []
    for value in scale.ticks():
        at = f"{px(value):.1f}"
        out.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{head}" y2="{bottom}"/>')
        out.append(_text(px(value), bottom + 16, short(value), "tick mid"))
    if zero is not None:
        at = f"{px(zero):.1f}"
        out.append(f'<line class="rule even" x1="{at}" x2="{at}" y1="{head}" y2="{bottom}"/>')
    for i, (name, number, value, low, high) in enumerate(rows):
        y = head + row * (i + 0.5)
        style = f"s{number % SERIES}"
        says = f"{name}: {_figure(value)} [{_figure(low)}, {_figure(high)}]"
        out.append(_text(left - 10, y + 4, name, "label end"))
        if math.isfinite(low + high):
            out.append(
                f'<line class="span {style}" x1="{px(low):.1f}" x2="{px(high):.1f}"'
                f' y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        out.append(_mark(px(value), y, number, style, says, 4.5))
        out.append(_text(width - right + 10, y + 4, _figure(value), "label"))
    size = f'viewBox="0 0 {width} {height}"'
    name = escape(title, quote=True)
    return f'<svg class="chart wide" role="img" aria-label="{name}" {size}>{"".join(out)}</svg>'


def mark(number: int) -> str:
    """A model's line and dot, for a legend."""
    style = f"s{number % SERIES}"
    line = f'<polyline class="line {style}" points="1,8 27,8"/>'
    return (
        '<svg class="key" aria-hidden="true" viewBox="0 0 28 16">'
        f"{line}{_mark(14, 8, number, style, '')}</svg>"
    )


def _mark(x: float, y: float, number: int, style: str, says: str, r: float = 3.5) -> str:
    """A circle, square, diamond or triangle."""
    title = f"<title>{escape(says)}</title>" if says else ""
    shapes: tuple[list[tuple[float, float]], ...] = (
        [],
        [(-r, -r), (r, -r), (r, r), (-r, r)],
        [(0, -r * 1.35), (r * 1.35, 0), (0, r * 1.35), (-r * 1.35, 0)],
        [(0, -r * 1.25), (r * 1.2, r), (-r * 1.2, r)],
    )
    corners = shapes[number % len(shapes)]
    if not corners:
        return f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="{r}">{title}</circle>'
    points = _join([f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners])
    return f'<polygon class="dot {style}" points="{points}">{title}</polygon>'


def _text(x: float, y: float, text: str, style: str, more: str = "") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def _figure(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def _join(points: Sequence[str]) -> str:
    return " ".join(points)
