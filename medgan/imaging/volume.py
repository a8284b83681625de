"""`Volume`: an array with its place in the patient, the one image type of medgan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medgan.config import Modality as Modality
from medgan.errors import Note, Refused

#: Farther from the origin than this, in mm, nothing is; larger numbers overflow, or lose the spacing, on the way.
FARTHEST_MM = 1e9


@dataclass(frozen=True, eq=False)
class Volume:
    """A 2D or 3D image with C channels and its affine.

    Args:
        array: (C, X, Y) or (C, X, Y, Z), any real dtype; the reader keeps the stored integer type where the
            values fit it. Axis 1 is the first voxel axis of `affine`.
        affine: (4, 4) float64, voxel indices to RAS+ millimetres: x grows towards the patient's
            right, y towards the front, z towards the head. A 2D image uses the first two columns;
            the third holds the slice normal.
        modality: `ct`, `mr`, `xray`, `us` or None where the file does not say.
        source: The file or folder it was read from.
        notes: What was odd about the input and taken all the same.
        slice_thickness_mm: Full width of a slice along the third axis as the file says; None where it does not.
            Whatever resamples or permutes the third axis sets it to None.

    Raises:
        Refused: `DIM_UNSUPPORTED`, `GEOM_BAD_AFFINE` or `GEOM_SINGULAR_AFFINE`.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    modality: Modality | None = None
    source: Path | None = None
    notes: tuple[Note, ...] = ()
    slice_thickness_mm: float | None = None

    def __post_init__(self) -> None:
        where = self.source or "array"
        if self.array.ndim not in (3, 4) or 0 in self.array.shape:
            raise Refused("DIM_UNSUPPORTED", where, f"an array of shape {self.array.shape} is not (C, X, Y[, Z])",
                          "Add a channel axis in front and give every axis at least one voxel")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise Refused("GEOM_BAD_AFFINE", where, "the affine is not a finite 4x4 matrix",
                          "Give the voxel-to-millimetre matrix of the image")
        if np.abs(affine).max() > FARTHEST_MM:
            raise Refused("GEOM_BAD_AFFINE", where, f"the affine holds numbers above {FARTHEST_MM:g} mm",
                          "Correct the spacing and the position in the header")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise Refused("GEOM_SINGULAR_AFFINE", where, "the affine cannot be inverted",
                          "Give a matrix with three independent axes")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)

    @property
    def dims(self) -> Literal[2, 3]:
        """2 or 3, the number of spatial axes."""
        return 2 if self.array.ndim == 3 else 3

    @property
    def channels(self) -> int:
        """The number of channels C."""
        return int(self.array.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape (X, Y[, Z]) in voxels."""
        return tuple(int(n) for n in self.array.shape[1:])

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel spacing along each spatial axis, in mm."""
        lengths = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return tuple(float(s) for s in lengths[: self.dims])

    @property
    def orientation(self) -> str:
        """Axis codes such as `RAS` or `LPS`: the direction in which each voxel axis grows."""
        import nibabel

        return "".join(nibabel.aff2axcodes(self.affine)[: self.dims])

    def with_array(self, array: NDArray[Any]) -> Volume:
        """The same place with other values; `array` must have the same spatial shape (C may differ)."""
        if array.shape[1:] != self.array.shape[1:]:
            raise ValueError(f"shape {array.shape[1:]} is not {self.array.shape[1:]}")
        return replace(self, array=array)
