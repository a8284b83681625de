"""The 93 radiomics features of many small images at once.

Definitions and names are those of pyradiomics (van Griethuysen et al., Cancer Research 2017), which follow the Image
Biomarker Standardisation Initiative (Zwanenburg et al., Radiology 2020) but for some conventions. What is different is
the discretisation, see `BINS`, and that whole batches are counted at once, which is more than ten times faster.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from medgan.errors import Refused

Array = NDArray[np.float64]
Whole = NDArray[np.int64]

#: Grey levels, whose middles go from -1 to 1. Their number and places are fixed, since network values have been brought
#: to one scale: levels between an image's own extremes would hang on two pixels and hide a wrong brightness or
#: contrast. -1 and 1, where backgrounds and clipped values lie, are middles and no edges, so that a fault of half a
#: level's width shows there (a checkerboard of +- 0.06 on brains: Fréchet distance over its floor 1700 instead of 4).
BINS = 32
#: Voxels that are counted at once: enough that numpy's own work is small, few enough for the processor's cache.
VOXELS_AT_ONCE = 1 << 17
#: Added inside logarithms, as pyradiomics does.
EPS = float(np.spacing(1.0))
#: Mutual information below which two levels are taken as independent: rounding, whose root would not be small.
NO_INFORMATION = 1e-13
#: What coarseness is for an image without any texture (pyradiomics).
COARSEST = 1e6

FIRST_ORDER = ("10Percentile", "90Percentile", "Energy", "Entropy", "InterquartileRange", "Kurtosis", "Maximum",
               "MeanAbsoluteDeviation", "Mean", "Median", "Minimum", "Range", "RobustMeanAbsoluteDeviation",
               "RootMeanSquared", "Skewness", "TotalEnergy", "Uniformity", "Variance")
GLCM = ("Autocorrelation", "ClusterProminence", "ClusterShade", "ClusterTendency", "Contrast", "Correlation",
        "DifferenceAverage", "DifferenceEntropy", "DifferenceVariance", "Id", "Idm", "Idmn", "Idn", "Imc1", "Imc2",
        "InverseVariance", "JointAverage", "JointEnergy", "JointEntropy", "MCC", "MaximumProbability", "SumAverage",
        "SumEntropy", "SumSquares")
#: Of a table of grey levels and sizes: {0} small, {1} large, {2} size, {3} the thing counted; in the order of `_sizes`.
SIZES = ("{0}Emphasis", "{1}Emphasis", "GrayLevelNonUniformity", "GrayLevelNonUniformityNormalized",
         "{2}NonUniformity", "{2}NonUniformityNormalized", "{3}Percentage", "GrayLevelVariance", "{3}Variance",
         "{3}Entropy", "LowGrayLevel{4}Emphasis", "HighGrayLevel{4}Emphasis", "{0}LowGrayLevelEmphasis",
         "{0}HighGrayLevelEmphasis", "{1}LowGrayLevelEmphasis", "{1}HighGrayLevelEmphasis")
GLRLM = tuple(name.format("ShortRun", "LongRun", "RunLength", "Run", "Run") for name in SIZES)
GLSZM = tuple(name.format("SmallArea", "LargeArea", "SizeZone", "Zone", "Zone") for name in SIZES)
#: A voxel has one dependence, so that the percentage is 1 and the normalised non-uniformity is first order uniformity.
GLDM_COLUMNS = tuple(n for n in range(len(SIZES)) if n not in (3, 6))
GLDM = tuple(SIZES[n].format("SmallDependence", "LargeDependence", "Dependence", "Dependence", "")
             for n in GLDM_COLUMNS)
NGTDM = ("Busyness", "Coarseness", "Complexity", "Contrast", "Strength")
#: Names of the 93 features, in their order.
NAMES = tuple(f"{family}_{name}" for family, names in (("firstorder", FIRST_ORDER), ("glcm", GLCM), ("glrlm", GLRLM),
                                                       ("glszm", GLSZM), ("gldm", GLDM), ("ngtdm", NGTDM))
              for name in names)


class Radiomics:
    """The 93 radiomics features of each channel: what images are compared by unless something else is asked for.

    18 of first order, 24 of the grey level co-occurrence matrix (GLCM), 16 of run lengths (GLRLM), 16 of zones (GLSZM),
    14 of dependences (GLDM), 5 of neighbourhood differences (NGTDM). Values become the nearest of `BINS` grey levels
    from -1 to 1, the same for all images. Distance 1, all directions (4 in 2D, 13 in 3D), each voxel counted as a
    cube of side 1. A constant image and a mask of one voxel have finite features too.
    """

    name = "radiomics-93"

    def __call__(self, images: NDArray[np.float32], masks: NDArray[np.bool_] | None = None) -> Array:
        """Features of images.

        Args:
            images: (N, C, X, Y[, Z]) in network values.
            masks: (N, X, Y[, Z]), what to look at; all of it if None.

        Returns:
            (N, C * 93), channel by channel, in the order of `NAMES`.
        """
        images = checked(images)
        count, channels, *shape = images.shape
        if masks is None:
            masks = np.ones((count, *shape), bool)
        elif masks.shape != (count, *shape):
            raise Refused("LABEL_GRID", "masks", f"masks of shape {masks.shape} for images of shape {images.shape}",
                          "give one mask (X, Y[, Z]) for each image")
        elif not masks.reshape(count, -1).any(axis=1).all():
            raise Refused("LABEL_EMPTY", "masks", "a mask is empty", "leave images with an empty mask out")
        features = np.empty((count, channels, len(NAMES)))
        step = max(1, VOXELS_AT_ONCE // int(np.prod(shape)))
        for channel, start in itertools.product(range(channels), range(0, count, step)):
            part = slice(start, start + step)
            features[part, channel] = _features(images[part, channel], masks[part])
        return features.reshape(count, -1)


def checked(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images (N, C, X, Y[, Z]) as they came, or a refusal of wrong shapes and values that are not finite."""
    if images.ndim not in (4, 5):
        raise Refused("DIM_UNSUPPORTED", "images", f"an array of shape {images.shape}", "give (N, C, X, Y[, Z])")
    if not np.isfinite(images).all():
        raise Refused("PIX_NONFINITE", "images", "values that are not finite", "look at what made these images")
    return images


