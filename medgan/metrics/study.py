"""A study of training arms: cases read once, each training kept as it is done, all of them compared at the end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medgan.datasets.cases import Case, Dataset
from medgan.datasets.splits import patient_key
from medgan.lesions.scans import open_scan
from medgan.metrics import segmentation, utility
from medgan.metrics.detection import Detected, detected, lesion_count
from medgan.metrics.examples import Examples, Reader, seen_tissue
from medgan.metrics.labelled import Labelled, of_scan
from medgan.metrics.utility import FEWEST_PATIENTS, Scored, Values
from medgan.storage import write_text

Model = Literal["segmenter", "classifier"]
MODELS: tuple[Model, ...] = ("segmenter", "classifier")
#: What the segmenter is judged by, a figure a volume; besides them its largest probabilities of slices.
CASE_MEASURES = ("dice", "sensitivity", "false_positives")
SLICE_AUROC = "slice_auroc"
#: The arm without any augmentation, and the one that all others are compared with.
NOTHING, BASELINE = "nothing", "real"
#: Seeds of a fold's trainings are this far from the next fold's.
FOLD_SEEDS = 1_000
#: Digits kept of a probability.
DIGITS = 6


@dataclass(frozen=True, eq=False)
class Known:
    """A case as the small models see it.

    Args:
        case: Its id.
        patient: Whose it is.
        pictures: For the classifier.
        volume: For the segmenter; None without a mask.
    """

    case: str
    patient: str
    pictures: Examples
    volume: Labelled | None


def read_case(dataset: Dataset, case: Case, reader: Reader, spacing_mm: float | None, *, standardised: bool = False
              ) -> Known:
    """Reads a case once for both models.

    Args:
        dataset: Where it is from.
        case: Which.
        reader: Makes the pictures; says which channels.
        spacing_mm: Of the segmenter's grid; None: the data's own.
        standardised: Whether the segmenter gets standardised values instead of network values.
    """
    scan = open_scan(dataset, case, reader.config)
    tissue = seen_tissue(scan)
    volume = None if case.mask is None else of_scan(scan, tissue, reader.picked(dataset), spacing_mm,
                                                      standardised=standardised)
    return Known(case.id, patient_key(case), reader.of_scan(dataset, scan, tissue), volume)


def counts(cases: Sequence[Known]) -> dict[str, Any]:
    """What an arm is trained on: cases, pictures, positive ones, the share without a lesion, lesions a case."""
    pictures = Examples.joined([case.pictures for case in cases])
    volumes = {id(case): case.volume for case in cases if case.volume is not None}
    lesions = {key: lesion_count(volume) for key, volume in volumes.items()}
    return {"cases": len(cases), **pictures.counts(), "free_share": 1 - float(pictures.positive.mean()),
            "lesions_per_case": float(np.mean([lesions[id(case)] for case in cases if id(case) in lesions] or [0]))}


class Ledger:
    """What is known of a fold, a line of JSON for each training, so that a study that was killed goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[tuple[str, str, int], dict[str, Any]] = {}
        whole = []
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # Cut off as it was written: that training is done again.
            self._records[record["kind"], record["arm"], record["seed"]] = record
            whole.append(line)
        if len(whole) < len(lines):
            write_text(path, "".join(f"{line}\n" for line in whole))

    def get(self, kind: str, arm: str, seed: int = 0) -> dict[str, Any] | None:
        """What was noted, or None."""
        return self._records.get((kind, arm, seed))

    def add(self, kind: str, arm: str, seed: int = 0, **found: Any) -> None:
        """Notes a result on disk at once."""
        record = json.loads(json.dumps({"kind": kind, "arm": arm, "seed": seed, **found}, allow_nan=False))
        self._records[kind, arm, seed] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def pending(self, arms: Sequence[str], models: Sequence[Model], seeds: Sequence[int]
                ) -> list[tuple[int, str, Model]]:
        """Trainings that are not done, seed after seed, so that a study that is cut short has all arms."""
        return [(seed, arm, model) for seed in seeds for arm in arms for model in models
                if self.get(model, arm, seed) is None]


@dataclass(frozen=True)
class Effort:
    """How every small model of a study is trained.

    Args:
        steps: Optimiser steps of each.
        crop: Edge of the segmenter's patches, in voxels.
        batch: Its patches a step.
        device: Where to train.
    """

    steps: int
    crop: int = segmentation.CROP[2]
    batch: int = segmentation.BATCH[2]
    device: str = "cpu"


