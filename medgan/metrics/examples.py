"""Labelled pictures for a small classifier: the axial slices of volumes, or 2D images as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.splits import patient_key
from medgan.errors import Refused
from medgan.lesions.scans import Scan, open_scan

#: Slices with less tissue than this part of the fullest slice say nothing and would be easy negatives.
LEAST_TISSUE = 0.1
#: A slice with some lesion, but less than this, is neither "with" nor "without" and is left out.
LEAST_LESION_MM2 = 10.0
#: Network value of everything outside the tissue, whatever the scanner wrote there.
OUTSIDE = -1.0


@dataclass(frozen=True, eq=False)
class Examples:
    """Pictures and whether each is positive.

    Args:
        images: (N, C, size, size) float32 network values, `OUTSIDE` around the tissue.
        positive: (N,) bool.
        patients: (N,) whose picture it is.
        places: (N,) the slice's number within its volume; 0 for 2D images.
        left_out: How many slices had too little lesion to be called either way.
    """

    images: NDArray[np.float32]
    positive: NDArray[np.bool_]
    patients: NDArray[np.str_]
    places: NDArray[np.int64]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.positive)

    @staticmethod
    def joined(parts: Sequence[Examples]) -> Examples:
        """All parts one after the other."""
        return Examples(np.concatenate([part.images for part in parts]), np.concatenate([p.positive for p in parts]),
                        np.concatenate([part.patients for part in parts]), np.concatenate([p.places for p in parts]),
                        sum(part.left_out for part in parts))

    def counts(self) -> dict[str, int]:
        """How many patients, pictures, positive pictures, and slices left out."""
        return {"patients": len(np.unique(self.patients)), "images": len(self), "positive": int(self.positive.sum()),
                "left_out": self.left_out}

    def repeated(self, count: int) -> Examples:
        """The same pictures over and over, until there are `count`."""
        index = np.arange(count) % len(self)
        return Examples(self.images[index], self.positive[index], self.patients[index], self.places[index],
                        self.left_out)


@dataclass(frozen=True)
class Reader:
    """Turns cases into pictures of a common size, cut to the tissue's bounding square, the same way everywhere.

    Args:
        config: How intensities are mapped, and whether masks (`lesion`) or classes (`image`) say what is positive.
        size: Edge of the pictures, in pixels.
        channels: Names of the channels to read, in this order.
        positive_class: The class to find, where there are classes.
    """

    config: Config
    size: int
    channels: tuple[str, ...]
    positive_class: str | None = None

    @staticmethod
    def common(dataset: Dataset, others: Sequence[Dataset], config: Config, size: int,
               positive_class: str | None = None) -> Reader:
        """A reader of the channels that all data sets have; the class to find is the last one if it is not named.

        Raises:
            Refused: `DATASET_JSON` without a common channel, `LABEL_UNKNOWN` for a class that is not there.
        """
        channels = tuple(name for name in dataset.channels
                         if all(name.lower() in map(str.lower, other.channels) for other in others))
        if not channels:
            raise Refused("DATASET_JSON", dataset.root, f"none of its channels ({', '.join(dataset.channels)}) is in "
                          "every other data set", "Give the same channels the same names")
        if config.task == "image":
            positive_class = positive_class or dataset.classes[-1]
            if positive_class not in dataset.classes:
                raise Refused("LABEL_UNKNOWN", positive_class, f"{dataset.root} has no such class",
                              f"Use one of {', '.join(dataset.classes)}")
        return Reader(config, size, channels, positive_class)

    @property
    def positive(self) -> str:
        """What makes a picture positive, in words."""
        return (f"its class is {self.positive_class}" if self.config.task == "image"
                else f"it shows at least {LEAST_LESION_MM2:g} mm² of lesion")

    def labelled(self, dataset: Dataset) -> list[Case]:
        """The real cases that can be learned from or tested on."""
        return [case for case in dataset.cases if not case.synthetic
                and (case.label if self.config.task == "image" else case.mask) is not None]

    def read(self, dataset: Dataset, cases: Sequence[Case]) -> Examples:
        """The pictures of some cases.

        Raises:
            Refused: What reading refuses, and `DIM_UNSUPPORTED` for volumes with one class for the whole.
        """
        return Examples.joined([self._case(dataset, case) for case in cases])

    def _case(self, dataset: Dataset, case: Case) -> Examples:
        scan = open_scan(dataset, case, self.config)
        return self.of_scan(dataset, scan, seen_tissue(scan))

    def picked(self, dataset: Dataset) -> list[int]:
        """Numbers of the channels to read among a data set's own."""
        names = [name.lower() for name in dataset.channels]
        return [names.index(name.lower()) for name in self.channels]

    def of_scan(self, dataset: Dataset, scan: Scan, tissue: NDArray[np.bool_]) -> Examples:
        """The pictures of a case that is read already.

        Args:
            dataset: Where it is from.
            scan: The case.
            tissue: (X, Y, Z), from `seen_tissue`.

        Raises:
            Refused: `DIM_UNSUPPORTED` for a volume with one class for the whole.
        """
        case = scan.case
        if case.mask is None and not scan.planar:
            raise Refused("DIM_UNSUPPORTED", case.images[0], "a volume with one class and no mask is not one picture",
                          "Give 2D images with classes, or volumes with masks")
        filled = tissue.sum(axis=(0, 1))
        area = (scan.labels > 0).sum(axis=(0, 1)) * float(np.prod(scan.spacing_mm[:2]))
        unclear = (area > 0) & (area < LEAST_LESION_MM2)
        enough = filled >= LEAST_TISSUE * filled.max()
        kept = np.flatnonzero(enough & ~unclear)
        pictures = np.where(tissue, scan.image[self.picked(dataset)], np.float32(OUTSIDE))[..., kept]
        count = len(kept)
        positive = area[kept] > 0 if case.mask is not None else np.full(count, case.label == self.positive_class)
        return Examples(_squared(pictures, tissue, scan, self.size), positive, np.full(count, patient_key(case)), kept,
                        int((enough & unclear).sum()))


def seen_tissue(scan: Scan) -> NDArray[np.bool_]:
    """(X, Y, Z) the scan's tissue, as its values alone tell it; all of it where they do not."""
    # Where organs are, masks say; a model that is to be tested must not be told by them.
    tissue = scan.body()
    return tissue if tissue.any() else np.ones(tissue.shape, bool)


def _squared(pictures: NDArray[np.float32], tissue: NDArray[np.bool_], scan: Scan, size: int) -> NDArray[np.float32]:
    """(C, X, Y, K) -> (K, C, size, size): the tissue's bounding square, smoothed as far as it gets coarser."""
    spans = [np.flatnonzero(tissue.any(axis=(1 - axis, 2)))[[0, -1]] for axis in (0, 1)]
    edge_mm = max((last - first + 1) * step for (first, last), step in zip(spans, scan.spacing_mm, strict=False))
    window, margins = [], []
    for (first, last), step, length in zip(spans, scan.spacing_mm, pictures.shape[1:3], strict=False):
        count = round(edge_mm / step)
        start = round((first + last + 1 - count) / 2)
        window.append(slice(max(start, 0), min(start + count, length)))
        margins.append((max(-start, 0), max(start + count - length, 0)))
    cut = np.pad(pictures[:, window[0], window[1]], ((0, 0), *margins, (0, 0)), constant_values=OUTSIDE)
    stack = torch.from_numpy(np.ascontiguousarray(np.moveaxis(cut, -1, 0)))
    scaled: NDArray[np.float32] = F.interpolate(stack, (size, size), mode="bilinear", antialias=True).numpy()
    return scaled
