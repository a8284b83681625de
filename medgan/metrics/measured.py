"""One figure with what is needed to believe it: its interval, and what chance alone makes of it.

Any figure of two sets of images is read against its floor, the same figure of real images against other real images at
the same n: halves of the real set that share no patient. The value is therefore taken at that n too, the mean over
draws of so many from either side; a figure that depends on n (Fréchet, coverage) would else be compared with another.

Intervals come from half-samples of the patients (McCarthy 1969; the delete-half jackknife of Shao and Tu 1995), not
from a bootstrap: images drawn twice lie at distance 0 of each other, which makes every distance between sets larger
and every neighbourhood smaller. The spread over halves is that of the whole for means; where both sets are alike, a
squared distance spreads more over halves, and its interval is wider than it need be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from medgan.errors import Refused

#: Halvings of the real set for the floor, and draws for the value.
HALVINGS = 50
#: Half-samples for the interval: its width is then known within 7 %.
HALF_SAMPLES = 100
#: Half the width of a 95 % interval, in standard deviations.
WITHIN = float(norm.ppf(0.975))
#: More images a side are thinned to this many: the matrices of their distances stay under 130 MB each.
MOST = 2000
#: Fewer images on either side of a comparison mean nothing: there are no five neighbours.
LEAST = 6
#: Fewer than this on either side of a comparison, and the figure comes with a warning.
ENOUGH = 50
#: Fewer patients than this, and the floor comes with a warning.
ENOUGH_UNITS = 10

#: Convention of ours: what lies no further than this many standard deviations above the floor is good.
GOOD_SDS = 2.0
#: Convention of ours: a distance more than this many times what chance makes of it is bad.
BAD_TIMES = 10.0
#: Conventions of ours: from this part of what real images reach against real ones on a share is good, and also within
#: `GOOD_SDS` of it; below the second it is bad.
GOOD_SHARE, BAD_SHARE = 0.9, 0.5
#: Convention of ours: a classifier that ranks this many of the pairs rightly tells made images at sight.
BAD_REALNESS = 0.95

#: What grows with the distance of the two sets; shares that should reach what real images reach; and the rest.
DISTANCES, SHARES, REALNESS, LIKENESS = (
    ("mmd2", "frechet", "kid"), ("precision", "recall", "density", "coverage", "vendi_ratio"), "realness", "ms_ssim")
#: Shares that should not pass what real images reach either: noise raises the Vendi ratio, shrinking the density.
BOTH_WAYS = ("density", "vendi_ratio")

Features = NDArray[np.float64]
Index = NDArray[np.intp]
#: (rows of one set, rows of the other) -> figures by name.
Figures = Callable[[Index, Index], Mapping[str, float]]


@dataclass(frozen=True)
class Measured:
    """One figure with what is needed to believe it.

    Args:
        name: Which figure.
        value: At `n_real` and `n_made` images.
        low: Lower end of its 95 % interval over patients.
        high: Upper end.
        floor: The same figure of real images against other patients' real images at the same n: the mean; NaN where
            there is one patient only.
        floor_sd: Its standard deviation over the halvings.
        n_real: Real images in each comparison.
        n_made: Made images in each comparison.
        warnings: What makes it doubtful, in words.
    """

    name: str
    value: float
    low: float
    high: float
    floor: float
    floor_sd: float
    n_real: int
    n_made: int
    warnings: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """The floor and `GOOD_SDS` standard deviations: how large a distance of like sets becomes by chance.

        The floor of an unbiased figure is about 0, so that "ten times the floor" only has a meaning with this.
        """
        return self.floor + GOOD_SDS * self.floor_sd

    @property
    def times(self) -> float:
        """The value over `chance` for distances, over the floor for the rest."""
        below = self.chance if self.name in DISTANCES else self.floor
        return self.value / below if below > 0 else float("nan")

    @property
    def verdict(self) -> str:
        """"good", "fair", "bad", or "unknown" where there is no floor: conventions of ours, no more."""
        if not np.isfinite([self.value, self.floor, self.floor_sd]).all():
            return "unknown"
        if self.name in SHARES:
            share = self.times
            if self.name in BOTH_WAYS and share > 1:
                share = 1 / share
            near = abs(self.floor - self.value) <= GOOD_SDS * self.floor_sd
            good, bad = share >= GOOD_SHARE or near, share < BAD_SHARE
        elif self.name == LIKENESS:
            # Half-way from what real pairs have in common to being the same image.
            good, bad = self.value <= self.chance, self.value > max((1 + self.floor) / 2, self.chance)
        else:
            good = self.value <= self.chance
            bad = self.value >= BAD_REALNESS if self.name == REALNESS else self.value > BAD_TIMES * self.chance
        return "good" if good else "bad" if bad else "fair"

    def with_warnings(self, *more: str) -> Measured:
        """The same with more warnings."""
        return replace(self, warnings=(*self.warnings, *more))


def checked(features: ArrayLike, what: str) -> Features:
    """(N, F) float64 features.

    Raises:
        Refused: `DIM_UNSUPPORTED` for another shape, `PIX_NONFINITE` for values that are not finite.
    """
    values = np.asarray(features, np.float64)
    if values.ndim != 2 or not values.shape[1]:
        raise Refused("DIM_UNSUPPORTED", what, f"features of shape {values.shape}", "Give an array (images, features)")
    if not np.isfinite(values).all():
        rows = int((~np.isfinite(values)).any(axis=1).sum())
        raise Refused("PIX_NONFINITE", what, f"features of {rows} images are not finite", "Leave those images out")
    return values


def halvings(units: ArrayLike, count: int, rng: np.random.Generator) -> list[tuple[Index, Index]]:
    """Pairs of halves of (N,) images that share no unit, each half in random order; none where there is one unit."""
    number = np.unique(np.asarray(units), return_inverse=True)[1]
    sizes = np.bincount(number)
    if len(sizes) < 2:
        return []
    drawn = []
    for _ in range(count):
        side = np.zeros(len(sizes), bool)
        held = [0, 0]
        order = rng.permutation(len(sizes))
        # Large ones first, so that both halves end alike; those of one size stay in random order.
        for unit in order[np.argsort(-sizes[order], kind="stable")]:
            smaller = int(held[1] < held[0] or (held[0] == held[1] and rng.random() < 0.5))
            side[unit] = bool(smaller)
            held[smaller] += int(sizes[unit])
        drawn.append((rng.permutation(np.flatnonzero(~side[number])), rng.permutation(np.flatnonzero(side[number]))))
    return drawn


def thinned(units: ArrayLike, most: int, rng: np.random.Generator) -> Index:
    """Rows of at most `most` images, spread over the units as evenly as they go, in order."""
    number = np.unique(np.asarray(units), return_inverse=True)[1]
    if len(number) <= most:
        return np.arange(len(number))
    order = rng.permutation(len(number))
    # Each unit's first image before any unit's second.
    ranks = np.empty(len(number), np.intp)
    seen = np.zeros(number.max() + 1, np.intp)
    for row in order:
        ranks[row] = seen[number[row]]
        seen[number[row]] += 1
    return np.sort(order[np.argsort(ranks[order], kind="stable")][:most])


def measure(figures: Figures, units: ArrayLike, made_units: ArrayLike, *, seed: int,
            bounds: Mapping[str, tuple[float, float]] | None = None, least: int = LEAST,
            draws: int = HALVINGS, half_samples: int = HALF_SAMPLES) -> dict[str, Measured]:
    """Figures of real against made with floors and intervals.

    Args:
        figures: Takes rows of the pooled set: the real images, then the made ones.
        units: (R,) whose the real images are.
        made_units: (M,) the same for the made ones; what was drawn by itself is its own unit.
        seed: Of all draws.
        bounds: Ends that an interval cannot pass, by figure.
        least: Images that the figures need on either side.
        draws: Halvings for the floor, and draws for the value.
        half_samples: For the interval.

    Raises:
        Refused: `DATASET_EMPTY` with fewer than `least` images to compare.
    """
    rng = np.random.default_rng([seed, 41])
    real, made = (np.unique(np.asarray(given), return_inverse=True)[1] for given in (units, made_units))
    count, start = len(real), len(real)
    halves = halvings(real, draws, rng)
    n = min([len(made), *(min(map(len, pair)) for pair in halves)] if halves else [len(made), count])
    if n < least:
        raise Refused("DATASET_EMPTY", "images", f"{count} real images of {len(set(real.tolist()))} patients and "
                      f"{len(made)} made ones leave {n} a side to compare; nothing can be said below {least}",
                      f"Give at least {2 * least} real and {least} made images, better {2 * ENOUGH} and {ENOUGH}")
    floors = _table([figures(one[:n], other[:n]) for one, other in halves])
    values = _table([figures(_draw(real, n, rng), start + _draw(made, n, rng)) for _ in range(draws)])
    part = min(count, len(made)) // 2
    halved = _table([figures(_draw(real, part, rng), start + _draw(made, part, rng)) for _ in range(half_samples)]
                    ) if part >= least else {}
    warnings = _warnings(n, len(set(real.tolist())), part >= least)
    found = {}
    for name, drawn in values.items():
        value = float(np.mean(drawn))
        width = WITHIN * float(np.std(halved[name], ddof=1)) if name in halved else float("nan")
        bottom, top = (bounds or {}).get(name, (-np.inf, np.inf))
        floor = floors.get(name)
        found[name] = Measured(
            name, value, float(np.maximum(value - width, bottom)), float(np.minimum(value + width, top)),
            float("nan") if floor is None else float(np.mean(floor)),
            float("nan") if floor is None else float(np.std(floor, ddof=1)), n, n, warnings)
    return found


def _draw(numbers: Index, count: int, rng: np.random.Generator) -> Index:
    """Rows of `count` images, unit after unit in random order."""
    order = rng.permutation(numbers.max() + 1)[numbers]
    return np.argsort(order, kind="stable")[:count]


def _table(rows: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def _warnings(n: int, patients: int, interval: bool) -> tuple[str, ...]:
    found = []
    if n < ENOUGH:
        found.append(f"{n} images a side: below {ENOUGH} only gross faults can be told from chance")
    if patients == 1:
        found.append("one patient: there is no floor, and nothing can be said about others")
    elif patients < ENOUGH_UNITS:
        found.append(f"{patients} patients: floor and interval know little of how patients differ")
    if not interval:
        found.append("too few images for an interval")
    return tuple(found)
