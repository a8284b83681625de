"""How a scanner sees: `simulate` scans a sharp volume again with thick slices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medgan.imaging.geometry import zoomed_affine
from medgan.imaging.slices import Acquisition, Profile, along, positive_mm
from medgan.imaging.volume import Volume


def simulate(
    volume: Volume, *, axis: int = 2, spacing_mm: float | None = None, thickness_mm: float | None = None,
    profile: Profile = "gaussian", gap_mm: float = 0.0, noise: float = 0.0, seed: int = 0,
) -> Volume:
    """Scans a sharp volume again with thick slices along one axis.

    Args:
        volume: (C, X, Y[, Z]), sharp along `axis`.
        axis: Spatial axis, 0 to 2.
        spacing_mm: Distance of the slices' centres; by default `thickness_mm` + `gap_mm`.
        thickness_mm: Full width at half maximum of the profile; by default `spacing_mm` - `gap_mm`.
        profile: The slice profile's shape.
        gap_mm: Distance between a slice's end and the next one's start; negative where slices overlap.
        noise: Standard deviation of the Gaussian noise added, in the volume's units.
        seed: Of the noise.

    Returns:
        The thick volume, float32. Its first slice's outer edge is where the first voxel's was: with factor f the
        first centre lies at (1/f - 1)/2 thick slices, seen from the thick grid.

    Raises:
        Refused: `FACTOR_RANGE` where the new spacing is not 1 to 8 times the old one.
        ValueError: Neither `spacing_mm` nor `thickness_mm` is given, or the three do not agree.
    """
    if spacing_mm is None and thickness_mm is None:
        raise ValueError("give spacing_mm, thickness_mm or both")
    spacing = thickness_mm + gap_mm if spacing_mm is None and thickness_mm is not None else float(spacing_mm or 0.0)
    thickness = spacing - gap_mm if thickness_mm is None else thickness_mm
    if gap_mm and abs(thickness + gap_mm - spacing) > 1e-6:
        raise ValueError(f"thickness {thickness} mm and gap {gap_mm} mm do not add up to spacing {spacing} mm")
    fine = volume.shape[axis]
    factor = spacing / volume.spacing_mm[axis]
    scan = Acquisition(max(1, round(fine / factor)), factor, positive_mm(thickness) / spacing, profile, fine=fine)
    array = along(scan.matrix, volume.array, axis + 1)
    if noise:
        array += np.random.default_rng(seed).normal(0.0, noise, array.shape).astype(np.float32)
    factors = [1.0 / factor if i == axis else 1.0 for i in range(volume.dims)]
    return replace(volume, array=array, affine=zoomed_affine(volume.affine, factors))
