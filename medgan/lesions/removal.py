"""Taking lesions out: a void in a scan, and what fills it with tissue as it would be without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medgan.lesions.scans import Scan
from medgan.lesions.shapes import RIM_NATIVE, soft_mask

#: Voxels around a void that a filler may look at, besides the rim.
CONTEXT = 6
#: So much around a lesion is removed with it.
MARGIN_MM = 3.0
#: Tissue is borrowed from the mirrored place moved by so much along each axis, or not moved.
MIRROR_STEP_MM = 4.0
#: And from so many places at random.
SHIFTED = 24
#: What it costs an offer, in network values, to have none of the void's voxels.
MISSING_COST = 1.0


@dataclass(frozen=True, eq=False)
class Void:
    """A part of a scan that is to be filled.

    Args:
        box: Scan voxels it lies in, with `CONTEXT` voxels around the rim where the scan has them.
        hard: (x, y, z) bool: voxels of the box that are unknown or unwanted.
        weight: (x, y, z) soft mask: 1 in `hard`, falling to 0 at the rim's end; 0 where nothing may change.
        avoid: (x, y, z) bool: voxels of the box whose values are no tissue to go by (other lesions), `hard` included.
    """

    box: tuple[slice, slice, slice]
    hard: NDArray[np.bool_]
    weight: NDArray[np.float32]
    avoid: NDArray[np.bool_]


class Filler(Protocol):
    """Fills a void with tissue."""

    #: The name in provenance and reports.
    name: str

    def fill(self, scan: Scan, image: NDArray[np.float32], void: Void, seed: int) -> NDArray[np.float32]:
        """Network values (C, x, y, z) wanted in the void's box; only those under `void.weight` are meant.

        Args:
            scan: The scan as it was.
            image: (C, X, Y, Z) its network values at present: earlier voids are filled already.
            void: Where.
            seed: The same seed gives the same values.
        """
        ...


def voids(scan: Scan, unwanted: NDArray[np.bool_], *, rim_mm: float | None = None) -> Iterator[Void]:
    """The connected parts of a mask (X, Y, Z) as voids, largest first.

    Args:
        scan: Where they lie.
        unwanted: What is to be replaced.
        rim_mm: Width of the blended rim outside it; None: `RIM_NATIVE` voxels.
    """
    spacing = scan.spacing_mm
    rim = RIM_NATIVE * float(spacing[:2].min()) if rim_mm is None else rim_mm
    pad = np.ceil(rim / spacing).astype(int) + CONTEXT
    if scan.planar:
        pad[2] = 0
    parts, count = ndimage.label(unwanted, ndimage.generate_binary_structure(3, 3))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    boxes = ndimage.find_objects(parts)
    for index in np.argsort(-sizes, kind="stable"):
        x, y, z = (slice(max(0, s.start - p), min(n, s.stop + p))
                   for s, p, n in zip(boxes[index], pad, unwanted.shape, strict=True))
        box = (x, y, z)
        hard = parts[box] == index + 1
        weight = soft_mask(hard.astype(np.uint8), spacing, rim)
        yield Void(box, hard, weight, unwanted[box])


def fill_all(scan: Scan, unwanted: NDArray[np.bool_], filler: Filler, seed: int, *, rim_mm: float | None = None
             ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Fills every part of a mask.

    Args:
        scan: The scan; it is not changed.
        unwanted: (X, Y, Z) what is to be replaced.
        filler: Makes the tissue.
        seed: The same seed gives the same result.
        rim_mm: As for `voids`.

    Returns:
        (C, X, Y, Z) network values, and (X, Y, Z) where they may differ from the scan's.
    """
    image = scan.image.copy()
    changed = np.zeros(unwanted.shape, bool)
    rng = np.random.default_rng([seed, 17])
    for void in voids(scan, unwanted, rim_mm=rim_mm):
        where = (slice(None), *void.box)
        wanted = filler.fill(scan, image, void, int(rng.integers(2**62)))
        image[where] += void.weight * (wanted - image[where])
        changed[void.box] |= void.weight > 0
    return image, changed


def without_lesions(scan: Scan, filler: Filler, seed: int) -> tuple[Scan, NDArray[np.bool_]]:
    """The scan as it might be without its lesions, and (X, Y, Z) where it may differ.

    A little more than the mask is filled: what lies just outside it is often still brighter or darker than tissue.
    """
    margin = np.maximum(1, np.round(MARGIN_MM / scan.spacing_mm)).astype(int)
    if scan.planar:
        margin[2] = 0
    reach = np.stack(np.meshgrid(*[np.arange(-m, m + 1) / max(m, 1) for m in margin], indexing="ij"))
    ball = (reach**2).sum(axis=0) <= 1
    unwanted = ndimage.binary_dilation(scan.labels > 0, ball) & scan.tissue()
    image, changed = fill_all(scan, unwanted | (scan.labels > 0), filler, seed)
    return replace(scan, image=image, labels=np.zeros_like(scan.labels)), changed


