"""Figures as inline SVG: lines over steps, a scatter of systems, sorted bars. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from kdfw.report.html import Markup, element, join
from kdfw.report.numbers import count, short

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 40
COLOURS = 8
"""Classes `s0` to `s7` of the style sheet; later series start over with dashes."""
MAX_POINTS = 400

Series = Mapping[str, Sequence[tuple[float, float]]]


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(points: Sequence[tuple[float, float]], keep: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most about `keep` points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= keep:
        return list(points)
    size = math.ceil(len(points) / (keep // 2))
    found = []
    for begin in range(0, len(points), size):
        part = points[begin : begin + size]
        ends = {min(range(len(part)), key=lambda i: part[i][1]), max(range(len(part)), key=lambda i: part[i][1])}
        found += [part[index] for index in sorted(ends)]
    if found[-1] != points[-1]:
        found.append(points[-1])
    return found


class _Frame:
    """A plotting area with its scales."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], *, log_x: bool = False, height: int = HEIGHT) -> None:
        self.log_x = log_x
        self.height = height
        self.x = _span([math.log10(x) for x in xs] if log_x else xs, 0.06 if log_x else 0.0)
        self.y = _span(ys, 0.06)

    def px(self, x: float) -> float:
        value = math.log10(x) if self.log_x else x
        return LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)

    def py(self, y: float) -> float:
        return self.height - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.height - TOP - BOTTOM)

    def axes(self, x_label: str) -> Markup:
        parts: list[Markup] = []
        bottom = self.height - BOTTOM
        for tick in ticks(*self.y):
            y = _round(self.py(tick))
            parts.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
            parts.append(element("text", short(tick), class_="tick", x=LEFT - 8, y=y + 4, text_anchor="end"))
        for tick in self._x_ticks():
            x = _round(self.px(tick))
            parts.append(element("line", class_="grid", x1=x, x2=x, y1=bottom, y2=bottom + 4))
            parts.append(element("text", _tick(tick), class_="tick", x=x, y=bottom + 17, text_anchor="middle"))
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(element("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom))
        parts.append(element("text", x_label, class_="label", x=middle, y=self.height - 6, text_anchor="middle"))
        return join(parts)

    def _x_ticks(self) -> list[float]:
        if not self.log_x:
            return ticks(*self.x, wanted=6)
        found = []
        for power in range(math.floor(self.x[0]), math.ceil(self.x[1]) + 1):
            for factor in self._factors():
                value = factor * 10.0**power
                if self.x[0] <= math.log10(value) <= self.x[1]:
                    found.append(value)
        return found

    def _factors(self) -> tuple[float, ...]:
        """Which multiples of a power of ten are marked on a logarithmic axis of this length."""
        decades = self.x[1] - self.x[0]
        return (1, 1.5, 2, 3, 4, 5, 7) if decades < 1.2 else (1, 2, 5) if decades < 2.5 else (1,)


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low - (high - low) * margin, high + (high - low) * margin


def _tick(value: float) -> str:
    return count(value).replace(".0", "") if value >= 10_000 else short(value)


def _round(value: float) -> float:
    return round(value, 1)


def _svg(title: str, description: str, body: Markup, height: int = HEIGHT) -> Markup:
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        body,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_label=f"{title}. {description}",
    )


def _style(number: int) -> str:
    return f"s{number % COLOURS}" + (" dashed" if number >= COLOURS else "")


def legend(names: Sequence[str]) -> Markup:
    """The names of the series with their colours; a line of text for each."""
    items = [
        element("li", element("span", class_=f"swatch {_style(number)}", aria_hidden="true"), name)
        for number, name in enumerate(names)
    ]
    return element("ul", items, class_="legend")


def lines(title: str, series: Series, x_label: str = "step") -> Markup:
    """Values over steps, one line a series; empty markup when there is nothing to draw."""
    shown = {name: points for name, points in series.items() if points}
    if not shown:
        return Markup("")
    every = [point for points in shown.values() for point in points]
    frame = _Frame([x for x, _ in every], [y for _, y in every])
    drawn = []
    for number, points in enumerate(shown.values()):
        kept = thin(points)
        path = " ".join(f"{_round(frame.px(x))},{_round(frame.py(y))}" for x, y in kept)
        if len(kept) > 1:
            drawn.append(element("polyline", points=path, class_=f"line {_style(number)}"))
        if len(kept) <= 16:
            for x, y in kept:
                point = element("title", f"{x_label} {short(x)}: {short(y)}")
                drawn.append(
                    element(
                        "circle",
                        point,
                        cx=_round(frame.px(x)),
                        cy=_round(frame.py(y)),
                        r=2.6,
                        class_=f"dot {_style(number)}",
                    )
                )
    words = "; ".join(f"{name} from {short(points[0][1])} to {short(points[-1][1])}" for name, points in shown.items())
    figure = _svg(title, words, join([frame.axes(x_label), *drawn]))
    named = [name.lower() for name in shown] != [title.lower()]
    caption = element("figcaption", element("strong", title), legend(list(shown)) if named else None)
    return element("figure", caption, figure, class_="chart")


def scatter(
    title: str, points: Mapping[str, tuple[float, float]], x_label: str, marked: Collection[str] = ()
) -> Markup:
    """Named points, the x axis logarithmic, those in `marked` set apart; empty markup for fewer than two."""
    usable = {name: point for name, point in points.items() if point[0] > 0}
    if len(usable) < 2:
        return Markup("")
    frame = _Frame([x for x, _ in usable.values()], [y for _, y in usable.values()], log_x=True)
    drawn: list[Markup] = []
    taken: list[tuple[float, float]] = []
    for name, (x, y) in sorted(usable.items(), key=lambda item: -item[1][1]):
        left, top = frame.px(x), frame.py(y)
        # a label goes to the side with room, and clear of those it would cover
        before = left > (LEFT + WIDTH - RIGHT) / 2
        line = top + 4
        down = 13 if line < HEIGHT - BOTTOM - 20 else -13
        while any(abs(line - other) < 13 and abs(left - at) < 170 for at, other in taken):
            line += down
        taken.append((left, line))
        kind, radius = ("s1", 6.5) if name in marked else ("s0", 5.0)
        words = element("title", f"{name}: {short(y)} at {short(x)}")
        drawn.append(element("circle", words, cx=_round(left), cy=_round(top), r=radius, class_=f"dot {kind}"))
        anchor, at = ("end", left - 10) if before else ("start", left + 10)
        label = name if len(name) <= 28 else name[:27] + "…"
        style = "name marked" if name in marked else "name"
        drawn.append(element("text", label, class_=style, x=_round(at), y=_round(line), text_anchor=anchor))
    described = "; ".join(f"{name}: {short(y)} at {short(x)}" for name, (x, y) in usable.items())
    caption = element("figcaption", element("strong", title))
    return element("figure", caption, _svg(title, described, join([frame.axes(x_label), *drawn])), class_="chart")


def sorted_bars(title: str, values: Sequence[float], x_label: str, description: str) -> Markup:
    """One bar a value, in the order given, above or below zero; empty markup when there are none."""
    if not values:
        return Markup("")
    shown = list(values)
    if len(shown) > MAX_POINTS:  # a stretch of neighbours becomes one bar; sorted neighbours are alike
        size = math.ceil(len(shown) / MAX_POINTS)
        shown = [sum(shown[i : i + size]) / len(shown[i : i + size]) for i in range(0, len(shown), size)]
    frame = _Frame([0, len(values)], [*shown, 0.0], height=220)
    room = (WIDTH - LEFT - RIGHT) / len(shown)
    zero = frame.py(0.0)
    drawn = []
    for number, value in enumerate(shown):
        top = frame.py(max(value, 0.0))
        tall = abs(frame.py(value) - zero)
        kind = "gain" if value > 0 else "loss" if value < 0 else "tie"
        width = round(max(room - (1 if room > 3 else 0), 0.4), 2)
        left = round(LEFT + number * room, 2)
        drawn.append(element("rect", x=left, y=_round(top), width=width, height=_round(max(tall, 0.8)), class_=kind))
    drawn.append(element("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=_round(zero), y2=_round(zero)))
    caption = element("figcaption", element("strong", title), element("span", description, class_="note"))
    body = join([frame.axes(x_label), *drawn])
    return element("figure", caption, _svg(title, description, body, 220), class_="chart")
