"""Accuracy against speed, one line a method, as PNG and SVG.

The layout is that of the DMax paper's figures: speed on x, accuracy on y, a panel a task. Colours are those of Okabe
and Ito, told apart by colour-blind readers; markers say the same once more for prints without colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from dmax.evaluation.metrics import ResultsError, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = "osD^vPX"
_INK, _FAINT, _FRONT = "#1d2329", "#667079", "#c9d0d6"
_COLUMNS = 2
_SIZE_ALONE, _SIZE_TOGETHER = (6.6, 4.2), (4.4, 3.4)
"""Inches of a panel; at a README's width its smallest letters are still legible."""
_LINES, _LINE = 2, 0.19
"""Lines of names that a panel's size allows for, and inches that another one needs."""
_DPI = 200
_LABEL_POINTS = 7.0
_LEAST_RANGE = 10.0
"""Percent that the y axis spans at least, so that a flat line looks flat."""
_STYLE = {
    "font.size": 9,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": _INK,
    "xtick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.color": _FAINT,
    "ytick.labelcolor": _INK,
    "svg.hashsalt": "dmax",  # names inside the file, which are else drawn at random
}

Box = tuple[float, float, float, float]
"""Left, bottom, right, top in points."""


@dataclass(frozen=True)
class Spot:
    """One setting of a method; accuracies in percent."""

    speed: float
    accuracy: float
    low: float
    high: float
    """Bounds of the 95 % interval of ``accuracy``."""
    threshold: str
    """Written small beside the marker; empty where the method has none."""


@dataclass(frozen=True)
class Curve:
    """All settings of one method."""

    name: str
    spots: tuple[Spot, ...]
    """In the order in which a line joins them."""


