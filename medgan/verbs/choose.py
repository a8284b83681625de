"""How much: the factor of `augment`, chosen by cross-validation over the patients of the training cases."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.datasets.cases import Case, Dataset
from medgan.datasets.coarse import coarse
from medgan.datasets.layouts import LAYOUTS
from medgan.datasets.splits import leave_patients_out, patient_key
from medgan.errors import Interrupted, Refused
from medgan.storage import PARTIAL, write_json
from medgan.verbs.cases import synthetic_case
from medgan.verbs.pool import Work, made
from medgan.verbs.progress import Progress, Report, silent

#: The factors that are tried; 1 adds nothing.
FACTORS = (1.0, 1.5, 2.0, 3.0)
#: The factor where there is one patient only, so that nothing can be held out and nothing is measured: what the studies
#: of docs/does-it-help.md with one patient used.
UNMEASURED = 4.0
#: Inner folds at most: each costs a task model for every factor and seed, and its own synthetic cases.
FOLDS = 4
#: Task models for every factor, shared among the folds: the fewer patients, the more seeds for each.
MODELS = 8
#: Fewer than this many scored units have no spread to hold a difference against.
FEWEST = 2
#: With fewer than this many, their spread is no estimate of an error: it has one degree of freedom.
FEWEST_SPREAD = 3
#: A generator is trained in each fold, on that fold's training patients alone, on this part of a run's images: with
#: four folds that takes as long as one run for classes, and as two for lesions, which take longer to learn.
SHORT = {"image": 0.25, "lesion": 0.5}
#: The figures of the choice, beside the plan.
CHOSEN = "medgan-factor.json"

#: Factor -> (S, N) scores: seeds, and patients or folds in the same order for each factor.
Scores = Mapping[float, NDArray[np.float64]]


@dataclass(frozen=True)
class Figure:
    """What one factor reached.

    Args:
        factor: Training cases over real ones.
        mean: Mean score of the held-out patients (or folds), over the seeds.
        error: Standard error of that mean, between patients.
        n: Number of patients (or folds).
        behind: How far the mean lies behind the best factor's.
        behind_error: Standard error of that difference, which is paired by patient; of two patients, by seeds alone.
    """

    factor: float
    mean: float
    error: float
    n: int
    behind: float
    behind_error: float


@dataclass(frozen=True)
class Choice:
    """A factor and why.

    Args:
        factor: What was chosen; 1: no synthetic case.
        method: How the synthetic cases were made; empty where there was no trial.
        measure: What was measured, `Dice` or `AUROC`; empty where nothing was.
        unit: What was counted: `patients` or `folds`.
        figures: A row for each factor that was tried.
        why: The choice in a sentence or two.
    """

    factor: float
    method: str
    measure: str
    unit: str
    figures: tuple[Figure, ...]
    why: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Choice:
        """From what `as_json` gave."""
        return cls(**{**data, "figures": tuple(Figure(**row) for row in data["figures"])})

    def lines(self) -> list[str]:
        """The figures and the reason, for people."""
        rows = [f"factor {row.factor:g}: {self.measure} {row.mean:.3f} ± {row.error:.3f} ({row.n} {self.unit})"
                + (f", {row.behind:.3f} ± {row.behind_error:.3f} behind the best" if row.behind > 0 else ", the best")
                for row in self.figures]
        return [*rows, self.why]


def plan_cases(dataset: Dataset, factor: float, *, even: bool = False) -> list[tuple[Case, Case]]:
    """(parent, new case) for every synthetic case, with a new id; the parents of a class take turns.

    A smaller factor's are the first of a larger one's.

    Args:
        dataset: Of any layout.
        factor: Training cases over those there are, synthetic ones among them.
        even: The rarest class comes first, until it has as many training cases as the next, and so on. Else each
            class keeps its share, as nearly as whole cases allow for any factor.
    """
    parents: dict[str | None, list[Case]] = defaultdict(list)
    for case in dataset.split("train"):
        if not case.synthetic and (case.mask is not None or not dataset.labels):
            parents[case.label].append(case)
    training = Counter(case.label for case in dataset.split("train"))
    made, last = dict.fromkeys(parents, 0), _numbered(dataset)

    def rank(label: str | None) -> float:
        """The class with the lowest is next: how many cases it has, or how far it is behind its share."""
        return training[label] + made[label] if even else (made[label] + 0.5) / len(parents[label])

    planned = []
    for _ in range(round((factor - 1) * len(dataset.split("train")))):
        label = min(parents, key=rank)
        parent = parents[label][made[label] % len(parents[label])]
        turn = made[label] // len(parents[label]) + 1
        made[label] += 1
        planned.append((parent, synthetic_case(parent, last[parent.id] + turn)))
    return planned


def _numbered(dataset: Dataset) -> Counter[str]:
    """Parent's id -> the last number of its synthetic cases, in a data set that was augmented before."""
    last: Counter[str] = Counter()
    for case in dataset.cases:
        parent, mark, number = case.id.rpartition("syn")
        if case.synthetic and mark and number.isdigit():
            last[parent] = max(last[parent], int(number))
    return last


