"""Does a generator copy its training images? Each made image is held against the training images most like it.

Alike is normalised cross-correlation of band-passed images (Lewis 1995) at the best of all flips and small shifts, so
that brightness, contrast, shifts and flips do not hide a copy. Noise and blur lower all of an image's correlations
alike, so a copy is known by two marks: how well it correlates with the nearest training image, and how far that one
stands out from the next ones. How much of both there is between different patients, fresh real images of patients who
were not trained on tell: a made image is flagged where it passes what 99.5 of 100 of them have of either mark, so that
about 1 in 100 fresh images would be. Nearest neighbours in pooled features miss copies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, stats

from medgan.errors import Refused

#: Of each mark among fresh real images: what a made image must pass. Two marks, so about 1 % pass one by chance.
PERCENTILE = 99.5
#: Of the share's interval.
CONFIDENCE = 0.95
#: Widths of the difference of Gaussians, in pixels: less is noise, more is brightness and where the body lies.
FINE, COARSE = 0.7, 2.0
#: Largest shift that is searched, a part of each edge, and at least so many pixels.
REACH, LEAST_REACH = 1 / 8, 3
#: Longest edge up to which every pair is searched at full resolution; larger images are halved first.
EXACT_EDGE = {2: 64, 3: 24}
#: Training images that a made one is held against at full resolution where all were searched at a lower one.
CANDIDATES = 20
#: Pixels around the best shift of a lower resolution that are searched at the next one.
AROUND = 2
#: An overlap counts as if it held at least this part of an image's energy: a match of two empty corners is none.
LEAST_ENERGY = 0.5
#: How many training images after the nearest it has to stand out from.
NEXT = 5
#: Their mean correlation counts as at least this much, or chance in images like nothing else would look like copying.
LEAST_NEXT = 0.1
#: A fresh image that correlates so with a training image is that image: test sets with leaks exist.
SAME = 0.999
#: With fewer fresh images, their outer percentiles are no more than their largest values.
FEWEST_FRESH = 200
#: Training images held back as a control where no fresh images are given, at most, and their part of the whole.
HELD_BACK, HELD_BACK_SHARE = 500, 0.5
#: Made images compared at a time, so that memory stays bounded.
CHUNK = 512
#: Energy a pixel of a band-passed image below which there is nothing to compare; network values span 2.
NOTHING = 1e-8

Images = NDArray[np.float32]
Values = NDArray[np.float64]
Slices = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Memorisation:
    """How many made images look like copies of a training image, by what fresh real ones look like.

    Args:
        share: Of the made images that are flagged: `correlation` above `threshold`, or `margin` above its own.
        low: Lower end of the share's 95 % Clopper-Pearson interval; the thresholds' own error is not in it.
        high: Upper end.
        threshold: 99.5th percentile of the fresh real images' nearest correlations.
        margin_threshold: The same of their margins.
        control: Share of fresh real images flagged by the thresholds of other fresh ones: what no copying looks like.
        n_made: Made images.
        n_train: Training images.
        n_fresh: Fresh real images, or training images held back in their stead.
        nearest: (N,) index of the training image nearest to each made one.
        correlation: (N,) and its correlation.
        margin: (N,) how many times the mean of the next training images' correlations that is.
        flagged: (N,) which made images look like copies.
        fresh_correlation: (n_fresh,) correlations of the fresh real images.
        fresh_margin: (n_fresh,) their margins.
        warnings: What makes the figures less sure, in sentences.
    """

    share: float
    low: float
    high: float
    threshold: float
    margin_threshold: float
    control: float
    n_made: int
    n_train: int
    n_fresh: int
    nearest: NDArray[np.intp]
    correlation: Values
    margin: Values
    flagged: NDArray[np.bool_]
    fresh_correlation: Values
    fresh_margin: Values
    warnings: tuple[str, ...]


def memorisation(made: Images, train: Images, fresh: Images | None = None, *, patients: ArrayLike | None = None,
                 classes: tuple[ArrayLike, ArrayLike] | None = None, seed: int = 0) -> Memorisation:
    """Looks for copies of training images among made ones.

    Args:
        made: (N, C, X, Y[, Z]) made images, network values.
        train: (M, C, X, Y[, Z]) all images that the generator was trained on.
        fresh: Real images of other patients. None: some training images stand in, each held against those of other
            patients; the threshold is then right for as many images and says nothing of another scanner.
        patients: (M,) whose the training images are. A nearest image then has to stand out from those of other
            patients: neighbouring slices look alike. None: each is of another patient.
        classes: (N,) of the made and (n_fresh,) of the fresh images. Healthy anatomy is more alike than disease, so a
            fresh image then counts as often as its class is among the made ones. None: all count alike.
        seed: Of which images are held back, and of the halves that `control` comes from.

    Raises:
        Refused: `DATASET_EMPTY` without images or with too few; `DIM_UNSUPPORTED` where shapes do not fit;
            `PIX_NONFINITE`; `TAB_UNMATCHED` where not every training image has a patient.
    """
    warnings: list[str] = []
    _check(made, train, fresh)
    owners = _owners(len(train), patients)
    rng = np.random.default_rng(seed)
    references = _banded(train)
    if fresh is None:
        held = _held_back(owners, rng)
        warnings.append(f"No fresh real images: {len(held)} training images, each held against those of other "
                        f"{'images' if patients is None else 'patients'}, stand in for them.")
        known = _marks([level[held] for level in references], references, owners, owners[held])
    else:
        known = _marks(_banded(fresh), references, owners)
        if classes is not None:
            known = replace(known, weight=_weights(np.asarray(classes[0]), np.asarray(classes[1]), warnings))
    found = _marks(_banded(made), references, owners)
    known = _without_leaks(known.take(known.weight > 0), fresh is None, warnings)
    limits = _limits(known)
    flagged = _beyond(found, limits)
    count = int(flagged.sum())
    interval = stats.binomtest(count, len(made)).proportion_ci(CONFIDENCE, method="exact")
    alike = round(float(known.weight.sum() ** 2 / np.square(known.weight).sum()))
    if alike < FEWEST_FRESH:
        kind = "fresh real images of the classes that were made" if classes is not None else "fresh real images"
        warnings.append(f"Only {alike} {kind}: how alike different patients can be is hardly known; give "
                        f"{FEWEST_FRESH} or more.")
    if empty := int((found.correlation <= 0).sum()):
        warnings.append(f"{empty} made images are empty or constant and resemble nothing.")
    return Memorisation(count / len(made), float(interval.low), float(interval.high), *limits, _control(known, rng),
                        len(made), len(train), len(known.correlation), found.nearest, found.correlation, found.margin,
                        flagged, known.correlation, known.margin, tuple(warnings))


@dataclass(frozen=True, eq=False)
class _Marks:
    """(N,) what tells a copy, of which training image, and how often each image counts."""

    nearest: NDArray[np.intp]
    correlation: Values
    margin: Values
    weight: Values

    def take(self, index: NDArray[Any]) -> _Marks:
        return _Marks(self.nearest[index], self.correlation[index], self.margin[index], self.weight[index])


def _weights(made: NDArray[Any], fresh: NDArray[Any], warnings: list[str]) -> Values:
    """(n_fresh,) how often each fresh image counts, so that they have the made images' share of each class."""
    names, counts = np.unique(made, return_counts=True)
    weight = np.zeros(len(fresh))
    for name, count in zip(names, counts, strict=True):
        if (fresh == name).any():
            weight[fresh == name] = count / (fresh == name).sum()
    if absent := [str(name) for name in names if not (fresh == name).any()]:
        warnings.append(f"No fresh real image of the class {', '.join(absent)}: others stand in for what is no copy.")
    return weight if np.count_nonzero(weight) > 1 else np.ones(len(fresh))


