"""`Library`: the real lesions of a data set's training cases, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.errors import Refused
from medgan.lesions.density import PlaceDensity, seen
from medgan.lesions.scans import mask_values, open_scan
from medgan.lesions.shape_model import ShapeModel
from medgan.lesions.shapes import Lesion, find_lesions

#: A place suits a lesion where the tissue lies between these percentiles of the real lesions' own bands.
BAND_PERCENTILES = (10.0, 90.0)
#: And a little beyond, in network values: two scans of one tissue differ by as much.
BAND_SLACK = 0.02
#: No more lesions of one case are kept; the largest ones are.
MOST_PER_CASE = 64
#: Shapes drawn after a donor until one has mostly the same label; after these the donor itself is taken.
SHAPE_TRIES = 3


@dataclass(frozen=True, eq=False)
class LabelStatistics:
    """How the voxels of one label look in real lesions.

    Args:
        mean: (C,) of the lesions' mean network values.
        deviation: (C,) of single voxels around that mean, within and between lesions.
        contrast: (C,) mean difference from the tissue around.
        contrast_deviation: (C,) standard deviation of that difference between lesions.
        texture: (C,) standard deviation of voxels within a lesion.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    contrast: NDArray[np.float64]
    contrast_deviation: NDArray[np.float64]
    texture: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Library:
    """Real lesions to learn from, copy or draw statistics from.

    Args:
        lesions: All kept lesions of the training cases.
        labels: Label index (1..L) -> (mask value, name).
        per_case: How many lesions each training case has.
        statistics: Label index -> how its voxels look.
        surroundings: Main label index of a lesion -> (low, high) network value of channel 0 around such lesions.
        shapes: Draws lesions of made-up shapes like theirs; None where none was fitted.
        places: Where they lie in the body; None where none was fitted.
    """

    lesions: tuple[Lesion, ...]
    labels: dict[int, tuple[int, str]]
    per_case: tuple[int, ...]
    statistics: dict[int, LabelStatistics]
    surroundings: dict[int, tuple[float, float]]
    shapes: ShapeModel | None = None
    places: PlaceDensity | None = None

    def shaped(self, donor: Lesion, share: float, rng: np.random.Generator) -> Lesion:
        """The donor, or with a probability of `share` a lesion of a made-up shape after it.

        A share of 0 draws nothing from `rng`.
        """
        if self.shapes is None or share <= 0 or rng.random() >= share:
            return donor
        for _ in range(SHAPE_TRIES):
            drawn = self.shapes.draw(donor, rng)
            # What lies around real lesions is known by main label, so a drawn one has to keep its donor's.
            if main_label(drawn) == main_label(donor):
                return drawn
        return donor

    def with_label(self, name: str | None) -> list[Lesion]:
        """The lesions that contain a label, or all.

        Raises:
            Refused: `LABEL_UNKNOWN`.
        """
        if name is None:
            return list(self.lesions)
        index = next((i for i, (_, known) in self.labels.items() if known == name), None)
        found = [lesion for lesion in self.lesions if index in lesion.present()]
        if not found:
            known = ", ".join(label for i, (_, label) in self.labels.items() if i in self.statistics)
            raise Refused("LABEL_UNKNOWN", f"label {name!r}", "no training lesion has it", f"Use one of {known}")
        return found


def main_label(lesion: Lesion) -> int:
    """The label index that most of a lesion's voxels have."""
    return int(np.bincount(lesion.labels[lesion.labels > 0]).argmax())


def build_library(dataset: Dataset, config: Config) -> Library:
    """Collects the lesions of the training cases.

    Raises:
        Refused: `DATASET_EMPTY` when there is none, `LABEL_UNKNOWN` for organs it does not name.
    """
    lesions: list[Lesion] = []
    per_case = []
    places = []
    for case in dataset.split("train"):
        if case.mask is not None:
            scan = open_scan(dataset, case, config)
            found = find_lesions(scan)
            if config.augment.density > 0:
                places.append(seen(scan.tissue(), scan.labels))
            per_case.append(len(found))
            lesions += found[:MOST_PER_CASE]
    if not lesions:
        raise Refused("DATASET_EMPTY", dataset.root, "no training case has a lesion in its mask",
                      "Give masks with at least one lesion")
    values = mask_values(dataset, config.data.organs)
    labels = {i: (value, dataset.labels[value]) for i, value in enumerate(values, start=1)}
    statistics = {i: _statistics(lesions, i) for i in labels if any(i in lesion.present() for lesion in lesions)}
    return Library(tuple(lesions), labels, tuple(per_case), statistics, _surroundings(lesions),
                   ShapeModel.fit(lesions) if config.augment.made_shapes > 0 else None, PlaceDensity.of(places))


def _statistics(lesions: Sequence[Lesion], index: int) -> LabelStatistics:
    having = [(lesion, lesion.image[:, lesion.labels == index]) for lesion in lesions if index in lesion.present()]
    means = np.array([values.mean(axis=1) for _, values in having], dtype=np.float64)
    within = np.array([values.std(axis=1) for _, values in having], dtype=np.float64)
    contrast = means - np.array([lesion.surroundings for lesion, _ in having])
    texture = within.mean(axis=0)
    return LabelStatistics(means.mean(axis=0), np.sqrt(texture**2 + means.var(axis=0)), contrast.mean(axis=0),
                           contrast.std(axis=0), texture)


def _surroundings(lesions: Sequence[Lesion]) -> dict[int, tuple[float, float]]:
    bands: dict[int, list[tuple[float, float]]] = {}
    for lesion in lesions:
        bands.setdefault(main_label(lesion), []).append(lesion.band)
    return {index: (float(np.percentile([low for low, _ in found], BAND_PERCENTILES[0])) - BAND_SLACK,
                    float(np.percentile([high for _, high in found], BAND_PERCENTILES[1])) + BAND_SLACK)
            for index, found in bands.items()}
