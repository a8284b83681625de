"""Does it help? A small classifier trained in several arms, its AUROC on real patients, and honest intervals.

Every arm gets the same network, the same start, the same number of optimiser steps on batches that are half
positive, and the same light augmentation, so that nothing but the training pictures differs. Intervals come from
resampling patients (Efron's percentile bootstrap), and seeds with them; differences between arms are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from medgan.errors import Refused
from medgan.metrics.examples import OUTSIDE, Examples

#: With fewer test patients than this, resampling patients says nothing, and blocks of slices are drawn instead.
FEWEST_PATIENTS = 3
#: Neighbouring slices look alike, so they are drawn together, this many at a time.
BLOCK = 10
RESAMPLES = 2_000
#: Classes are drawn evenly in training, so half is the classifier's own threshold.
THRESHOLD = 0.5
#: A difference of 1.96 + 0.84 standard errors is found in 8 of 10 studies, and a 95 % interval is 3.92 wide.
DETECTABLE = (1.96 + 0.84) / (2 * 1.96)
WIDTHS = (16, 32, 48, 64)
BATCH, RATE, WEIGHT_DECAY = 32, 2e-3, 1e-2
#: How far above `OUTSIDE` a value is tissue, and not rounding.
INSIDE = 1e-3
#: Pictures scored at a time.
CHUNK = 256
#: The augmentation that every arm has: degrees, parts of the edge, parts of the size, network values.
TURN, SHIFT, ZOOM, BRIGHTNESS = 10.0, 0.05, 0.1, 0.1

Values = NDArray[np.float64]


class SmallClassifier(nn.Module):
    """Four convolutions with group normalisation, then the strongest and the mean response over the picture.

    Args:
        channels: Of the images.
        classes: Logits of an image; None: a single one, of being positive.
        dims: 2 or 3.
    """

    def __init__(self, channels: int, classes: int | None = None, dims: int = 2) -> None:
        super().__init__()
        convolution, pooling = (nn.Conv2d, nn.MaxPool2d) if dims == 2 else (nn.Conv3d, nn.MaxPool3d)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *WIDTHS), WIDTHS, strict=False):
            layers += [convolution(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.LeakyReLU(0.1),
                       pooling(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * WIDTHS[-1], classes or 1)
        self.single = classes is None

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, X, Y[, Z]), edges of 16 or more -> (B,) or (B, classes) logits."""
        found = self.features(images)
        space = tuple(range(2, images.ndim))
        logits: Tensor = self.head(torch.cat([found.amax(space), found.mean(space)], dim=1))
        return logits[:, 0] if self.single else logits


