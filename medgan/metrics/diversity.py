"""Whether a set of made images is as varied as the real one, and covers it; and the classic scores of a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigvalsh

from medgan.errors import Refused
from medgan.metrics.fidelity import median_distance, prepared, squared_distances
from medgan.metrics.measured import HALVINGS, WITHIN, Features, Index, Measured, checked, measure

#: Neighbours that make a sphere around an image.
NEIGHBOURS = 5
#: The Vendi score is taken of at most so many images: its time grows with the cube of their number.
VENDI_IMAGES = 250
#: Weights of the scales from fine to coarse (Wang, Simoncelli and Bovik 2003).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Edges of the Gaussian window, with a standard deviation of 1.5 pixels: the usual one, and one for small images.
WINDOW, SMALL_WINDOW = 11, 7
#: With fewer scales than this the small window is taken.
FEW_SCALES = 3
#: Pairs of images that are compared at once.
BATCH = 16
#: From network values: they reach from -1 to 1.
DATA_RANGE = 2.0


@dataclass(frozen=True)
class Neighbours:
    """What spheres around images reach.

    Args:
        precision: Share of made images inside a sphere around a real one (Kynkäänniemi et al. 2019).
        recall: Share of real images inside a sphere around a made one.
        density: How many real spheres a made image lies in, over k; may pass 1 (Naeem et al. 2020).
        coverage: Share of real images whose sphere holds a made one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class Confidence:
    """What a classifier makes of a set of images.

    Args:
        score: exp(entropy of the mean less mean entropy): the Inception score (Salimans et al. 2016), 1 to K.
        confidence: Mean largest probability.
        entropy: Mean entropy of an image's classes, in nats: low where the classifier is sure.
        spread: Entropy of the mean over images, in nats; log K where all classes are as frequent.
        n: How many images.
        classes: K.
    """

    score: float
    confidence: float
    entropy: float
    spread: float
    n: int
    classes: int


def neighbours(real: ArrayLike, made: ArrayLike, k: int = NEIGHBOURS) -> Neighbours:
    """Precision, recall, density and coverage of (R, F) and (M, F) features with spheres to the k-th neighbour.

    Raises:
        Refused: `DATASET_EMPTY` where a side has no more than k images.
    """
    one, other = checked(real, "real images"), checked(made, "made images")
    if min(len(one), len(other)) <= k:
        raise Refused("DATASET_EMPTY", "images", f"{len(one)} real and {len(other)} made images have no {k} "
                      "neighbours each", f"Give at least {k + 1} of each")
    squared = squared_distances(np.vstack([one, other]))
    return _neighbours(squared, np.arange(len(one)), np.arange(len(one), len(squared)), k)


def vendi(features: ArrayLike, width: float | None = None) -> float:
    """The Vendi score (Friedman and Dieng 2022): how many images that share nothing would be as varied, 1 to N.

    Args:
        features: (N, F).
        width: Of the Gaussian kernel exp(-d² / 2w²); None: the features' own median distance. Two sets are compared
            with one width; the cosine kernel would not see that images shrank towards their mean.
    """
    values = checked(features, "images")
    squared = squared_distances(values)
    return _vendi(np.exp(squared / (-2 * (width or median_distance(values)) ** 2)))


def vendi_ratio(real: ArrayLike, made: ArrayLike, seed: int = 0) -> float:
    """The Vendi score of made images over that of as many real ones, with the width of the real ones.

    Args:
        real: (R, F) features.
        made: (M, F).
        seed: Which images of the larger set are taken.
    """
    one, other = checked(real, "real images"), checked(made, "made images")
    width, n = median_distance(one), min(len(one), len(other))
    rng = np.random.default_rng([seed, 47])
    first, second = (vendi(values[rng.permutation(len(values))[:n]], width) for values in (one, other))
    return second / first


