"""Where a lesion goes: inside tissue, where the tissue looks like what surrounds real ones, and off other lesions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.lesions.crops import working_spacing
from medgan.lesions.library import Library, main_label
from medgan.lesions.scans import Scan
from medgan.lesions.shapes import (
    RIM_NATIVE,
    RIM_VOXELS,
    Deformed,
    Lesion,
    deform,
    equivalent_diameter,
    soft_mask,
    tissue_sigma,
    without_specks,
)

#: At least this share of a lesion must find tissue at its place; the rest is cut off.
INSIDE = 0.85
#: Places tried for one shape before it is made smaller.
PLACES = 40
#: A place is right where this share of the lesion replaces tissue like what surrounds real ones.
SUITED = 0.6
#: How much smaller, and how often, a lesion that finds no place becomes.
SHRINK, SHRINKS = 0.8, 4


@dataclass(frozen=True, eq=False)
class Site:
    """A place for a lesion in a scan.

    Args:
        box: Scan voxels that may change.
        labels: (x, y, z) label indices wanted in the box.
        weight: (x, y, z) soft mask; 0 where nothing may change.
        donor: The lesion whose shape it is.
        values: (C, x, y, z) the donor's own network values, deformed alike.
        spacing_mm: Working spacing for the networks.
        planar: Whether the scan is a 2D image.
        voxel_mm: (3,) the scan's spacing.
    """

    box: tuple[slice, slice, slice]
    labels: NDArray[np.uint8]
    weight: NDArray[np.float32]
    donor: Lesion
    values: NDArray[np.float32]
    spacing_mm: float
    planar: bool
    voxel_mm: NDArray[np.float64]

    @property
    def centre(self) -> NDArray[np.float64]:
        """(3,) voxel position of the lesion's centroid in the scan."""
        own = np.array(ndimage.center_of_mass(self.labels > 0))
        return np.asarray(own + [s.start for s in self.box])

    @property
    def size_mm(self) -> float:
        """Equivalent diameter."""
        return equivalent_diameter(self.voxels, self.voxel_mm, self.planar)

    @property
    def voxels(self) -> int:
        """Voxels of the lesion."""
        return int((self.labels > 0).sum())


@dataclass(frozen=True, eq=False)
class _Laid:
    """A shape laid down at a place, before it is blended: labels and donor values in a box of the scan."""

    box: tuple[slice, slice, slice]
    labels: NDArray[np.uint8]
    values: NDArray[np.float32]
    working_mm: float
    rim_mm: float


