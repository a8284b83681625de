"""Cores: the inside of a lesion drawn anew, darker, as bright as tissue, or brighter than the lesion it came from.

Lesions of one disease differ most in their cores (necrosis, cysts, solid parts), and a model that has seen those of
one or two patients takes another patient's core for healthy tissue. A core keeps the lesion's rim and its mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.lesions.makers import surroundings
from medgan.lesions.placement import Site
from medgan.lesions.scans import Scan
from medgan.lesions.shapes import smooth_field

#: A lesion whose deepest voxel lies less than this many voxels under its border is too thin to have a core.
THINNEST = 2.0
#: A core begins at this share of the largest depth, least and most.
DEPTH = (0.15, 0.6)
#: How far the core's border leaves the level of equal depth, in parts of the largest depth.
UNEVEN = 0.18
#: Contrast of a core to the tissue around the lesion, in parts of the lesion's own: from as dark to as bright.
CONTRAST = (-0.8, 0.8)
#: What varies more slowly than this many voxels is brightness, the rest texture.
TEXTURE = 2.5
#: The new texture's strength over the old one's, and what is kept of the slower variation.
TEXTURE_KEPT, SLOW_KEPT = (0.5, 1.3), (0.0, 0.5)
#: The core's border is softened over so many voxels.
SOFT = (0.5, 1.2)


def with_core(scan: Scan, site: Site, drawn: NDArray[np.float32], seed: int, share: float
              ) -> tuple[NDArray[np.float32], bool]:
    """The lesion with a core drawn anew in a `share` of all cases, and whether it got one."""
    if np.random.default_rng([seed, 29]).random() >= share:
        return drawn, False
    made, core = new_core(scan, site, drawn, seed)
    return made, bool(core.any())


def new_core(scan: Scan, site: Site, drawn: NDArray[np.float32], seed: int
             ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draws the core of a lesion anew.

    Args:
        scan: Where it goes.
        site: Its place and labels.
        drawn: (C, x, y, z) network values wanted in the site's box.
        seed: The same seed gives the same core, whoever drew the lesion.

    Returns:
        `drawn` with a new core, and (x, y, z) where that is; as it was, and nowhere, for a lesion too thin for one.
    """
    rng = np.random.default_rng([seed, 23])
    lesion = site.labels > 0
    flat = (0, 0) if site.planar else (1, 1)
    margins = ((1, 1), (1, 1), flat)
    inner = tuple(slice(low, low + n) for (low, _), n in zip(margins, lesion.shape, strict=True))
    depth = ndimage.distance_transform_edt(np.pad(lesion, margins), sampling=site.voxel_mm)[inner]
    deepest = float(depth.max())
    uneven = smooth_field(lesion.shape, site.voxel_mm, 0.35 * site.size_mm, rng)
    core = lesion & (depth / max(deepest, 1e-6) + UNEVEN * uneven > rng.uniform(*DEPTH))
    if deepest < THINNEST * float(site.voxel_mm[:2].min()) or not core.any():
        return drawn, np.zeros_like(lesion)
    width = np.array([1, 1, 0 if site.planar else 1])
    soft = ndimage.gaussian_filter(core.astype(np.float32), rng.uniform(*SOFT) * width) * lesion
    base = surroundings(scan, site)
    before = scan.image[(slice(None), *site.box)]
    made = drawn.copy()
    # One grain for all channels, so that they stay consistent; each has a brightness of its own.
    own_grain, strength, slow_kept = rng.random() < 0.5, rng.uniform(*TEXTURE_KEPT), rng.uniform(*SLOW_KEPT)
    for channel, values in enumerate(drawn):
        slow = ndimage.gaussian_filter(values, TEXTURE * width)
        grain = (values - slow) * strength
        if not own_grain:
            tissue = before[channel]
            grain = tissue - ndimage.gaussian_filter(tissue, TEXTURE * width)
        contrast = _contrast(values[lesion] - base[channel])
        wanted = base[channel] + rng.uniform(*CONTRAST) * contrast + (slow - values[core].mean()) * slow_kept + grain
        made[channel] += soft * (wanted.astype(np.float32) - values)
    return made, core


def _contrast(differences: NDArray[np.float32]) -> float:
    """How far a lesion stands out: its mean difference, or that of its more conspicuous quarter if that is more."""
    mean = float(differences.mean())
    quarter = float(np.percentile(differences, 75 if mean >= 0 else 25))
    return mean if abs(mean) > abs(quarter) else quarter
