"""Do synthetic images help a classifier of classes? It is trained in several arms and judged on real patients.

Every arm gets the same network, the same first weights and the same number of optimiser steps, so that nothing but the
training images and how they are drawn differs. Batches are drawn as the training set is, so that filling a rare class
counts, unless an arm draws classes evenly. Beside the bootstrap over patients and seeds stand DeLong's test of AUROCs
(DeLong, DeLong & Clarke-Pearson 1988) and McNemar's of right answers (1947), corrected over pairs (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

from medgan.errors import Refused
from medgan.metrics.examples import OUTSIDE
from medgan.metrics.utility import (
    BATCH,
    CHUNK,
    FEWEST_PATIENTS,
    RATE,
    RESAMPLES,
    WEIGHT_DECAY,
    WIDTHS,
    SmallClassifier,
    Values,
    auroc,
    disturbed,
    draw_units,
    estimate,
    with_detectable,
)

#: The classifier halves its images once a layer; shorter edges are filled up.
SHORTEST = 2 ** len(WIDTHS)
#: Resamples of the bootstrap worked on at a time, so that memory stays bounded.
DRAWN = 250
#: z of a 95 % interval.
Z95 = 1.959963984540054
#: Below this a standard deviation of a difference of AUROCs is rounding.
NO_SPREAD = 1e-12


@dataclass(frozen=True, eq=False)
class Arm:
    """What a classifier is trained on, and how.

    Args:
        images: (N, C, X, Y[, Z]) network values.
        labels: (N,) classes 0 to K - 1.
        augmented: Whether images are mirrored along X, turned, shifted, scaled and changed in brightness.
        evenly: Whether classes are drawn evenly; else as the training set has them.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.intp]
    augmented: bool = True
    evenly: bool = False


#: The differences that `usual_arms` are made for: (arm, other arm).
USUAL_PAIRS = (("synthetic added", "classic"), ("synthetic added", "oversampled"), ("synthetic added", "duplicated"),
               ("synthetic only", "classic"))


def usual_arms(images: NDArray[np.float32], labels: ArrayLike, made: NDArray[np.float32], made_labels: ArrayLike
               ) -> dict[str, Arm]:
    """The arms that tell what synthetic images are worth.

    Args:
        images: (N, C, X, Y[, Z]) real training images.
        labels: (N,) their classes.
        made: (M, C, X, Y[, Z]) synthetic images.
        made_labels: (M,) their classes.

    Returns:
        `real`; `classic`, with augmentation, like all that follow; `oversampled`, classes drawn evenly; `duplicated`,
        as many images of each class as with the synthetic ones, but real ones repeated; `synthetic added`; `synthetic
        only`. A made class without real images is not in `duplicated`.
    """
    truth, made_truth = np.asarray(labels, np.intp), np.asarray(made_labels, np.intp)
    extra = [np.resize(np.flatnonzero(truth == value), (made_truth == value).sum())
             for value in np.unique(made_truth) if (truth == value).any()]
    repeated = np.concatenate([np.arange(len(truth)), *extra])
    return {"real": Arm(images, truth, augmented=False), "classic": Arm(images, truth),
            "oversampled": Arm(images, truth, evenly=True), "duplicated": Arm(images[repeated], truth[repeated]),
            "synthetic added": Arm(np.concatenate([images, made]), np.concatenate([truth, made_truth])),
            "synthetic only": Arm(made, made_truth)}


def score_classes(arms: Mapping[str, Arm], test_images: NDArray[np.float32], *, classes: int, seeds: Sequence[int],
                  steps: int, device: str = "cpu", tell: Callable[[str], None] = lambda _: None
                  ) -> dict[str, NDArray[np.float64]]:
    """Trains a classifier for each arm and seed and lets it score the test images.

    Args:
        arms: Name -> training images.
        test_images: (N, C, X, Y[, Z]) network values.
        classes: K.
        seeds: One classifier an arm for each; the same seed in two arms is the same first weights.
        steps: Optimiser steps, the same for all arms.
        device: Where to train.
        tell: Told of each arm that is begun.

    Returns:
        Arm -> (S, N, K) probabilities.

    Raises:
        Refused: `DATASET_EMPTY` where an arm has fewer than two classes, `LABEL_OUT_OF_RANGE`, `DIM_UNSUPPORTED`.
    """
    for name, arm in arms.items():
        _check(name, arm, test_images, classes)
    scores = {}
    for name, arm in arms.items():
        counts = np.bincount(arm.labels, minlength=classes)
        tell(f"{name}: {len(arm.labels)} images, {' + '.join(map(str, counts))} by class")
        scores[name] = np.stack([_predicted(_trained(arm, classes, steps, seed, device), test_images)
                                 for seed in seeds])
    return scores


