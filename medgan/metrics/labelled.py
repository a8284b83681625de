"""Labelled volumes for a small network, read once, on one working grid, cut to the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.splits import patient_key
from medgan.imaging.geometry import resample
from medgan.imaging.volume import Volume
from medgan.lesions.scans import Scan, open_scan
from medgan.metrics.examples import LEAST_LESION_MM2, LEAST_TISSUE, OUTSIDE, seen_tissue

#: Voxels of `OUTSIDE` kept around the tissue, so that what repeats the edge repeats that.
MARGIN = 1
#: A spacing that differs from the wanted one by less than this part is left as it is.
SAME_SPACING = 0.01
#: So many standard deviations of the tissue's values reach from the middle to either end of the network's range.
DEVIATIONS = 4.0


@dataclass(frozen=True, eq=False)
class Labelled:
    """One volume and its labels, for a network.

    Args:
        image: (C, X, Y, Z) float32 network values.
        labels: (X, Y, Z) indices: 0 background, 1..L.
        spacing_mm: (3,) of the voxels.
        case: Id of the case.
        patient: Whose it is.
        tissue: (Z,) voxels of tissue in each slice; empty where nobody counted.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    case: str = ""
    patient: str = ""
    tissue: tuple[int, ...] = ()

    @property
    def areas_mm2(self) -> NDArray[np.float64]:
        """(Z,) labelled area in each slice."""
        return np.asarray((self.labels > 0).sum(axis=(0, 1)) * float(np.prod(self.spacing_mm[:2])))

    def clear_slices(self) -> NDArray[np.intp]:
        """Slices with enough tissue, and either no lesion or enough to be seen, as the slice classifier takes them."""
        filled = np.array(self.tissue or self.labels.shape[2] * (1,))
        area = self.areas_mm2
        unclear = (area > 0) & (area < LEAST_LESION_MM2)
        return np.flatnonzero((filled >= LEAST_TISSUE * filled.max()) & ~unclear)


def read_labelled(dataset: Dataset, cases: Sequence[Case], config: Config, spacing_mm: float | None = None,
                  channels: Sequence[str] | None = None) -> list[Labelled]:
    """Reads cases with masks on a working grid; all lesion labels become 1.

    Args:
        dataset: Where they are from.
        cases: Cases with masks.
        config: How intensities are mapped, and which labels are organs and no lesions.
        spacing_mm: Of the working grid, along all axes of a volume and both of an image; None: the data's own.
        channels: Names of those to read, in this order; None: all.

    Returns:
        One a case, `OUTSIDE` wherever there is no tissue, cut to the tissue's (and labels') bounding box.

    Raises:
        Refused: What reading refuses.
    """
    names = [name.lower() for name in dataset.channels]
    picked = [names.index(name.lower()) for name in channels] if channels is not None else list(range(len(names)))
    scans = (open_scan(dataset, case, config) for case in cases)
    return [of_scan(scan, seen_tissue(scan), picked, spacing_mm) for scan in scans]


def of_scan(scan: Scan, tissue: NDArray[np.bool_], channels: Sequence[int], spacing_mm: float | None = None, *,
            standardised: bool = False
            ) -> Labelled:
    """A case that is read already; see `read_labelled`.

    Args:
        scan: The case.
        tissue: (X, Y, Z), from `seen_tissue`.
        channels: Numbers of those to take, in this order.
        spacing_mm: Of the working grid; None: the scan's own.
        standardised: Each channel less its mean over the tissue, over `DEVIATIONS` of its standard deviations, instead
            of its network values.
    """
    values = scan.image[list(channels)]
    if standardised:
        known = values[:, tissue].astype(np.float64)
        mean, spread = (figure[:, None, None, None] for figure in (known.mean(axis=1), known.std(axis=1) * DEVIATIONS))
        values = np.clip((values - mean) / np.maximum(spread, 1e-6), OUTSIDE, -OUTSIDE)
    image = np.where(tissue, values, np.float32(OUTSIDE)).astype(np.float32)
    lesion = scan.labels > 0
    own = np.asarray(scan.spacing_mm, float)
    wanted = own.copy()
    if spacing_mm is not None:
        wanted[: 2 if scan.planar else 3] = spacing_mm
    if (np.abs(wanted / own - 1) > SAME_SPACING).any():
        # A part of each axis, so that the three grids cannot differ by rounding.
        shape = [max(1, round(n * float(a / b))) for n, a, b in zip(lesion.shape, own, wanted, strict=True)]
        image = _resampled(image, own, wanted, shape)
        lesion, tissue = (_resampled(mask[None].astype(np.float32), own, wanted, shape)[0] >= 0.5
                          for mask in (lesion, tissue))
        image[:, ~tissue] = OUTSIDE
    box = ndimage.find_objects((tissue | lesion).astype(np.uint8))[0]
    # In the plane alone: a slice of nothing would only be another easy one.
    margins = [(MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)]
    return Labelled(
        np.pad(image[:, *box], [(0, 0), *margins], constant_values=OUTSIDE).astype(np.float32),
        np.pad(lesion[box], margins).astype(np.uint8),
        (float(wanted[0]), float(wanted[1]), float(wanted[2])), scan.case.id, patient_key(scan.case),
        tuple(int(count) for count in tissue[box].sum(axis=(0, 1))))


def _resampled(array: NDArray[np.float32], own: NDArray[np.float64], wanted: NDArray[np.float64],
               shape: Sequence[int]) -> NDArray[np.float32]:
    made = resample(Volume(array, np.diag([*own, 1.0])), wanted.tolist(), order=1, shape=shape)
    return np.asarray(made.array, np.float32)