def train_classifier(examples: Examples, *, steps: int, seed: int, device: str = "cpu",
                     augmented: bool = True) -> SmallClassifier:
    """Trains the small classifier for exactly `steps` optimiser steps.

    Args:
        examples: The training pictures; each batch is half positive.
        steps: Steps of AdamW with a one-cycle rate.
        seed: Of the first weights, the batches and their augmentation. The same in two arms: the same first weights.
        device: Where to train.
        augmented: Whether pictures are turned, shifted, scaled and changed in brightness.

    Raises:
        Refused: `DATASET_EMPTY` when all pictures are of one class.
    """
    images = torch.from_numpy(examples.images).to(device)
    classes = [torch.from_numpy(np.flatnonzero(examples.positive == wanted)) for wanted in (True, False)]
    if not all(len(index) for index in classes):
        raise Refused("DATASET_EMPTY", "classifier", f"all {len(examples)} training pictures are of one class",
                      "Give data with and without lesions, or with two classes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallClassifier(images.shape[1])
    # Channels last: a CPU takes a third longer the other way.
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    half = BATCH // 2
    wanted = torch.cat([torch.ones(half), torch.zeros(half)]).to(device)
    for _ in range(steps):
        # Not randint: its draws from a doubled pool are the same pictures, and the arm of repeats the same run.
        index = torch.cat([pool[(torch.rand(half, generator=chance) * len(pool)).long()] for pool in classes])
        drawn = images[index.to(device)].to(memory_format=torch.channels_last)
        loss = F.binary_cross_entropy_with_logits(model(disturbed(drawn, chance) if augmented else drawn), wanted)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return model.eval()


def predict(model: SmallClassifier, examples: Examples) -> NDArray[np.float64]:
    """(N,) probabilities of being positive."""
    device = next(model.parameters()).device
    images = torch.from_numpy(examples.images)
    with torch.no_grad():
        parts = [torch.sigmoid(model(images[at : at + CHUNK].to(device))) for at in range(0, len(images), CHUNK)]
    return np.asarray(torch.cat(parts).double().cpu().numpy())


def score_arms(arms: Mapping[str, Examples], tests: Mapping[str, Examples], *, seeds: Sequence[int], steps: int,
               device: str = "cpu", tell: Callable[[str], None] = lambda _: None) -> dict[str, dict[str, Values]]:
    """Trains a classifier for each arm and seed and lets it score every test set.

    Args:
        arms: Name -> training pictures.
        tests: Name -> test pictures.
        seeds: One classifier an arm for each.
        steps: Optimiser steps, the same for all arms.
        device: Where to train.
        tell: Told of each arm that is begun.

    Returns:
        Test set -> arm -> (S, N) probabilities.
    """
    scores: dict[str, dict[str, Values]] = {name: {} for name in tests}
    for arm, examples in arms.items():
        tell(f"{arm}: {len(examples)} pictures, {int(examples.positive.sum())} positive")
        models = [train_classifier(examples, steps=steps, seed=seed, device=device) for seed in seeds]
        for name, test in tests.items():
            scores[name][arm] = np.stack([predict(model, test) for model in models])
    return scores


def disturbed(images: Tensor, chance: torch.Generator) -> Tensor:
    """(B, C, X, Y[, Z]) mirrored along X, turned, shifted, scaled and changed in brightness, each by itself."""
    count, dims = len(images), images.ndim - 2

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=chance)

    angle, zoom = torch.deg2rad(between(-TURN, TURN)), 1 + between(-ZOOM, ZOOM)
    mirror = torch.where(torch.rand(count, generator=chance) < 0.5, -1.0, 1.0)
    # affine_grid's last coordinate runs along the first axis of the picture, X: the one that is mirrored.
    turned = _turns([angle] + [torch.deg2rad(between(-TURN, TURN)) for _ in range(2 * dims - 4)], dims) * zoom
    turned[-1] *= mirror
    moves = torch.stack([between(-2 * SHIFT, 2 * SHIFT) for _ in range(dims)])
    grid = F.affine_grid(torch.cat([turned, moves[:, None]], 1).permute(2, 0, 1).to(images), list(images.shape),
                         align_corners=False)
    # Sampled above OUTSIDE, so that the zeros beyond the edge are outside too.
    moved = F.grid_sample(images - OUTSIDE, grid, align_corners=False)
    scale, shift = ((base + between(-BRIGHTNESS, BRIGHTNESS)).to(images).reshape(-1, *[1] * (dims + 1))
                    for base in (1, 0))
    return moved * scale + OUTSIDE + shift * (moved > INSIDE)


def _turns(angles: Sequence[Tensor], dims: int) -> Tensor:
    """(dims, dims, B) rotations: in the only plane there is or, in 3D, in one plane after the other."""
    whole = torch.eye(dims)[..., None].expand(-1, -1, len(angles[0])).clone()
    for angle, (one, other) in zip(angles, ((0, 1), (1, 2), (0, 2)), strict=False):
        cos, sin, first, second = torch.cos(angle), torch.sin(angle), whole[one].clone(), whole[other].clone()
        whole[one], whole[other] = cos * first - sin * second, sin * first + cos * second
    return whole


