"""Taking lesions out: a void in a scan, and what fills it with tissue as it would be without them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
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
#: What the best donor lacks gets the median of so many others; what they all lack is smooth.
DONORS = 8
#: Over about so many voxels that median goes over into what is beside it.
FADING_VOXELS = 2.0
#: What it costs an offer, in network values, to have none of the void's voxels.
MISSING_COST = 1.0

#: Values for a void's box, (C, x, y, z), and (x, y, z) bool: which of them are tissue.
Lent = tuple[NDArray[np.float32], NDArray[np.bool_]]


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

    A little more than the mask is filled, and none of it is lent to other places: what lies just outside a mask is
    often still brighter or darker than tissue.
    """
    margin = np.maximum(1, np.round(MARGIN_MM / scan.spacing_mm)).astype(int)
    if scan.planar:
        margin[2] = 0
    reach = np.stack(np.meshgrid(*[np.arange(-m, m + 1) / max(m, 1) for m in margin], indexing="ij"))
    ball = (reach**2).sum(axis=0) <= 1
    lesions = scan.labels > 0
    unwanted = lesions | (ndimage.binary_dilation(lesions, ball) & scan.tissue())
    image, changed = fill_all(replace(scan, labels=unwanted.astype(np.uint8)), unwanted, filler, seed)
    # Air beside the body stays as it is; at an organ's border the change fades out, or it would be a step.
    changed &= scan.body() | lesions
    return replace(scan, image=np.where(changed, image, scan.image), labels=np.zeros_like(scan.labels)), changed


class Tissue:
    """Healthy tissue of the same scan, mirrored or shifted, its edge made to fit by a smooth difference.

    The difference between the borrowed tissue and the scan around the void is spread smoothly into the void, as in
    Poisson image editing (Perez et al. 2003) but by averaging over ever coarser grids, which takes a fraction of the
    time: brightness follows the surroundings, texture the donor. What the best donor lacks, as where a lesion crosses
    the midline, the median of up to `DONORS` others fills.
    """

    name = "tissue"

    def fill(self, scan: Scan, image: NDArray[np.float32], void: Void, seed: int) -> NDArray[np.float32]:
        """The tissue whose surroundings fit best of the mirrored places and `SHIFTED` others, fitted in."""
        rng = np.random.default_rng([seed, 19])
        allowed = scan.tissue() & (scan.labels == 0)
        known = allowed[void.box] & ~void.avoid
        if not known.any():
            known = ~void.avoid
        here = image[(slice(None), *void.box)]

        def lent(to: NDArray[np.bool_], most: int) -> list[Lent]:
            """The best of what is offered for some voxels, the best first."""
            def misfit(offer: _Offer) -> float:
                return self._misfit(here, known, to, *offer.lend(scan, image, void.box, allowed))

            best = sorted(self._offers(scan, void, allowed, rng), key=misfit)
            return [offer.lend(scan, image, void.box, allowed) for offer in best[:most]]

        donor, usable = lent(void.hard, 1)[0]
        here = _fitted(here, known, donor, usable)
        left = void.hard & ~usable
        if not left.any():
            return here
        known = known | (void.hard & usable)
        return _faded(here, known, left, lent(left, DONORS))

    @staticmethod
    def _offers(scan: Scan, void: Void, allowed: NDArray[np.bool_], rng: np.random.Generator) -> list[_Offer]:
        spans = np.flatnonzero(allowed.any(axis=(1, 2)))
        middle = float(spans[0] + spans[-1]) / 2 if len(spans) else 0.0
        flat = 0 if scan.planar else 1
        offers = [_Offer(middle, np.round(np.array([x, y, z * flat]) * MIRROR_STEP_MM / scan.spacing_mm).astype(int))
                  for x in (-1, 0, 1) for y in (-1, 0, 1) for z in ((-1, 0, 1) if flat else (0,))]
        # The box's, not the void's: a small one would be offered little but its own place, a voxel or two aside.
        extent = np.array([s.stop - s.start for s in void.box]) * scan.spacing_mm
        for _ in range(SHIFTED):
            way = rng.standard_normal(3) * (1, 1, 0.5 * flat)
            way *= rng.uniform(0.4, 1.6) * float(extent[:2].max()) / max(1e-6, float(np.linalg.norm(way)))
            offers.append(_Offer(None, np.round(way / scan.spacing_mm).astype(int)))
        return offers

    @staticmethod
    def _misfit(here: NDArray[np.float32], known: NDArray[np.bool_], to: NDArray[np.bool_], donor: NDArray[np.float32],
                usable: NDArray[np.bool_]) -> float:
        """How badly an offer fits what is known, and how much of what it is for it cannot fill."""
        missing = 1 - float(usable[to].mean())
        ring = usable & known
        if not ring.any():
            return missing * MISSING_COST + MISSING_COST
        return float(np.abs(donor[:, ring] - here[:, ring]).mean()) + MISSING_COST * missing


def _fitted(here: NDArray[np.float32], known: NDArray[np.bool_], donor: NDArray[np.float32], usable: NDArray[np.bool_]
            ) -> NDArray[np.float32]:
    """`here` where known; elsewhere the donor plus their difference, spread smoothly from where both are known."""
    from medgan.learning.tasks.lesion import smooth_fill

    with torch.no_grad():
        # What the donor lacks is filled in it first.
        borrowed = smooth_fill(torch.from_numpy(donor)[None], _tensor(~usable))
        difference = smooth_fill(torch.from_numpy(here)[None] - borrowed, _tensor(~known | ~usable))
        return np.where(known, here, (borrowed + difference)[0].numpy())


def _faded(here: NDArray[np.float32], known: NDArray[np.bool_], left: NDArray[np.bool_], offers: Sequence[Lent]
           ) -> NDArray[np.float32]:
    """`here` with what is left filled by the offers' median, which near what is known goes over into that.

    Donors fit worse here, and a difference that is spread from a bad fit would fill all of it with light or dark.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)
        middle = np.nanmedian([np.where(usable, donor, np.nan) for donor, usable in offers], axis=0)
    lacking = np.isnan(middle[0])
    fitted = _fitted(here, known, np.nan_to_num(middle), ~lacking)
    share = np.exp(-ndimage.distance_transform_edt(~known) / FADING_VOXELS)
    filled = np.where(lacking, fitted, share * fitted + (1 - share) * middle)
    return np.where(left, filled, here).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Offer:
    """Where tissue is borrowed: mirrored at a plane of the first axis, or not, and shifted by whole voxels."""

    mirror: float | None
    shift: NDArray[np.intp]

    def lend(self, scan: Scan, image: NDArray[np.float32], box: tuple[slice, slice, slice], allowed: NDArray[np.bool_]
             ) -> Lent:
        """The image's values for a box, and which of them are tissue that may be lent: to an organ only its own."""
        index = [np.arange(s.start, s.stop) + d for s, d in zip(box, self.shift, strict=True)]
        if self.mirror is not None:
            index[0] = np.round(2 * self.mirror - index[0]).astype(int)
        there = [np.clip(i, 0, n - 1) for i, n in zip(index, allowed.shape, strict=True)]
        x, y, z = np.meshgrid(*[i == j for i, j in zip(index, there, strict=True)], sparse=True, indexing="ij")
        at = np.ix_(*there)
        usable = allowed[at] & x & y & z
        if scan.organs is not None:
            organ = scan.organs[box]
            usable &= (scan.organs[at] == organ) | (organ == 0)
        return image[:, at[0], at[1], at[2]], usable


def _tensor(mask: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None, None]
