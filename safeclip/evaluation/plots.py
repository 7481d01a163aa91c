"""Plots of a report, as SVG that stands within a page."""

import io
import itertools
from typing import Any

import numpy as np

from safeclip.evaluation.retrieval import TASKS

# In the order of the encoders; more of them begin again.
ENCODER_COLOURS = ("#64748b", "#4338ca", "#b45309", "#0e7490", "#be185d", "#4d7c0f", "#7c3aed", "#0f172a")
# Of the sides of quadruplets: dots are texts, squares are pictures. The colours differ in lightness, too.
MAP_COLOURS = {"safe_text": "#22c55e", "safe_image": "#22c55e", "unsafe_text": "#991b1b", "unsafe_image": "#991b1b"}
_MAP_SIZE, _MAP_MARGIN, _DOT = 1000, 24, 15
_DIRECTIONS = (("o", TASKS[0], TASKS[2]), ("s", TASKS[1], TASKS[3]))  # dots are text queries, squares picture queries


def trade_off(encoders: dict[str, dict[str, Any]]) -> str:
    """Draws safety against retained ability, with 95% intervals and an arrow from the first encoder to each other.

    Args:
        encoders: the figures of the four tasks for each encoder, as metrics.json holds them.

    Returns:
        An `<svg>` element, without a size of its own.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "safeclip", "font.family": "sans-serif", "font.size": 12.5}
    with rc_context(style):
        figure = Figure(figsize=(5.2, 4), layout="constrained")
        axes = figure.add_subplot()
        for marker, kept, harmful in _DIRECTIONS:
            points = [_point(figures, kept, harmful) for figures in encoders.values()]
            for other in points[1:]:
                arrow = {"arrowstyle": "->", "color": "#94a3b8", "shrinkA": 7, "shrinkB": 7, "linewidth": 1.4}
                axes.annotate("", other[:2], points[0][:2], arrowprops=arrow, zorder=1)
            for (x, y, x_bounds, y_bounds), colour in zip(points, itertools.cycle(ENCODER_COLOURS), strict=False):
                axes.errorbar(
                    x, y, [[y - y_bounds[0]], [y_bounds[1] - y]], [[x - x_bounds[0]], [x_bounds[1] - x]],
                    marker=marker, markersize=8, color=colour, elinewidth=1.2, linestyle="", zorder=2,
                )  # fmt: skip
        axes.set(xlim=(-3, 103), ylim=(-3, 103))
        axes.set_xlabel("R@1 of safe queries, %   (right: abler)")
        axes.set_ylabel("100 − harmful@1, %   (up: safer)")
        axes.grid(color="#e2e8f0", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None}, transparent=True)
    return _inline(sink.getvalue())


def scatter(points: dict[str, np.ndarray], low: np.ndarray, high: np.ndarray) -> str:
    """Draws the sides of quadruplets as points in a square, safe ones beneath unsafe ones.

    A side is one path of strokes without length, whose ends show: a fifth of what as many circles take.

    Args:
        points: (n, 2) for each side of MAP_COLOURS.
        low: (2,), the lower left corner of what is shown.
        high: (2,), the upper right one.

    Returns:
        An `<svg>` element, without a size of its own.
    """
    room = _MAP_SIZE - 2 * _MAP_MARGIN
    paths = []
    for side, colour in MAP_COLOURS.items():
        places = _MAP_MARGIN + room * (points[side] - low) / np.maximum(high - low, 1e-9)
        places[:, 1] = _MAP_SIZE - places[:, 1]  # downward is more in an SVG
        marks = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in places)
        shape = "square" if side.endswith("image") else "round"
        # As a style: matplotlib's plots set it for all of a page, which outranks an attribute.
        paths.append(f'<path d="{marks}" stroke="{colour}" style="stroke-linecap: {shape}"/>')
    style = f'fill="none" stroke-width="{_DOT}" stroke-opacity="0.6"'
    box = f"0 0 {_MAP_SIZE} {_MAP_SIZE}"
    return f'<svg viewBox="{box}" aria-hidden="true"><g {style}>{"".join(paths)}</g></svg>'


def _point(figures: dict[str, Any], kept: str, harmful: str) -> tuple[float, float, list[float], list[float]]:
    x, x_bounds = figures[kept]["r@1"], figures[kept]["r@1_ci"]
    y, y_bounds = figures[harmful]["harmful@1"], figures[harmful]["harmful@1_ci"]
    return 100 * x, 100 * (1 - y), [100 * b for b in x_bounds], [100 * (1 - y_bounds[1]), 100 * (1 - y_bounds[0])]


def _inline(svg: str) -> str:
    start = svg.index("<svg")
    head, rest = svg[start:].split(">", 1)
    view = head.split('viewBox="')[1].split('"')[0]
    return f'<svg viewBox="{view}" xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true">{rest}'