def _features(images: NDArray[np.float32], masks: NDArray[np.bool_]) -> Array:
    """(N, 93) of one channel (N, X, Y[, Z])."""
    values = images.astype(np.float64)
    # Level 0 stands for what is outside the mask. Lower edges belong to a level, as with pyradiomics.
    nearest = np.floor((values + 1) * ((BINS - 1) / 2) + 0.5) + 1
    levels = np.where(masks, np.clip(nearest, 1, BINS), 0).astype(np.int64)
    histogram = _counted(levels.reshape(len(levels), -1), BINS + 1)[:, 1:]
    steps = _half(levels.ndim - 1)
    together, alike, neighbours, total = _pairs(levels, steps)
    flat = masks.reshape(len(masks), -1)
    inside = levels > 0
    owner = np.nonzero(inside)[0]
    return np.concatenate([
        _first_order(values.reshape(len(values), -1), flat, histogram),
        _glcm(together, histogram),
        _glrlm(levels, steps),
        _glszm(levels, flat.sum(axis=1)),
        _sizes(owner, levels[inside], alike[inside] + 1, flat.sum(axis=1))[:, GLDM_COLUMNS],
        _ngtdm(levels, neighbours, total),
    ], axis=1)


@lru_cache(maxsize=2)
def _half(dims: int) -> tuple[tuple[int, ...], ...]:
    """One of each two opposite steps to a neighbour: 4 in 2D, 13 in 3D."""
    return tuple(step for step in itertools.product((-1, 0, 1), repeat=dims) if step > (0,) * dims)


def _counted(codes: NDArray[np.int64], size: int) -> Array:
    """How often each of `size` codes stands in each row: (N, V) -> (N, size)."""
    rows = np.arange(len(codes))[:, None] * size
    return np.bincount((codes + rows).ravel(), minlength=len(codes) * size).reshape(len(codes), size).astype(np.float64)


def _pairs(levels: Whole, steps: tuple[tuple[int, ...], ...]) -> tuple[Array, Whole, Whole, Whole]:
    """What each voxel has beside it.

    Returns:
        Co-occurrences (directions, N, G, G), symmetrical; and for each voxel (N, X, Y[, Z]) how many neighbours of its
        own level, how many in the mask, and the sum of their levels.
    """
    count, side = len(levels), BINS + 1
    alike, neighbours, total = (np.zeros_like(levels) for _ in range(3))
    together = np.empty((len(steps), count, BINS, BINS))
    for n, step in enumerate(steps):
        here, there = ((slice(None), *(slice(max(0, -move * sign), size - max(0, move * sign))
                                       for move, size in zip(step, levels.shape[1:], strict=True))) for sign in (1, -1))
        one, other = levels[here], levels[there]
        pairs = _counted((one * side + other).reshape(count, -1), side * side).reshape(count, side, side)[:, 1:, 1:]
        together[n] = pairs + pairs.transpose(0, 2, 1)
        same = one == other
        for place, beside in ((here, other), (there, one)):
            alike[place] += same  # also where both are outside the mask, which nobody reads
            neighbours[place] += beside > 0
            total[place] += beside
    return together, alike, neighbours, total


