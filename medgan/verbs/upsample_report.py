"""What `upsample` says of what it did."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medgan.imaging.slices import Profile

Method = Literal["network", "linear"]
Origin = Literal["told", "header", "estimated", "assumed"]

#: Voxels of a map that its percentile is taken of.
MAP_SAMPLE = 1_000_000


@dataclass(frozen=True)
class UpsampleReport:
    """What `upsample` did.

    Args:
        method: `network` or `linear`: what was used, which is not always what was asked for.
        model: Hash of the model's weights, or None.
        factors: How many times finer each axis became.
        spacing_mm: The new spacing.
        profile: The slice profile that was assumed.
        thickness_mm: Its full width at half maximum along each axis, in mm.
        profile_from: Where the profile comes from: `told` by the caller, the DICOM `header`, `estimated` from the
            scan, or `assumed` because none of these was possible.
        confidence: How sure the estimate is, 0 to 1 (see `medgan.imaging.estimation`); None where nothing was
            estimated.
        noise: Estimated standard deviation of each channel's noise, over its intensity range (0.1 to 99.9 percentile
            of the foreground).
        consistency: How far the result, acquired again with that profile, is from the input: root mean square over
            the input's intensity range, the worst channel's. About the noise is as it should be.
        adapted: What adapting to the scan gained on slices held back, in dB of PSNR; None where it was not asked for
            or not possible, and 0 where it did not help and the model was left as it is.
        warnings: What the reader of the result should know.
        deviation: (C, X, Y, Z) float32 on the new grid: what the network added to the linear result, in the scan's
            unit. None for the linear method, or where no maps are wanted.
        spread: (C, X, Y, Z) float32: standard deviation of what the network draws over orientations and flips, in the
            scan's unit. None as above.
    """

    method: Method
    model: str | None
    factors: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    profile: Profile
    thickness_mm: tuple[float, ...]
    profile_from: Origin
    confidence: float | None
    noise: tuple[float, ...]
    consistency: float
    adapted: float | None
    warnings: tuple[str, ...]
    deviation: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    spread: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @property
    def derivation(self) -> str:
        """What was done, for the header of a derived series."""
        grid = " x ".join(f"{mm:.4g}" for mm in self.spacing_mm)
        return f"Upsampled to {grid} mm by medgan ({self.method}, {self.profile} slice profile)"

    def scalars(self) -> dict[str, Any]:
        """Everything as plain JSON values; of a map its root mean square and its 99th percentile."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("deviation", "spread"):
            if found[name] is not None:
                size = np.abs(found[name])
                found[name] = {"rms": float(np.sqrt(np.square(size).mean(dtype=np.float64))),
                               "p99": float(np.percentile(size.reshape(-1)[:: max(1, size.size // MAP_SAMPLE)], 99))}
        return found