class Ground:
    """What one scan offers: its tissue, what is already taken, its tissue values, and where lesions are likely.

    Args:
        scan: Where lesions go.
        library: The real lesions.
        finest_mm: Finest working spacing.
        crop: Edge of the networks' crops, in working voxels.
        density: How far places follow where real lesions lie, from 0 (evenly over suited tissue) to 1.
        taken: (X, Y, Z) where no lesion may come; None: the scan's own lesions.

    Attributes:
        tissue: (X, Y, Z) bool: what may change.
        taken: (X, Y, Z) bool: real lesions, and new ones with their rims.
        smooth: (X, Y, Z) network values of channel 0, averaged as the lesions' surroundings were.
    """

    def __init__(self, scan: Scan, library: Library, *, finest_mm: float, crop: int, density: float = 0.0,
                 taken: NDArray[np.bool_] | None = None) -> None:
        self.scan, self.library, self.finest_mm, self.crop = scan, library, finest_mm, crop
        self.tissue = scan.tissue()
        self.taken = scan.labels > 0 if taken is None else taken.copy()
        self.smooth = ndimage.gaussian_filter(scan.image[0], tissue_sigma(scan))
        self.density = density
        self._likely: NDArray[np.float32] | None = None
        if density > 0 and library.places is not None:
            self._likely = library.places.over(self.tissue)
        # Air within the body is no place for lesions that grow in tissue.
        self._air = scan.air()

    def candidates(self, label: int) -> NDArray[np.intp]:
        """(n, 3) voxels where the tissue looks like what surrounds real lesions of a main label."""
        low, high = self.library.surroundings[label]
        return np.argwhere(self._ground(label) & ~self.taken & (self.smooth >= low) & (self.smooth <= high))

    def weights(self, places: NDArray[np.intp]) -> NDArray[np.float64]:
        """(n,) how likely each of `places` (n, 3) is to be drawn; they sum to 1."""
        even = np.full(len(places), 1 / len(places))
        if self._likely is None:
            return even
        likely = self._likely[tuple(places.T)].astype(np.float64)
        return np.asarray((1 - self.density) * even + self.density * likely / max(1e-12, likely.sum()))

    def _ground(self, label: int) -> NDArray[np.bool_]:
        """(X, Y, Z) tissue that lesions of a main label may lie in: air only for those found around air."""
        low, _ = self.library.surroundings[label]
        if self._air is None or low <= self.scan.air_value():
            return self.tissue
        return self.tissue & ~self._air

    def _drawn(self, places: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
        """(`PLACES`, 3) of the places."""
        if self._likely is None:
            return np.asarray(places[rng.integers(len(places), size=PLACES)])
        ends = np.cumsum(self.weights(places))
        at = np.searchsorted(ends, rng.random(PLACES) * ends[-1], side="right")
        return np.asarray(places[np.minimum(at, len(places) - 1)])

    def site(self, donor: Lesion, rng: np.random.Generator, *, size_mm: float | None = None) -> Site | None:
        """A place for a deformed copy of the donor's shape; None where there is none.

        Args:
            donor: Gives shape and labels.
            rng: Draws deformation and place.
            size_mm: Wanted equivalent diameter; None: the donor's, varied by a fifth.
        """
        places = self.candidates(main_label(donor))
        if not len(places):
            return None
        scale = size_mm / donor.size_mm if size_mm is not None else float(np.exp(rng.normal(0, 0.15)))
        for _ in range(SHRINKS if size_mm is None else 1):
            shape = deform(donor, self.scan.spacing_mm, rng, scale=scale)
            if not shape.labels.any():
                return None
            site = self._best_place(donor, shape, self._drawn(places, rng))
            if site is not None:
                return site
            scale *= SHRINK
        return None

    def occupy(self, site: Site) -> None:
        """Marks a site as taken."""
        self.taken[site.box] |= site.weight > 0

    def _best_place(self, donor: Lesion, shape: Deformed, places: NDArray[np.intp]) -> Site | None:
        """The first place whose tissue is mostly right, else the one where most of it is; None if the shape fits none.

        A lesion whose centre lies in its organ but whose body does not would teach that it grows in the next one.
        """
        low, high = self.library.surroundings[main_label(donor)]
        ground = self._ground(main_label(donor))
        best: tuple[float, _Laid] | None = None
        for place in places:
            laid = self._lay(shape, place, ground)
            if laid is None:
                continue
            under = self.smooth[laid.box][laid.labels > 0]
            suited = float(((under >= low) & (under <= high)).mean())
            if best is None or suited > best[0]:
                best = suited, laid
            if suited >= SUITED:
                break
        return None if best is None else self._blended(donor, best[1], ground)

    def _lay(self, shape: Deformed, place: NDArray[np.intp], ground: NDArray[np.bool_]) -> _Laid | None:
        """The shape's labels and values around a place; None where they leave the tissue or meet what is taken."""
        spacing = self.scan.spacing_mm
        whole = shape.labels > 0
        tight = ndimage.find_objects(whole.astype(np.uint8))[0]
        low, high = np.array([s.start for s in tight]), np.array([s.stop for s in tight])
        extent = float(((high - low) * spacing)[:2].max())
        working = working_spacing(extent, self.finest_mm, self.crop)
        rim_mm = max(RIM_VOXELS * working, RIM_NATIVE * float(spacing[:2].min()))
        pad = np.ceil(rim_mm / spacing).astype(int)
        if self.scan.planar:
            pad[2] = 0
        corner = place - (low + high) // 2 + low - pad
        start = np.maximum(corner, 0)
        stop = np.minimum(corner + high - low + 2 * pad, self.taken.shape)
        if (stop <= start).any():
            return None
        box = (slice(int(start[0]), int(stop[0])), slice(int(start[1]), int(stop[1])),
               slice(int(start[2]), int(stop[2])))
        index = [np.arange(a, b) - c + f for a, b, c, f in zip(start, stop, corner, low - pad, strict=True)]
        labels = self._moved_labels(shape, index)
        labels[~ground[box]] = 0
        labels = without_specks(labels)
        if (labels > 0).sum() < INSIDE * whole.sum() or (self.taken[box] & (labels > 0)).any():
            return None
        clipped = [np.clip(i, 0, n - 1) for i, n in zip(index, shape.labels.shape, strict=True)]
        values = shape.image[np.ix_(np.arange(len(shape.image)), *clipped)]
        return _Laid(box, labels, values, working, rim_mm)

    def _blended(self, donor: Lesion, laid: _Laid, ground: NDArray[np.bool_]) -> Site | None:
        """The site with its soft mask, cut to the tissue; None where the rim meets what is taken."""
        spacing = self.scan.spacing_mm
        soft = soft_mask(laid.labels, spacing, laid.rim_mm)
        weight = np.where(ground[laid.box], soft, 0).astype(np.float32)
        if (self.taken[laid.box] & (weight > 0)).any():
            return None
        return Site(laid.box, laid.labels, weight, donor, laid.values, laid.working_mm, self.scan.planar, spacing)

    @staticmethod
    def _moved_labels(shape: Deformed, index: list[NDArray[np.intp]]) -> NDArray[np.uint8]:
        """The shape's labels at its voxels `index`, one array for each axis; 0 beyond its edges."""
        labels = np.zeros([len(i) for i in index], np.uint8)
        known = [(i >= 0) & (i < n) for i, n in zip(index, shape.labels.shape, strict=True)]
        labels[np.ix_(*known)] = shape.labels[np.ix_(*[i[k] for i, k in zip(index, known, strict=True)])]
        return labels