def diversity(real: ArrayLike, made: ArrayLike, *, units: ArrayLike, seed: int = 0,
              made_units: ArrayLike | None = None, k: int = NEIGHBOURS) -> dict[str, Measured]:
    """"precision", "recall", "density", "coverage" and "vendi_ratio" at equal n, with floors and intervals.

    The floor is what real images reach against real images: these figures should reach it, not stay below. The Vendi
    ratio is of the first `VENDI_IMAGES` of each draw.

    Args:
        real: (R, F) standardised features.
        made: (M, F) in the same space.
        units: (R,) whose the real images are.
        seed: Of the draws.
        made_units: (M,) the same for the made images; None: each was drawn by itself.
        k: Neighbours.

    Raises:
        Refused: Features of another shape or not finite, or too few images to compare.
    """
    first, second, numbers, made_numbers = prepared(real, made, units, made_units, seed)
    squared = squared_distances(np.vstack([first, second]))
    kernel = np.exp(squared / (-2 * median_distance(first) ** 2))
    # Half the memory to move, and neighbours stay neighbours.
    squared = squared.astype(np.float32)

    def figures(one: Index, other: Index) -> Mapping[str, float]:
        found = _neighbours(squared, one, other, k)
        scores = [_vendi(kernel[np.ix_(rows, rows)]) for rows in (one[:VENDI_IMAGES], other[:VENDI_IMAGES])]
        return {**vars(found), "vendi_ratio": scores[1] / scores[0]}

    share = (0.0, 1.0)
    return measure(figures, numbers, made_numbers, seed=seed, least=k + 1, bounds={
        "precision": share, "recall": share, "density": (0.0, np.inf), "coverage": share, "vendi_ratio": (0.0, np.inf)})


def confidence_and_diversity(probabilities: ArrayLike) -> Confidence:
    """The Inception score's two sides, with any classifier's (N, K) probabilities.

    Raises:
        Refused: `CFG_VALUE` where rows are no probabilities of at least two classes.
    """
    chances = np.asarray(probabilities, np.float64)
    if chances.ndim != 2 or not len(chances) or chances.shape[1] < 2:
        raise Refused("CFG_VALUE", "probabilities", f"an array of shape {chances.shape}",
                      "Give (images, classes) with at least two classes")
    if not ((chances >= 0).all() and np.allclose(chances.sum(axis=1), 1, atol=1e-3)):
        raise Refused("CFG_VALUE", "probabilities", "rows that are negative or do not add up to 1",
                      "Apply softmax to the classifier's logits")
    entropy, spread = float(_entropy(chances).mean()), float(_entropy(chances.mean(axis=0)))
    return Confidence(float(np.exp(spread - entropy)), float(chances.max(axis=1).mean()), entropy, spread,
                      *chances.shape)


def ms_ssim_pairs(images: NDArray[np.floating], pairs: int = 200, seed: int = 0, *, labels: ArrayLike | None = None,
                  units: ArrayLike | None = None) -> float:
    """Mean multi-scale structural similarity of random pairs: 1 where all images are the same.

    Args:
        images: (N, C, X, Y[, Z]) network values. Images under 44 pixels get a smaller window and fewer scales (28:
            three, of 7 pixels), with the weights scaled to sum to 1: compare only what is of one size.
        pairs: How many; no image is used twice before all were used once.
        seed: Which.
        labels: (N,) classes; both images of a pair are of one.
        units: (N,) both images of a pair are of different ones.

    Returns:
        The mean, or NaN where there is no such pair.
    """
    values = _pair_values(images, pairs, np.random.default_rng([seed, 53]), labels, units)
    return float(values.mean()) if len(values) else float("nan")