def train_and_test(model: Model, arm: str, training: Sequence[Known], tests: Mapping[str, Sequence[Known]], *,
                   seed: int, effort: Effort) -> dict[str, list[Any]]:
    """Trains one small model and tests it.

    Args:
        model: Which.
        arm: Only `NOTHING` means something here: no augmentation.
        training: The arm's cases.
        tests: Test set -> its cases.
        seed: Of the training.
        effort: How long and where.

    Returns:
        Test set -> for each case the fields of `Detected`, or the probabilities of its pictures; plain values.
    """
    if model == "segmenter":
        network = segmentation.train_segmenter(
            [case.volume for case in training if case.volume is not None], 1, steps=effort.steps, seed=seed, dims=2,
            crop=effort.crop, batch=effort.batch, device=effort.device,
            augmentation="none" if arm == NOTHING else "geometric")
        return {name: [_plain(asdict(detected(segmentation.foreground(network, case.volume.image), case.volume)))
                       for case in cases if case.volume is not None] for name, cases in tests.items()}
    classifier = utility.train_classifier(Examples.joined([case.pictures for case in training]), steps=effort.steps,
                                          seed=seed, device=effort.device, augmented=arm != NOTHING)
    return {name: [_plain(utility.predict(classifier, case.pictures).tolist()) for case in cases]
            for name, cases in tests.items()}


def run_fold(ledger: Ledger, arms: Mapping[str, Callable[[], Sequence[Known]]], tests: Mapping[str, Sequence[Known]],
             models: Sequence[Model], seeds: Sequence[int], effort: Effort,
             tell: Callable[[str], None] = lambda _: None) -> None:
    """Does every training of a fold that is not in its ledger.

    Args:
        ledger: Gets the results.
        arms: Arm -> reads its cases; called only for arms with something to do.
        tests: Test set -> its cases.
        models: Which small models.
        seeds: One training an arm and model for each.
        effort: How long and where.
        tell: Told of each result.
    """
    todo = ledger.pending(list(arms), models, seeds)
    training = {arm: read() for arm, read in arms.items()
                if ledger.get("arm", arm) is None or any(arm == each for _, each, _ in todo)}
    for arm, cases in training.items():
        if ledger.get("arm", arm) is None:
            ledger.add("arm", arm, **counts(cases), steps=effort.steps)
    for seed, arm, model in todo:
        found = train_and_test(model, arm, training[arm], tests, seed=seed, effort=effort)
        ledger.add(model, arm, seed, tests=found)
        said = "" if model == "classifier" else ": Dice " + ", ".join(
            f"{np.nanmean([_number(case['dice']) for case in cases]):.3f}" for cases in found.values() if cases)
        tell(f"{arm}, {model}, seed {seed}{said}")


@dataclass(frozen=True, eq=False)
class Part:
    """One test set in one fold: its cases, and what every model said of them.

    Args:
        cases: The test cases.
        ledger: The fold's results.
        name: The test set's name in it.
        seeds: The fold's seeds.
    """

    cases: Sequence[Known]
    ledger: Ledger
    name: str
    seeds: Sequence[int]

    def said(self, model: Model, arm: str) -> list[list[Any]]:
        """For each seed what a model said of each case."""
        records = [self.ledger.get(model, arm, seed) for seed in self.seeds]
        return [record["tests"][self.name] for record in records if record is not None]

    def classified(self, arms: Sequence[str]) -> tuple[Examples, dict[str, Values]]:
        """The pictures and arm -> (S, N) scores."""
        return Examples.joined([case.pictures for case in self.cases]), {
            arm: np.array([np.concatenate(cases) for cases in self.said("classifier", arm)]) for arm in arms}

    def segmented(self, arms: Sequence[str]) -> dict[str, list[list[Detected]]]:
        """Arm -> seed -> case -> what was found."""
        return {arm: [[Detected(_number(case["dice"]), case["lesions"], case["found"], case["false_positives"],
                                tuple(case["slices"])) for case in cases] for cases in self.said("segmenter", arm)]
                for arm in arms}


def scored_slices(parts: Sequence[Part], arms: Sequence[str]) -> Scored:
    """The slices of test volumes and the segmenters' largest probability in each."""
    columns: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("positive", "patients", "places", "folds", "filled")}
    scores: dict[str, list[Values]] = {arm: [] for arm in arms}
    for fold, part in enumerate(parts):
        for case in part.cases:
            assert case.volume is not None
            clear = case.volume.clear_slices()
            columns["positive"].append(case.volume.areas_mm2[clear] > 0)
            columns["patients"].append(np.full(len(clear), case.patient))
            columns["places"].append(clear.astype(np.int64))
            columns["folds"].append(np.full(len(clear), fold))
            columns["filled"].append(np.array(case.volume.tissue, float)[clear])
        for arm, found in part.segmented(arms).items():
            scores[arm].append(np.array([np.concatenate([case.slices for case in cases]) for cases in found]))
    joined: dict[str, Any] = {name: np.concatenate(values) for name, values in columns.items()}
    return Scored(**joined, scores={arm: np.concatenate(values, axis=1) for arm, values in scores.items()})


