"""Figures, drawn by matplotlib and put into the page as SVG whose colours are those of the page, light or dark."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from kdfw.report.html import Markup, clean, element
from kdfw.report.numbers import count, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (5.2, 2.6)
"""Width and height in inches; 72 units of the SVG an inch."""
COLOURS = 8
"""Series colours of the style sheet, `--c0` to `--c7`; later series start over with dashes."""
MAX_POINTS = 400
SAME = 1.01
"""Sizes and speeds that differ by less are the same to a reader."""
NAMED = {"ink": "#a0f001", "soft": "#a0f002", "rule": "#a0f003", "good": "#a0f004", "bad": "#a0f005"}
"""Colours that matplotlib is given, which no drawing has by chance, by the variable of the style sheet they become."""
SERIES = [f"#a0f1{number:02x}" for number in range(COLOURS)]
VARIABLES = {value: f"var(--{name})" for name, value in NAMED.items()} | {
    value: f"var(--c{number})" for number, value in enumerate(SERIES)
}
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kdfw",
    "text.parse_math": False,
    "font.size": 8.0,
    "axes.linewidth": 0.8,
    "axes.edgecolor": NAMED["soft"],
    "axes.labelcolor": NAMED["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "axes.ymargin": 0.08,
    "grid.color": NAMED["rule"],
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.5,
    "lines.solid_joinstyle": "round",
    "text.color": NAMED["ink"],
    "xtick.color": NAMED["soft"],
    "xtick.major.size": 3.0,
    "xtick.minor.size": 0.0,
    "ytick.color": NAMED["soft"],
    "ytick.major.size": 0.0,
}
SVG = "http://www.w3.org/2000/svg"
UNWANTED = frozenset(f"{{{SVG}}}{name}" for name in ("metadata", "defs", "style"))
LINK = "{http://www.w3.org/1999/xlink}href"

Series = Mapping[str, Sequence[tuple[float, float]]]


# ---------------------------------------------------------------- figures


def lines(title: str, series: Series, x_label: str = "step") -> Markup:
    """Values over steps, one line a series; empty markup when there is nothing to draw."""
    shown = {name: thin(points) for name, points in series.items() if points}
    if not shown:
        return Markup("")

    def draw(axes: Axes) -> None:
        for number, points in enumerate(shown.values()):
            xs, ys = zip(*points, strict=True)
            dashes, dots = "--" if number >= COLOURS else "-", "o" if len(points) <= 16 else ""
            axes.plot(xs, ys, color=SERIES[number % COLOURS], linestyle=dashes, marker=dots, markersize=3.5)
        axes.yaxis.set_major_formatter(lambda value, _: _small(value))
        axes.set_xlabel(x_label)

    words = "; ".join(f"{name} from {short(points[0][1])} to {short(points[-1][1])}" for name, points in series.items())
    named = [name.lower() for name in shown] != [title.lower()]
    return figure(title, words, draw, legend(list(shown)) if named else None)


def scatter(
    title: str, points: Mapping[str, tuple[float, float]], x_label: str, marked: Collection[str] = ()
) -> Markup:
    """Named points, the x axis logarithmic, those in `marked` set apart; empty markup where x says nothing.

    That is for fewer than two points, and for points that all have the same x, but for `SAME`.
    """
    usable = {name: point for name, point in points.items() if point[0] > 0}
    places = [x for x, _ in usable.values()]
    if len(places) < 2 or max(places) < SAME * min(places):
        return Markup("")

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.margins(x=0.18, y=0.16)
        for name, (x, y) in usable.items():
            special = name in marked
            axes.plot([x], [y], "o", color=SERIES[1 if special else 0], markersize=8 if special else 6)
        _log_ticks(axes, places)
        axes.set_xlabel(x_label)
        _name_points(axes, usable, marked)

    words = "; ".join(f"{name}: {short(y)} at {short(x)}" for name, (x, y) in usable.items())
    return figure(title, words, draw)


def sorted_bars(title: str, values: Sequence[float], x_label: str, description: str) -> Markup:
    """One bar a value, in the order given, above or below zero; empty markup when there are none."""
    if not values:
        return Markup("")
    step = math.ceil(len(values) / MAX_POINTS)  # a stretch of neighbours becomes one bar: sorted, they are alike
    parts = [values[begin : begin + step] for begin in range(0, len(values), step)]
    heights = [sum(part) / len(part) for part in parts]
    edges = [*range(0, len(values), step), len(values)]

    def draw(axes: Axes) -> None:
        for sign, colour in ((1, NAMED["good"]), (-1, NAMED["bad"])):
            axes.stairs([max(0.0, sign * height) * sign for height in heights], edges, fill=True, color=colour)
        axes.axhline(0.0, color=NAMED["soft"], linewidth=0.8)
        axes.set_xlim(0, len(values))
        axes.set_xlabel(x_label)

    note = element("span", description, class_="note")
    return figure(title, description, draw, note)


def histogram(
    title: str, edges: Sequence[float], counts: Mapping[str, Sequence[float]], x_label: str,
    marks: Mapping[str, float] | None = None, note: str = "",
) -> Markup:  # fmt: skip
    """Bars of counts between edges, one series over the other, each as a share of its own greatest bar.

    Args:
        edges: one more than each series has counts.
        marks: vertical lines by name.
    """
    shown = {name: list(values) for name, values in counts.items() if any(values)}
    if not shown or len(edges) < 2 or any(len(values) != len(edges) - 1 for values in shown.values()):
        return Markup("")
    marks = marks or {}

    def draw(axes: Axes) -> None:
        for number, values in enumerate(shown.values()):
            greatest = max(values)
            heights = [value / greatest for value in values] if len(shown) > 1 else values
            colour = SERIES[number % COLOURS]
            axes.stairs(heights, edges, fill=True, alpha=0.35, color=colour)
            axes.stairs(heights, edges, color=colour, linewidth=1.2)
        for number, place in enumerate(marks.values(), start=len(shown)):
            axes.axvline(place, color=SERIES[number % COLOURS], linestyle="--", linewidth=1.2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        if len(shown) > 1:
            axes.set_yticks([])

    words = "; ".join(f"{name}: {short(sum(values))} values" for name, values in shown.items())
    words += "".join(f"; {name} at {short(place)}" for name, place in marks.items())
    names = [*shown, *(f"{name}: {short(place)}" for name, place in marks.items())]
    said = element("span", note, class_="note") if note else None
    return figure(title, words, draw, said, legend(names) if len(names) > 1 else None)


def intervals(title: str, rows: Mapping[str, tuple[float, float, float]], x_label: str) -> Markup:
    """A point with its interval for each name, one below the other, and a line at zero.

    Args:
        rows: name -> (value, low, high).
    """
    if not rows:
        return Markup("")

    def draw(axes: Axes) -> None:
        for place, (value, low, high) in enumerate(rows.values()):
            colour = NAMED["good"] if low > 0 else NAMED["bad"] if high < 0 else NAMED["soft"]
            axes.plot([low, high], [place, place], color=colour, linewidth=2.0, solid_capstyle="round")
            axes.plot([value], [place], "o", color=colour, markersize=6)
        axes.axvline(0.0, color=NAMED["soft"], linewidth=0.8)
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        axes.set_yticks(range(len(rows)), [_label(name) for name in rows])
        axes.tick_params(axis="y", labelcolor=NAMED["ink"])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(x_label)

    words = "; ".join(f"{name}: {v:+.4f} ({low:+.4f} to {high:+.4f})" for name, (v, low, high) in rows.items())
    left = 0.2 + 0.062 * max(len(_label(name)) for name in rows)
    return figure(title, words, draw, height=0.75 + 0.32 * len(rows), left=left)


def legend(names: Sequence[str]) -> Markup:
    """The names of the series with their colours, as a list."""
    items = [
        element("li", element("span", class_=f"swatch s{number % COLOURS}", aria_hidden="true"), name)
        for number, name in enumerate(names)
    ]
    return element("ul", items, class_="legend")


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


# ---------------------------------------------------------------- drawing


def figure(
    title: str, description: str, draw: Callable[[Axes], None], *caption: Markup | None,
    height: float = SIZE[1], left: float = 0.52,
) -> Markup:  # fmt: skip
    """A `figure` of the page: title, what stands below it, and the drawing with its description for screen readers.

    Args:
        height, left: of the drawing, and of the room for the labels of its y axis, in inches.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the layout's font lacks: the browser has them
        drawing = Figure(figsize=(SIZE[0], height))
        FigureCanvasSVG(drawing)
        drawing.subplots_adjust(left / SIZE[0], 0.42 / height, 1 - 0.16 / SIZE[0], 1 - 0.1 / height)
        draw(drawing.subplots())
        drawing.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = _of_the_page(stream.getvalue(), clean(title), clean(description))
    head = element("figcaption", element("strong", title), *caption)
    return element("figure", head, svg, class_="chart")