def _first_order(values: Array, inside: NDArray[np.bool_], histogram: Array) -> Array:
    """(N, 18) of values (N, V) where `inside`."""
    n = inside.sum(axis=1)

    def mean(of: Array, where: NDArray[np.bool_] = inside) -> Array:
        # Of two voxels, none lies within the percentiles: a mean of nothing is 0 here.
        return np.asarray(np.where(where, of, 0).sum(axis=1) / np.maximum(where.sum(axis=1), 1))

    ordered = np.sort(np.where(inside, values, np.inf), axis=1)

    def quantile(part: float) -> Array:
        place = part * (n - 1)
        low = np.floor(place).astype(np.int64)
        below, above = (ordered[np.arange(len(n)), at] for at in (low, np.minimum(low + 1, n - 1)))
        return np.asarray(below + (above - below) * (place - low))

    ten, quarter, median, three, ninety = (quantile(part) for part in (0.1, 0.25, 0.5, 0.75, 0.9))
    middle = mean(values)
    off = values - middle[:, None]
    square = off * off  # many times faster than a power
    variance, third, fourth = mean(square), mean(square * off), mean(square * square)
    # A flat image has no shape: 0, as pyradiomics has it.
    spread = np.where(variance > 0, variance, 1)
    robust = inside & (values >= ten[:, None]) & (values <= ninety[:, None])
    energy = mean(values * values) * n
    least, most = ordered[:, 0], ordered[np.arange(len(n)), n - 1]
    p = histogram / n[:, None]
    return np.stack([
        ten, ninety, energy, -(p * np.log2(p + EPS)).sum(axis=1), three - quarter, fourth / spread**2, most,
        mean(np.abs(off)), middle, median, least, most - least,
        mean(np.abs(values - mean(values, robust)[:, None]), robust),
        np.sqrt(energy / n), third / spread**1.5, energy, (p**2).sum(axis=1), variance], axis=1)


def _glcm(together: Array, histogram: Array) -> Array:
    """(N, 24) of co-occurrences (directions, N, G, G), averaged over the directions in which there are any."""
    pairs = together.sum(axis=(2, 3))
    features = np.full((*pairs.shape, len(GLCM)), np.nan)
    top = BINS - np.argmax(histogram[:, ::-1] > 0, axis=1)
    single = (histogram > 0).sum(axis=1) == 1
    for n, counts in enumerate(together):
        some = pairs[n] > 0
        if some.any():
            features[n, some] = _co_occurrence(counts[some] / pairs[n, some, None, None], top[some], single[some])
    alone = ~(pairs > 0).any(axis=0)  # no voxel has a neighbour: each is taken as its own
    if alone.any():
        own = histogram[alone, :, None] * np.eye(BINS) / histogram[alone].sum(axis=1)[:, None, None]
        features[0, alone] = _co_occurrence(own, top[alone], single[alone])
    return np.asarray(np.nanmean(features, axis=0))


@lru_cache(maxsize=1)
def _diagonals() -> tuple[Array, Array]:
    """Matrices that lead P (G * G) to the distribution of i + j (from 2) and of |i - j| (from 0)."""
    i, j = np.indices((BINS, BINS))
    plus, minus = np.zeros((BINS * BINS, 2 * BINS - 1)), np.zeros((BINS * BINS, BINS))
    plus[np.arange(BINS * BINS), (i + j).ravel()] = 1
    minus[np.arange(BINS * BINS), np.abs(i - j).ravel()] = 1
    return plus, minus


