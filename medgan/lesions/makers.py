"""Makers of lesions behind one interface: a real one moved (`paste`), a made-up one (`procedural`), a drawn one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.lesions.library import Library
from medgan.lesions.placement import Site
from medgan.lesions.scans import Scan

#: Correlation length of procedural texture, in voxels.
TEXTURE_VOXELS = 1.2
#: Borders between labels, and of made-up lesions, are softened over so many voxels.
SOFT_VOXELS = 0.72


class Maker(Protocol):
    """Draws a lesion for a site."""

    #: The name in `--method`, in provenance and reports.
    name: str
    #: Whether its lesions may get a new core; one that draws cores of its own had none of it (docs/does-it-help.md).
    cores: bool

    def draw(self, scan: Scan, site: Site, seed: int) -> NDArray[np.float32]:
        """Network values (C, x, y, z) wanted in the site's box; only those under `site.weight` are meant."""
        ...


class Paste:
    """A real lesion moved to other tissue, its brightness matched to the new place (TumorCP, Yang et al. 2021)."""

    name = "paste"
    cores = True

    def draw(self, scan: Scan, site: Site, seed: int) -> NDArray[np.float32]:
        """The donor's values, shifted by the difference between the new and the old surroundings."""
        shift = surroundings(scan, site) - site.donor.surroundings
        return np.asarray(site.values + shift[:, None, None, None], np.float32)


class Procedural:
    """A smooth shape with contrast and texture drawn from real lesions' statistics (SynTumor, Hu et al. 2023)."""

    name = "procedural"
    cores = True

    def __init__(self, library: Library) -> None:
        self.library = library

    def draw(self, scan: Scan, site: Site, seed: int) -> NDArray[np.float32]:
        """Surroundings plus a contrast for each label plus correlated noise; label borders are softened."""
        rng = np.random.default_rng([seed, 7])
        base = surroundings(scan, site)
        drawn = np.broadcast_to(base[:, None, None, None], site.values.shape).astype(np.float32).copy()
        sigma = (TEXTURE_VOXELS, TEXTURE_VOXELS, 0 if site.planar else TEXTURE_VOXELS)
        for index in np.unique(site.labels[site.labels > 0]):
            known = self.library.statistics[int(index)]
            contrast = known.contrast + known.contrast_deviation * rng.standard_normal(len(base))
            noise = ndimage.gaussian_filter(rng.standard_normal(site.values.shape), (0, *sigma))
            noise *= (known.texture / np.maximum(noise.std(axis=(1, 2, 3)), 1e-6))[:, None, None, None]
            inside = site.labels == index
            share = softened(inside, site)
            drawn += share * (contrast[:, None, None, None] + noise).astype(np.float32)
        return drawn


def softened(inside: NDArray[np.bool_], site: Site) -> NDArray[np.float32]:
    """(x, y, z) a part of a lesion with a soft border, 1 in its mean over the part: a small one loses no contrast."""
    sigma = SOFT_VOXELS * np.array([1, 1, 0 if site.planar else 1])
    share = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    return np.asarray(share / share[inside].mean(), np.float32)


def levelled(drawn: NDArray[np.float32], scan: Scan, site: Site) -> NDArray[np.float32]:
    """(C, x, y, z) a drawn lesion whose labels have, in the mean, at least the donor's contrast to the tissue around.

    A generator draws towards the mean, and fainter lesions than its donors (docs/does-it-help.md). What stands out more
    than the donor is left.
    """
    base, donor = surroundings(scan, site), site.donor.surroundings
    level = drawn.astype(np.float32)
    for index in np.unique(site.labels[site.labels > 0]):
        inside = site.labels == index
        wanted, have = site.values[:, inside].mean(axis=1) - donor, drawn[:, inside].mean(axis=1) - base
        lacking = np.where(np.abs(wanted) > np.abs(have), wanted - have, 0)
        level += softened(inside, site) * lacking[:, None, None, None].astype(np.float32)
    return level


def surroundings(scan: Scan, site: Site) -> NDArray[np.float64]:
    """(C,) median network value of the rim that it is blended into: near a border, that of its own organ."""
    image = scan.image[(slice(None), *site.box)]
    rim = (site.weight > 0) & (site.labels == 0)
    where = rim if rim.any() else site.weight > 0
    return np.asarray(np.median(image[:, where], axis=1), np.float64)
