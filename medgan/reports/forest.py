"""A figure of differences with their intervals: a line for each pair, a panel for each measure and test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Pixels: of a line, of the names on the left, of a panel, of a panel's head and foot, between panels.
LINE, NAMES, PANEL, HEAD, FOOT, GAP = 26, 250, 300, 46, 30, 24
FONT = 13
#: Kept free on either side of what is drawn, in the measure's unit.
LEAST_ROOM = 0.002
INK, PALE, GRID = (30, 30, 30), (120, 120, 120), (225, 225, 225)
#: An interval above 0, below 0, across 0.
BETTER, WORSE, OPEN = (20, 120, 60), (190, 40, 40), (60, 90, 160)
#: Measures that have a panel, those that are there, and whether less is better.
PANELS = {"dice": ("Dice", False), "sensitivity": ("lesions found", False),
          "false_positives": ("false positives a case", True), "slice_auroc": ("slice AUROC, segmenter", False),
          "auroc": ("AUROC, classifier", False)}
#: The only arm whose differences are drawn.
BASELINE = "real"


def forest(tests: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> NDArray[np.uint8]:
    """Draws every arm's difference from the baseline.

    Args:
        tests: Test set -> what `compare_study` gives.
        titles: Arm -> what it is called.

    Returns:
        (H, W, 3) RGB.
    """
    return np.concatenate(_same_width([_row(name, test, titles) for name, test in tests.items()]))


def _row(name: str, test: Mapping[str, Any], titles: Mapping[str, str]) -> NDArray[np.uint8]:
    """All panels of a test set."""
    from PIL import Image, ImageDraw, ImageFont

    changes = {pair.removesuffix(f" - {BASELINE}"): values for pair, values in test["differences"].items()
               if pair.endswith(f" - {BASELINE}")}
    measures = [key for key in PANELS if all(key in values for values in changes.values())]
    picture = Image.new("RGB", (NAMES + len(measures) * (PANEL + GAP), HEAD + FOOT + LINE * len(changes)), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT)
    draw.text((8, 4), f"{name}: difference from {titles[BASELINE]}, 95 % intervals", INK, font)
    for number, arm in enumerate(changes):
        draw.text((8, HEAD + LINE * number + 4), titles.get(arm, arm), INK, font)
    for column, measure in enumerate(measures):
        title, falling = PANELS[measure]
        left = NAMES + column * (PANEL + GAP)
        draw.text((left, 24), title, INK, font)
        _panel(draw, font, left, [values[measure] for values in changes.values()], falling)
    return np.asarray(picture)


def _panel(draw: Any, font: Any, left: int, values: Sequence[Mapping[str, float]], falling: bool) -> None:
    known = [value[key] for value in values for key in ("low", "high") if np.isfinite(value[key])]
    low, high = min([*known, 0.0]), max([*known, 0.0])
    room = max(0.05 * (high - low), LEAST_ROOM)
    low, high = low - room, high + room
    bottom = HEAD + LINE * len(values)

    def x(value: float) -> float:
        return left + PANEL * (value - low) / (high - low)

    for tick in ticks(low, high):
        draw.line([(x(tick), HEAD), (x(tick), bottom)], PALE if tick == 0 else GRID, 1)
        draw.text((x(tick) - 14, bottom + 6), f"{tick:+g}" if tick else "0", PALE, font)
    for number, value in enumerate(values):
        if not np.isfinite([value["mean"], value["low"], value["high"]]).all():
            continue
        y = HEAD + LINE * number + LINE // 2
        up, down = (WORSE, BETTER) if falling else (BETTER, WORSE)
        shown = value["low"] < value["high"]
        colour = up if shown and value["low"] > 0 else down if shown and value["high"] < 0 else OPEN
        draw.line([(x(value["low"]), y), (x(value["high"]), y)], colour, 2)
        draw.ellipse([(x(value["mean"]) - 4, y - 4), (x(value["mean"]) + 4, y + 4)], colour)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, 0 among them where it lies between; `most` or fewer."""
    step = 10.0 ** np.floor(np.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) < most)
    return [round(float(step * n), 10) for n in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _same_width(pictures: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    width = max(picture.shape[1] for picture in pictures)
    return [np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)
            for picture in pictures]
