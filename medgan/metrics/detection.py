"""How well lesions are found in a volume: Dice of the whole, lesions found one by one, and what is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.metrics.labelled import Labelled

#: A real lesion counts as found when at least this share of it is covered: the share asked for in the MS segmentation
#: challenge of MICCAI 2016 (Commowick et al., Scientific Reports 8:13650, 2018).
FOUND_SHARE = 0.1
#: Smaller connected parts, drawn or found, are no lesions: what that challenge leaves out too.
LEAST_MM3 = 3.0
#: From this probability on a voxel is lesion.
THRESHOLD = 0.5
#: Voxels that share a corner belong together.
TOUCHING = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True)
class Detected:
    """What was found in one volume.

    Args:
        dice: Of the whole lesion; NaN where there is none.
        lesions: Real connected lesions of at least `LEAST_MM3`.
        found: How many of them were found.
        false_positives: Connected parts of at least `LEAST_MM3` that touch no real lesion.
        slices: (K,) largest probability in each of the volume's `clear_slices`.
    """

    dice: float
    lesions: int
    found: int
    false_positives: int
    slices: tuple[float, ...]

    @property
    def sensitivity(self) -> float:
        """Share of the real lesions that was found; NaN where there are none."""
        return self.found / self.lesions if self.lesions else float("nan")


def detected(chances: NDArray[np.floating], truth: Labelled) -> Detected:
    """Compares probabilities (X, Y, Z) of a lesion with the real ones."""
    found, wanted = chances >= THRESHOLD, truth.labels > 0
    both = int((found & wanted).sum())
    voxel = float(np.prod(truth.spacing_mm))
    real, sizes = _parts(wanted)
    covered = np.bincount(real[found], minlength=len(sizes) + 1)[1:]
    large = sizes * voxel >= LEAST_MM3
    own, own_sizes = _parts(found)
    touched = np.bincount(own[wanted], minlength=len(own_sizes) + 1)[1:]
    return Detected(
        dice=2 * both / int(found.sum() + wanted.sum()) if wanted.any() else float("nan"),
        lesions=int(large.sum()), found=int((large & (covered >= FOUND_SHARE * sizes)).sum()),
        false_positives=int(((own_sizes * voxel >= LEAST_MM3) & (touched == 0)).sum()),
        slices=tuple(float(chance) for chance in chances.max(axis=(0, 1))[truth.clear_slices()]))


def lesion_count(volume: Labelled) -> int:
    """How many connected lesions of at least `LEAST_MM3` a volume has."""
    _, sizes = _parts(volume.labels > 0)
    return int((sizes * float(np.prod(volume.spacing_mm)) >= LEAST_MM3).sum())


def _parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """(X, Y, Z) connected parts 1..n, and (n,) their voxels."""
    parts, count = ndimage.label(mask, TOUCHING)
    return parts, np.bincount(parts.ravel(), minlength=count + 1)[1:]