def _check(name: str, arm: Arm, test_images: NDArray[np.float32], classes: int) -> None:
    if len(arm.labels) != len(arm.images):
        raise Refused("TAB_UNMATCHED", name, f"{len(arm.labels)} labels for {len(arm.images)} images",
                      "Label each image once")
    if not len(arm.labels) or arm.labels.min() == arm.labels.max():
        raise Refused("DATASET_EMPTY", name, f"its {len(arm.labels)} training images are not of two classes",
                      "Give images of two classes or more")
    if arm.labels.min() < 0 or arm.labels.max() >= classes:
        raise Refused("LABEL_OUT_OF_RANGE", name, f"labels from {arm.labels.min()} to {arm.labels.max()}",
                      f"Number the classes 0 to {classes - 1}")
    if arm.images.ndim not in (4, 5) or arm.images.shape[1:] != test_images.shape[1:]:
        raise Refused("DIM_UNSUPPORTED", name, f"images of shape {arm.images.shape[1:]} beside test images of "
                      f"{test_images.shape[1:]}", "Give arrays (N, C, X, Y[, Z]) of one grid")


def _trained(arm: Arm, classes: int, steps: int, seed: int, device: str) -> SmallClassifier:
    images, labels = _roomy(arm.images), torch.from_numpy(arm.labels.astype(np.int64))
    pools = [torch.from_numpy(np.flatnonzero(arm.labels == value)) for value in np.unique(arm.labels)]
    sizes = torch.tensor([len(pool) for pool in pools])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallClassifier(images.shape[1], classes, images.ndim - 2)
    layout = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
    model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    ordered, starts = torch.cat(pools), torch.cumsum(sizes, 0) - sizes
    for _ in range(steps):
        drawn = torch.rand(2, BATCH, generator=chance, dtype=torch.float64)
        if arm.evenly:
            pool = (drawn[0] * len(pools)).long()
            index = ordered[starts[pool] + (drawn[1] * sizes[pool]).long()]
        else:
            index = (drawn[1] * len(labels)).long()
        batch = images[index]
        batch = (disturbed(batch, chance) if arm.augmented else batch).to(device=device, memory_format=layout)
        loss = F.cross_entropy(model(batch), labels[index].to(device))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return model.eval()


