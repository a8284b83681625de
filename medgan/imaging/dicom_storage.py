"""How real values become the 16-bit integers of a DICOM image, with a rescale that is written as it is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.valuerep import DSfloat

from medgan.imaging.dicom_geometry import Stack
from medgan.imaging.dicom_pixels import rescale_of

#: How near to whole numbers stored values must be for the rescale of the source to be kept.
WHOLE_TOLERANCE = 1e-4

_INT16 = np.iinfo(np.int16)
_UINT16 = np.iinfo(np.uint16)
_LEVELS = 2**16 - 1


@dataclass(frozen=True)
class Storage:
    """How real values are stored: `stored * slope + intercept`, signed or unsigned 16 bits."""

    slope: float
    intercept: float
    signed: bool

    @property
    def is_identity(self) -> bool:
        return self.slope == 1 and self.intercept == 0

    def encode(self, plane: NDArray[Any]) -> NDArray[Any]:
        """Stored values of a plane, (rows, columns)."""
        dtype = np.dtype("<i2" if self.signed else "<u2")
        stored = np.rint((plane.astype(np.float64) - self.intercept) / self.slope)
        return np.clip(stored, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)


def storage_for(array: NDArray[Any], modality: str) -> Storage:
    """Exact storage for whole numbers that span 16 bits, else 65,536 levels over the range."""
    low, high = float(array.min()), float(array.max())
    if _is_whole(array):
        # Most tools ignore a rescale outside CT, so identity comes first.
        if low >= _INT16.min and high <= _INT16.max:
            return Storage(1, 0, signed=True)
        if low >= 0 and high <= _UINT16.max:
            return Storage(1, 0, signed=False)
        if high - low <= _LEVELS:
            return Storage(1, low - _INT16.min, signed=True)
    slope = _rounded_up((high - low) / _LEVELS) if high > low else 1.0
    # What is stored must be computed with the intercept as it is written, in 16 characters.
    return Storage(slope, float(str(number_of(low - _INT16.min * slope))), signed=True)


def _is_whole(array: NDArray[Any]) -> bool:
    if array.dtype.kind in "iub":
        return True
    return all(bool((plane == np.rint(plane)).all()) for plane in np.moveaxis(array, -1, 0))


def stored_as(array: NDArray[Any], stack: Stack) -> Storage | None:
    """The rescale of the source, if it is one for all slices and holds every value; else None."""
    rescales = {(rescale.slope, rescale.intercept, rescale.has_lut) for rescale in map(rescale_of, stack.frames)}
    if len(rescales) != 1:
        return None
    slope, intercept, has_lut = rescales.pop()
    ends = sorted((float(value) - intercept) / slope for value in (array.min(), array.max()))
    if has_lut or ends[0] < _INT16.min or ends[1] > _INT16.max:
        return None
    for plane in np.moveaxis(array, -1, 0):
        stored = (plane.astype(np.float64) - intercept) / slope
        if np.abs(stored - np.rint(stored)).max() > WHOLE_TOLERANCE:
            return None
    return Storage(slope, intercept, signed=True)


def _rounded_up(value: float) -> float:
    """The next number of 9 digits at or above a positive `value`, which a decimal string of 16 characters holds."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 8)
    return float(f"{math.ceil(value / unit) * unit:.8e}")


def number_of(value: float) -> DSfloat:
    """A number as DICOM writes it, in 16 characters."""
    return DSfloat(float(value), auto_format=True)
