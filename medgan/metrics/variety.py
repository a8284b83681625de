"""How much samples of one request differ, against how much real lesions of that size do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.lesions.crops import LARGEST_SHARE, Grid
from medgan.lesions.shapes import Lesion

#: Two real lesions are of one size where their extents differ by no more than this factor.
ALIKE = 1.5
#: Edge of the grid on which two lesions are laid over each other, in pixels.
SIZE = 32
#: Two masks must share this part of the smaller one, or there is nothing to compare.
OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class Patch:
    """The largest section of a lesion.

    Args:
        values: (C, SIZE, SIZE) network values.
        mask: (SIZE, SIZE) the lesion.
        size_mm: Its extent.
    """

    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    size_mm: float


@dataclass(frozen=True)
class Variety:
    """Mean absolute differences of pairs within their masks, in network values.

    Args:
        raw: Of the values as they are: brightness counts.
        matched: Of the values less each one's own mean in the common mask: only the pattern counts.
        pairs: How many pairs.
    """

    raw: float
    matched: float
    pairs: int

    def over(self, other: Variety) -> tuple[float, float]:
        """Its share of another's differences, raw and matched; NaN where there is nothing to compare with."""
        if not self.pairs or not other.pairs:
            return float("nan"), float("nan")
        return self.raw / max(other.raw, 1e-9), self.matched / max(other.matched, 1e-9)


def patch_of(image: NDArray[np.float32], mask: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> Patch:
    """The section of a lesion with most voxels, scaled so that every lesion fills as much of the patch.

    Args:
        image: (C, x, y, z) network values.
        mask: (x, y, z) the lesion.
        spacing_mm: (3,).
    """
    k = int(mask.sum(axis=(0, 1)).argmax())
    section = mask[:, :, k]
    box = ndimage.find_objects(section.astype(np.uint8))[0]
    extent = float(max((s.stop - s.start) * spacing for s, spacing in zip(box, spacing_mm[:2], strict=True)))
    step = np.array([*(extent / (LARGEST_SHARE * SIZE) / spacing_mm[:2]), 1.0])
    grid = Grid(np.array([*np.argwhere(section).mean(axis=0), 0.0]), step, (SIZE, SIZE, 1))
    values = np.stack([grid.cut(channel[:, :, k, None], order=1)[..., 0] for channel in image]).astype(np.float32)
    return Patch(values, grid.cut(section[..., None].astype(np.uint8), order=0)[..., 0] > 0, extent)


def patches(lesions: Sequence[Lesion]) -> list[Patch]:
    """The patches of real lesions."""
    return [patch_of(lesion.image, lesion.labels > 0, lesion.spacing_mm) for lesion in lesions]


def variety(samples: Sequence[Patch]) -> Variety:
    """How much patches of one size differ from each other, pair by pair, where both are lesion."""
    raw, matched = [], []
    for one, other in combinations(samples, 2):
        if max(one.size_mm, other.size_mm) > ALIKE * min(one.size_mm, other.size_mm):
            continue
        both = one.mask & other.mask
        if both.sum() < OVERLAP * min(one.mask.sum(), other.mask.sum()):
            continue
        change = one.values[:, both] - other.values[:, both]
        raw.append(float(np.abs(change).mean()))
        matched.append(float(np.abs(change - change.mean(axis=1, keepdims=True)).mean()))
    if not raw:
        return Variety(float("nan"), float("nan"), 0)
    return Variety(float(np.mean(raw)), float(np.mean(matched)), len(raw))


def mean_variety(groups: Sequence[Variety]) -> Variety:
    """The mean of several, each counting once; those without pairs are left out."""
    known = [group for group in groups if group.pairs]
    if not known:
        return Variety(float("nan"), float("nan"), 0)
    return Variety(float(np.mean([group.raw for group in known])), float(np.mean([group.matched for group in known])),
                   sum(group.pairs for group in known))