def _limits(known: _Marks) -> tuple[float, float]:
    return _percentile(known.correlation, known.weight), _percentile(known.margin, known.weight)


def _percentile(values: Values, weight: Values) -> float:
    """The `PERCENTILE`th percentile, linear between values; numpy's own where all weights are equal."""
    order = np.argsort(values, kind="stable")
    before = np.cumsum(weight[order]) - weight[order]
    return float(np.interp(PERCENTILE / 100, before / before[-1], values[order])) if before[-1] > 0 else float(
        values[order[-1]])


def _beyond(found: _Marks, limits: tuple[float, float]) -> NDArray[np.bool_]:
    return np.asarray((found.correlation > limits[0]) | (found.margin > limits[1]))


def _without_leaks(known: _Marks, held_back: bool, warnings: list[str]) -> _Marks:
    leaks = known.correlation > SAME
    if not leaks.any() or (~leaks).sum() < 2:
        return known
    warnings.append(f"{int(leaks.sum())} of the {len(leaks)} images held back are in the training set twice: left out."
                    if held_back else f"{int(leaks.sum())} of the {len(leaks)} fresh real images are training images "
                    "too: left out. The sets are not of different patients.")
    return known.take(~leaks)


def _check(made: Images, train: Images, fresh: Images | None) -> None:
    sets = {"made": made, "training": train} | ({} if fresh is None else {"fresh real": fresh})
    for name, images in sets.items():
        if len(images) < 2:
            raise Refused("DATASET_EMPTY", f"{name} images", f"{len(images)} are too few to look for copies",
                          "Give two or more")
        if images.ndim not in (4, 5) or images.shape[1:] != train.shape[1:]:
            raise Refused("DIM_UNSUPPORTED", f"{name} images",
                          f"shape {images.shape} beside training images of {train.shape}",
                          "Give arrays (N, C, X, Y[, Z]) of one grid")
        if not np.isfinite(images).all():
            raise Refused("PIX_NONFINITE", f"{name} images", "some values are not finite", "Leave these images out")