def _co_occurrence(p: Array, top: Whole, single: NDArray[np.bool_]) -> Array:
    """(N, 24) of symmetrical distributions (N, G, G); the highest level of each image; whether it has but one."""
    level = np.arange(1, BINS + 1, dtype=np.float64)
    flat = p.reshape(len(p), -1)
    plus, minus = (flat @ diagonal for diagonal in _diagonals())
    k_plus, k_minus = np.arange(2.0, 2 * BINS + 1), np.arange(float(BINS))
    px = p.sum(axis=2)
    mean = px @ level
    variance = (px * (level - mean[:, None]) ** 2).sum(axis=1)

    def entropy(of: Array) -> Array:
        return np.asarray(-(of * np.log2(of + EPS)).sum(axis=1))

    off = k_plus - 2 * mean[:, None]
    square = off * off
    tendency, shade, prominence = ((plus * of).sum(axis=1) for of in (square, square * off, square * square))
    # The mean squares of i + j and of i - j about their means differ by 4 times the covariance.
    covariance = (tendency - minus @ k_minus**2) / 4
    joint, marginal = entropy(flat), entropy(px)
    information = np.maximum(2 * marginal - joint, 0)  # HXY1 and HXY2 are both HX + HY, and HX = HY
    information[information < NO_INFORMATION] = 0
    difference = minus @ k_minus
    # Q is similar to the square of a symmetrical matrix, whose eigenvalues are cheaper and real.
    root = np.sqrt(np.where(px > 0, px, 1))
    eigenvalues = np.sort(np.abs(np.linalg.eigvalsh(p / (root[:, :, None] * root[:, None, :]))), axis=1)
    ng = top[:, None].astype(np.float64)
    return np.stack([
        ((p @ level) * level).sum(axis=1), prominence, shade, tendency, minus @ k_minus**2,
        np.where(variance > 0, covariance / np.where(variance > 0, variance, 1), 1),
        difference, entropy(minus), (minus * (k_minus - difference[:, None]) ** 2).sum(axis=1),
        minus @ (1 / (1 + k_minus)), minus @ (1 / (1 + k_minus**2)),
        (minus / (1 + (k_minus / ng) ** 2)).sum(axis=1), (minus / (1 + k_minus / ng)).sum(axis=1),
        np.where(marginal > EPS, -information / np.maximum(marginal, EPS), 0), np.sqrt(1 - np.exp(-2 * information)),
        minus[:, 1:] @ (1 / k_minus[1:] ** 2), mean, (flat**2).sum(axis=1), joint,
        np.where(single, 1, eigenvalues[:, -2]), flat.max(axis=1), plus @ k_plus, entropy(plus), variance], axis=1)


def _sizes(owner: Whole, level: Whole, size: Whole, voxels: Whole) -> Array:
    """(N, 16) of things that have a grey level and a size: runs, zones, dependences.

    Args:
        owner: The image (M,) that each thing belongs to; each image has one at least.
        level: (M,) from 1.
        size: (M,) from 1.
        voxels: (N,) in each image.
    """
    count, longest = len(voxels), int(size.max())
    codes = (owner * BINS + level - 1) * longest + size - 1
    if count * BINS * longest <= 8 * len(codes):
        dense = np.bincount(codes)
        cells = np.flatnonzero(dense)
        times = dense[cells].astype(np.float64)
    else:
        cells, found = np.unique(codes, return_counts=True)
        times = found.astype(np.float64)
    row, s = cells // longest, cells % longest + 1.0
    n, i = row // BINS, row % BINS + 1.0

    def total(weights: NDArray[np.floating]) -> Array:
        return np.asarray(np.bincount(n, times * weights, count))

    number = total(np.ones_like(times))
    by_level = np.bincount(row, times, count * BINS).reshape(count, -1)
    by_size = np.bincount(n * longest + cells % longest, times, count * longest).reshape(count, -1)
    by_level, by_size = (by_level**2).sum(axis=1), (by_size**2).sum(axis=1)
    i2, s2 = i**2, s**2
    from_mean_i, from_mean_s = i - (total(i) / number)[n], s - (total(s) / number)[n]
    return np.stack([
        total(1 / s2), total(s2), by_level, by_level / number, by_size, by_size / number, number**2 / voxels,
        total(from_mean_i**2), total(from_mean_s**2), -total(np.log2(times / number[n] + EPS)), total(1 / i2),
        total(i2), total(1 / (i2 * s2)), total(i2 / s2), total(s2 / i2), total(i2 * s2)], axis=1) / number[:, None]