def ms_ssim(real: NDArray[np.floating], made: NDArray[np.floating], *, units: ArrayLike,
            labels: ArrayLike | None = None, made_labels: ArrayLike | None = None, pairs: int = 200, seed: int = 0
            ) -> Measured:
    """`ms_ssim_pairs` of made images; the floor is that of real images of different patients.

    Args:
        real: (R, C, X, Y[, Z]) network values.
        made: (M, C, X, Y[, Z]).
        units: (R,) whose the real images are.
        labels: (R,) classes.
        made_labels: (M,).
        pairs: How many of each.
        seed: Which.
    """
    rng = np.random.default_rng([seed, 59])
    ours = _pair_values(made, pairs, rng, made_labels, None)
    theirs = _pair_values(real, pairs, rng, labels, units)
    # Images that are used twice bring nothing new.
    apart = [max(1, min(len(values), len(images) // 2)) for values, images in ((ours, made), (theirs, real))]
    value, floor = (float(values.mean()) if len(values) else float("nan") for values in (ours, theirs))
    error, floor_error = (float(values.std(ddof=1)) / count**0.5 if len(values) > 1 else float("nan")
                          for values, count in zip((ours, theirs), apart, strict=True))
    warnings = tuple(f"{count} pairs of {what} images without one twice: below {HALVINGS} little is known"
                     for count, what in zip(apart, ("made", "real"), strict=True) if count < HALVINGS)
    return Measured("ms_ssim", value, max(value - WITHIN * error, 0.0), min(value + WITHIN * error, 1.0), floor,
                    # Of a difference of two means.
                    float(np.hypot(error, floor_error)), len(real), len(made), warnings)


def scales_of(size: tuple[int, ...]) -> tuple[int, tuple[float, ...]]:
    """The window's edge and the weights of the scales for images of this size.

    Raises:
        Refused: `DIM_UNSUPPORTED` where not even one window fits.
    """
    def fits(window: int) -> int:
        # A window at the coarsest scale, and as many pixels as MONAI asks for.
        return max((count for count in range(1, len(SCALES) + 1)
                    if min(size) // 2 ** (count - 1) >= window and min(size) // max(1, count - 1) ** 2 >= window),
                   default=0)

    window = WINDOW if fits(WINDOW) >= FEW_SCALES else SMALL_WINDOW
    count = fits(window)
    if not count:
        raise Refused("DIM_UNSUPPORTED", "images", f"of {' x '.join(map(str, size))} pixels",
                      f"Compare images of at least {SMALL_WINDOW} pixels along each axis")
    total = sum(SCALES[:count])
    return window, tuple(weight / total for weight in SCALES[:count])


def _pair_values(images: NDArray[np.floating], pairs: int, rng: np.random.Generator, labels: ArrayLike | None,
                 units: ArrayLike | None) -> NDArray[np.float64]:
    import torch
    from monai.metrics import MultiScaleSSIMMetric

    if images.ndim not in (4, 5):
        raise Refused("DIM_UNSUPPORTED", "images", f"an array of shape {images.shape}",
                      "Give (images, channels, X, Y) or (images, channels, X, Y, Z)")
    window, weights = scales_of(images.shape[2:])
    metric = MultiScaleSSIMMetric(images.ndim - 2, data_range=DATA_RANGE, kernel_size=window, weights=weights,
                                  reduction="none")
    one, other = _drawn_pairs(len(images), pairs, rng, labels, units)
    found = [np.empty(0)]
    for start in range(0, len(one), BATCH):
        sides = [torch.from_numpy(np.ascontiguousarray(images[rows[start : start + BATCH]], np.float32))
                 for rows in (one, other)]
        found.append(metric(*sides).flatten().double().numpy())
    return np.concatenate(found)


def _drawn_pairs(count: int, pairs: int, rng: np.random.Generator, labels: ArrayLike | None,
                 units: ArrayLike | None) -> tuple[Index, Index]:
    classes = np.zeros(count) if labels is None else np.asarray(labels)
    owners = np.arange(count) if units is None else np.asarray(units)
    drawn = np.empty((0, 2), np.intp)
    # A round pairs every image once; where patients have many images, some pairs fall out.
    for _ in range(2 + 8 * pairs // max(count, 1)):
        order = rng.permutation(count)
        for label in np.unique(classes):
            members = order[classes[order] == label]
            couples = members[: len(members) // 2 * 2].reshape(-1, 2)
            drawn = np.vstack([drawn, couples[owners[couples[:, 0]] != owners[couples[:, 1]]]])
        if len(drawn) >= pairs:
            # Rounds in their order, but no class before another within one.
            break
    kept = drawn[:pairs] if len(np.unique(classes)) == 1 else drawn[rng.permutation(len(drawn))[:pairs]]
    return kept[:, 0], kept[:, 1]


def _neighbours(squared: NDArray[np.floating], one: Index, other: Index, k: int) -> Neighbours:
    def radii(rows: Index) -> NDArray[np.floating]:
        # The nearest image is the image itself.
        return np.asarray(np.partition(squared[np.ix_(rows, rows)], k, axis=1)[:, k])

    across, around, made_around = squared[np.ix_(one, other)], radii(one), radii(other)
    inside = across < around[:, None]
    return Neighbours(precision=float(inside.any(axis=0).mean()),
                      recall=float((across < made_around[None, :]).any(axis=1).mean()),
                      density=float(inside.sum(axis=0).mean()) / k, coverage=float(inside.any(axis=1).mean()))


def _vendi(kernel: Features) -> float:
    values = eigvalsh(kernel / len(kernel))
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def _entropy(chances: NDArray[np.float64]) -> NDArray[np.float64]:
    logs = np.log(chances, out=np.zeros_like(chances), where=chances > 0)
    return np.asarray(-(chances * logs).sum(axis=-1))
