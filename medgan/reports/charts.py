"""Figures as inline SVG, and pictures as PNG, for a page that needs no other file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgan.reports.forest import ticks
from medgan.reports.sheets import GAP, grey, plane

#: Colours that people who see few of them tell apart as well (Okabe and Ito 2008): real blue, synthetic orange first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
REAL, MADE = COLOURS[:2]
INK, PALE, GRID, BAND = "#1f2933", "#6b7785", "#e3e8ee", "#cfd8e3"
#: An interval above 0, below 0, across 0.
BETTER, WORSE, OPEN = "#1a7f4b", "#b42318", "#3b5b8c"
#: Pixels around a figure: left, top, right, bottom.
MARGINS = (54, 14, 16, 44)
BINS = 40
#: More points of a curve than this would not be seen.
MOST_POINTS = 400


@dataclass(frozen=True)
class Interval:
    """One line of a figure of intervals.

    Args:
        name: What it is.
        mean: The figure.
        low: Lower end of its interval.
        high: Upper end.
        strong: Whether it is the one to look at.
    """

    name: str
    mean: float
    low: float
    high: float
    strong: bool = False


class _Axes:
    """A plain pair of axes in an SVG of a size."""

    def __init__(self, size: tuple[int, int], x: tuple[float, float], y: tuple[float, float], title: str,
                 labels: tuple[str, str]) -> None:
        self.size, self.range = size, (x, y)
        left, top, right, bottom = MARGINS
        self.box = (left, top, size[0] - right, size[1] - bottom)
        self.parts: list[str] = []
        self.title = title
        for value in ticks(*x, most=6):
            at = self.x(value)
            self.line(at, self.box[1], at, self.box[3], GRID)
            self.text(at, self.box[3] + 16, f"{value:g}", anchor="middle")
        for value in ticks(*y, most=6):
            at = self.y(value)
            self.line(self.box[0], at, self.box[2], at, GRID)
            self.text(self.box[0] - 6, at + 4, f"{value:g}", anchor="end")
        self.text((self.box[0] + self.box[2]) / 2, size[1] - 8, labels[0], anchor="middle", fill=INK)
        middle = (self.box[1] + self.box[3]) / 2
        self.parts.append(f'<text x="14" y="{middle:.1f}" text-anchor="middle" fill="{INK}" '
                          f'transform="rotate(-90 14 {middle:.1f})">{escape(labels[1])}</text>')

    def x(self, value: float) -> float:
        low, high = self.range[0]
        return self.box[0] + (self.box[2] - self.box[0]) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.range[1]
        return self.box[3] - (self.box[3] - self.box[1]) * (value - low) / (high - low)

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dash: str = ""
             ) -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
                          f'stroke-width="{width:g}"{dashed}/>')

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", fill: str = PALE, weight: str = "") -> None:
        bold = f' font-weight="{weight}"' if weight else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}"{bold}>'
                          f'{escape(text)}</text>')

    def path(self, points: Sequence[tuple[float, float]], colour: str, *, fill: str = "none", width: float = 2) -> None:
        drawn = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path d="M{drawn}" fill="{fill}" fill-opacity="0.18" stroke="{colour}" '
                          f'stroke-width="{width:g}" stroke-linejoin="round"/>')

    def svg(self) -> str:
        return _svg(self.size, self.parts, self.title)


def _svg(size: tuple[int, int], parts: Sequence[str], title: str) -> str:
    return (f'<svg viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" height="{size[1]}" role="img" '
            f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>')


def roc(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str) -> str:
    """ROC curves, a colour each.

    Args:
        curves: Name -> (false positive rate, true positive rate), both rising from 0 to 1.
        title: Read out where the figure cannot be seen.
    """
    axes = _Axes((400, 400), (0.0, 1.0), (0.0, 1.0), title, ("1 − specificity", "sensitivity"))
    axes.line(axes.x(0), axes.y(0), axes.x(1), axes.y(1), PALE, dash="4 4")
    for colour, (fpr, tpr) in zip(COLOURS, curves.values(), strict=False):
        x, y = np.asarray(fpr, float), np.asarray(tpr, float)
        kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).astype(int))
        axes.path([(axes.x(a), axes.y(b)) for a, b in zip(x[kept], y[kept], strict=True)], colour)
    return axes.svg()


def legend(names: Sequence[str], colours: Sequence[str] = COLOURS) -> str:
    """The names of a figure's colours, as HTML."""
    return '<ul class="legend">' + "".join(
        f'<li><span style="background:{colour}"></span>{escape(name)}</li>'
        for name, colour in zip(names, colours, strict=False)) + "</ul>"


