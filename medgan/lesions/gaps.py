"""Missing slices: filled from the slices around them, the way the rest of the same scan says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medgan.lesions.removal import Filler, Void
from medgan.lesions.scans import Scan

#: A void that leaves less than this share of the tissue of the slices around it is a run of missing slices.
LEFT = 0.1
#: Slices on each side that a missing one is computed from, and in-plane voxels to each side in each of them.
NEAR, BESIDE = 3, 1
#: Places in the scan that show how; with fewer than the least, slices are interpolated linearly.
LEAST_EXAMPLES, MOST_EXAMPLES = 6, 32
#: Voxels of each place that are used.
EXAMPLE_VOXELS = 12_000
#: Share of the features' mean power that steadies the weights.
RIDGE = 1e-4


@dataclass(frozen=True)
class Gap:
    """Missing slices.

    Args:
        axis: Of the scan, along which the slices follow each other.
        start: The first one missing.
        stop: The first one after it that is there.
    """

    axis: int
    start: int
    stop: int


def find_gap(tissue: NDArray[np.bool_], void: Void) -> Gap | None:
    """The slices that a void takes from a scan whole; None where it leaves tissue in them.

    Args:
        tissue: (X, Y, Z) of the scan, the void's own voxels not trusted.
        void: A part of the mask.
    """
    for axis in (2, 1, 0):
        if tissue.shape[axis] == 1:
            continue
        others = tuple(a for a in range(3) if a != axis)
        touched = np.flatnonzero(void.hard.any(axis=others)) + void.box[axis].start
        gap = Gap(axis, int(touched[0]), int(touched[-1]) + 1)
        sides = [k for k in (gap.start - 1, gap.stop) if 0 <= k < tissue.shape[axis]]
        around = np.any([np.take(tissue, k, axis) for k in sides], axis=0) if sides else np.zeros(())
        if not around.any():
            continue
        window = tuple(void.box[a] for a in others)
        left = [np.count_nonzero(around) - np.count_nonzero(around[window] & np.take(void.hard, k, axis))
                for k in touched - void.box[axis].start]
        if max(left) < LEFT * np.count_nonzero(around):
            return gap
    return None


class AcrossGaps:
    """Fills missing slices from their neighbours and leaves every other void to another filler.

    The weights of neighbouring slices are fitted by least squares where the same scan is whole, one set for each
    channel and missing slice.

    Args:
        other: For voids with tissue around them in their own slices.
        tissue: (X, Y, Z) of the scan.
    """

    def __init__(self, other: Filler, tissue: NDArray[np.bool_]) -> None:
        self.other, self.tissue = other, tissue
        self.name = other.name
        self.gaps: list[Gap] = []
        self.others = 0

    def fill(self, scan: Scan, image: NDArray[np.float32], void: Void, seed: int) -> NDArray[np.float32]:
        """As `Filler.fill`."""
        gap = None if scan.planar else find_gap(self.tissue, void)
        if gap is None:
            self.others += 1
            return self.other.fill(scan, image, void, seed)
        self.gaps.append(gap)
        inside = [slice(None), *void.box]
        inside[1 + gap.axis] = slice(gap.start, gap.stop)
        part = [slice(None)] * 4
        part[1 + gap.axis] = slice(gap.start - void.box[gap.axis].start, gap.stop - void.box[gap.axis].start)
        # Slices beside the gap are measured: they keep their values, so the rim is given back as it is.
        wanted = image[(slice(None), *void.box)].copy()
        broken = np.asarray((scan.labels > 0).any(axis=tuple(a for a in range(3) if a != gap.axis)))
        for channel in range(len(image)):
            stack = np.moveaxis(image[channel], gap.axis, 2)
            made = np.moveaxis(slices_between(stack, broken, gap.start, gap.stop), 2, gap.axis)
            own = list(inside[1:])
            own[gap.axis] = slice(None)
            hard = void.hard[tuple(part[1:])]
            wanted[channel][tuple(part[1:])] = np.where(hard, made[tuple(own)], wanted[channel][tuple(part[1:])])
        return wanted


def slices_between(stack: NDArray[np.float32], broken: NDArray[np.bool_], start: int, stop: int) -> NDArray[np.float32]:
    """The missing slices of a stack.

    Args:
        stack: (X, Y, N).
        broken: (N,) slices that are not to be gone by, the missing ones included.
        start: The first missing slice.
        stop: The first one after it that is there.

    Returns:
        (X, Y, stop - start).
    """
    left, right = _whole(broken, start, -1), _whole(broken, stop - 1, 1)
    if left + right == 0:
        # Marked in part, but the nearest there are.
        left, right = int(start > 0), int(stop < len(broken))
    offsets = [-1 - k for k in range(left)] + [stop - start + k for k in range(right)]
    low, high = min(*offsets, 0), max(*offsets, stop - start - 1)
    places = [k for k in range(-low, len(broken) - high) if not broken[k + low : k + high + 1].any()]
    places = sorted(places, key=lambda k: abs(k - start))[:MOST_EXAMPLES]
    if len(places) < LEAST_EXAMPLES:
        return _linear(stack, start, stop, left > 0, right > 0)
    power: NDArray[np.float64] = np.zeros(())
    answer: NDArray[np.float64] = np.zeros(())
    for k in places:
        features = _features(stack, k, offsets)
        truth = stack[..., k : k + stop - start]
        seen = np.flatnonzero(features[..., :-1].max(axis=2) > features[..., :-1].min(axis=2))
        seen = seen[:: max(1, len(seen) // EXAMPLE_VOXELS)]
        known, sought = (a.reshape(-1, a.shape[2])[seen].astype(np.float64) for a in (features, truth))
        power, answer = power + known.T @ known, answer + known.T @ sought
    steady = RIDGE * np.trace(power) / len(power) * np.eye(len(power))
    weights = np.linalg.solve(power + steady, answer)
    return np.asarray(_features(stack, start, offsets) @ weights, np.float32)


def _whole(broken: NDArray[np.bool_], edge: int, way: int) -> int:
    """How many slices beside an edge are whole, up to `NEAR`."""
    count = 0
    while count < NEAR and 0 <= edge + way * (count + 1) < len(broken) and not broken[edge + way * (count + 1)]:
        count += 1
    return count


def _features(stack: NDArray[np.float32], place: int, offsets: list[int]) -> NDArray[np.float32]:
    """(X, Y, F): each voxel's neighbourhood in the slices at `offsets` from a place, and 1."""
    layers = []
    for offset in offsets:
        padded = np.pad(stack[..., place + offset], BESIDE, mode="edge")
        for x in range(2 * BESIDE + 1):
            for y in range(2 * BESIDE + 1):
                layers.append(padded[x : x + stack.shape[0], y : y + stack.shape[1]])
    return np.stack([*layers, np.ones(stack.shape[:2], np.float32)], axis=-1)


def _linear(stack: NDArray[np.float32], start: int, stop: int, left: bool, right: bool) -> NDArray[np.float32]:
    """Linear between the slices on both sides; the one there is, where there is only one."""
    before, after = stack[..., start - 1 if left else stop], stack[..., stop if right else start - 1]
    share = (np.arange(stop - start) + 1) / (stop - start + 1)
    return np.asarray((1 - share) * before[..., None] + share * after[..., None], np.float32)
