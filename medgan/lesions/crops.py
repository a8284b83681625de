"""The working grid: crops around a place at the network's spacing, and the way back to the scan's own grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.lesions.shapes import equivalent_diameter, signed_distance

#: A lesion fills at most this share of the crop's edge; larger ones are worked on at a coarser spacing.
LARGEST_SHARE = 0.62
#: Sizes enter the network as log(size / this), in mm.
SIZE_UNIT_MM = 10.0


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of working voxels in a scan.

    Args:
        centre: (3,) voxel position of its middle in the scan.
        step: (3,) scan voxels from one working voxel to the next.
        shape: (3,) working voxels; the third is 1 for a slice.
    """

    centre: NDArray[np.float64]
    step: NDArray[np.float64]
    shape: tuple[int, int, int]

    @property
    def origin(self) -> NDArray[np.float64]:
        """(3,) scan position of its first voxel."""
        return np.asarray(self.centre - self.step * (np.array(self.shape) - 1) / 2)

    def cut(self, array: NDArray[Any], *, order: int) -> NDArray[Any]:
        """Samples a scan's array (X, Y, Z) on this grid; edges are continued. Order 0 is for labels."""
        start = np.floor(self.origin).astype(int) - 3
        stop = np.ceil(self.origin + self.step * (np.array(self.shape) - 1)).astype(int) + 4
        size = np.array(array.shape)
        start, stop = np.clip(start, 0, size - 1), np.clip(stop, 1, size)
        box = array[tuple(slice(a, b) for a, b in zip(start, np.maximum(stop, start + 1), strict=True))]
        if order > 0 and self.step.max() > 1.2:
            # Averaged over the working voxel, or fine texture would alias into the coarser grid.
            box = ndimage.gaussian_filter(box, np.maximum(0, self.step - 1) * 0.5)
        return np.asarray(ndimage.affine_transform(box, self.step, self.origin - start, output_shape=self.shape,
                                                   order=order, mode="nearest"))

    def back(self, array: NDArray[np.float32], box: tuple[slice, ...]) -> NDArray[np.float32]:
        """Samples this grid's array at the scan voxels of `box`, linearly; outside it the edge is continued."""
        start = np.array([s.start for s in box])
        shape = tuple(s.stop - s.start for s in box)
        return np.asarray(ndimage.affine_transform(array, 1 / self.step, (start - self.origin) / self.step,
                                                   output_shape=shape, order=1, mode="nearest"))


def working_spacing(extent_mm: float, finest_mm: float, crop: int) -> float:
    """The spacing at which a lesion of this extent is worked on: the finest at which it fits the crop well."""
    return max(finest_mm, extent_mm / (LARGEST_SHARE * crop))


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the networks are told of a lesion, for one crop.

    Args:
        labels: (L, ...) one-hot.
        distance: (1, ...) signed distance.
        condition: (L + K + 2,) log size, share of each label, one-hot texture cluster, 1 where there is a lesion.
    """

    labels: NDArray[np.float32]
    distance: NDArray[np.float32]
    condition: NDArray[np.float32]


def encode(labels: NDArray[np.uint8], count: int, spacing_mm: float, textures: int = 0, texture: int = 0) -> Encoded:
    """Encodes a crop's label indices (n, n[, n]) of `count` labels on a working grid of `spacing_mm`.

    Args:
        labels: Label indices 1..count.
        count: Labels L.
        spacing_mm: Of the working grid.
        textures: Texture clusters K.
        texture: Which of them the lesion belongs to.
    """
    one_hot = np.stack([(labels == value) for value in range(1, count + 1)]).astype(np.float32)
    voxels = int((labels > 0).sum())
    condition = np.zeros(count + textures + 2, np.float32)
    if voxels:
        spacing = np.full(3, spacing_mm)
        condition[0] = np.log(equivalent_diameter(voxels, spacing, labels.ndim == 2) / SIZE_UNIT_MM)
        condition[1 : count + 1] = one_hot.reshape(count, -1).sum(axis=1) / voxels
        if textures:
            condition[1 + count + texture] = 1
        condition[-1] = 1
    return Encoded(one_hot, signed_distance(labels, labels.shape[0] / 8)[None], condition)
