"""Can real and made images be told apart? A classifier two-sample test (Lopez-Paz and Oquab 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgan.metrics.fidelity import prepared
from medgan.metrics.judges import by_statistics
from medgan.metrics.measured import Features, Index, Measured, measure
from medgan.metrics.utility import auroc

#: Parts of each set that are judged by what was learned from the others.
FOLDS = 4
#: Halvings, draws and half-samples: each learns anew.
DRAWS = 16


def realness(real: ArrayLike, made: ArrayLike, *, units: ArrayLike, seed: int = 0,
             made_units: ArrayLike | None = None) -> Measured:
    """AUROC of a cross-validated logistic regression that tells made images from real ones; 0.5 is best.

    It sees the features and their squares. Every fold judges patients it has not learned from. The floor, real against
    real, is about 0.5; its spread says what is chance.

    Args:
        real: (R, F) standardised features.
        made: (M, F) in the same space.
        units: (R,) whose the real images are.
        seed: Of the draws and folds.
        made_units: (M,) the same for the made images; None: each was drawn by itself.

    Raises:
        Refused: Features of another shape or not finite, or too few images to compare.
    """
    first, second, numbers, made_numbers = prepared(real, made, units, made_units, seed)
    pooled = np.vstack([first, second])
    # A linear boundary through features alone would not see a wrong spread around the right mean.
    pooled = np.hstack([pooled, pooled**2])
    owners = np.concatenate([numbers, numbers.max() + 1 + made_numbers])

    def figures(one: Index, other: Index) -> dict[str, float]:
        return {"realness": told_apart(pooled, owners, (one, other), np.random.default_rng([seed, 61]))}

    return measure(figures, numbers, made_numbers, seed=seed, bounds={"realness": (0.0, 1.0)}, draws=DRAWS,
                   half_samples=DRAWS)["realness"]


def told_apart(features: Features, owners: NDArray[np.intp], sides: Sequence[Index], rng: np.random.Generator
               ) -> float:
    """Mean AUROC over folds for telling the second side's rows from the first's.

    Args:
        features: (N, F).
        owners: (N,) whose each row is; no patient is learned from and judged at once.
        sides: Rows of both.
        rng: Draws the folds.
    """
    rows = np.concatenate(sides)
    truth = np.repeat([False, True], [len(side) for side in sides])
    units = np.unique(owners[rows], return_inverse=True)[1]
    # Stratified: each side's patients go round the folds.
    fold = np.empty(units.max() + 1, np.intp)
    for wanted in (False, True):
        known = rng.permutation(np.unique(units[truth == wanted]))
        fold[known] = np.arange(len(known)) % FOLDS
    judge = by_statistics(features[rows], truth, units)
    reached = []
    for part in range(FOLDS):
        test = fold[units] == part
        if len(set(truth[test].tolist())) == 2 and len(set(truth[~test].tolist())) == 2:
            reached.append(float(auroc(truth[test], judge(~test, test))[0]))
    return float(np.mean(reached)) if reached else float("nan")
