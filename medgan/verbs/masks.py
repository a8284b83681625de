"""A look at a data set's masks before anything is made: what cannot be used is refused, what is odd is named."""

from __future__ import annotations

from collections import Counter

import numpy as np
from scipy import ndimage

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.datasets.splits import patient_key
from medgan.errors import Refused
from medgan.verbs.progress import Progress, Report

#: Said where no honest split is possible.
ONE_PATIENT = ("There is one training patient only: nothing can be held out, so nothing is claimed of whether "
               "synthetic cases help.")


def check_cases(dataset: Dataset, config: Config, progress: Report) -> None:
    """Reads the cases that `looked_at` leaves out, so that a damaged one is refused before anything is written.

    Raises:
        Refused: What is wrong with a case.
    """
    if dataset.layout == "npz":  # one file for all, which is read whole or refused
        return
    looked = config.task == "lesion"
    left = [case for case in dataset.cases
            if not (looked and case.split == "train" and case.mask is not None and not case.synthetic)]
    for number, case in enumerate(left):
        progress(Progress("checking", number, len(left), "cases"))
        dataset.load(case)


def looked_at(dataset: Dataset, config: Config) -> tuple[str, ...]:
    """Reads every training case that has a mask and says what is odd about the data.

    Args:
        dataset: The data set.
        config: The task, the intensities, and which labels are organs.

    Returns:
        Warnings, in words.

    Raises:
        Refused: What reading refuses; `LABEL_GRID` for a mask over nothing but background; `DATASET_EMPTY` where no
            mask marks a lesion.
    """
    from medgan.lesions.scans import Scan, mask_values, open_scan
    from medgan.lesions.shapes import SMALLEST_VOXELS

    def lesions(scan: Scan) -> list[set[int]]:
        """The label indices of each lesion that `find_lesions` would find."""
        parts, _ = ndimage.label(scan.labels > 0, ndimage.generate_binary_structure(3, 3))
        found = []
        for index, box in enumerate(ndimage.find_objects(parts), 1):
            own = scan.labels[box][parts[box] == index]
            if own.size >= SMALLEST_VOXELS:
                found.append({int(value) for value in np.unique(own)})
        return found

    cases = [case for case in dataset.split("train") if not case.synthetic]
    warnings = [ONE_PATIENT] if len({patient_key(case) for case in cases}) == 1 else []
    if config.task != "lesion":
        return tuple(warnings)
    counts: Counter[int] = Counter()
    empty, beside = [], []
    for case in (case for case in cases if case.mask is not None):
        scan = open_scan(dataset, case, config)
        found = lesions(scan)
        counts.update(index for present in found for index in present)
        if not found:
            empty.append(case.id)
            continue
        marked = scan.labels > 0
        raw = scan.volume.array.reshape(scan.image.shape)
        if all((channel[marked] == channel.flat[0]).all() for channel in raw):
            raise Refused("LABEL_GRID", case.mask or case.id, "the mask touches nothing: every voxel it marks has the "
                          "background's value", "Put the mask where the lesion is, or remove the case")
        if not (scan.tissue() & marked).any():
            beside.append(case.id)
    if not counts:
        raise Refused("DATASET_EMPTY", dataset.root, "no training case has a lesion in its mask",
                      f"Give masks with at least one lesion of {SMALLEST_VOXELS} voxels")
    for names, what in ((empty, "mark no lesion"), (beside, "touch no tissue that could be told from background")):
        if names:
            shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            warnings.append(f"The masks of {len(names)} of {len(cases)} training cases {what} ({shown}).")
    for index, value in enumerate(mask_values(dataset, config.data.organs), 1):
        if counts[index] == 1:
            warnings.append(f"A single training lesion has the label {dataset.labels[value]}: every new one is drawn "
                            "after it.")
    return tuple(warnings)