def _of_the_page(drawn: bytes, title: str, description: str) -> Markup:
    """matplotlib's SVG with the page's colours and fonts, without ids, and with words for those who cannot see it.

    Two drawings of one page must not share an id, so what is drawn by reference (marks of points and axes) is drawn
    in place, and clipping, which has nothing to cut here, is left out.
    """
    root = ElementTree.fromstring(drawn)
    marks = {node.attrib["id"]: node for node in root.iter(f"{{{SVG}}}path") if "id" in node.attrib}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in UNWANTED:  # a style in it would hold for the whole page
                parent.remove(child)
    for node in root.iter():
        if node.tag == f"{{{SVG}}}use":
            _draw_in_place(node, marks[node.attrib.pop(LINK)[1:]])
        for name in ("id", "clip-path"):
            node.attrib.pop(name, None)
        node.text, node.tail = (node.text or "").strip(), None
        if "style" in node.attrib:
            node.set("style", _style(node.attrib["style"]))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", f"{title}. {description}")
    ElementTree.register_namespace("", SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _draw_in_place(node: ElementTree.Element, mark: ElementTree.Element) -> None:
    """Turn a reference into the path it refers to, at its place; its own style has the last word."""
    style = "; ".join(part for part in (mark.attrib.get("style", ""), node.attrib.get("style", "")) if part)
    place = f"translate({node.attrib.pop('x', '0')} {node.attrib.pop('y', '0')})"
    node.tag = f"{{{SVG}}}path"
    node.attrib.update({"d": mark.attrib["d"], "transform": place, "style": style})


def _style(text: str) -> str:
    text = re.sub(r"#a0f[01][0-9a-f]{2}", lambda match: VARIABLES.get(match[0], match[0]), text)
    text = re.sub(r"font-family: [^;]*", "font-family: inherit", text)
    return re.sub(r"font: ([^;]*?)([\d.]+px) [^;]*", r"font: \1\2 system-ui, sans-serif", text)


_TICKS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0.35, (1, 1.2, 1.4, 1.6, 1.8, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9)),
    (1.2, (1, 1.5, 2, 3, 4, 5, 7)),
    (2.5, (1, 2, 5)),
    (math.inf, (1,)),
)
"""(Decades that an axis is shorter than, what is marked in each of them)."""


