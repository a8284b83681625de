"""What the task network is shown: sections of lesions at the working spacing, to learn from and to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.datasets.splits import patient_key
from medgan.lesions.crops import Grid, working_spacing
from medgan.lesions.scans import Scan, open_scan
from medgan.lesions.shapes import find_lesions

#: Sections of a lesion that are looked at when it is judged.
SECTIONS = 5
#: Sections of each case that are learned from, and as many crops of lesion-free tissue.
SECTIONS_PER_CASE = 48
#: Stored crops are larger than the used ones by this, for shifts; their spacing varies by this (a standard deviation
#: of its logarithm).
STORED, SPACING_JITTER = 1.25, 0.12

#: A crop's network values (C, n, n) and where any lesion is (n, n).
Crop = tuple[NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Look:
    """Sections of one lesion as the network is shown them.

    Args:
        images: (S, C, n, n) network values.
        masks: (S, n, n) where the lesion is.
    """

    images: NDArray[np.float32]
    masks: NDArray[np.bool_]


def used_size(config: Config) -> int:
    """Edge of the network's crops: the generator's, as a multiple of 4 and not under 32."""
    return max(32, config.data.crop // 4 * 4)


def sections(image: NDArray[np.float32], mask: NDArray[np.bool_], spacing_mm: NDArray[np.float64], working_mm: float,
             size: int, most: int) -> Look:
    """Crops of a lesion's slices at the working spacing, evenly over its depth, each centred on its part of it.

    Args:
        image: (C, X, Y, Z) network values.
        mask: (X, Y, Z) the lesion.
        spacing_mm: (3,).
        working_mm: Edge of a working pixel.
        size: Edge of the crops in pixels.
        most: Sections at most.
    """
    slices = np.flatnonzero(mask.any(axis=(0, 1)))
    if len(slices) > most:
        # The outermost slices of a lesion hold little of it, so the chosen ones lie inside its depth.
        slices = slices[np.floor((np.arange(most) + 0.5) * len(slices) / most).astype(int)]
    images, masks = [], []
    for k in slices:
        middle = np.array([*np.argwhere(mask[:, :, k]).mean(axis=0), 0.0])
        picture, own = cut_slice([*image[..., k], mask[:, :, k]], middle, spacing_mm, working_mm, size)
        if not own.any():
            # A mask thinner than a working pixel falls between the samples: its middle stands for it.
            own[size // 2, size // 2] = True
        images.append(picture)
        masks.append(own)
    return Look(np.stack(images), np.stack(masks))


def cut_slice(layers: Sequence[NDArray[Any]], middle: NDArray[np.float64], spacing_mm: NDArray[np.float64],
              working_mm: float, size: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Image (C, size, size) and mask (size, size) around a voxel position of a slice; the last layer is the mask."""
    step = np.array([working_mm / spacing_mm[0], working_mm / spacing_mm[1], 1.0])
    grid = Grid(middle, step, (size, size, 1))
    *channels, mask = layers
    picture = np.stack([grid.cut(channel[..., None], order=1)[..., 0] for channel in channels]).astype(np.float32)
    return picture, grid.cut(mask[..., None].astype(np.uint8), order=0)[..., 0] > 0


@dataclass(frozen=True, eq=False)
class Gathered:
    """What one case shows.

    Args:
        patient: Whose it is.
        lesions: How many it has.
        crops: To learn from.
        looks: At its lesions.
        sham: At the same masks over its tissue.
    """

    patient: str
    lesions: int
    crops: list[Crop]
    looks: list[Look]
    sham: list[Look]


