"""Refining big volumes slab by slab, so that memory holds the input, the output and little else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medgan.imaging.convert import cast
from medgan.imaging.intensity import IntensityMap
from medgan.imaging.restoration import in_order, regularised
from medgan.imaging.slices import Acquisition, along
from medgan.imaging.volume import Volume

#: Output voxels worked on at once; each takes about 20 bytes on the way.
SLAB_VOXELS = 16_000_000
#: Voxels beyond a slab that take part in the computation of each axis: the network sees no farther, and the linear
#: inverse dies away within. A slab is never shorter than this.
HALO = 20
#: A lowest value that more than this part of the voxels share is a floor (air, padding): nothing can be below it.
FLOOR_SHARE = 0.01


@dataclass(frozen=True)
class Pass:
    """The refinement of one slab along one axis.

    Args:
        axis: The spatial axis, 0 to 2.
        scan: How the whole axis was acquired, with the channel's noise.
        spacing_mm: Spacing before.
        seen: The slices in the slab.
        made: The fine voxels they give.
    """

    axis: int
    scan: Acquisition
    spacing_mm: tuple[float, ...]
    seen: slice
    made: slice

    @property
    def inverse(self) -> NDArray[np.float64]:
        """The part of the acquisition's inverse, (N, M)."""
        return _rows_to_one(self.scan.inverse[self.made, self.seen])

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The part of the acquisition's matrix, (M, N); right where nothing beyond the slab is missed."""
        return _rows_to_one(self.scan.matrix[self.seen, self.made])

    @property
    def back(self) -> NDArray[np.float64]:
        """The part of the way back from a difference of slices to one of fine voxels, (N, M)."""
        part: NDArray[np.float64] = self.scan.back[self.made, self.seen]
        return part

    @property
    def positions(self) -> NDArray[np.float64]:
        """Centres of the fine voxels, (N,), in slice spacings from the outer edge of the first slice seen."""
        return np.asarray(self.scan.positions[self.made] - self.seen.start)


class Sharpen(Protocol):
    """Adds detail to a linear reconstruction in place; see `medgan.learning.sharpening.Sharpener.add`."""

    def __call__(self, linear: NDArray[np.float32], thick: NDArray[np.float32], mapping: IntensityMap, step: Pass, *,
                 spread: bool) -> NDArray[np.float32] | None: ...


@dataclass(frozen=True)
class Refined:
    """What `refine` gives.

    Args:
        array: (C, X', Y', Z') of the volume's dtype.
        consistency: Root mean square difference between the input and the result acquired again (before rounding),
            over the input's intensity range, for each channel.
        deviation: (C, X', Y', Z') float32, what was added to the linear reconstruction, in the volume's units; None
            where it was not asked for.
        spread: (C, X', Y', Z') float32, how far the drawings differ between orientations and flips: their standard
            deviation, in the volume's units; None where it was not asked for.
    """

    array: NDArray[Any]
    consistency: tuple[float, ...]
    deviation: NDArray[np.float32] | None = None
    spread: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class _Slab:
    """A part of the slab axis: input voxels that are seen, output voxels they give, and those that are kept."""

    seen: slice
    made: slice
    kept: slice