def chosen(work: Work, *, workers: int = 1, progress: Report = silent) -> Choice:
    """The choice for an output folder: what was chosen for it before, else a trial, whose figures are written there.

    A trial that was stopped begins again and ends with the same figures.

    Args:
        work: The data set, settings, method, output and seed.
        workers: Processes that make cases; the result does not depend on it.
        progress: Told of each task model.

    Raises:
        Refused: What reading or training refuses, `OUT_EXISTS` for a folder with the choice for another call; an
            output that did not exist is then not left behind.
    """
    asked = {"dataset": work.dataset.fingerprint(), "method": work.method, "seed": work.seed, "balance": work.balance,
             "settings": work.config.model_dump(mode="json", exclude={"seed", "device", "evaluate"})}
    file = work.out / CHOSEN
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        differing = [key for key in asked if known["asked"].get(key) != asked[key]]
        if differing:
            raise Refused("OUT_EXISTS", work.out, f"its factor was chosen for another {', '.join(differing)}",
                          "Choose another --out, or call it with the same arguments")
        return Choice.of(known["choice"])
    with _scratch(work.out) as folder:
        choice = choose(replace(work, out=folder), workers=workers, progress=progress)
    write_json(file, {"asked": asked, "choice": choice.as_json()})
    return choice


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder in `out` that does not outlive the block."""
    folder = out / f"{PARTIAL}-choice"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def choose(work: Work, *, workers: int = 1, progress: Report = silent) -> Choice:
    """Tries `FACTORS` by cross-validation over patients and chooses the smallest that is as good as the best.

    In each fold, lesions, generator and task model come from that fold's training patients alone. Synthetic cases are
    made once a fold, for the largest factor; smaller factors take the first of them. The task model is trained for the
    same number of optimiser steps whatever the factor.

    Args:
        work: The data set, settings, method and seed; `out` is a folder for what is made on the way.
        workers: Processes that make cases.
        progress: Told of each task model.

    Raises:
        Refused: What reading or training refuses.
    """
    from medgan.metrics.trials import TRIALS

    trial = TRIALS[work.config.task](work.dataset, work.config)
    cases = _some([case for case in work.dataset.split("train") if not case.synthetic and trial.usable(case)],
                  trial.most_patients, work.seed)
    patients = len({patient_key(case) for case in cases})
    if patients < FEWEST:
        return _unmeasured("there is one patient only, so that nothing can be held out")
    small = coarse(work.dataset.only(tuple(cases)), work.out / "real")
    known = {case.id: trial.read(small, case) for case in small.cases}
    folds = leave_patients_out(small.cases, min(FOLDS, patients), seed=work.seed)
    rows: dict[float, list[list[float]]] = {factor: [] for factor in FACTORS}
    seeds = MODELS // len(folds)
    total, done = len(folds) * len(FACTORS) * seeds, 0
    for number, (training, held_out) in enumerate(folds, 1):
        inner = replace(work, dataset=small.only(training), out=work.out / f"fold-{number}")
        real = [known[case.id] for case in training]
        if not trial.learnable(real):
            done += len(FACTORS) * seeds
            continue
        new = _synthetic(inner, trial.read, workers, progress)
        test = [(patient_key(case), known[case.id]) for case in held_out]
        scores: dict[float, list[list[float]]] = {}
        for factor in FACTORS:
            some = [case for case in new[:round((factor - 1) * len(training))] if case is not None]
            scores[factor] = []
            for seed in range(seeds):
                progress(Progress("choosing the factor", done, total, "models",
                                  f"fold {number} of {len(folds)}, factor {factor:g}"))
                scores[factor].append(trial.score([*real, *some], test, seed=1000 * number + seed))
                done += 1
        for factor in FACTORS:
            rows[factor] += np.transpose(scores[factor]).tolist()  # a row for each unit
    together = {factor: np.reshape(values, (-1, seeds)).T for factor, values in rows.items()}
    scored = np.isfinite(np.stack(list(together.values()))).all(axis=(0, 1))
    if scored.sum() < FEWEST:
        return _unmeasured(f"fewer than {FEWEST} of the {trial.unit} could be scored")
    figures, factor = pick({each: values[:, scored] for each, values in together.items()})
    return Choice(factor, work.method, trial.measure, trial.unit, figures, _why(figures, factor))


def pick(scores: Scores) -> tuple[tuple[Figure, ...], float]:
    """The smallest factor within one standard error of the best, and the figures of all.

    The error is that of the difference to the best factor, patient by patient: all factors are tested on the same
    patients, and how these differ says nothing of the factor. Two patients may agree by chance, so the error is never
    taken for less than what the seeds alone leave; of two, the spread is no estimate, and what the seeds leave is all
    there is. Simulated with four patients, this keeps 4.9 of a true gain of 6 points, where the error of the best mean
    alone keeps 2.2, and lets through 0.3 of a true loss of 5.

    Args:
        scores: Factor -> (S, N) scores, none of them NaN.
    """
    best = max(scores, key=lambda factor: (scores[factor].mean(), -factor))
    figures = []
    for factor in sorted(scores):
        values = scores[factor]
        behind = scores[best] - values
        error = max(_between(behind) if values.shape[1] >= FEWEST_SPREAD else 0.0, _by_seed(behind))
        figures.append(Figure(factor, round(float(values.mean()), 4), round(_between(values), 4), values.shape[1],
                              round(float(behind.mean()), 4), round(error, 4)))
    return tuple(figures), next(row.factor for row in figures if row.behind <= row.behind_error)


def _between(values: NDArray[np.float64]) -> float:
    """Standard error over the columns of (S, N)."""
    means = values.mean(axis=0)
    return float(means.std(ddof=1) / np.sqrt(len(means)))


def _by_seed(values: NDArray[np.float64]) -> float:
    """Standard error of the mean of (S, N) that the seeds alone leave."""
    if len(values) < 2:
        return 0.0
    return float(np.sqrt(values.var(axis=0, ddof=1).mean() / values.size))


def _why(figures: Sequence[Figure], factor: float) -> str:
    best = min(figures, key=lambda row: row.behind)
    if factor == 1:
        return ("Factor 1 was chosen, no synthetic cases: in cross-validation over the training patients " +
                ("none was better than the real cases alone." if best.factor == 1 else
                 f"the best, factor {best.factor:g}, was ahead of the real cases alone by no more than one standard "
                 "error."))
    return (f"Factor {factor:g} was chosen: the smallest within one standard error of the best, factor "
            f"{best.factor:g}, in cross-validation over the training patients.")


def _unmeasured(why: str) -> Choice:
    return Choice(UNMEASURED, "", "", "", (), f"Factor {UNMEASURED:g} is taken unmeasured: {why}, and whether "
                  "synthetic cases help here was not measured.")


def _some(cases: Sequence[Case], most: int, seed: int) -> list[Case]:
    """The cases of at most so many patients, drawn without regard to their order."""
    patients = sorted({patient_key(case) for case in cases},
                      key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    kept = set(patients[:most])
    return [case for case in cases if patient_key(case) in kept]


def _synthetic(work: Work, read: Callable[[Dataset, Case], Any], workers: int, progress: Report) -> list[Any]:
    """The largest factor's synthetic cases, read for the task model; None for each that found no place."""
    dataset, layout = work.dataset, LAYOUTS[work.dataset.layout]
    planned = plan_cases(dataset, max(FACTORS), even=work.balance and work.config.task == "image")
    if work.method == "gan":
        work = replace(work, run=_short_run(work, progress))
    todo = [(number, parent, new) for number, (parent, new) in enumerate(planned)]
    skipped = set()
    for done, (name, why) in enumerate(made(work, todo, workers)):
        progress(Progress("synthesizing for the choice", done, len(todo), "cases"))
        if why:
            skipped.add(name)
    return [None if new.id in skipped else read(dataset, layout.place(work.out, dataset, new)) for _, new in planned]


def _short_run(work: Work, progress: Report) -> Path:
    """A generator of one fold's training patients, trained for the task's `SHORT` of a run."""
    from medgan.datasets.subset import write_subset
    from medgan.verbs.train import train

    config = work.config
    subset = write_subset(work.dataset, work.dataset.cases, work.out / "training")
    settings = config.model_dump(mode="json", include={"intensity", "data", "network", "training", "loss", "augment"})
    for name in ("images", "minutes", "limit_minutes"):
        if settings["training"][name] is not None:
            settings["training"][name] *= SHORT[config.task]
    settings["training"]["images"] = max(1, round(settings["training"]["images"]))
    try:
        return train(subset.root, modality=config.modality, task=config.task, out=work.out / "run", settings=settings,
                     seed=config.seed, device=config.device, progress=progress).path
    except Interrupted:
        raise KeyboardInterrupt from None  # what was begun here is not kept
