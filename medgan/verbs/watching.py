"""What a training run's reports say of its images: cheap figures against real images that it does not learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.datasets.subset import as_training
from medgan.errors import Refused

if TYPE_CHECKING:
    from torch import nn

    from medgan.learning.task import Task

#: Made images looked at; the floor needs as many real ones again.
COUNT = 128
#: Random halvings of the real images: each gives one distance from the made ones and one of real from real.
HALVINGS = 6
#: Real images below which a half says nothing.
FEWEST = 20


class Watch:
    """Compares fixed-seed images with validation images, or with training images where there are none.

    Random convolutions as features, because they cost next to nothing; `medgan evaluate` judges with better ones.

    Args:
        dataset: Real cases only.
        source: Of the run.
        config: Of the run.
    """

    def __init__(self, dataset: Dataset, source: Any, config: Config) -> None:
        self.source, self.seed = source, config.seed
        self.held_out = _held_out(dataset, source, config) if config.task == "image" else None
        self.against = "training images" if self.held_out is None else "validation images"

    def __call__(self, task: Task, generator: nn.Module) -> dict[str, float | str]:
        """MMD² and coverage, each with what other real images reach at the same n; empty where nothing is to be said.

        Returns:
            `fidelity/mmd2`, `fidelity/mmd2_floor`, `fidelity/mmd2_floor_sd`, `fidelity/coverage`,
            `fidelity/coverage_real`, `fidelity/n`, and `fidelity/against`: which real images.
        """
        if task.name != "image" or (probe := task.probe(generator, self.source, COUNT)) is None:
            return {}
        from medgan.metrics.diversity import neighbours
        from medgan.metrics.features import encoder, standardised
        from medgan.metrics.fidelity import mmd2

        real, classes = self.held_out or (probe.real, probe.real_classes)
        made_rows, real_rows = _same_mix(probe.made_classes, classes, np.random.default_rng([self.seed, 61]))
        if len(real_rows) < FEWEST:
            return {}
        encode = encoder("random")
        ours, theirs = standardised(encode(real[real_rows]), encode(probe.made[made_rows]))
        n = min(len(ours) // 2, len(theirs))
        rng = np.random.default_rng([self.seed, 62])
        found: dict[str, list[float]] = {name: [] for name in ("mmd2", "mmd2_floor", "coverage", "coverage_real")}
        for _ in range(HALVINGS):
            order = rng.permutation(len(ours))
            half, other = ours[order[:n]], ours[order[n : 2 * n]]
            some = theirs[rng.permutation(len(theirs))[:n]]
            found["mmd2"].append(mmd2(half, some))
            found["mmd2_floor"].append(mmd2(half, other))
            found["coverage"].append(neighbours(half, some).coverage)
            found["coverage_real"].append(neighbours(half, other).coverage)
        figures: dict[str, float | str] = {f"fidelity/{name}": float(np.mean(values)) for name, values in found.items()}
        return figures | {"fidelity/mmd2_floor_sd": float(np.std(found["mmd2_floor"], ddof=1)), "fidelity/n": n,
                          "fidelity/against": self.against}


def _held_out(dataset: Dataset, source: Any, config: Config
              ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
    """Validation images as the run would see them, in (N, C, ...) and their classes (N,); None where there are none."""
    from medgan.learning.tasks.image_source import ImageSource

    cases = dataset.split("val")
    rng = np.random.default_rng([config.seed, 60])
    kept = []
    for label in sorted({case.label for case in cases}, key=str):
        own = [case for case in cases if case.label == label]
        kept += [own[k] for k in sorted(rng.permutation(len(own))[:COUNT])]
    try:
        found = ImageSource(as_training(dataset, sorted(kept, key=lambda case: case.id)), config, source.interface)
    except Refused:
        return None
    same = found.interface["channels"] == source.interface["channels"]
    return (found.images, found.labels) if same and len(found.images) >= FEWEST else None


def _same_mix(made: NDArray[np.int64], real: NDArray[np.int64], rng: np.random.Generator
              ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of made and real images with the same share of each class, real ones twice as many where there are."""
    shared = [c for c in np.unique(made) if (real == c).sum() >= 2]
    if not shared:
        return np.arange(0), np.arange(0)
    each = min(min(int((made == c).sum()), int((real == c).sum()) // 2) for c in shared)
    return (np.concatenate([rng.permutation(np.flatnonzero(made == c))[:each] for c in shared]),
            np.concatenate([rng.permutation(np.flatnonzero(real == c))[: 2 * each] for c in shared]))