def auroc(positive: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Args:
        positive: (N,) bool.
        scores: (N,) higher means more positive.
        weights: (B, N) how often each counts; None: once.

    Returns:
        (B,), or (1,) without weights; NaN where one class is missing.
    """
    truth, values = np.asarray(positive, bool), np.asarray(scores, np.float64)
    counts = np.ones((1, len(truth))) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(values, kind="stable")
    firsts = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)
    if not len(firsts):
        return np.full(len(counts), np.nan)
    above = np.add.reduceat((counts * truth)[:, order], firsts, axis=1)
    below = np.add.reduceat((counts * ~truth)[:, order], firsts, axis=1)
    wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
    return _ratio(wins, above.sum(axis=1) * below.sum(axis=1))


def balanced_accuracy(positive: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Values:
    """Mean of sensitivity and specificity at `THRESHOLD`; arguments and result as for `auroc`."""
    truth, called = np.asarray(positive, bool), np.asarray(scores, np.float64) >= THRESHOLD
    counts = np.ones((1, len(truth))) if weights is None else np.asarray(weights, np.float64)
    sensitivity = _ratio(counts @ (truth & called), counts @ truth)
    specificity = _ratio(counts @ (~truth & ~called), counts @ ~truth)
    return (sensitivity + specificity) / 2


def _ratio(above: Values, below: Values) -> Values:
    ratio: Values = np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
    return ratio


Measure = Callable[[ArrayLike, ArrayLike, ArrayLike | None], Values]
MEASURES: dict[str, Measure] = {"auroc": auroc, "balanced_accuracy": balanced_accuracy}


@dataclass(frozen=True, eq=False)
class Scored:
    """A test set and what the classifiers of every arm and seed said of it, fold after fold.

    Args:
        positive: (N,) bool.
        patients: (N,) whose picture it is.
        places: (N,) slice numbers.
        folds: (N,) which fold's classifiers scored it; a patient outside the folds is scored by each of them.
        filled: (N,) how much of each picture is tissue.
        scores: Arm -> (S, N), a row for each seed.
    """

    positive: NDArray[np.bool_]
    patients: NDArray[np.str_]
    places: NDArray[np.int64]
    folds: NDArray[np.int64]
    filled: Values
    scores: Mapping[str, Values]

    @staticmethod
    def gathered(parts: Sequence[tuple[Examples, Mapping[str, Values]]]) -> Scored:
        """From each fold's test examples and their scores."""
        examples = Examples.joined([part for part, _ in parts])
        folds = np.concatenate([np.full(len(part), fold) for fold, (part, _) in enumerate(parts)])
        scores = {arm: np.concatenate([scored[arm] for _, scored in parts], axis=1) for arm in parts[0][1]}
        filled = (examples.images[:, 0] > OUTSIDE + INSIDE).mean(axis=(1, 2))
        return Scored(examples.positive, examples.patients, examples.places, folds, filled, scores)

    def rows(self) -> Iterator[dict[str, object]]:
        """A row for every picture, arm and seed, for a table."""
        for arm, scores in self.scores.items():
            for seed, row in enumerate(scores):
                for n, score in enumerate(row):
                    yield {"fold": int(self.folds[n]) + 1, "arm": arm, "seed": seed, "patient": str(self.patients[n]),
                           "slice": int(self.places[n]), "positive": int(self.positive[n]), "score": f"{score:.6f}"}


@dataclass(frozen=True)
class Estimate:
    """A figure, or a difference of two, with a 95 % interval over what was resampled and over seeds.

    Args:
        mean: Over the seeds.
        seed_sd: Standard deviation between seeds; None for a single one.
        low: 2.5th percentile of the resamples.
        high: 97.5th percentile.
        per_seed: The figure of each seed.
    """

    mean: float
    seed_sd: float | None
    low: float
    high: float
    per_seed: tuple[float, ...]


def compare(test: Scored, pairs: Sequence[tuple[str, str]], *, resamples: int = RESAMPLES, seed: int = 0
            ) -> dict[str, Any]:
    """Every arm's measures on a test set, and the paired differences of some arms.

    A measure is taken within each fold, since scores of different classifiers do not compare, and averaged over the
    folds by their number of patients.

    Args:
        test: A scored test set.
        pairs: (arm, other arm): the difference is the first less the second.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        Plain values for JSON: `resampled` ("patients" or "blocks"), `trivial` (the AUROC of what needs no look at a
        lesion: where an arm does no better, the task says nothing about lesions), `arms` and `differences`, each a
        measure's name -> the fields of `Estimate`, differences with `detectable` besides.

    Raises:
        Refused: `DATASET_EMPTY` where every fold's test pictures are of one class.
    """
    if not any(0 < test.positive[test.folds == fold].mean() < 1 for fold in np.unique(test.folds)):
        raise Refused("DATASET_EMPTY", "test pictures", "in each fold they are all of one class",
                      "Hold back more patients, or others")
    rng = np.random.default_rng(seed)
    units, strata = resampling_units(test)
    blocks = len(np.unique(test.patients)) < FEWEST_PATIENTS
    draws = draw_units(strata, resamples, rng)
    count = next(iter(test.scores.values())).shape[0]
    # Seeds are drawn anew with the patients: both change when the study is repeated.
    seeds = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    share = 1 / np.bincount(strata)[strata] if blocks else np.ones(len(strata))
    arms: dict[str, dict[str, Any]] = {arm: {} for arm in test.scores}
    differences: dict[str, dict[str, Any]] = {f"{one} - {other}": {} for one, other in pairs}
    for measure in MEASURES:
        exact = {arm: _measured(test, arm, measure, units, share, np.ones((1, len(strata)))) for arm in arms}
        drawn = {arm: _measured(test, arm, measure, units, share, draws) for arm in arms}
        for arm in arms:
            arms[arm][measure] = asdict(estimate(exact[arm][0], drawn[arm], seeds))
        for one, other in pairs:
            differences[f"{one} - {other}"][measure] = with_detectable(
                estimate(exact[one][0] - exact[other][0], drawn[one] - drawn[other], seeds))
    by = {"slice number": test.places[None].astype(np.float64), "tissue area": test.filled[None]}
    blind = replace(test, scores=by)
    once = np.ones((1, len(strata)))
    reached = {name: float(_measured(blind, name, "auroc", units, share, once)[0, 0]) for name in by}
    return {"resampled": "blocks" if blocks else "patients",
            "trivial": {name: max(value, 1 - value) for name, value in reached.items()},
            "arms": arms, "differences": differences}


def resampling_units(test: Scored) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """What is drawn together: patients or, where there are fewer than `FEWEST_PATIENTS`, blocks of their pictures.

    Returns:
        (N,) the unit of each picture, and (U,) the stratum of each unit, within which units are drawn: one for all
        patients, or one for the blocks of each patient.
    """
    names, owner = np.unique(test.patients, return_inverse=True)
    if len(names) >= FEWEST_PATIENTS:
        return owner, np.zeros(len(names), np.intp)
    rank = np.zeros(len(owner), np.intp)
    for patient, fold in {*zip(owner.tolist(), test.folds.tolist(), strict=True)}:
        same = (owner == patient) & (test.folds == fold)
        rank[same] = np.arange(same.sum())
    keys, units = np.unique(np.stack([owner, rank // BLOCK], 1), axis=0, return_inverse=True)
    return units.reshape(-1), keys[:, 0].astype(np.intp)


def draw_units(strata: NDArray[np.intp], resamples: int, rng: np.random.Generator) -> Values:
    """(B, U) how often each unit is drawn, with replacement and as many as there are in each stratum."""
    draws = np.zeros((resamples, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        draws[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return draws


def _measured(test: Scored, arm: str, measure: str, units: NDArray[np.intp], share: Values, draws: Values) -> Values:
    """(B, S): a measure of each resample and seed, the mean over folds weighted by the patients drawn in each."""
    total = np.zeros((len(draws), len(test.scores[arm])))
    weight = np.zeros_like(total)
    for fold in np.unique(test.folds):
        at = np.flatnonzero(test.folds == fold)
        present = np.unique(units[at])
        patients = draws[:, present] @ share[present]
        for number, scores in enumerate(test.scores[arm]):
            values = MEASURES[measure](test.positive[at], scores[at], draws[:, units[at]])
            known = np.isfinite(values)
            total[:, number] += np.where(known, values, 0) * patients
            weight[:, number] += known * patients
    return _ratio(total, weight)


def estimate(exact: Values, drawn: Values, seeds: Values) -> Estimate:
    """A figure with its interval.

    Args:
        exact: (S,) the figure of each seed.
        drawn: (B, S) the same for every resample.
        seeds: (B, S) the part that each seed has in a resample.
    """
    resampled = (drawn * seeds).sum(axis=1)
    known = resampled[np.isfinite(resampled)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    deviation = float(exact.std(ddof=1)) if len(exact) > 1 else None
    return Estimate(float(exact.mean()), deviation, float(low), float(high), tuple(float(v) for v in exact))


def with_detectable(difference: Estimate) -> dict[str, Any]:
    """Its fields, and `detectable`, the smallest true difference that 8 of 10 such studies would show."""
    return {**asdict(difference), "detectable": DETECTABLE * (difference.high - difference.low)}
