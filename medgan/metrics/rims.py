"""The rim probe: can real and made lesions be told apart by nothing but a narrow band along their borders?

Every section of a lesion (a slice of it) is unrolled: image values along normals of its border, from a few voxels
inside to a few outside, less the level of the tissue just beyond, so that neither the lesion's interior nor what
lies around decides. Made lesions often lie in other places than real ones, so sections are compared in pairs of the
same area and with tissue as even around them. Two probes look at the strips, a regularised logistic regression on
their statistics and a small convolutional network; each judges patients it was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from medgan.lesions.scans import Scan
from medgan.lesions.shapes import find_lesions
from medgan.metrics.judges import by_network, by_statistics
from medgan.metrics.utility import auroc

#: The band that is seen, in in-plane voxels along the outward normal; the blended rim is two to three of them wide.
INNER, OUTER = 3, 3
#: Tissue so much further out gives the level, and says how even the place is; the probes do not see it.
BEYOND = 2
#: Sections of a lesion that are unrolled at most, and the least voxels of one.
SECTIONS, LEAST_VOXELS = 8, 9
#: A pair's areas, and the deviations of the tissue around, differ by no more than about this factor.
CALIPER = 1.35
#: With fewer sections or lesions of either kind than this the interval says nothing, and no verdict is given.
LEAST_SECTIONS, LEAST_LESIONS = 12, 4
#: How far above 0.5 the larger AUROC may lie for the rim not to betray the lesion.
MARGIN = 0.15
#: Folds where there is one patient only.
LONE_FOLDS = 3
RESAMPLES = 1_000


@dataclass(frozen=True, eq=False)
class Rim:
    """The unrolled border of one section of a lesion.

    Args:
        strip: (C, P, D) network values at P places along the border and D distances from inside to outside, less
            the median of the tissue beyond.
        across: (C, D) mean absolute difference to the next slice at each distance; NaN in 2D images.
        area: Pixels of the section.
        unevenness: Standard deviation of the tissue beyond, in channel 0.
        lesion: Whose section it is: unique among real and made lesions.
        patient: Whose tissue it lies in.
    """

    strip: NDArray[np.float32]
    across: NDArray[np.float32]
    area: int
    unevenness: float
    lesion: str
    patient: str


@dataclass(frozen=True)
class Probe:
    """How well one probe tells made rims from real ones on patients it was not trained on.

    Args:
        auroc: 0.5 is chance.
        low: 2.5th percentile over lesions drawn anew, patient by patient.
        high: 97.5th percentile.
    """

    auroc: float
    low: float
    high: float


@dataclass(frozen=True)
class RimReport:
    """What the probes say.

    Args:
        statistics: The logistic regression on rim statistics.
        network: The convolutional network on strips.
        sections: Real sections compared, and as many made ones.
        real_lesions: Real lesions they come from.
        made_lesions: Made lesions they come from.
        patients: Patients in both.
        verdict: `at chance` (the larger AUROC within `MARGIN` of 0.5), `betrayed` (even the lower end of its
            interval is beyond), `between`, or `too few`.
        note: What a reader should know, or an empty string.
    """

    statistics: Probe | None
    network: Probe | None
    sections: int
    real_lesions: int
    made_lesions: int
    patients: int
    verdict: Literal["at chance", "between", "betrayed", "too few"]
    note: str = ""

    @property
    def strongest(self) -> Probe | None:
        """The probe that tells more; as the larger of two it lies a little above 0.5 by chance alone."""
        known = [probe for probe in (self.statistics, self.network) if probe is not None]
        return max(known, key=lambda probe: probe.auroc) if known else None

    def __str__(self) -> str:
        best = self.strongest
        count = (f"{self.sections} sections each of {self.real_lesions} real and {self.made_lesions} made lesions, "
                 f"{self.patients} patient{'s' * (self.patients != 1)}")
        found = f"AUROC {best.auroc:.2f} [{best.low:.2f}, {best.high:.2f}], {self.verdict}; " if best else \
            f"{self.verdict} to say; "
        return found + count + (f" ({self.note})" if self.note else "")


def rims(scan: Scan, *, kind: str = "real") -> list[Rim]:
    """The unrolled borders of a scan's lesions.

    Args:
        scan: Image and lesion labels.
        kind: Begins the lesions' names, so that real and made ones of a patient are told apart.
    """
    unrolled = []
    for number, lesion in enumerate(find_lesions(scan)):
        box = tuple(slice(int(c), int(c) + n) for c, n in zip(lesion.corner, lesion.labels.shape, strict=True))
        mask = np.zeros((*scan.labels.shape[:2], lesion.labels.shape[2]), bool)
        mask[box[:2]] = lesion.labels > 0
        unrolled += unroll(scan.image[..., box[2]], mask, f"{kind}/{scan.case.id}/{number}", scan.case.patient)
    return unrolled


def unroll(image: NDArray[np.float32], mask: NDArray[np.bool_], lesion: str, patient: str) -> list[Rim]:
    """The rims of up to `SECTIONS` sections of one lesion.

    Args:
        image: (C, X, Y, Z) network values.
        mask: (X, Y, Z) the lesion.
        lesion: Its name.
        patient: Whose it is.
    """
    areas = mask.sum(axis=(0, 1))
    slices = np.flatnonzero(areas >= LEAST_VOXELS)
    if len(slices) > SECTIONS:
        slices = slices[np.floor((np.arange(SECTIONS) + 0.5) * len(slices) / SECTIONS).astype(int)]
    rims = []
    for k in slices:
        places = _normals(mask[:, :, k])
        if places is None:
            continue
        whole = _sampled(image[..., k], places)
        strip, beyond = whole[:, :, :-BEYOND], whole[:, :, -BEYOND:]
        across = np.full((len(image), strip.shape[2]), np.nan, np.float32)
        if image.shape[3] > 1:
            step = 1 if k + 1 < image.shape[3] else -1
            across = np.abs(_sampled(image[..., k + step], places)[:, :, :-BEYOND] - strip).mean(axis=1)
        level = np.median(beyond, axis=(1, 2))[:, None, None]
        rims.append(Rim(strip - level, across, int(areas[k]), float(beyond[0].std()), lesion, patient))
    return rims


def rim_probe(real: Sequence[Rim], made: Sequence[Rim], *, seed: int = 0,
              tell: Callable[[str], None] = lambda _: None) -> RimReport:
    """Trains both probes on some patients and lets them judge the others.

    Args:
        real: Rims of real lesions.
        made: Rims of made lesions.
        seed: Of the network and of the resampling.
        tell: Told of each step.

    Returns:
        A report whose probes are None where there is too little to say anything.
    """
    one, other = matched(real, made)
    chosen = [real[n] for n in one] + [made[n] for n in other]
    truth = np.arange(len(chosen)) >= len(one)
    real_count, made_count = (len({rim.lesion for rim in group}) for group in (chosen[: len(one)], chosen[len(one):]))
    patients = sorted({rim.patient for rim in chosen})
    tell(f"{len(one)} pairs of sections of {len(patients)} patients")
    if len(one) < LEAST_SECTIONS or min(real_count, made_count) < LEAST_LESIONS:
        return RimReport(None, None, len(one), real_count, made_count, len(patients), "too few")
    folds = _folds(chosen, patients)
    note = "one patient only: folds over its lesions" if len(patients) == 1 else ""
    tested = [fold for fold in np.unique(folds) if 0 < truth[folds == fold].mean() < 1
              and 0 < truth[folds != fold].mean() < 1]
    if not tested:
        return RimReport(None, None, len(one), real_count, made_count, len(patients), "too few",
                         "no patient has both real and made lesions of one size")
    features = np.stack([_features(rim) for rim in chosen])
    units = np.unique([rim.lesion for rim in chosen], return_inverse=True)[1]
    scores: list[NDArray[np.float64]] = []
    for judge in (by_statistics(features, truth, units),
                  by_network([rim.strip for rim in chosen], truth, seed)):
        score = np.full(len(chosen), np.nan)
        for fold in tested:
            score[folds == fold] = judge(folds != fold, folds == fold)
        scores.append(score)
    probes = [_interval(truth, score, folds, tested, units, seed) for score in scores]
    best = max(probes, key=lambda probe: probe.auroc)
    verdict: Literal["at chance", "between", "betrayed"] = "between"
    if best.auroc <= 0.5 + MARGIN:
        verdict = "at chance"
    elif best.low > 0.5 + MARGIN:
        verdict = "betrayed"
    return RimReport(probes[0], probes[1], len(one), real_count, made_count, len(patients), verdict, note)


def matched(real: Sequence[Rim], made: Sequence[Rim]) -> tuple[list[int], list[int]]:
    """Pairs of sections of nearly the same area and place: indices of real ones, and of their made partners."""
    if not real or not made:
        return [], []
    one, other = (np.log([(rim.area, rim.unevenness + 1e-3) for rim in group]) for group in (real, made))
    apart = np.linalg.norm(one[:, None] - other[None], axis=2)
    # Pairs beyond the caliper cost so much that one is made only where nothing else is left.
    rows, columns = optimize.linear_sum_assignment(np.where(apart <= np.log(CALIPER), apart, 1e3))
    close = apart[rows, columns] <= np.log(CALIPER)
    return rows[close].tolist(), columns[close].tolist()


def _normals(mask: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """(2, P, D) positions along the normals of the longest border of a section; None for what has none."""
    from skimage.measure import find_contours

    padded = np.pad(mask, 2).astype(np.float32)
    # Smoothed, or the normals of a voxel mask would all point along the axes.
    borders = find_contours(ndimage.gaussian_filter(padded, 0.7), 0.5)
    if not borders:
        return None
    border = max(borders, key=len) - 2
    steps = np.linalg.norm(np.diff(border, axis=0), axis=1)
    length = np.concatenate([[0], np.cumsum(steps)])
    count = max(8, round(float(length[-1])))
    at = np.linspace(0, length[-1], count, endpoint=False)
    points = np.stack([np.interp(at, length, border[:, axis]) for axis in range(2)])
    tangent = np.roll(points, -2, axis=1) - np.roll(points, 2, axis=1)
    normal = np.stack([tangent[1], -tangent[0]]) / np.maximum(np.linalg.norm(tangent, axis=0), 1e-6)
    ahead = ndimage.map_coordinates(padded, points + 1.5 * normal + 2, order=1).mean()
    behind = ndimage.map_coordinates(padded, points - 1.5 * normal + 2, order=1).mean()
    normal = normal if ahead < behind else -normal
    distance = np.arange(-INNER, OUTER + BEYOND + 1, dtype=float)
    return np.asarray(points[:, :, None] + normal[:, :, None] * distance)


def _sampled(plane: NDArray[np.float32], places: NDArray[np.float64]) -> NDArray[np.float32]:
    """(C, P, D) values at places; the nearest voxel's, for an average would hide what a rim's texture betrays."""
    return np.stack([ndimage.map_coordinates(channel, places, order=0, mode="nearest") for channel in plane])


def _features(rim: Rim) -> NDArray[np.float64]:
    """Profile, spread, steps across and along the border, at each distance and in each channel."""
    strip = rim.strip.astype(np.float64)
    small = 1e-4
    across = np.diff(strip, axis=2)
    along = np.diff(strip, axis=1, append=strip[:, :1])
    parts = [strip.mean(axis=1)] + [np.log(values + small) for values in (
        strip.std(axis=1), np.abs(across).mean(axis=1), np.abs(across.mean(axis=1)), np.abs(along).mean(axis=1),
        np.abs(np.diff(across, axis=2)).mean(axis=1), np.abs(np.diff(along, axis=1)).mean(axis=1))]
    if np.isfinite(rim.across).all():
        parts.append(np.log(rim.across.astype(np.float64) + small))
    return np.concatenate([part.ravel() for part in parts])


def _folds(rims: Sequence[Rim], patients: Sequence[str]) -> NDArray[np.intp]:
    """One patient a fold, or some lesions where there is one patient."""
    if len(patients) > 1:
        return np.array([patients.index(rim.patient) for rim in rims])
    names = {kind: sorted({rim.lesion for rim in rims if rim.lesion.split("/")[0] == kind})
             for kind in {rim.lesion.split("/")[0] for rim in rims}}
    return np.array([names[rim.lesion.split("/")[0]].index(rim.lesion) % LONE_FOLDS for rim in rims])


def _interval(truth: NDArray[np.bool_], score: NDArray[np.float64], folds: NDArray[np.intp],
              tested: Sequence[np.intp], units: NDArray[np.intp], seed: int) -> Probe:
    """AUROC within each fold, averaged by its number of sections; lesions are drawn anew for the interval."""
    rng = np.random.default_rng([seed, 37])
    exact, drawn, weight = 0.0, np.zeros(RESAMPLES), 0
    for fold in tested:
        at = np.flatnonzero(folds == fold)
        times = np.zeros((RESAMPLES, len(at)))
        for wanted in (True, False):
            members = at[truth[at] == wanted]
            lesions = np.unique(units[members])
            draws = rng.multinomial(len(lesions), np.full(len(lesions), 1 / len(lesions)), size=RESAMPLES)
            times[:, truth[at] == wanted] = draws[:, np.searchsorted(lesions, units[members])]
        exact += len(at) * float(auroc(truth[at], score[at])[0])
        drawn += len(at) * auroc(truth[at], score[at], times)
        weight += len(at)
    low, high = np.percentile(drawn / weight, [2.5, 97.5])
    return Probe(exact / weight, float(low), float(high))
