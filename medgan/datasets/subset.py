"""Part of a data set written out as a data set of its own, so that what is held back is not even in the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medgan.datasets.cases import Case, Dataset
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.datasets.splits import patient_key
from medgan.errors import Refused
from medgan.storage import atomic_path


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
    written = open_dataset(out)
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
    with np.load(source, allow_pickle=False) as archive:
        splits = sorted({case.split for case in cases})
        images = np.concatenate([archive[f"{split}_images"][_rows(cases, split)] for split in splits])
        labels = np.concatenate([archive[f"{split}_labels"][_rows(cases, split)] for split in splits])
    ids = np.array([case.id for split in splits for case in cases if case.split == split], dtype=np.str_)
    with atomic_path(out / source.name) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, train_images=images, train_labels=labels, train_ids=ids)


def _rows(cases: Sequence[Case], split: str) -> list[int]:
    return [case.row for case in cases if case.split == split and case.row is not None]