@lru_cache(maxsize=64)
def _lines(shape: tuple[int, ...], step: tuple[int, ...]) -> tuple[Whole, NDArray[np.bool_]]:
    """The voxels of an image line by line along a step, as flat indices, and which of them begin a line."""
    places = np.indices(shape).reshape(len(shape), -1)
    back = [places[axis] if move > 0 else shape[axis] - 1 - places[axis] for axis, move in enumerate(step) if move]
    along = np.min(back, axis=0)
    first = np.ravel_multi_index(tuple(places - along * np.array(step)[:, None]), shape)
    order = np.lexsort((along, first))
    return order, along[order] == 0


def _glrlm(levels: Whole, steps: tuple[tuple[int, ...], ...]) -> Array:
    """(N, 16) of runs, averaged over the directions in which some line meets two voxels of the mask."""
    count = len(levels)
    flat = levels.reshape(count, -1)
    voxels = (flat > 0).sum(axis=1)
    every = np.empty((len(steps), count, len(SIZES)))
    used = np.empty((len(steps), count), bool)
    for n, step in enumerate(steps):
        order, begins = _lines(levels.shape[1:], step)
        lined = flat[:, order]
        new = np.empty(lined.shape, bool)
        new[:, 0] = True
        new[:, 1:] = (lined[:, 1:] != lined[:, :-1]) | begins[1:]
        starts = np.flatnonzero(new)
        length = np.diff(starts, append=lined.size)
        level = lined.ravel()[starts]
        kept = level > 0
        every[n] = _sizes(starts[kept] // flat.shape[1], level[kept], length[kept], voxels)
        used[n] = (np.add.reduceat((lined > 0).astype(np.int32), np.flatnonzero(begins), axis=1) > 1).any(axis=1)
    used[:, ~used.any(axis=0)] = True  # a single voxel: its run is the same in all
    return np.asarray((every * used[..., None]).sum(axis=0) / used.sum(axis=0)[:, None])


def _glszm(levels: Whole, voxels: Whole) -> Array:
    """(N, 16) of connected zones of one level; corners connect."""
    # Images in a row with an empty plane between them are one image, whose zones are found in one go.
    apart = np.pad(levels, [(0, 0), (0, 1), *[(0, 0)] * (levels.ndim - 2)])
    zones = label(apart.reshape(-1, *levels.shape[2:]), background=0, connectivity=levels.ndim - 1).ravel()
    found, first, size = np.unique(zones, return_index=True, return_counts=True)
    first, size = first[found > 0], size[found > 0]
    return _sizes(first // (apart.size // len(levels)), apart.ravel()[first], size, voxels)


def _ngtdm(levels: Whole, neighbours: Whole, total: Whole) -> Array:
    """(N, 5) of the difference between each voxel and the mean of its neighbours."""
    count = len(levels)
    valid = levels > 0  # a voxel without a neighbour counts, with no difference, as with pyradiomics
    difference = np.where(valid & (neighbours > 0), np.abs(levels - total / np.maximum(neighbours, 1)), 0)
    codes = (levels - 1 + (np.arange(count) * BINS).reshape(-1, *[1] * (levels.ndim - 1)))[valid]
    number = np.bincount(codes, minlength=count * BINS).reshape(count, BINS).astype(np.float64)
    s = np.bincount(codes, difference[valid], count * BINS).reshape(count, BINS)
    n = np.maximum(number.sum(axis=1), 1)
    p = number / n[:, None]
    i = np.arange(1.0, BINS + 1)
    present = p > 0
    both = present[:, :, None] & present[:, None, :]
    apart = np.abs(i[:, None] - i)
    ps = p * s
    weighted = ps.sum(axis=1)
    spread = (np.abs((p * i)[:, :, None] - (p * i)[:, None, :]) * both).sum(axis=(1, 2))
    pairs = np.where(both, p[:, :, None] + p[:, None, :], 1)
    kinds = present.sum(axis=1)
    whole = s.sum(axis=1)

    def divided(above: Array, below: Array, otherwise: float = 0.0) -> Array:
        return np.where(below > 0, above / np.where(below > 0, below, 1), otherwise)

    return np.stack([
        divided(weighted, spread), divided(np.ones(count), weighted, COARSEST),
        ((ps[:, :, None] + ps[:, None, :]) / pairs * apart * both).sum(axis=(1, 2)) / n,
        divided(((p @ apart**2) * p).sum(axis=1) * whole / n, (kinds * (kinds - 1)).astype(np.float64)),
        divided((pairs * apart**2 * both).sum(axis=(1, 2)), whole)], axis=1)
