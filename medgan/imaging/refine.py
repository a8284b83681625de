"""Refining big volumes slab by slab, so that memory holds the input, the output and little else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medgan.config import Intensity
from medgan.imaging.convert import cast
from medgan.imaging.intensity import IntensityMap, intensity_maps
from medgan.imaging.restoration import in_order
from medgan.imaging.slices import Acquisition, along
from medgan.imaging.volume import Volume

#: Output voxels worked on at once; each takes about 20 bytes on the way.
SLAB_VOXELS = 24_000_000
#: Voxels beyond a slab that take part in its computation: farther ones change it by less than rounding does.
HALO = 16
#: A lowest value that more than this part of the voxels share is a floor (air, padding): nothing can be below it.
FLOOR_SHARE = 0.01


class Sharpen(Protocol):
    """Adds detail to a linear reconstruction in place; see `medgan.learning.sharpening.Sharpener.add`."""

    def __call__(self, linear: NDArray[np.float32], thick: NDArray[np.float32], maps: Sequence[IntensityMap],
                 axis: int, scan: Acquisition, position: NDArray[np.float64], spacing_mm: Sequence[float]) -> None: ...


@dataclass(frozen=True)
class _Slab:
    """A part of the slab axis: input voxels that are seen, output voxels they give, and those that are kept."""

    seen: slice
    made: slice
    kept: slice


def refine(
    volume: Volume, scans: Sequence[Acquisition], *, sharpen: Sharpen | None = None,
    maps: Sequence[IntensityMap] | None = None, slab_voxels: int = SLAB_VOXELS,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[Any], float]:
    """Inverts the acquisition of each axis, the coarsest first.

    Where many voxels share the lowest value, the result does not undershoot it.

    Args:
        volume: (C, X, Y, Z).
        scans: The acquisition of each axis; a factor of 1 leaves it alone.
        sharpen: What to add to the linear reconstruction of each axis.
        maps: What `sharpen` gets, one for each channel; by default the foreground's percentiles.
        slab_voxels: How many output voxels are worked on at once; changes the result by less than 1e-3 of its range.
        progress: Told slabs done and in all.

    Returns:
        (C, X', Y', Z') of the volume's dtype, and the consistency: the root mean square difference between the
        input and the result acquired again (before rounding), over the input's intensity range.
    """
    dtype = volume.array.dtype
    spans = intensity_maps(volume.array, Intensity())
    floors = [_floor(channel) for channel in volume.array]
    maps = maps or spans
    output = np.empty((volume.channels, *(scan.fine for scan in scans)), dtype=dtype)
    axis = max(range(3), key=lambda a: (scans[a].factor == 1, volume.shape[a]))
    slabs = list(_slabs(scans[axis], output.size // volume.channels, slab_voxels, alone=sharpen is None))
    squares = 0.0
    for number, slab in enumerate(slabs):
        for channel in range(volume.channels):
            seen = (slice(channel, channel + 1), *(slab.seen if a == axis else slice(None) for a in range(3)))
            thick = volume.array[seen].astype(np.float32)
            fine = _refined(thick, scans, volume.spacing_mm, axis, slab, sharpen, maps[channel : channel + 1])
            again = _acquired(fine, scans, axis, slab)
            inner = slice(slab.kept.start - slab.made.start, slab.kept.stop - slab.made.start)
            center = _coarse(scans[axis], slab)
            part = (slice(None),) * (axis + 1) + (center,)
            span = spans[channel].raw[-1] - spans[channel].raw[0]
            squares += float(np.square((again[part] - thick[part]) / span, dtype=np.float32).sum(dtype=np.float64))
            kept = np.maximum(fine[(slice(None),) * (axis + 1) + (inner,)], np.float32(floors[channel]))
            output[(slice(channel, channel + 1), *(slab.kept if a == axis else slice(None) for a in range(3)))] = (
                cast(kept, dtype))
        if progress:
            progress(number + 1, len(slabs))
    return output, float(np.sqrt(squares / volume.array.size))


def _floor(channel: NDArray[Any]) -> float:
    """The lowest value where many voxels share it, else minus infinity."""
    lowest = channel.min()
    shared = sum(int(np.count_nonzero(part == lowest)) for part in channel)
    return float(lowest) if shared > FLOOR_SHARE * channel.size else -np.inf


def _slabs(scan: Acquisition, voxels: int, most: int, *, alone: bool) -> Iterator[_Slab]:
    """Cuts the slab axis; `alone` where nothing but the axis' own inverse looks beyond a slab."""
    halo = 0 if alone and scan.factor == 1 else HALO
    count = -(-voxels // most)
    length = max(1, halo, -(-scan.slices // count))
    for start in range(0, scan.slices, length):
        stop = min(scan.slices, start + length)
        seen = slice(max(0, start - halo), min(scan.slices, stop + halo))
        yield _Slab(seen, _fine(scan, seen), _fine(scan, slice(start, stop)))


def _fine(scan: Acquisition, coarse: slice) -> slice:
    """The fine voxels whose centres lie within coarse ones; the last one takes whatever lies beyond."""
    start = int(np.searchsorted(scan.positions, coarse.start))
    stop = scan.fine if coarse.stop == scan.slices else int(np.searchsorted(scan.positions, coarse.stop))
    return slice(start, stop)


def _coarse(scan: Acquisition, slab: _Slab) -> slice:
    """The coarse voxels that a slab's kept part answers for, counted from the first one seen."""
    centres = np.floor(scan.positions[[slab.kept.start, slab.kept.stop - 1]]).astype(int)
    return slice(max(0, int(centres[0]) - slab.seen.start), min(int(centres[1]) + 1, scan.slices) - slab.seen.start)


def _refined(array: NDArray[np.float32], scans: Sequence[Acquisition], spacing_mm: Sequence[float], cut: int,
             slab: _Slab, sharpen: Sharpen | None, maps: Sequence[IntensityMap]) -> NDArray[np.float32]:
    spacing = list(spacing_mm)
    for axis, scan in in_order(scans, spacing_mm):
        matrix, position = scan.inverse, scan.positions
        if axis == cut:
            matrix = _rows_to_one(matrix[slab.made, slab.seen])
            position = position[slab.made] - slab.seen.start
        linear = along(matrix, array, axis + 1)
        if sharpen is not None:
            sharpen(linear, array, maps, axis, scan, position, spacing)
        array = linear
        spacing[axis] /= scan.factor
    return array


def _acquired(array: NDArray[np.float32], scans: Sequence[Acquisition], cut: int, slab: _Slab) -> NDArray[np.float32]:
    """The slab acquired again; right in its middle, where nothing beyond it is missed."""
    for axis, scan in enumerate(scans):
        if scan.factor > 1:
            matrix = _rows_to_one(scan.matrix[slab.seen, slab.made]) if axis == cut else scan.matrix
            array = along(matrix, array, axis + 1)
    return array


def _rows_to_one(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A part of a matrix whose rows sum to one, made so again."""
    part: NDArray[np.float64] = matrix / matrix.sum(axis=1, keepdims=True)
    return part
