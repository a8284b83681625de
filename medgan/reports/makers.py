"""One picture of real lesions and of what each maker makes: the same scale, the same window, lesion by lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.lesions.crops import Grid
from medgan.lesions.scans import Scan
from medgan.lesions.shapes import find_lesions
from medgan.reports.sheets import grey, outlined, sheet

#: Edge of the pictures over the extent of the largest lesion shown, and the least of it in millimetres.
FIELD, LEAST_MM = 1.6, 32.0
#: Edge of the pictures, in pixels.
PIXELS = 128
#: Percentiles of what the real lesions' pictures show that become black and white.
WINDOW = (1.0, 99.5)


@dataclass(frozen=True, eq=False)
class Shown:
    """The section of a lesion with most voxels, with what lies around it.

    Args:
        image: (C, X, Y) network values of the slice.
        labels: (X, Y) label indices of the slice.
        spacing_mm: (2,).
        centre: (2,) voxel position of the lesion's middle.
        extent_mm: Largest edge of its bounding box.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    spacing_mm: NDArray[np.float64]
    centre: NDArray[np.float64]
    extent_mm: float


def shown(scan: Scan) -> list[Shown]:
    """A scan's lesions, largest first."""
    views = []
    for lesion in find_lesions(scan):
        k = int((lesion.labels > 0).sum(axis=(0, 1)).argmax())
        middle = np.argwhere(lesion.labels[:, :, k] > 0).mean(axis=0) + lesion.corner[:2]
        at = int(lesion.corner[2]) + k
        views.append(Shown(scan.image[..., at].copy(), scan.labels[..., at].copy(), scan.spacing_mm[:2], middle,
                           lesion.extent_mm))
    return views


def makers_sheet(rows: Mapping[str, Sequence[Shown]], *, most: int = 8) -> NDArray[np.uint8]:
    """A contact sheet with two rows for each kind of lesion: as it is, and with the borders of the mask.

    All pictures have the same millimetres a pixel and the same window, that of the first row; a column holds lesions
    of about the same extent.

    Args:
        rows: What a row is called -> its lesions; real ones first. Rows without lesions are left out.
        most: Columns at most.

    Returns:
        (H, W, 3) RGB.

    Raises:
        ValueError: There is no lesion in any row.
    """
    kinds = {name: list(views) for name, views in rows.items() if views}
    if not kinds:
        raise ValueError("no lesion to show")
    columns = _columns(kinds, most)
    field = max(LEAST_MM, FIELD * max(view.extent_mm for row in columns.values() for view in row))
    pictures = {name: [_cut(view, field) for view in row] for name, row in columns.items()}
    reference = next(iter(pictures.values()))
    bands: list[tuple[str, list[NDArray[np.uint8]]]] = []
    channels = len(reference[0][0])
    for channel in range(channels):
        low, high = (float(v) for v in np.percentile(np.stack([image[channel] for image, _ in reference]), WINDOW))
        high = max(high, low + 0.05)
        of = f", channel {channel}" if channels > 1 else ""
        for name, row in pictures.items():
            bands.append((f"{name}{of} ({field / PIXELS:.2g} mm a pixel)",
                          [grey(image[channel], low, high) for image, _ in row]))
            bands.append((f"{name}{of}, mask", [outlined(image[channel], labels, low, high) for image, labels in row]))
    return sheet(bands)


def _columns(kinds: Mapping[str, Sequence[Shown]], most: int) -> dict[str, list[Shown]]:
    """For each lesion of the first row, evenly over its sizes, the unused lesion nearest in extent of every other."""
    first = sorted(next(iter(kinds.values())), key=lambda view: -view.extent_mm)
    chosen = [first[n] for n in np.unique(np.linspace(0, len(first) - 1, min(most, len(first))).round().astype(int))]
    columns: dict[str, list[Shown]] = {}
    for number, (name, views) in enumerate(kinds.items()):
        if number == 0:
            columns[name] = chosen
            continue
        free, row = list(views), []
        for wanted in chosen:
            if free:
                nearest = min(range(len(free)), key=lambda n: abs(np.log(free[n].extent_mm / wanted.extent_mm)))
                row.append(free.pop(nearest))
        # A data set with one real lesion still has more than one made one to show.
        row += sorted(free, key=lambda view: -view.extent_mm)[: max(0, most - len(row))]
        columns[name] = row
    return columns


def _cut(view: Shown, field_mm: float) -> tuple[NDArray[np.float32], NDArray[Any]]:
    step = np.array([*(field_mm / PIXELS / view.spacing_mm), 1.0])
    grid = Grid(np.array([*view.centre, 0.0]), step, (PIXELS, PIXELS, 1))
    image = np.stack([grid.cut(channel[..., None], order=1)[..., 0] for channel in view.image])
    return image.astype(np.float32), grid.cut(view.labels[..., None], order=0)[..., 0]