def _log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Round numbers on a logarithmic axis, as many as its length bears."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = (math.log10(value) for value in axes.get_xlim())
    powers = range(math.floor(low), math.ceil(high) + 1)
    for most, factors in _TICKS:
        places = [
            factor * 10.0**power for power in powers for factor in factors if low <= math.log10(factor) + power <= high
        ]
        if high - low < most and len(places) > 1:
            break
    axes.xaxis.set_major_locator(FixedLocator(places if len(places) > 1 else sorted(set(values))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _tick(value: float) -> str:
    return count(value).replace(".0", "") if value >= 10_000 else short(value)


def _small(value: float) -> str:
    """A number that fits beside an axis: `0.25`, `3,000`, `1.5e-5`."""
    if value and abs(value) < 0.005:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return short(round(value, 6))


def _name_points(axes: Axes, points: Mapping[str, tuple[float, float]], marked: Collection[str]) -> None:
    """Write names beside points: to the side with room, and clear of names already written."""
    middle = axes.transAxes.transform((0.5, 0.5))[0]
    floor = axes.transAxes.transform((0.0, 0.0))[1]
    taken: list[tuple[float, float]] = []
    for name, point in sorted(points.items(), key=lambda item: -item[1][1]):
        left, line = axes.transData.transform(point)
        start = line
        step = -13 if line - floor > 20 else 13
        while any(abs(line - other) < 12.5 and abs(left - at) < 160 for at, other in taken):
            line += step
        taken.append((left, line))
        before = left > middle
        axes.annotate(
            _label(name), point, xytext=(-9 if before else 9, (line - start) * 72 / axes.figure.dpi),
            textcoords="offset points", ha="right" if before else "left", va="center", fontsize=8.5,
            fontweight="bold" if name in marked else "normal",
        )  # fmt: skip


def _label(name: str) -> str:
    name = clean(name)
    return name if len(name) <= 28 else name[:27] + "…"