def _roomy(images: NDArray[np.float32]) -> Tensor:
    """With as much outside around them as the classifier needs."""
    tensor = torch.from_numpy(np.ascontiguousarray(images, np.float32))
    short = [max(0, SHORTEST - length) for length in images.shape[:1:-1]]
    return F.pad(tensor, [part for gap in short for part in (gap // 2, gap - gap // 2)], value=OUTSIDE)


def _predicted(model: SmallClassifier, images: NDArray[np.float32]) -> NDArray[np.float64]:
    device = next(model.parameters()).device
    with torch.no_grad():
        parts = [torch.softmax(model(_roomy(images[at : at + CHUNK]).to(device)).double(), 1).cpu()
                 for at in range(0, len(images), CHUNK)]
    return np.asarray(torch.cat(parts).numpy())


def macro_auroc(truth: NDArray[np.intp], scores: NDArray[np.float64], weights: Values | None = None) -> Values:
    """Mean of each class's AUROC against the rest, over the classes that can be told; with two classes the AUROC.

    Args:
        truth: (N,) classes.
        scores: (N, K) probabilities.
        weights: (B, N) how often each image counts; None: once.

    Returns:
        (B,), or (1,) without weights; NaN where there is one class only.
    """
    told = range(1, 2) if scores.shape[1] == 2 else range(scores.shape[1])
    return _mean_known(np.stack([auroc(truth == value, scores[:, value], weights) for value in told]))


def macro_recall(truth: NDArray[np.intp], scores: NDArray[np.float64], weights: Values | None = None) -> Values:
    """Balanced accuracy: the mean of each class's share of right answers; arguments as for `macro_auroc`."""
    counts = np.ones((1, len(truth))) if weights is None else weights
    right = scores.argmax(axis=1) == truth
    recalls = []
    for value in range(scores.shape[1]):
        mine = truth == value
        total = counts @ mine
        recalls.append(np.divide(counts @ (mine & right), total, out=np.full(len(counts), np.nan), where=total > 0))
    return _mean_known(np.stack(recalls))


def _mean_known(values: Values) -> Values:
    """(K, B) -> (B,) mean over what is not NaN."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    mean: Values = np.divide(np.where(known, values, 0).sum(axis=0), count, out=np.full(values.shape[1], np.nan),
                             where=count > 0)
    return mean


MEASURES = {"auroc": macro_auroc, "balanced_accuracy": macro_recall}


def compare_classes(labels: ArrayLike, units: ArrayLike, scores: Mapping[str, NDArray[np.float64]],
                    pairs: Sequence[tuple[str, str]], *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Every arm's measures on the test images, and paired differences and tests of some arms.

    Args:
        labels: (N,) true classes, 0 to K - 1.
        units: (N,) whose image it is: what is resampled together.
        scores: Arm -> (S, N, K) probabilities, a row for each seed.
        pairs: (arm, other arm): the difference is the first less the second.
        resamples: Bootstrap resamples, of units and of seeds with them.
        seed: Of the resampling.

    Returns:
        Plain values for JSON: `n`, `patients`, `classes`, `seeds`, `resamples`; `arms`: arm -> measure -> the fields of
        `Estimate`; `differences`: "one - other" -> measure -> the same with `detectable`, and the tests of the
        probabilities averaged over seeds: `delong` (the fields of `DeLong` and `p_holm`; None with more than two
        classes) and `mcnemar` (`first_only` and `second_only` right, exact two-sided `p`, `p_holm`); `warnings`.

    Raises:
        Refused: `DATASET_EMPTY` where the test images are of one class, `TAB_UNMATCHED` where lengths differ.
    """
    truth, owner = np.asarray(labels, np.intp), np.unique(np.asarray(units), return_inverse=True)[1].reshape(-1)
    count, number, classes = next(iter(scores.values())).shape
    if not len(truth) == len(owner) == number:
        raise Refused("TAB_UNMATCHED", "test images", f"{len(truth)} labels, {len(owner)} patients, {number} scores",
                      "Give one of each for every image")
    if len(np.unique(truth)) < 2:
        raise Refused("DATASET_EMPTY", "test images", "they are all of one class", "Hold back more patients, or others")
    rng = np.random.default_rng(seed)
    draws = draw_units(np.zeros(owner.max() + 1, np.intp), resamples, rng)
    seeds = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    arms: dict[str, dict[str, Any]] = {arm: {} for arm in scores}
    differences: dict[str, dict[str, Any]] = {f"{one} - {other}": {} for one, other in pairs}
    for name, measure in MEASURES.items():
        exact = {arm: np.concatenate([measure(truth, row) for row in rows]) for arm, rows in scores.items()}
        drawn = {arm: np.stack([_resampled(measure, truth, row, owner, draws) for row in rows], axis=1)
                 for arm, rows in scores.items()}
        for arm in arms:
            arms[arm][name] = asdict(estimate(exact[arm], drawn[arm], seeds))
        for one, other in pairs:
            differences[f"{one} - {other}"][name] = with_detectable(
                estimate(exact[one] - exact[other], drawn[one] - drawn[other], seeds))
    for test, found in _tests(truth, {arm: rows.mean(axis=0) for arm, rows in scores.items()}, pairs).items():
        for key, values in found.items():
            differences[key][test] = values
    return {"n": len(truth), "patients": int(owner.max()) + 1, "classes": classes, "seeds": count,
            "resamples": resamples, "arms": arms, "differences": differences,
            "warnings": _warnings(truth, owner, count, classes)}


def _resampled(measure: Callable[..., Values], truth: NDArray[np.intp], scores: NDArray[np.float64],
               owner: NDArray[np.intp], draws: Values) -> Values:
    return np.concatenate([measure(truth, scores, draws[at : at + DRAWN, owner]) for at in range(0, len(draws), DRAWN)])


def _warnings(truth: NDArray[np.intp], owner: NDArray[np.intp], seeds: int, classes: int) -> list[str]:
    found = []
    people = int(owner.max()) + 1
    if people < FEWEST_PATIENTS:
        found.append(f"The test images are of {people} patients: intervals over patients mean nothing.")
    if people < len(truth):
        found.append("Some patients have several test images: the tests of DeLong and McNemar take images as "
                     "independent and are too sure; the intervals resample patients.")
    if seeds < 2:
        found.append("One seed only: how much chance in training changes the figures is not known.")
    if missing := sorted(set(range(classes)) - set(truth.tolist())):
        found.append(f"No test images of {len(missing)} of {classes} classes: they are left out.")
    return found


def _tests(truth: NDArray[np.intp], mean: Mapping[str, NDArray[np.float64]], pairs: Sequence[tuple[str, str]]
           ) -> dict[str, dict[str, Any]]:
    """Test -> "one - other" -> its result, with p corrected for the number of pairs."""
    binary = next(iter(mean.values())).shape[1] == 2
    found: dict[str, dict[str, Any]] = {"delong": {}, "mcnemar": {}}
    for one, other in pairs:
        key = f"{one} - {other}"
        found["delong"][key] = asdict(delong(truth, mean[one][:, 1], mean[other][:, 1])) if binary else None
        right = [mean[arm].argmax(axis=1) == truth for arm in (one, other)]
        found["mcnemar"][key] = mcnemar(*right)
    for results in found.values():
        known = [result for result in results.values() if result is not None]
        for result, p in zip(known, holm([result["p"] for result in known]), strict=True):
            result["p_holm"] = p
    return found


@dataclass(frozen=True)
class DeLong:
    """Two AUROCs of the same images and their difference, the first less the second.

    Args:
        auc1: Of the first scores.
        auc2: Of the second.
        difference: auc1 - auc2.
        sd: Standard error of the difference.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided, of no difference.
    """

    auc1: float
    auc2: float
    difference: float
    sd: float
    low: float
    high: float
    p: float


def delong(labels: ArrayLike, first: ArrayLike, second: ArrayLike) -> DeLong:
    """The test of DeLong et al. (1988) for two AUROCs of the same images, by ranks as in Sun & Xu (2014).

    Args:
        labels: (N,) bool or 0 and 1; two or more of each.
        first: (N,) scores, higher means more positive.
        second: (N,) other scores of the same images.

    Raises:
        Refused: `DATASET_EMPTY` with fewer than two images of a class.
    """
    truth, scores = np.asarray(labels).astype(bool), np.stack([first, second]).astype(np.float64)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if min(positives, negatives) < 2:
        raise Refused("DATASET_EMPTY", "test images", f"{positives} positive and {negatives} negative ones",
                      "A test of AUROCs takes two of each")
    # An image's rank among all, less its rank among its own, is how many of the other class it lies above.
    overall = stats.rankdata(scores, axis=1)
    above = (overall[:, truth] - stats.rankdata(scores[:, truth], axis=1)) / negatives
    below = 1 - (overall[:, ~truth] - stats.rankdata(scores[:, ~truth], axis=1)) / positives
    areas = above.mean(axis=1)
    # The variance of a difference is that of the differences of placements, the covariance with it.
    difference = float(areas[0] - areas[1])
    variance = np.var(above[0] - above[1], ddof=1) / positives + np.var(below[0] - below[1], ddof=1) / negatives
    sd = float(np.sqrt(variance))
    if sd < NO_SPREAD:
        p = 1.0 if abs(difference) < NO_SPREAD else 0.0
    else:
        p = float(2 * stats.norm.sf(abs(difference) / sd))
    return DeLong(float(areas[0]), float(areas[1]), difference, sd, difference - Z95 * sd, difference + Z95 * sd, p)


def mcnemar(first: ArrayLike, second: ArrayLike) -> dict[str, Any]:
    """McNemar's exact test of two classifiers' right answers, (N,) bool each: do they differ in how many are right?"""
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    only, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    p = stats.binomtest(only, only + only_other).pvalue if only + only_other else 1.0
    return {"first_only": only, "second_only": only_other, "p": float(p)}


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, step by step from the smallest (Holm 1979)."""
    p = np.asarray(values, np.float64)
    order = np.argsort(p)
    stepped = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    corrected = np.empty_like(p)
    corrected[order] = stepped
    return [float(value) for value in corrected]
