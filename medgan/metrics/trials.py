"""What decides how many synthetic cases are worth having: a small task model, held against real patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.learning.loop import pick_device
from medgan.metrics.examples import Examples, Reader
from medgan.metrics.labelled import Labelled, read_labelled
from medgan.metrics.segmentation import dice, segment, train_segmenter
from medgan.metrics.utility import auroc, predict, train_classifier

#: Optimiser steps of the segmenter, whatever it is trained on: half a minute of a core. After half as many it still
#: learns from real images, so that synthetic ones look of less use than they are.
SEGMENTER_STEPS = 500
#: The same of the classifier.
CLASSIFIER_STEPS = 250
#: Edge of the classifier's pictures.
PICTURE = 64
#: Patients whose volumes are in memory at once with their synthetic cases, and images.
MOST_PATIENTS, MOST_IMAGES = 20, 2_000


class Trial(Protocol):
    """A small task model and what it reads.

    Attributes:
        measure: What `score` gives, in a word.
        unit: What it gives one score each: `patients` or `folds`.
        most_patients: No more are looked at.
    """

    measure: str
    unit: str
    most_patients: int

    def __init__(self, dataset: Dataset, config: Config) -> None: ...

    def usable(self, case: Case) -> bool:
        """Whether a case can be learned from or tested on."""
        ...

    def read(self, dataset: Dataset, case: Case) -> Any:
        """A case as the model takes it."""
        ...

    def learnable(self, cases: Sequence[Any]) -> bool:
        """Whether a model can be trained on these at all."""
        ...

    def score(self, training: Sequence[Any], test: Sequence[tuple[str, Any]], *, seed: int) -> list[float]:
        """Trains a model and tests it.

        Args:
            training: What `read` gave, real and synthetic.
            test: (patient, what `read` gave), real and none of them in `training`.
            seed: Of the first weights and what the model is shown.

        Returns:
            A score for each unit; NaN where it cannot be scored.
        """
        ...


class Segmenting:
    """A small 2D U-Net; per-patient Dice of any lesion against none."""

    measure, unit, most_patients = "Dice", "patients", MOST_PATIENTS

    def __init__(self, dataset: Dataset, config: Config) -> None:
        self.config, self.device = config, str(pick_device(config.device))

    def usable(self, case: Case) -> bool:
        """Cases with a mask."""
        return case.mask is not None

    def read(self, dataset: Dataset, case: Case) -> Labelled:
        """The volume on its own grid."""
        return read_labelled(dataset, [case], self.config)[0]

    def learnable(self, cases: Sequence[Labelled]) -> bool:
        """Whether a lesion is in one of them."""
        return any(case.labels.any() for case in cases)

    def score(self, training: Sequence[Labelled], test: Sequence[tuple[str, Labelled]], *, seed: int) -> list[float]:
        """Dice of each patient, over all its volumes together; NaN for a patient without a lesion."""
        model = train_segmenter(training, 1, steps=SEGMENTER_STEPS, seed=seed, dims=2, augmentation="geometric",
                                device=self.device)
        found: dict[str, list[tuple[Any, Any]]] = {}
        for patient, volume in test:
            pair = segment(model, volume.image).ravel(), volume.labels.ravel()
            found.setdefault(patient, []).append(pair)
        return [float(dice(np.concatenate([made for made, _ in pairs]), np.concatenate([real for _, real in pairs]),
                           1)[0]) for _, pairs in sorted(found.items())]


class Classifying:
    """A small classifier of whole images; AUROC of the last class against the others in a fold."""

    measure, unit, most_patients = "AUROC", "folds", MOST_IMAGES

    def __init__(self, dataset: Dataset, config: Config) -> None:
        self.reader = Reader.common(dataset, (), config, PICTURE)
        self.device = str(pick_device(config.device))

    def usable(self, case: Case) -> bool:
        """Cases with a class."""
        return case.label is not None

    def read(self, dataset: Dataset, case: Case) -> Examples:
        """The image as a picture."""
        return self.reader.read(dataset, [case])

    def learnable(self, cases: Sequence[Examples]) -> bool:
        """Whether there are two classes."""
        return len({bool(case.positive[0]) for case in cases}) == 2

    def score(self, training: Sequence[Examples], test: Sequence[tuple[str, Examples]], *, seed: int) -> list[float]:
        """The AUROC of these images, alone in the list; NaN where they are of one class."""
        model = train_classifier(Examples.joined(training), steps=CLASSIFIER_STEPS, seed=seed, device=self.device)
        shown = Examples.joined([each for _, each in test])
        return [float(auroc(shown.positive, predict(model, shown))[0])]


#: Task -> what decides for it.
TRIALS: dict[str, type[Trial]] = {"lesion": Segmenting, "image": Classifying}