def refine(
    volume: Volume, scans: Sequence[Acquisition], maps: Sequence[IntensityMap], *, sharpen: Sharpen | None = None,
    noises: Sequence[float] | None = None, maps_wanted: bool = False, slab_voxels: int = SLAB_VOXELS,
    progress: Callable[[int, int], None] | None = None,
) -> Refined:
    """Inverts the acquisition of each axis, the coarsest first.

    Where many voxels share the lowest value, the result does not undershoot it.

    Args:
        volume: (C, X, Y, Z).
        scans: The acquisition of each axis; a factor of 1 leaves it alone.
        maps: The intensity range of each channel; `sharpen` gets it too.
        sharpen: What to add to the linear reconstruction of each axis.
        noises: Each channel's noise instead of that of `scans`, over half the intensity range.
        maps_wanted: Whether to give the deviation and the spread.
        slab_voxels: How many output voxels are worked on at once; changes the result by less than 1e-3 of its range.
        progress: Told slabs done and in all.
    """
    dtype = volume.array.dtype
    if all(scan.factor == 1 for scan in scans):
        return Refined(volume.array.copy(), (0.0,) * volume.channels)
    output = np.empty((volume.channels, *(scan.fine for scan in scans)), dtype=dtype)
    extra = [np.zeros(output.shape, dtype=np.float32) if maps_wanted else None for _ in range(2)]
    axis = max(range(3), key=lambda a: (scans[a].factor == 1, volume.shape[a]))
    passes = sum(scan.factor > 1 for scan in scans)
    halo = HALO * passes if sharpen or scans[axis].factor > 1 else 0
    slabs = list(_slabs(scans[axis], output.size // volume.channels, slab_voxels, halo))
    squares = np.zeros(volume.channels)
    for channel, mapping in enumerate(maps):
        floor = _floor(volume.array[channel])
        noisy = scans if noises is None else [replace(scan, noise=noises[channel]) for scan in scans]
        if sharpen is None:
            noisy = [regularised(scan, volume.array[channel], a, (mapping.raw[0], mapping.raw[-1]))
                     for a, scan in enumerate(noisy)]
        for number, slab in enumerate(slabs):
            thick = volume.array[channel][_at(axis, slab.seen)].astype(np.float32)
            steps = list(_steps(noisy, volume.spacing_mm, axis, slab))
            fine, linear, spread = _refined(thick, steps, sharpen, mapping, maps_wanted)
            inner = _at(axis, slice(slab.kept.start - slab.made.start, slab.kept.stop - slab.made.start))
            place = (channel, *_at(axis, slab.kept))
            for image in (fine, linear):
                if image is not None:
                    np.maximum(image, np.float32(floor), out=image)
            again = _acquired(fine, steps)
            part = _at(axis, _coarse(scans[axis], slab))
            squares[channel] += float(np.square(again[part] - thick[part]).sum(dtype=np.float64))
            output[place] = cast(fine[inner], dtype)
            for target, values in zip(extra, (fine - linear if linear is not None else None, spread), strict=True):
                if target is not None and values is not None:
                    target[place] = values[inner]
            if progress:
                progress(channel * len(slabs) + number + 1, len(slabs) * volume.channels)
    spans = np.array([mapping.raw[-1] - mapping.raw[0] for mapping in maps])
    consistency = np.sqrt(squares / volume.array[0].size) / spans
    return Refined(output, tuple(float(c) for c in consistency), *extra)


def _at(axis: int, part: slice) -> tuple[slice, slice, slice]:
    """An index that cuts one of three axes."""
    whole = slice(None)
    return (part if axis == 0 else whole, part if axis == 1 else whole, part if axis == 2 else whole)


def _floor(channel: NDArray[Any]) -> float:
    """The lowest value where many voxels share it, else minus infinity."""
    lowest = channel.min()
    shared = sum(int(np.count_nonzero(part == lowest)) for part in channel)
    return float(lowest) if shared > FLOOR_SHARE * channel.size else -np.inf


def _slabs(scan: Acquisition, voxels: int, most: int, halo: int) -> Iterator[_Slab]:
    """Cuts the slab axis; each slab sees `halo` more slices on either side."""
    count = -(-voxels // most)
    length = max(1, halo, -(-scan.slices // count))
    for start in range(0, scan.slices, length):
        stop = min(scan.slices, start + length)
        seen = slice(max(0, start - halo), min(scan.slices, stop + halo))
        yield _Slab(seen, scan.within(seen), scan.within(slice(start, stop)))


def _coarse(scan: Acquisition, slab: _Slab) -> slice:
    """The coarse voxels that a slab's kept part answers for, counted from the first one seen."""
    centres = np.floor(scan.positions[[slab.kept.start, slab.kept.stop - 1]]).astype(int)
    return slice(max(0, int(centres[0]) - slab.seen.start), min(int(centres[1]) + 1, scan.slices) - slab.seen.start)


def _steps(scans: Sequence[Acquisition], spacing_mm: Sequence[float], cut: int, slab: _Slab) -> Iterator[Pass]:
    """What is to be done to a slab, the coarsest axis first."""
    spacing = list(spacing_mm)
    for axis, scan in in_order(scans, spacing_mm):
        whole = slice(0, scan.slices), slice(0, scan.fine)
        yield Pass(axis, scan, tuple(spacing), *((slab.seen, slab.made) if axis == cut else whole))
        spacing[axis] /= scan.factor


def _refined(array: NDArray[np.float32], steps: Sequence[Pass], sharpen: Sharpen | None, mapping: IntensityMap,
             maps_wanted: bool) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """A slab refined, the same by the linear way alone, and the spread."""
    plain = array if maps_wanted else None
    spread: NDArray[np.float32] | None = None
    for step in steps:
        thick, array = array, along(step.inverse, array, step.axis)
        plain = along(step.inverse, plain, step.axis) if plain is not None else None
        if sharpen is not None:
            differing = sharpen(array, thick, mapping, step, spread=maps_wanted)
            if differing is not None:
                # What earlier axes left uncertain stays so: each fine voxel has its slice's share of it.
                before = None if spread is None else np.take(
                    spread, np.floor(step.positions).astype(int), step.axis, mode="clip")
                spread = differing if before is None else np.hypot(before, differing)
    return array, plain, spread


def _acquired(array: NDArray[np.float32], steps: Sequence[Pass]) -> NDArray[np.float32]:
    """The slab acquired again; right in its middle, where nothing beyond it is missed."""
    for step in steps:
        array = along(step.matrix, array, step.axis)
    return array


def _rows_to_one(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A part of a matrix whose rows sum to one, made so again."""
    part: NDArray[np.float64] = matrix / matrix.sum(axis=1, keepdims=True)
    return part
