"""Holding patients back: divisions by patient, and the rest written out as a data set of its own.

What is held back is then not even in the folder that is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medgan.datasets.cases import Case, Dataset
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.datasets.splits import leave_patients_out, patient_key
from medgan.errors import Refused
from medgan.storage import atomic_path

#: Cases to train on, and cases held back.
Division = tuple[tuple[Case, ...], tuple[Case, ...]]
#: Folds, where it is not said how many patients to hold back.
FOLDS = 4


def divisions(cases: Sequence[Case], test_patients: int | None = None, *, train_patients: int | None = None,
              seed: int = 0) -> list[Division]:
    """Divides cases into those to train on and those held back, once or in folds.

    Args:
        cases: Real cases.
        test_patients: About how many patients to hold back in each fold; every training patient is held back once,
            and cases of other splits are left out. 0: none is held back. None: the cases' own test split, or
            validation split, if there is one; else as for a quarter of the patients.
        train_patients: Instead: about how many patients to train on in each fold; all others are held back, and
            every patient is trained on once. How much few patients lose shows in this way.
        seed: Of the folds.

    Raises:
        Refused: `CFG_VALUE` when there are too few patients.
    """
    training = tuple(case for case in cases if case.split == "train")
    patients = len({patient_key(case) for case in training})
    if train_patients is not None:
        folds = leave_patients_out(training, max(2, round(patients / train_patients)), seed=seed)
        return [(tuple(replace(case, split="train") for case in few), others) for others, few in folds]
    if test_patients == 0:
        return [(training, ())]
    for split in ("test", "val") if test_patients is None else ():
        own = tuple(case for case in cases if case.split == split)
        if own:
            return [(training, own)]
    wanted = test_patients or max(1, round(patients / FOLDS))
    return leave_patients_out(training, max(2, round(patients / wanted)), seed=seed)


def check_disjoint(dataset: Dataset, other: Dataset) -> None:
    """Refuses two data sets that share an image, whatever it is called in them.

    Raises:
        Refused: `SPLIT_LEAK`.
    """
    seen = {_content(case): case.id for case in dataset.cases}
    for case in other.cases:
        if _content(case) in seen:
            raise Refused("SPLIT_LEAK", other.root,
                          f"its case {case.id!r} is {seen[_content(case)]!r} of {dataset.root}", "Take it out of one")


def _content(case: Case) -> tuple[str, str, int | None]:
    digest = hashlib.sha256()
    first = case.images[0]
    for file in [first] if first.is_file() else sorted(path for path in first.iterdir() if path.is_file()):
        digest.update(file.read_bytes())
    return digest.hexdigest(), case.array, case.row


def as_training(dataset: Dataset, cases: Sequence[Case]) -> Dataset:
    """The data set with these cases alone, counted as training cases, for what reads no others."""
    return dataset.only(tuple(replace(case, split="train") for case in cases))


def write_subset(dataset: Dataset, cases: Sequence[Case], out: Path) -> Dataset:
    """Writes some real cases, all as training cases, in the data set's own layout.

    Args:
        dataset: Where they are from.
        cases: Which of its cases; their split is taken to be `train` where the layout records one.
        out: A folder of its own; what is there of the same cases is left, so a killed run may go on.

    Returns:
        The new data set, opened.

    Raises:
        Refused: `OUT_EXISTS` when the folder holds other cases, `SPLIT_LEAK` when a patient that was left out is in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    if dataset.layout == "npz":
        _write_rows(cases, out)
    else:
        layout = LAYOUTS[dataset.layout]
        placed = [layout.place(out, dataset, case) for case in cases]
        for case, there in zip(cases, placed, strict=True):
            layout.copy(case, there)
        layout.finish(out, dataset, placed)
    written = open_dataset(out, dataset.rules)
    wanted, patients = {case.id for case in cases}, {patient_key(case) for case in cases}
    held_back = {patient_key(case) for case in dataset.cases} - patients
    for case in written.cases:
        if patient_key(case) in held_back:
            raise Refused("SPLIT_LEAK", out, f"patient {patient_key(case)!r} should be held back and is in it",
                          "Choose an empty folder")
    if {case.id for case in written.cases} != wanted:
        raise Refused("OUT_EXISTS", out, "it holds other cases than it should", "Choose an empty folder")
    return written


def _write_rows(cases: Sequence[Case], out: Path) -> None:
    """A MedMNIST-style file with these rows alone; they keep their ids."""
    source = cases[0].images[0]
    arrays = sorted({case.array for case in cases})
    with np.load(source, allow_pickle=False) as archive:
        images = np.concatenate([archive[name][_rows(cases, name)] for name in arrays])
        labels = np.concatenate([archive[name.replace("_images", "_labels")][_rows(cases, name)] for name in arrays])
    ids = np.array([case.id for name in arrays for case in cases if case.array == name], dtype=np.str_)
    with atomic_path(out / source.name) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, train_images=images, train_labels=labels, train_ids=ids)


def _rows(cases: Sequence[Case], array: str) -> list[int]:
    return [case.row for case in cases if case.array == array and case.row is not None]