def _owners(count: int, patients: ArrayLike | None) -> NDArray[np.intp]:
    """(M,) whose each training image is, as a number."""
    owners = np.arange(count) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    if len(owners.reshape(-1)) != count:
        raise Refused("TAB_UNMATCHED", "patients", f"{owners.size} names for {count} training images",
                      "Name the patient of each")
    return owners.reshape(-1).astype(np.intp)


def _held_back(owners: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """Indices of training images of randomly drawn patients."""
    people = rng.permutation(owners.max() + 1)
    if len(people) < 2:
        raise Refused("DATASET_EMPTY", "training images", "all are of one patient, so there is no control",
                      "Give fresh real images of other patients")
    order = np.concatenate([np.flatnonzero(owners == person) for person in people])
    return np.sort(order[: min(HELD_BACK, max(2, int(HELD_BACK_SHARE * len(owners))))])


def _control(known: _Marks, rng: np.random.Generator) -> float:
    """Share of fresh images beyond the limits that come from the other half of them."""
    halves = [known.take(half) for half in np.array_split(rng.permutation(len(known.nearest)), 2)]
    above = sum(float(one.weight[_beyond(one, _limits(other))].sum()) for one, other in (halves, halves[::-1]))
    return above / float(known.weight.sum())


def _banded(images: Images) -> list[Images]:
    """Band-passed images, and the same halved until the search of every pair is affordable, finest first."""
    axes = tuple(range(2, images.ndim))
    levels = []
    current = np.ascontiguousarray(images, np.float32)
    while True:
        levels.append(_band(current))
        if max(current.shape[2:]) <= EXACT_EDGE[len(axes)]:
            return levels
        # Means of 2 pixels; an axis that is short already is halved too, so that shifts mean the same along all.
        for axis in axes:
            length = current.shape[axis] // 2 * 2
            pairs = current.take(np.arange(length), axis)
            halves = pairs.take(np.arange(0, length, 2), axis), pairs.take(np.arange(1, length, 2), axis)
            current = np.asarray((halves[0] + halves[1]) / 2, np.float32)


def _band(images: Images) -> Images:
    """The difference of Gaussians, divided by its root mean square; 0 where there is nothing."""
    axes = tuple(range(2, images.ndim))
    fine, coarse = (ndimage.gaussian_filter(images, sigma, mode="nearest", axes=axes) for sigma in (FINE, COARSE))
    band = fine - coarse
    energy = np.square(band).mean(axis=tuple(range(1, images.ndim)), keepdims=True)
    return np.asarray(np.where(energy > NOTHING, band / np.sqrt(np.maximum(energy, NOTHING)), 0), np.float32)


def _marks(some: list[Images], train: list[Images], owners: NDArray[np.intp], own: NDArray[np.intp] | None = None
           ) -> _Marks:
    """What tells copies among images, against all training images or those of others than `own` (N,)."""
    parts = []
    for at in range(0, len(some[0]), CHUNK):
        part = [level[at : at + CHUNK] for level in some]
        found, where = _search(part[-1], train[-1])
        if own is not None:
            found[own[at : at + CHUNK, None] == owners[None]] = -np.inf
        candidates = np.broadcast_to(np.arange(found.shape[1]), found.shape)
        if len(part) > 1:
            found, candidates = _refined(part, train, found, where)
        parts.append(_told(found, candidates, owners))
    return _Marks(*(np.concatenate([getattr(part, name) for part in parts])
                    for name in ("nearest", "correlation", "margin", "weight")))


def _told(found: Images, candidates: NDArray[np.intp], owners: NDArray[np.intp]) -> _Marks:
    """From (N, K) correlations with training images and which these are."""
    rows = np.arange(len(found))
    at = found.argmax(axis=1)
    nearest = candidates[rows, at]
    best = found[rows, at].astype(np.float64)
    others = np.where(owners[candidates] == owners[nearest][:, None], -np.inf, found)
    following = -np.partition(-others, min(NEXT, others.shape[1]) - 1, axis=1)[:, :NEXT].astype(np.float64)
    known = np.isfinite(following)
    count = known.sum(axis=1)
    mean = np.where(known, following, 0).sum(axis=1) / np.maximum(count, 1)
    # With nothing else to compare with, nothing stands out.
    return _Marks(nearest.astype(np.intp), best, np.where(count > 0, best / np.maximum(mean, LEAST_NEXT), 1.0),
                  np.ones(len(best)))


def _moves(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All shifts that are searched."""
    reach = [min(max(LEAST_REACH, round(REACH * n)), n - 1) for n in shape]
    return list(product(*(range(-r, r + 1) for r in reach)))


def _flips(dims: int) -> list[tuple[int, ...]]:
    """All sets of spatial axes, as axes of (N, C, X, Y[, Z])."""
    return [tuple(2 + axis for axis in range(dims) if chosen[axis]) for chosen in product((0, 1), repeat=dims)]


def _overlap(move: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Slices, Slices]:
    """Where image x + move and image x are both inside, in the one and in the other."""
    one = tuple(slice(max(0, s), n + min(0, s)) for s, n in zip(move, shape, strict=True))
    other = tuple(slice(max(0, -s), n + min(0, -s)) for s, n in zip(move, shape, strict=True))
    return one, other


def _search(some: Images, train: Images) -> tuple[Images, NDArray[np.int32]]:
    """(N, M) the correlation of each pair at its best flip and shift, and which: flip * shifts + shift.

    A matrix product for each shift: as fast as Fourier transforms of every pair at these sizes, and exact.
    """
    shape = some.shape[2:]
    flips, moves = _flips(len(shape)), _moves(shape)
    flipped = [np.flip(some, axes) for axes in flips]
    best = np.full((len(some), len(train)), -np.inf, np.float32)
    which = np.zeros(best.shape, np.int32)
    for m, move in enumerate(moves):
        here, there = _overlap(move, shape)
        right = train[(slice(None), slice(None), *there)].reshape(len(train), -1)
        right = right / _norms(right, train)[:, None]
        for f, turned in enumerate(flipped):
            left = turned[(slice(None), slice(None), *here)].reshape(len(some), -1)
            left = left / _norms(left, some)[:, None]
            found = left @ right.T
            better = found > best
            np.copyto(best, found, where=better)
            which[better] = f * len(moves) + m
    return best, which


def _norms(part: Images, whole: Images) -> Images:
    """(N,) the norm of what overlaps, but never much less than that of the whole image."""
    own = np.einsum("np,np->n", part, part)
    flat = whole.reshape(len(whole), -1)
    least = LEAST_ENERGY * np.einsum("np,np->n", flat, flat)
    return np.asarray(np.sqrt(np.maximum(np.maximum(own, least), NOTHING)), np.float32)


def _refined(some: list[Images], train: list[Images], found: Images, where: NDArray[np.int32]
             ) -> tuple[Images, NDArray[np.intp]]:
    """(N, K) correlations of the lowest resolution's candidates, searched around their best shift at finer ones."""
    keep = min(CANDIDATES, found.shape[1])
    shape = some[-1].shape[2:]
    flips, moves = _flips(len(shape)), np.array(_moves(shape))
    candidates = np.argpartition(-found, keep - 1, axis=1)[:, :keep]
    best = np.full(candidates.shape, -np.inf, np.float32)
    steps = np.array(list(product(range(-AROUND, AROUND + 1), repeat=len(shape))))
    for n, row in enumerate(candidates):
        for k, candidate in enumerate(row):
            if not np.isfinite(found[n, candidate]):
                continue
            flip, move = divmod(int(where[n, candidate]), len(moves))
            centre = moves[move]
            for level in range(len(some) - 2, -1, -1):
                one = np.flip(some[level][n], tuple(axis - 1 for axis in flips[flip]))
                tried = 2 * centre + steps
                values = [_correlation(one, train[level][candidate], tuple(shift)) for shift in tried.tolist()]
                centre, best[n, k] = tried[int(np.argmax(values))], max(values)
    return best, candidates.astype(np.intp)


def _correlation(one: Images, other: Images, move: tuple[int, ...]) -> float:
    """Of one pair of (C, X, Y[, Z]) images at one shift."""
    here, there = _overlap(move, one.shape[1:])
    left, right = one[(slice(None), *here)], other[(slice(None), *there)]
    # Band-passed images have a mean square of 1.
    least = LEAST_ENERGY * one.size
    norm = max(float(np.vdot(left, left)), least) * max(float(np.vdot(right, right)), least)
    return float(np.vdot(left, right) / np.sqrt(norm))
