"""Intensity maps: raw values to network values in [-1, 1] and back, exactly where nothing was clipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medgan.config import Intensity

#: A value shared by more than this part of all voxels is background (air set to one value, skull stripping).
BACKGROUND_SHARE = 0.1
#: Percentiles need no more voxels than this.
SAMPLE = 2_000_000


@dataclass(frozen=True)
class IntensityMap:
    """A rising, piecewise linear map between raw values and network values.

    Args:
        raw: Raw values of the knots, strictly rising.
        mapped: Network values of the knots, strictly rising, usually from -1 to 1.
    """

    raw: tuple[float, ...]
    mapped: tuple[float, ...]

    def __post_init__(self) -> None:
        for values in (self.raw, self.mapped):
            if len(values) != len(self.raw) or len(values) < 2 or np.any(np.diff(values) <= 0):
                raise ValueError(f"knots must rise strictly: {values}")

    def straight(self) -> IntensityMap:
        """A map that is linear between the outermost knots."""
        return IntensityMap((self.raw[0], self.raw[-1]), (self.mapped[0], self.mapped[-1]))

    def forward(self, array: NDArray[Any], dtype: DTypeLike = np.float64) -> NDArray[Any]:
        """Raw to network values; what lies outside the knots is clipped to the outermost ones."""
        return np.asarray(np.interp(array, self.raw, self.mapped), dtype=dtype)

    def inverse(self, array: NDArray[Any], dtype: DTypeLike = np.float64) -> NDArray[Any]:
        """Network values back to raw ones; integers are rounded. Outside the knots the outer slopes go on."""
        values = np.asarray(array, dtype=np.float64)
        raw = np.interp(values, self.mapped, self.raw)
        for end, inner in ((0, 1), (-1, -2)):
            slope = (self.raw[end] - self.raw[inner]) / (self.mapped[end] - self.mapped[inner])
            outside = values < self.mapped[0] if end == 0 else values > self.mapped[-1]
            raw = np.where(outside, self.raw[end] + (values - self.mapped[end]) * slope, raw)
        if np.issubdtype(dtype, np.integer):
            info = np.iinfo(dtype)
            raw = np.clip(np.rint(raw), info.min, info.max)
        return raw.astype(dtype, copy=False)


def intensity_maps(array: NDArray[Any], settings: Intensity) -> tuple[IntensityMap, ...]:
    """One map for each channel of an image.

    Args:
        array: (C, X, Y[, Z]) raw values.
        settings: Fixed knots (CT in HU), or percentiles of the foreground (MR, X-ray, ultrasound).
    """
    if settings.knots is not None:
        raw, mapped = zip(*settings.knots, strict=True)
        return tuple(IntensityMap(raw, mapped) for _ in array)
    return tuple(_percentile_map(channel, settings.percentiles) for channel in array)


def mapped(array: NDArray[Any], maps: Sequence[IntensityMap]) -> NDArray[np.float32]:
    """(C, ...) raw values as float32 network values, each channel through its own map."""
    return np.stack([known.forward(channel, np.float32) for known, channel in zip(maps, array, strict=True)])


def foreground(channel: NDArray[Any]) -> NDArray[Any]:
    """The values of one channel without its constant background, thinned for speed; all when there is none."""
    values = channel.reshape(-1)[:: max(1, channel.size // SAMPLE)]
    distinct, counts = np.unique(values, return_counts=True)
    commonest = int(counts.argmax())
    # Only air at the dark end counts as background: in a z-scored scan that is the commonest value, not the lowest.
    if counts[commonest] > BACKGROUND_SHARE * values.size and distinct.size > 2:
        rest = values[values != distinct[commonest]]
        return rest if rest.size else values
    return values


def _percentile_map(channel: NDArray[Any], percentiles: tuple[float, float]) -> IntensityMap:
    low, high = (float(v) for v in np.percentile(foreground(channel).astype(np.float64), percentiles))
    if not high > low:
        low, high = float(channel.min()), float(channel.max())
    if not high > low:
        high = low + 1.0
    return IntensityMap((low, high), (-1.0, 1.0))