def scored_pictures(parts: Sequence[Part], arms: Sequence[str]) -> Scored:
    """The pictures of test cases and what the classifiers said of them."""
    return Scored.gathered([part.classified(arms) for part in parts])


def compare_study(parts: Sequence[Part], arms: Sequence[str], pairs: Sequence[tuple[str, str]],
                  models: Sequence[Model]) -> dict[str, Any]:
    """Every arm's measures on a test set, and the paired differences of some arms.

    Args:
        parts: The test set in each fold.
        arms: Those that were trained.
        pairs: (arm, other arm).
        models: Those that were trained.

    Returns:
        Plain values for JSON: `arms` and `differences` (arm or pair -> measure -> the fields of `Estimate`),
        `resampled` for AUROC and `resampled_cases` for what is measured a case (`patients`, `folds` or `seeds`),
        `trivial`, and `by_fold`: pair -> the difference of Dice in each fold.
    """
    found: dict[str, Any] = {"arms": {arm: {} for arm in arms}, "differences": {f"{a} - {b}": {} for a, b in pairs}}
    if "segmenter" in models:
        _add_cases(found, parts, arms, pairs)
        _add_slices(found, scored_slices(parts, arms), pairs, {"auroc": SLICE_AUROC}, needed=False)
    if "classifier" in models:
        _add_slices(found, scored_pictures(parts, arms), pairs, {name: name for name in utility.MEASURES},
                    needed="segmenter" not in models)
    return found


def _add_cases(found: dict[str, Any], parts: Sequence[Part], arms: Sequence[str], pairs: Sequence[tuple[str, str]]
               ) -> None:
    segmented = [part.segmented(arms) for part in parts]
    measures = {measure: {arm: np.concatenate([np.array([[float(getattr(case, measure)) for case in cases]
                                                         for cases in fold[arm]]) for fold in segmented], axis=1)
                          for arm in arms} for measure in CASE_MEASURES}
    people = [case.patient for part in parts for case in part.cases]
    folds = np.repeat(np.arange(len(parts)), [len(part.cases) for part in parts])
    if len(set(people)) >= FEWEST_PATIENTS:
        units, resampled = people, "patients"
    elif len(parts) >= FEWEST_PATIENTS:
        units, resampled = [str(fold) for fold in folds], "folds"
    else:
        units, resampled = ["all"] * len(people), "seeds"
    compared = segmentation.compare_measures(measures, units, pairs)
    found |= {"resampled_cases": resampled, "lesions": sum(case.lesions for fold in segmented
                                                           for case in fold[arms[0]][0])}
    _merge(found, compared, {measure: measure for measure in CASE_MEASURES})
    seen = [fold for fold in range(len(parts)) if np.isfinite(measures["dice"][arms[0]][:, folds == fold]).any()]
    found["by_fold"] = {f"{one} - {other}": [float(np.nanmean(
        (measures["dice"][one] - measures["dice"][other])[:, folds == fold])) for fold in seen] for one, other in pairs}


def _add_slices(found: dict[str, Any], test: Scored, pairs: Sequence[tuple[str, str]], named: Mapping[str, str], *,
                needed: bool) -> None:
    """Adds measures of slices; where all are of one class there are none, which is refused only if they are needed."""
    both = any(0 < test.positive[test.folds == fold].mean() < 1 for fold in np.unique(test.folds))
    if not both and not needed:
        return
    compared = utility.compare(test, pairs)
    found |= {"resampled": compared["resampled"], "trivial": compared["trivial"]}
    _merge(found, compared, named)


def _merge(found: dict[str, Any], compared: Mapping[str, Any], named: Mapping[str, str]) -> None:
    for kind in ("arms", "differences"):
        for key, measures in compared[kind].items():
            found[kind][key] |= {named[name]: value for name, value in measures.items() if name in named}


def case_rows(parts: Sequence[Part], arms: Sequence[str]) -> Iterator[dict[str, object]]:
    """A row for every fold, arm, seed and test volume, for a table."""
    for fold, part in enumerate(parts, 1):
        for arm, seeds in part.segmented(arms).items():
            for seed, cases in enumerate(seeds):
                for case, found in zip(part.cases, cases, strict=True):
                    yield {"fold": fold, "arm": arm, "seed": seed, "case": case.case, "patient": case.patient,
                           **{name: f"{getattr(found, name):.6g}" for name in ("dice", "lesions", "found",
                                                                                  "false_positives")}}


def _plain(value: Any) -> Any:
    """Values for JSON: rounded, None for NaN."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    return value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