def require_matplotlib() -> None:
    """Make sure that pictures can be drawn.

    Raises:
        ResultsError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ResultsError("drawing needs the eval extra: pip install 'dmax-llm[eval]'.") from error


def draw_tradeoff(panels: Mapping[str, Sequence[Curve]], stem: Path, speed_label: str) -> list[Path]:
    """Draw accuracy against speed, a panel for every task, and write ``stem``.png and ``stem``.svg.

    Args:
        panels: the curves of every task; a method has one colour in all of them.
        stem: path of the pictures without their ending.
        speed_label: title of the x axis.

    Returns:
        The files written.

    Raises:
        ResultsError: there is nothing to draw, or matplotlib is not installed.
    """
    if not any(curve.spots for curves in panels.values() for curve in curves):
        raise ResultsError(f"there is no point to draw in {stem.name}; finish at least one.")
    require_matplotlib()
    from matplotlib import style

    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    with style.context(["default", _STYLE]):  # not the reader's own style: the layout is made for this one
        figure, grid = _panels(len(panels), len(names))
        for axes, (task, curves) in zip(grid, panels.items(), strict=True):
            _draw_panel(axes, curves, names)
            axes.set_title(task, fontsize=10)
            axes.set(xlabel=speed_label, ylabel="accuracy (%), bars: 95 % interval")
        _add_legend(figure, panels, names, _legend_columns(len(panels)))
        # Labels are placed in the final geometry, which is only known once everything else is laid out.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes, curves in zip(grid, panels.values(), strict=True):
            _label_spots(axes, curves, names)
        files = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
        for file in files:
            stamp = {"Date": None} if file.suffix == ".svg" else None  # the same points give the same file
            figure.savefig(file, dpi=_DPI, metadata=stamp)
    return files


def _panels(count: int, names: int) -> tuple[Figure, list[Axes]]:
    """Make a figure that has room for so many panels, and above them for so many names."""
    from matplotlib.figure import Figure

    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    width, height = _SIZE_ALONE if count == 1 else _SIZE_TOGETHER
    more_lines = max(0, math.ceil(names / _legend_columns(count)) - _LINES)
    figure = Figure(figsize=(width * columns, height * rows + more_lines * _LINE), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def _draw_panel(axes: Axes, curves: Sequence[Curve], names: Sequence[str]) -> None:
    spots = [spot for curve in curves for spot in curve.spots]
    front = [spots[index] for index in pareto_front([(spot.speed, spot.accuracy) for spot in spots])]
    axes.grid(color="#e6eaed", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.plot(
        [spot.speed for spot in front], [spot.accuracy for spot in front],
        color=_FRONT, linewidth=7, solid_capstyle="round", solid_joinstyle="round", zorder=1,
    )  # fmt: skip
    for curve in curves:
        colour, marker = _look(names.index(curve.name))
        speeds, accuracies = [spot.speed for spot in curve.spots], [spot.accuracy for spot in curve.spots]
        axes.plot(speeds, accuracies, color=colour, linewidth=1.6, zorder=3)
        below = [spot.accuracy - spot.low for spot in curve.spots]
        above = [spot.high - spot.accuracy for spot in curve.spots]
        axes.errorbar(
            speeds, accuracies, yerr=[below, above], fmt="none", ecolor=colour, elinewidth=0.9, capsize=2, alpha=0.55,
            zorder=2,
        )  # fmt: skip
        for spot in curve.spots:
            face = colour if spot in front else "white"
            axes.plot(
                spot.speed, spot.accuracy, marker, color=colour, markerfacecolor=face, markersize=6,
                markeredgewidth=1.3, zorder=4,
            )  # fmt: skip
    low, high = min(spot.low for spot in spots), max(spot.high for spot in spots)
    spare = max(_LEAST_RANGE - (high - low), 0.08 * (high - low)) / 2
    axes.set_ylim(max(low - spare, -2), min(high + spare, 102))
    axes.margins(x=0.07)


def _look(index: int) -> tuple[str, str]:
    """Return colour and marker of the method at an index; no pair comes twice before the fiftieth."""
    return _COLOURS[index % len(_COLOURS)], _MARKERS[(index + index // len(_MARKERS)) % len(_MARKERS)]


def _legend_columns(panels: int) -> int:
    return 2 * min(panels, _COLUMNS)


def _add_legend(figure: Figure, panels: Mapping[str, Sequence[Curve]], names: Sequence[str], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for index, name in enumerate(names):
        colour, marker = _look(index)
        handles.append(Line2D([], [], color=colour, marker=marker, linewidth=1.6, markersize=6, label=name))
    handles.append(Line2D([], [], color=_FRONT, linewidth=7, label="Pareto front (filled markers)"))
    if any(spot.threshold for curves in panels.values() for curve in curves for spot in curve.spots):
        written = Line2D([], [], linestyle="", marker="$0.5$", color=_FAINT, label="threshold")
        written.set(markersize=13, markeredgewidth=0)
        handles.append(written)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=8.5)


def _label_spots(axes: Axes, curves: Sequence[Curve], names: Sequence[str]) -> None:
    """Write every threshold where it hides the least of the drawing and of the labels before it."""
    to_points = 72 / axes.figure.dpi

    def place(speed: float, accuracy: float) -> tuple[float, float]:
        x, y = axes.transData.transform((speed, accuracy))
        return float(x) * to_points, float(y) * to_points

    taken = [box for curve in curves for box in _obstacles(curve, place)]
    window = axes.get_window_extent()
    frame = (window.x0 * to_points, window.y0 * to_points, window.x1 * to_points, window.y1 * to_points)
    for curve in curves:
        colour = _darkened(_look(names.index(curve.name))[0])
        for spot in curve.spots:
            if not spot.threshold:
                continue
            x, y = place(spot.speed, spot.accuracy)
            boxes = [(shift, _label_box(x, y, shift, spot.threshold)) for shift in _SHIFTS]
            shift, box = min(boxes, key=lambda choice: _hidden(choice[1], taken, frame))
            taken.append(box)
            axes.annotate(
                spot.threshold, (spot.speed, spot.accuracy), xytext=shift, textcoords="offset points", ha="center",
                va="center", fontsize=_LABEL_POINTS, color=colour, zorder=5, in_layout=False,
            )  # fmt: skip


def _darkened(colour: str) -> tuple[float, ...]:
    """Darken the colour for thin strokes, which look paler than areas do."""
    from matplotlib.colors import to_rgb

    return tuple(0.7 * channel for channel in to_rgb(colour))


_SHIFTS = [
    (distance * math.cos(angle), distance * 0.8 * math.sin(angle))
    for distance in (11, 15, 20)
    for angle in (math.pi * turn / 8 for turn in (2, 6, 10, 14, 4, 12, 0, 8, 1, 3, 5, 7, 9, 11, 13, 15))
]
"""Offsets in points at which a label is tried, the preferred ones first."""


def _label_box(x: float, y: float, shift: tuple[float, float], label: str) -> Box:
    half_width, half_height = 0.32 * _LABEL_POINTS * len(label), 0.5 * _LABEL_POINTS
    x, y = x + shift[0], y + shift[1]
    return x - half_width, y - half_height, x + half_width, y + half_height


def _obstacles(curve: Curve, place: Callable[[float, float], tuple[float, float]]) -> Iterator[Box]:
    """List boxes over a curve's markers, error bars and line."""
    centres = [place(spot.speed, spot.accuracy) for spot in curve.spots]
    for spot, (x, y) in zip(curve.spots, centres, strict=True):
        yield x - 4, y - 4, x + 4, y + 4
        yield x - 1, place(spot.speed, spot.low)[1], x + 1, place(spot.speed, spot.high)[1]
    for (x0, y0), (x1, y1) in pairwise(centres):
        steps = max(2, int(math.hypot(x1 - x0, y1 - y0) / 3))
        for step in range(steps):
            x, y = x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps
            yield x - 1, y - 1, x + 1, y + 1


def _hidden(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """Measure the area in square points that a label would cover of what is drawn, or stick out of the frame with."""
    outside = (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)
    return 4 * outside + sum(_overlap(box, other) for other in taken)


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
