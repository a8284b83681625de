"""Slices that are sheared against their normal or unevenly spaced, resampled to an even, straight grid.

Works on arrays and positions alone, whatever file they come from. Every slice stays in its own plane: it is moved in
it to where its header puts it, and what lies between two slices is a mixture of both, at the same pixel of each. So a
series that is only tilted is never blurred across slices, and what is linear in space comes out exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: The new step is at least this share of the median one, so that one pair of close slices does not multiply the grid.
LEAST_STEP_SHARE = 0.5
#: How far, in steps, the new step may exceed the smallest one, so that rounded positions do not add a slice.
STEP_TOLERANCE = 0.1
#: Digits of a shift in voxels: beyond them lies rounding, which must not cost the last row or column.
SHIFT_DIGITS = 6


@dataclass(frozen=True, eq=False)
class Plan:
    """How N slices become an even, straight grid.

    Args:
        affine: (4, 4) voxel indices of the new grid to mm, in the world that the positions were given in.
        shape: (X, Y, Z) of the new grid.
        index: (Z,) where each new plane lies among the slices: 2.25 is a quarter of the way from slice 2 to slice 3.
        shift: (Z, 2) what is added to a new voxel's x and y index to give its index in the slices.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    index: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def keeps_slices(self) -> bool:
        """Whether every new plane is one of the slices, moved within its plane at most."""
        return bool((self.index == np.round(self.index)).all())

    @property
    def step_mm(self) -> float:
        """The new distance between planes."""
        return float(np.linalg.norm(self.affine[:3, 2]))

    def slice_at(self, plane: float) -> float:
        """Where a (fractional) plane of the new grid lies among the slices, counted from 0."""
        return float(np.interp(plane, np.arange(len(self.index)), self.index))


def plan(positions: NDArray[np.float64], axes: NDArray[np.float64], spacing: tuple[float, float],
         shape: tuple[int, int], *, step: float | None) -> Plan:
    """Lays an even, straight grid over slices, from their places alone.

    Within the slices the grid keeps their directions and pixel spacing and is as large as it takes to hold every
    slice whole. Across them it begins at the first slice and ends at the last. Where slices are unevenly spaced the
    smallest step is taken, so that nothing that was scanned finely is thinned out; but not less than half of the
    median, and evened out so that both ends stay where they are.

    Args:
        positions: (N, 3) centres of the slices' first pixels in mm, N of 2 or more, ascending along the third axis.
        axes: (3, 3) unit directions in columns: along x, along y, slice normal.
        spacing: Pixel spacing along x and y, in mm.
        shape: (X, Y) of a slice.
        step: The slice spacing in mm where the slices are evenly spaced, else None.
    """
    along = (positions - positions[0]) @ axes[:, 2]
    sideways = (positions - positions[0]) @ axes[:, :2] / spacing
    number = np.arange(len(along), dtype=np.float64)
    if step is None:
        count = max(int(np.ceil(along[-1] / new_step(np.diff(along)) - STEP_TOLERANCE)), 1) + 1
        index = np.round(np.interp(np.linspace(0, along[-1], count), along, number), SHIFT_DIGITS)
    else:
        index = number
    moved = np.stack([np.interp(index, number, sideways[:, axis]) for axis in range(2)], axis=1)
    origin = moved.min(axis=0)
    # Python's whole numbers: what a header claims may be beyond any other, and is refused by its size.
    extra = [int(n) for n in np.ceil(np.nan_to_num(np.round(moved.max(axis=0) - origin, SHIFT_DIGITS)))]
    affine = np.eye(4)
    affine[:3, :3] = axes * [*spacing, along[-1] / (len(index) - 1)]
    affine[:3, 3] = positions[0] + axes[:, :2] @ (origin * spacing)
    return Plan(affine, (shape[0] + extra[0], shape[1] + extra[1], len(index)), index,
                np.round(origin - moved, SHIFT_DIGITS))


def new_step(steps: NDArray[np.float64]) -> float:
    """The step in mm that the grid has, before it is evened out, for slices with these (N - 1,) steps."""
    return max(float(steps.min()), LEAST_STEP_SHARE * float(np.median(steps)))


def straightened(array: NDArray[Any], plan: Plan, *, labels: bool = False) -> NDArray[Any]:
    """Resamples slices as planned: linearly, in the type they have.

    What no slice covers, such as the wedges in front of and behind a tilted series, gets the lowest value of all
    slices: in an image that is what padding and air hold, and it adds no value that was not there.

    Args:
        array: (X, Y, N) values, whole numbers or real ones.
        plan: Where they go.
        labels: Take the nearest value in place of a mixture, and 0 where no slice is: for masks.

    Returns:
        (X', Y', Z) values of the same type; whole numbers are rounded.
    """
    low = 0 if labels else array.min()
    across, down, depth = plan.shape
    # Planes lie one after the other in memory, as the slices do.
    result = np.empty((depth, down, across), dtype=array.dtype)
    for number, (index, shift) in enumerate(zip(plan.index, plan.shift, strict=True)):
        below = int(index)
        part = index - below
        if labels:
            below, part = int(np.floor(index + 0.5)), 0.0
        plane = array[:, :, below].T.astype(np.float64)
        if part:
            plane = (1 - part) * plane + part * array[:, :, below + 1].T
        moved = ndimage.affine_transform(plane, np.ones(2), offset=shift[::-1], output_shape=(down, across),
                                         order=0 if labels else 1, mode="constant", cval=float(low))
        result[number] = np.rint(moved) if array.dtype.kind in "iu" else moved
    return result.transpose(2, 1, 0)
