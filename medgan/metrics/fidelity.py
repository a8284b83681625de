"""How far a set of made images lies from the real ones, in a space of features: MMD², Fréchet distance, KID.

Features come standardised by the real reference (`medgan.metrics.features`). Every distance comes with n, its floor
and an interval (`medgan.metrics.measured`); without them it says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh, svdvals
from scipy.spatial.distance import cdist

from medgan.errors import Refused
from medgan.metrics.measured import LEAST, MOST, Features, Index, Measured, checked, measure, thinned

__all__ = ["Measured", "fidelity", "frechet", "kid", "mmd2"]

#: A covariance of fewer images a feature is mostly chance, and so is the Fréchet distance.
IMAGES_A_FEATURE = 10
#: Widths of the Gaussian kernels, as parts of the median distance of real images: one width sees one kind of fault.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def mmd2(real: ArrayLike, made: ArrayLike) -> float:
    """The unbiased squared maximum mean discrepancy (Gretton et al. 2012) of (R, F) and (M, F) features.

    The kernel is the mean of Gaussians exp(-d² / 2w²) of `WIDTHS` times the median distance of real images. It can be
    negative: its expectation is 0 where both sets come from one distribution.
    """
    one, other = _both(real, made)
    return discrepancy(gaussians(squared_distances(np.vstack([one, other])), median_distance(one)), *_rows(one, other))


def kid(real: ArrayLike, made: ArrayLike) -> float:
    """The kernel Inception distance (Bińkowski et al. 2018), unbiased, with (x·y / F + 1)³, of any features."""
    one, other = _both(real, made)
    return discrepancy(cubes(np.vstack([one, other])), *_rows(one, other))


def frechet(real: ArrayLike, made: ArrayLike) -> float:
    """The squared Fréchet distance of two Gaussians with the sets' means and covariances (Heusel et al. 2017).

    The trace of the square root of the covariances' product is the sum of the singular values of the product of
    their roots (Dowson and Landau 1982), which is real and finite for singular covariances too.
    """
    one, other = _both(real, made)
    first, second = (np.atleast_2d(np.cov(values, rowvar=False)) for values in (one, other))
    shift = one.mean(axis=0) - other.mean(axis=0)
    shared = svdvals(_root(first) @ _root(second)).sum()
    return float(max(shift @ shift + np.trace(first) + np.trace(second) - 2 * shared, 0.0))


def fidelity(real: ArrayLike, made: ArrayLike, *, units: ArrayLike, seed: int = 0,
             made_units: ArrayLike | None = None) -> dict[str, Measured]:
    """"mmd2", "frechet" and "kid" at equal n on both sides, each with floor, interval and warnings.

    Args:
        real: (R, F) standardised features.
        made: (M, F) in the same space.
        units: (R,) whose the real images are: halves share none.
        seed: Of the draws.
        made_units: (M,) the same for the made images; None: each was drawn by itself.

    Raises:
        Refused: Features of another shape or not finite, or too few images to compare.
    """
    first, second, numbers, made_numbers = prepared(real, made, units, made_units, seed)
    pooled = np.vstack([first, second])
    likeness, cubed = gaussians(squared_distances(pooled), median_distance(first)), cubes(pooled)

    def figures(one: Index, other: Index) -> Mapping[str, float]:
        return {"mmd2": discrepancy(likeness, one, other), "frechet": frechet(pooled[one], pooled[other]),
                "kid": discrepancy(cubed, one, other)}

    found = measure(figures, numbers, made_numbers, seed=seed, bounds={"frechet": (0.0, np.inf)})
    n, count = found["frechet"].n_real, pooled.shape[1]
    if n < IMAGES_A_FEATURE * count:
        found["frechet"] = found["frechet"].with_warnings(
            f"{n} images a side for {count} features: below {IMAGES_A_FEATURE} each, covariances are mostly chance; "
            "compare it with its floor only, or read mmd2")
    return found


def prepared(real: ArrayLike, made: ArrayLike, units: ArrayLike, made_units: ArrayLike | None, seed: int
             ) -> tuple[Features, Features, NDArray[np.intp], NDArray[np.intp]]:
    """Checked features and units of both sides, thinned to `MOST` images each.

    Raises:
        Refused: Features of another shape or not finite, or as many units as there are no images.
    """
    one, other = _both(real, made)
    rng = np.random.default_rng([seed, 43])
    given = [np.unique(np.asarray(units), return_inverse=True)[1].ravel(),
             np.arange(len(other)) if made_units is None else np.unique(made_units, return_inverse=True)[1].ravel()]
    for numbers, values, what in zip(given, (one, other), ("real", "made"), strict=True):
        if len(numbers) != len(values):
            raise Refused("TAB_UNMATCHED", f"{what} images", f"{len(values)} images and {len(numbers)} units",
                          "Give one unit an image")
    rows = [thinned(numbers, MOST, rng) for numbers in given]
    return one[rows[0]], other[rows[1]], given[0][rows[0]], given[1][rows[1]]


def squared_distances(features: Features) -> Features:
    """(N, N) squared Euclidean distances."""
    return np.asarray(cdist(features, features, "sqeuclidean"))


def median_distance(features: Features) -> float:
    """The median Euclidean distance of two different images; 1 where more than half of them are the same."""
    distances = np.sqrt(squared_distances(features)[np.triu_indices(len(features), 1)])
    return float(np.median(distances)) or 1.0


def gaussians(squared: Features, median: float) -> Features:
    """The mean of the Gaussian kernels of squared distances."""
    total = np.zeros_like(squared)
    for width in WIDTHS:
        total += np.exp(squared / (-2 * (width * median) ** 2))
    return total / len(WIDTHS)


def cubes(features: Features) -> Features:
    """(N, N) the cubic polynomial kernel of KID."""
    return np.asarray((features @ features.T / features.shape[1] + 1) ** 3)


def discrepancy(kernel: Features, one: Index, other: Index) -> float:
    """The unbiased squared maximum mean discrepancy of two sets of rows of a kernel's (N, N) matrix."""
    def within(rows: Index) -> float:
        part = kernel[np.ix_(rows, rows)]
        return float(part.sum() - np.trace(part)) / (len(rows) * (len(rows) - 1))

    return within(one) + within(other) - 2 * float(kernel[np.ix_(one, other)].mean())


def _rows(one: Features, other: Features) -> tuple[Index, Index]:
    return np.arange(len(one)), len(one) + np.arange(len(other))


def _root(covariance: Features) -> Features:
    values, vectors = eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)


def _both(real: ArrayLike, made: ArrayLike) -> tuple[Features, Features]:
    one, other = checked(real, "real images"), checked(made, "made images")
    if one.shape[1] != other.shape[1]:
        raise Refused("DIM_UNSUPPORTED", "features", f"{one.shape[1]} of real and {other.shape[1]} of made images",
                      "Take both from the same encoder")
    if min(len(one), len(other)) < 2:
        raise Refused("DATASET_EMPTY", "images", f"{len(one)} real and {len(other)} made images",
                      f"Give at least {LEAST} of each")
    return one, other