class Tissue:
    """Healthy tissue of the same scan, mirrored or shifted, its edge made to fit by a smooth difference.

    The difference between the borrowed tissue and the scan around the void is spread smoothly into the void, as in
    Poisson image editing (Perez et al. 2003) but by averaging over ever coarser grids, which takes a fraction of the
    time: brightness follows the surroundings, texture the donor.
    """

    name = "tissue"

    def fill(self, scan: Scan, image: NDArray[np.float32], void: Void, seed: int) -> NDArray[np.float32]:
        """The tissue whose surroundings fit best of the mirrored places and `SHIFTED` others, fitted in."""
        from medgan.learning.tasks.lesion import smooth_fill

        allowed = scan.tissue() & (scan.labels == 0)
        best = min(self._offers(scan, void, allowed, np.random.default_rng([seed, 19])),
                   key=lambda offer: self._misfit(image, void, offer, allowed))
        there = best.positions(void.box, image.shape[1:])
        donor, usable = image[:, there[0], there[1], there[2]], allowed[there]
        here = image[(slice(None), *void.box)]
        known = allowed[void.box] & ~void.avoid
        if not known.any():
            known = ~void.avoid
        with torch.no_grad():
            # What the donor lacks is filled in it first, then its difference from the scan is spread into the void.
            borrowed = smooth_fill(torch.from_numpy(donor)[None], _tensor(~usable))
            difference = smooth_fill(torch.from_numpy(here)[None] - borrowed, _tensor(~known | ~usable))
            return np.asarray((borrowed + difference)[0].numpy(), np.float32)

    @staticmethod
    def _offers(scan: Scan, void: Void, allowed: NDArray[np.bool_], rng: np.random.Generator) -> list[_Offer]:
        spans = np.flatnonzero(allowed.any(axis=(1, 2)))
        middle = float(spans[0] + spans[-1]) / 2 if len(spans) else 0.0
        flat = 0 if scan.planar else 1
        offers = [_Offer(middle, np.round(np.array([x, y, z * flat]) * MIRROR_STEP_MM / scan.spacing_mm).astype(int))
                  for x in (-1, 0, 1) for y in (-1, 0, 1) for z in ((-1, 0, 1) if flat else (0,))]
        extent = np.array([s.stop - s.start for s in void.box]) * scan.spacing_mm
        for _ in range(SHIFTED):
            way = rng.standard_normal(3) * (1, 1, 0.5 * flat)
            way *= rng.uniform(0.4, 1.6) * float(extent[:2].max()) / max(1e-6, float(np.linalg.norm(way)))
            offers.append(_Offer(None, np.round(way / scan.spacing_mm).astype(int)))
        return offers

    @staticmethod
    def _misfit(image: NDArray[np.float32], void: Void, offer: _Offer, allowed: NDArray[np.bool_]) -> float:
        """How badly the offer's surroundings fit, and how much of the void it cannot fill."""
        there = offer.positions(void.box, image.shape[1:])
        usable = allowed[there]
        missing = 1 - float(usable[void.hard].mean())
        ring = usable & allowed[void.box] & ~void.avoid
        if not ring.any():
            return missing * MISSING_COST + MISSING_COST
        difference = image[:, there[0], there[1], there[2]][:, ring] - image[(slice(None), *void.box)][:, ring]
        return float(np.abs(difference).mean()) + MISSING_COST * missing


@dataclass(frozen=True, eq=False)
class _Offer:
    """Where tissue is borrowed: mirrored at a plane of the first axis, or not, and shifted by whole voxels."""

    mirror: float | None
    shift: NDArray[np.intp]

    def positions(self, box: tuple[slice, slice, slice], shape: tuple[int, ...]) -> tuple[NDArray[np.intp], ...]:
        """An open mesh of voxel positions in the scan; those beyond it are its edge."""
        index = [np.arange(s.start, s.stop) + d for s, d in zip(box, self.shift, strict=True)]
        if self.mirror is not None:
            index[0] = np.round(2 * self.mirror - index[0]).astype(int)
        return np.ix_(*[np.clip(i, 0, n - 1) for i, n in zip(index, shape, strict=True)])


def _tensor(mask: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None, None]
