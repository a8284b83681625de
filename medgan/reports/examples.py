"""Pictures of what was put into scans: before, the mask, after, cut around each lesion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.config import Intensity
from medgan.datasets.provenance import Lesion
from medgan.imaging.geometry import reorient
from medgan.imaging.intensity import intensity_maps
from medgan.imaging.planar import lines_down
from medgan.imaging.volume import Volume
from medgan.reports.sheets import grey, outlined, sheet

#: Edge of the pictures, in millimetres, over the lesion's diameter; and the least of it.
FIELD, LEAST_MM = 3.2, 48.0
#: Edge of the pictures, in pixels.
PIXELS = 160


def lesion_examples(cases: Sequence[tuple[Volume, Volume, Volume, Sequence[Lesion]]], settings: Intensity, *,
                    most: int = 8) -> NDArray[np.uint8]:
    """A contact sheet with a column for each new lesion: tissue before, the mask, the tissue after.

    Args:
        cases: (parent, synthetic image, synthetic mask, records of the new lesions).
        settings: How values become grey.
        most: Columns at most; the cases take turns, each with its largest lesions first.

    Returns:
        (H, W, 3) RGB.
    """
    largest = [(case, sorted(case[3], key=lambda lesion: -lesion.voxels)) for case in cases]
    turns = [(case, lesions[n]) for n in range(max((len(lesions) for _, lesions in largest), default=0))
             for case, lesions in largest if n < len(lesions)]
    channels = cases[0][0].channels
    rows: list[tuple[str, list[NDArray[np.uint8]]]] = []
    for channel in range(channels):
        of = f" (channel {channel})" if channels > 1 else ""
        columns = [_column(case[0], case[1], case[2], lesion, settings, channel) for case, lesion in turns[:most]]
        rows += [(f"before{of}", [c[0] for c in columns]),
                 (f"after, with mask{of}", [c[1] for c in columns]),
                 (f"after{of}", [c[2] for c in columns])]
    return sheet(rows)


def _column(parent: Volume, made: Volume, mask: Volume, lesion: Lesion, settings: Intensity, channel: int
            ) -> list[NDArray[np.uint8]]:
    if parent.dims == 3:
        parent, made, mask = (reorient(v) for v in (parent, made, mask))
    values = intensity_maps(parent.array, settings)[channel]
    centre = np.linalg.solve(parent.affine, np.append(_three(lesion.centre_mm), 1.0))[:3]
    field = max(LEAST_MM, FIELD * lesion.size_mm)
    planes: list[NDArray[Any]] = [_plane(volume.array[c], centre, field, volume.spacing_mm, order)
                                  for volume, c, order in ((parent, channel, 1), (made, channel, 1), (mask, 0, 0))]
    if lines_down(parent):
        planes = [plane[:, ::-1] for plane in planes]
    before, after = values.forward(planes[0]), values.forward(planes[1])
    low, high = np.percentile(before, [1, 99.5])
    high = max(float(high), float(low) + 0.2, float(np.percentile(after, 99.5)))
    return [grey(before, low, high), outlined(after, planes[2], low, high), grey(after, low, high)]


def _plane(array: NDArray[Any], centre: NDArray[np.float64], field_mm: float, spacing_mm: Sequence[float],
           order: int) -> NDArray[Any]:
    """A square (PIXELS, PIXELS) around `centre`, in the slice nearest to it."""
    from scipy import ndimage

    plane = array if array.ndim == 2 else array[:, :, int(np.clip(np.rint(centre[2]), 0, array.shape[2] - 1))]
    step = field_mm / PIXELS / np.array(spacing_mm[:2])
    offset = centre[:2] - step * (PIXELS - 1) / 2
    return np.asarray(ndimage.affine_transform(plane.astype(np.float32), step, offset, output_shape=(PIXELS,) * 2,
                                               order=order, mode="constant", cval=float(plane.min())))


def _three(position: Sequence[float]) -> tuple[float, ...]:
    return (*position, 0.0, 0.0)[:3]