def gather(dataset: Dataset, config: Config, seed: int) -> list[Gathered]:
    """What each training case with a lesion shows; every case is read once."""
    size = used_size(config)
    cases = []
    for number, case in enumerate(dataset.split("train")):
        if case.mask is None:
            continue
        scan = open_scan(dataset, case, config)
        found = find_lesions(scan)
        if not found:
            continue
        rng = np.random.default_rng([seed, 23, number])
        finest = config.data.spacing_mm or float(scan.spacing_mm[:2].min())
        spacings = [working_spacing(lesion.extent_mm, finest, size) for lesion in found]
        own = [_Own(lesion.labels > 0, lesion.corner, spacing) for lesion, spacing in zip(found, spacings, strict=True)]
        crops, sham = _lesion_crops(scan, own, size, rng), []
        tissue = np.argwhere(scan.tissue() & (scan.labels == 0))
        if len(tissue):
            crops += _tissue_crops(scan, tissue, spacings, size, rng)
            sham = _sham(scan, own, tissue, size, rng)
        cases.append(Gathered(patient_key(case), len(found), crops, [_shown(scan, look, size) for look in own], sham))
    return cases


@dataclass(frozen=True, eq=False)
class _Own:
    """A lesion's own mask in its box of the case, and the spacing it is looked at."""

    mask: NDArray[np.bool_]
    corner: NDArray[np.intp]
    working_mm: float


def _shown(scan: Scan, own: _Own, size: int) -> Look:
    low = own.corner[2]
    slab = scan.image[..., low : low + own.mask.shape[2]]
    mask = np.zeros(slab.shape[1:], bool)
    mask[tuple(slice(c, c + n) for c, n in zip(own.corner[:2], own.mask.shape[:2], strict=True))] = own.mask
    return sections(slab, mask, scan.spacing_mm, own.working_mm, size, SECTIONS)


def _stored(size: int) -> int:
    return int(np.ceil(size * STORED / 2) * 2)


def _crop(scan: Scan, centre: NDArray[np.float64], working_mm: float, size: int, rng: np.random.Generator
          ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    k = int(centre[2])
    spacing = working_mm * float(np.exp(rng.normal(0, SPACING_JITTER)))
    layers = [*scan.image[..., k], scan.labels[..., k] > 0]
    return cut_slice(layers, np.array([centre[0], centre[1], 0.0]), scan.spacing_mm, spacing, _stored(size))


def _lesion_crops(scan: Scan, found: Sequence[_Own], size: int, rng: np.random.Generator
                  ) -> list[Crop]:
    """Sections of the lesions in turn, so that a large one does not crowd out the small."""
    turns: list[list[int]] = [list(rng.permutation(np.flatnonzero(own.mask.any(axis=(0, 1))))) for own in found]
    places = [(own, turn[n]) for n in range(max(map(len, turns))) for own, turn in zip(found, turns, strict=True)
              if n < len(turn)]
    crops = []
    for own, k in places[:SECTIONS_PER_CASE]:
        middle = np.asarray(np.array([*np.argwhere(own.mask[:, :, k]).mean(axis=0), k]) + own.corner, np.float64)
        crops.append(_crop(scan, middle, own.working_mm, size, rng))
    return crops


def _tissue_crops(scan: Scan, tissue: NDArray[np.intp], spacings: Sequence[float], size: int,
                  rng: np.random.Generator) -> list[Crop]:
    return [_crop(scan, tissue[rng.integers(len(tissue))].astype(float), float(rng.choice(spacings)), size, rng)
            for _ in range(SECTIONS_PER_CASE)]


def _sham(scan: Scan, found: Sequence[_Own], tissue: NDArray[np.intp], size: int, rng: np.random.Generator
          ) -> list[Look]:
    """Each lesion's middle section laid over tissue where there is no lesion."""
    looks = []
    for own in found:
        k = int(own.mask.sum(axis=(0, 1)).argmax())
        flat = np.argwhere(own.mask[:, :, k])
        for _ in range(20):
            place = tissue[rng.integers(len(tissue))]
            moved = flat - flat.mean(axis=0).astype(int) + place[:2]
            inside = ((moved >= 0) & (moved < scan.labels.shape[:2])).all(axis=1)
            moved = moved[inside]
            mask = np.zeros(scan.labels.shape[:2], bool)
            mask[moved[:, 0], moved[:, 1]] = True
            mask &= scan.labels[..., place[2]] == 0
            if mask.sum() > 0.7 * len(flat):
                slab = scan.image[..., place[2]][..., None]
                looks.append(sections(slab, mask[..., None], scan.spacing_mm, own.working_mm, size, 1))
                break
    return looks