def roc_points(positive: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(false positive rates, true positive rates) of (N,) scores, at every threshold."""
    truth, values = np.asarray(positive, bool), np.asarray(scores, np.float64)
    order = np.argsort(-values, kind="stable")
    lasts = np.flatnonzero(np.diff(values[order], append=np.nan) != 0)
    tpr, fpr = (np.concatenate([[0.0], np.cumsum(side[order])[lasts] / max(1, side.sum())])
                for side in (truth, ~truth))
    return fpr, tpr


def histogram(series: Mapping[str, ArrayLike], title: str, label: str, *, marks: Mapping[str, float] | None = None,
              within: tuple[float, float] | None = None, colours: Sequence[str] = COLOURS) -> str:
    """Histograms laid over each other, each as shares of its own values.

    Args:
        series: Name -> values.
        title: Read out where the figure cannot be seen.
        label: What is counted.
        marks: Name -> where a vertical line stands.
        within: Range of the axis; None: of the values.
        colours: Of the series.
    """
    values = {name: np.asarray(given, float).ravel() for name, given in series.items()}
    known = np.concatenate([*values.values(), np.array(list((marks or {}).values()))])
    low, high = within or (float(known.min()), float(known.max()))
    high = high if high > low else low + 1
    edges = np.linspace(low, high, BINS + 1)
    shares = {name: np.histogram(np.clip(given, low, high), edges)[0] / max(1, given.size)
              for name, given in values.items()}
    top = max(float(share.max()) for share in shares.values()) * 1.08 or 1.0
    axes = _Axes((520, 280), (low, high), (0.0, top), title, (label, "share"))
    for colour, share in zip(colours, shares.values(), strict=False):
        points = [(axes.x(low), axes.y(0))]
        for (left, right), height in zip(pairwise(edges), share, strict=True):
            points += [(axes.x(left), axes.y(height)), (axes.x(right), axes.y(height))]
        axes.path([*points, (axes.x(high), axes.y(0))], colour, fill=colour, width=1.5)
    for name, value in (marks or {}).items():
        axes.line(axes.x(value), axes.box[1], axes.x(value), axes.box[3], INK, dash="3 3", width=1.5)
        right = axes.x(value) > (axes.box[0] + axes.box[2]) / 2
        axes.text(axes.x(value) + (-5 if right else 5), axes.box[1] + 12, name, anchor="end" if right else "start",
                  fill=INK)
    return axes.svg()


def intervals(rows: Sequence[Interval], title: str, label: str, *, zero: bool = False) -> str:
    """A line for each figure with its interval.

    Args:
        rows: From top to bottom.
        title: Read out where the figure cannot be seen.
        label: What is measured.
        zero: Whether 0 is drawn and colours say on which side of it an interval lies.
    """
    names, line, width, foot = 230, 30, 640, 46
    known = [value for row in rows for value in (row.low, row.high, row.mean) if np.isfinite(value)] or [0.0, 1.0]
    low, high = min([*known, *([0.0] if zero else [])]), max([*known, *([0.0] if zero else [])])
    room = max(0.06 * (high - low), 0.004)
    low, high = low - room, high + room
    bottom = 8 + line * len(rows)
    parts: list[str] = []

    def x(value: float) -> float:
        return names + (width - names - 90) * (value - low) / (high - low)

    for tick in ticks(low, high):
        strong = zero and tick == 0
        parts.append(f'<line x1="{x(tick):.1f}" y1="4" x2="{x(tick):.1f}" y2="{bottom}" '
                     f'stroke="{PALE if strong else GRID}" stroke-width="{1.5 if strong else 1}"/>'
                     f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle" fill="{PALE}">'
                     f'{f"{tick:+g}" if zero and tick else f"{tick:g}"}</text>')
    for number, row in enumerate(rows):
        y = 8 + line * number + line / 2
        colour = OPEN if not zero or row.low <= 0 <= row.high else BETTER if row.low > 0 else WORSE
        weight = ' font-weight="600"' if row.strong else ""
        parts.append(f'<text x="0" y="{y + 4:.1f}" fill="{INK}"{weight}>{escape(row.name)}</text>')
        if not np.isfinite([row.mean, row.low, row.high]).all():
            parts.append(f'<text x="{names}" y="{y + 4:.1f}" fill="{PALE}">not known</text>')
            continue
        parts.append(f'<line x1="{x(row.low):.1f}" y1="{y}" x2="{x(row.high):.1f}" y2="{y}" stroke="{colour}" '
                     f'stroke-width="{3 if row.strong else 2}"/><circle cx="{x(row.mean):.1f}" cy="{y}" '
                     f'r="{5 if row.strong else 4}" fill="{colour}"/><text x="{width}" y="{y + 4:.1f}" '
                     f'text-anchor="end" fill="{INK}"{weight}>{row.mean:{"+" if zero else ""}z.3f}</text>')
    parts.append(f'<text x="{(names + width - 90) / 2:.1f}" y="{bottom + 36}" text-anchor="middle" fill="{INK}">'
                 f'{escape(label)}</text>')
    return _svg((width, bottom + foot), parts, title)


def against_floor(value: float, low: float, high: float, floor: float, floor_sd: float, title: str) -> str:
    """A small figure for a table: the value with its interval beside the band in which real against real lies."""
    width, height = 150, 22
    if not np.isfinite([value, floor, floor_sd]).all():
        return ""
    ends = [v for v in (value, low, high, floor - 2 * floor_sd, floor + 2 * floor_sd) if np.isfinite(v)]
    least, most = min(ends), max(ends)
    room = max(0.08 * (most - least), 1e-9)

    def x(at: float) -> float:
        return width * (at - least + room) / (most - least + 2 * room)

    left, right = x(floor - 2 * floor_sd), x(floor + 2 * floor_sd)
    parts = [f'<rect x="{left:.1f}" y="2" width="{max(3.0, right - left):.1f}" height="18" fill="{BAND}" rx="2"/>']
    if np.isfinite([low, high]).all():
        parts.append(f'<line x1="{x(low):.1f}" y1="11" x2="{x(high):.1f}" y2="11" stroke="{MADE}" stroke-width="2"/>')
    parts.append(f'<circle cx="{x(value):.1f}" cy="11" r="4.5" fill="{MADE}"/>')
    return _svg((width, height), parts, title)


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) as the bytes of a PNG file; grey ones take a third of the room."""
    from PIL import Image

    plain = picture[..., 0] if (picture == picture[..., :1]).all() else picture
    held = io.BytesIO()
    Image.fromarray(plain).save(held, format="PNG", optimize=True)
    return held.getvalue()


def picture_of(image: NDArray[Any], *, lines_down: bool, zoom: int = 1) -> NDArray[np.uint8]:
    """One grey picture of an image (C, X, Y[, Z]) in network values: first channel, middle slice.

    Args:
        image: The image.
        lines_down: Whether its second axis runs down the page, as in rasters; else up, as in RAS.
        zoom: Whole-number enlargement.
    """
    picture = grey(plane(image, lines_down=lines_down))
    return picture.repeat(zoom, 0).repeat(zoom, 1)


def grid(pictures: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Pictures (H, W, 3) of one size in rows of `columns`, white between them."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    made = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        made[top : top + height, left : left + width] = picture
    return made
