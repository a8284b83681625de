"""The linear way back from thick slices: which grid is wanted, and Tikhonov deconvolution axis by axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.imaging.geometry import zoomed_affine
from medgan.imaging.slices import FACTORS, Acquisition, Profile, along, positive_mm
from medgan.imaging.volume import Volume

#: Spacings that differ by less than this part are the same.
SAME_SPACING = 1e-3


def restore(
    volume: Volume, *, factor: float | Sequence[float] | None = None, spacing_mm: Sequence[float] | None = None,
    profile: Profile = "gaussian", thickness_mm: float | None = None, noise: float = 0.0,
) -> Volume:
    """Makes thick slices thin by profile-aware Tikhonov deconvolution: linear, quick, and without a network.

    Args:
        volume: (C, X, Y[, Z]).
        factor: Fine voxels a voxel, one number for all axes or one for each; 1 leaves an axis alone.
        spacing_mm: The spacing wanted, one number for each axis; instead of `factor`.
        profile: The slice profile's shape.
        thickness_mm: Full width at half maximum along the coarsest axis; the other axes' is always their spacing,
            and so is its own by default.
        noise: Standard deviation of the noise over half the foreground's intensity range; more gives smoother
            results.

    Returns:
        The fine volume, float32, on a grid with the same outer edges.

    Raises:
        Refused: `FACTOR_RANGE`.
    """
    scans = acquisitions(volume, wanted_factors(volume, factor, spacing_mm), profile, thickness_mm, noise)
    array: NDArray[Any] = volume.array
    for axis, scan in in_order(scans, volume.spacing_mm):
        array = along(scan.inverse, array, axis + 1)
    return replace(volume, array=array.astype(np.float32, copy=False),
                   affine=zoomed_affine(volume.affine, [scan.factor for scan in scans]), slice_thickness_mm=None)


def wanted_factors(volume: Volume, factor: float | Sequence[float] | None,
                   spacing_mm: Sequence[float] | None) -> tuple[float, ...]:
    """One factor for each axis from what the user named.

    Raises:
        Refused: `FACTOR_RANGE` or `CFG_VALUE`.
    """
    if (factor is None) == (spacing_mm is None):
        raise Refused("CFG_VALUE", "spacing and factor", "one of the two is needed, and not both",
                      "Give the spacing in mm or the factor")
    if spacing_mm is None:
        given = np.atleast_1d(np.asarray(factor, dtype=np.float64))
        factors = np.repeat(given, volume.dims) if given.size == 1 else given
    else:
        wanted = np.atleast_1d(np.asarray(spacing_mm, dtype=np.float64))
        if wanted.shape != (volume.dims,) or not np.isfinite(wanted).all() or (wanted <= 0).any():
            raise Refused("CFG_VALUE", "spacing", f"{spacing_mm} is not a spacing of {volume.dims} axes in mm",
                          f"Give {volume.dims} positive numbers")
        factors = np.asarray(volume.spacing_mm) / wanted
        # A spacing written with a few digits is the present one.
        factors = np.where(np.abs(factors - 1) < SAME_SPACING, 1.0, factors)
    if factors.shape != (volume.dims,) or not np.isfinite(factors).all():
        raise Refused("CFG_VALUE", "factor", f"{factor} is not a factor for {volume.dims} axes",
                      f"Give one number or {volume.dims}")
    for axis, value in enumerate(factors):
        if not FACTORS[0] <= value <= FACTORS[1]:
            raise Refused("FACTOR_RANGE", "spacing" if factor is None else "factor",
                          f"axis {axis} would become {value:.3g} times finer (it is {volume.spacing_mm[axis]:.3g} mm "
                          f"now), and {FACTORS[0]:g} to {FACTORS[1]:g} are possible",
                          "Ask for a spacing between the present one and an eighth of it")
    return tuple(float(value) for value in factors)


def acquisitions(volume: Volume, factors: Sequence[float], profile: Profile, thickness_mm: float | None,
                 noise: float = 0.0) -> tuple[Acquisition, ...]:
    """The acquisition of each axis; `thickness_mm` is that of the coarsest axis among those to be refined."""
    spacing = volume.spacing_mm
    thick = max(range(volume.dims), key=lambda axis: (factors[axis] > 1, spacing[axis]))
    widths = [1.0] * volume.dims
    if thickness_mm is not None:
        widths[thick] = positive_mm(thickness_mm) / spacing[thick]
    return tuple(Acquisition(n, f, width, profile, noise)
                 for n, f, width in zip(volume.shape, factors, widths, strict=True))


def in_order(scans: Sequence[Acquisition], spacing_mm: Sequence[float]) -> list[tuple[int, Acquisition]]:
    """The axes to be refined with their acquisitions, the coarsest first."""
    axes = [axis for axis, scan in enumerate(scans) if scan.factor > 1]
    return [(axis, scans[axis]) for axis in sorted(axes, key=lambda axis: -spacing_mm[axis])]
