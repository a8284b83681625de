"""The linear way back from thick slices: which grid is wanted, and Tikhonov deconvolution axis by axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.imaging.geometry import zoomed_affine
from medgan.imaging.intensity import foreground
from medgan.imaging.slices import FACTORS, SMOOTHNESS, Acquisition, Profile, along, positive_mm
from medgan.imaging.volume import Volume

#: Choices of the smoothness, and the most slices and lines that decide.
CHOICES = tuple(SMOOTHNESS * 2**power for power in range(9))
DECIDING_SLICES, DECIDING_LINES = 64, 20_000
#: Values above this part of the intensity range are not background, where there may be no noise.
SHOWN = 0.05
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
    restored = []
    for channel in volume.array:
        low, high = (float(v) for v in np.percentile(foreground(channel), (0.1, 99.9)))
        fine: NDArray[Any] = channel
        for axis, scan in in_order(scans, volume.spacing_mm):
            fine = along(regularised(scan, channel, axis, (low, high)).inverse, fine, axis)
        restored.append(fine.astype(np.float32, copy=False))
    return replace(volume, array=np.stack(restored),
                   affine=zoomed_affine(volume.affine, [scan.factor for scan in scans]), slice_thickness_mm=None)


def regularised(scan: Acquisition, array: NDArray[Any], axis: int, span: tuple[float, float]) -> Acquisition:
    """Chooses how smooth the inverse of an acquisition is to be, by the noise in the scan.

    Of a few choices that one is taken whose result, acquired again, is expected to be nearest the slices without their
    noise: the residual plus twice the noise that the inverse lets through (Mallows 1973, "Some comments on C_p"); and
    then the next less smooth one.

    Args:
        scan: With its noise.
        array: (X, Y, Z), the thick scan.
        axis: The spatial axis that `scan` is about.
        span: The foreground's intensity range, lowest and highest value.

    Returns:
        The acquisition with its `smoothness`, or as it was where there is no noise or nothing to see.
    """
    if not scan.noise or scan.slices < 3 or scan.factor == 1:
        return scan
    start = max(0, (scan.slices - DECIDING_SLICES) // 2)
    part = (slice(None),) * axis + (slice(start, start + DECIDING_SLICES),)
    lines = np.moveaxis(array[part], axis, -1)
    lines = lines.reshape(-1, lines.shape[-1])
    lines = lines[:: max(1, len(lines) // DECIDING_LINES)].astype(np.float32)
    shown = lines > span[0] + SHOWN * (span[1] - span[0])
    if not shown.any():
        return scan
    noise = scan.noise * (span[1] - span[0]) / 2
    expected = []
    for smoothness in CHOICES:
        choice = replace(scan, slices=lines.shape[1], fine=0, smoothness=smoothness)
        kept = choice.matrix @ choice.inverse
        residual = np.square(lines - lines @ kept.T.astype(np.float32))
        expected.append(float((residual + 2 * noise**2 * np.diag(kept))[shown].mean()))
    # One step less: flat parts, of which there are many, want more smoothing than detail, which is what counts.
    return replace(scan, smoothness=CHOICES[max(0, int(np.argmin(expected)) - 1)])


def wanted_factors(volume: Volume, factor: float | Sequence[float] | None,
                   spacing_mm: float | Sequence[float] | None) -> tuple[float, ...]:
    """One factor for each axis from what the user named: one number for all axes or one for each.

    Raises:
        Refused: `FACTOR_RANGE` or `CFG_VALUE`.
    """
    if (factor is None) == (spacing_mm is None):
        raise Refused("CFG_VALUE", "spacing and factor", "one of the two is needed, and not both",
                      "Give the spacing in mm or the factor")
    name, value = ("factor", factor) if spacing_mm is None else ("spacing", spacing_mm)
    try:
        given = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        raise Refused("CFG_VALUE", name, f"{value!r} is not made of numbers",
                      f"Give one number or {volume.dims}") from None
    if spacing_mm is None:
        factors = np.repeat(given, volume.dims) if given.size == 1 else given
    else:
        wanted = np.repeat(given, volume.dims) if np.ndim(spacing_mm) == 0 else given
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


def thick_axis(volume: Volume, factors: Sequence[float]) -> int:
    """The coarsest axis among those to be refined."""
    return max(range(volume.dims), key=lambda axis: (factors[axis] > 1, volume.spacing_mm[axis]))


def acquisitions(volume: Volume, factors: Sequence[float], profile: Profile, thickness_mm: float | None,
                 noise: float = 0.0) -> tuple[Acquisition, ...]:
    """The acquisition of each axis; `thickness_mm` is that of the coarsest axis among those to be refined."""
    spacing, thick = volume.spacing_mm, thick_axis(volume, factors)
    widths = [1.0] * volume.dims
    if thickness_mm is not None:
        widths[thick] = positive_mm(thickness_mm) / spacing[thick]
    return tuple(Acquisition(n, f, width, profile, noise)
                 for n, f, width in zip(volume.shape, factors, widths, strict=True))


def in_order(scans: Sequence[Acquisition], spacing_mm: Sequence[float]) -> list[tuple[int, Acquisition]]:
    """The axes to be refined with their acquisitions, the coarsest first."""
    axes = [axis for axis, scan in enumerate(scans) if scan.factor > 1]
    return [(axis, scans[axis]) for axis in sorted(axes, key=lambda axis: -spacing_mm[axis])]
