"""How many training cases each class of a data set has, and what is wrong with that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from medgan.datasets.cases import Dataset
from medgan.errors import Refused

#: The class of a data set that names none.
ONLY_CLASS = "image"
#: Fewer training images of a class than this are learned by heart rather than learned from.
FEW = 10


def training_counts(dataset: Dataset, *, synthetic: bool = False) -> dict[str, int]:
    """Class -> number of training cases, in the data set's order of classes; classes without any are there with 0.

    Args:
        dataset: Any layout.
        synthetic: Whether synthetic cases count as well.
    """
    found = Counter(case.label for case in dataset.split("train") if synthetic or not case.synthetic)
    return {name: found[name] for name in dataset.classes}


def trainable_classes(dataset: Dataset) -> tuple[str, ...]:
    """The classes that have a real training case; empty for a data set without classes.

    Raises:
        Refused: `TAB_MISSING_LABEL` where some training cases have no class; `DATASET_EMPTY` where all training cases
            are of one class although the data set has several.
    """
    if not dataset.classes:
        return ()
    cases = [case for case in dataset.split("train") if not case.synthetic]
    without = [case.id for case in cases if case.label is None]
    if without:
        raise Refused("TAB_MISSING_LABEL", dataset.root,
                      f"{len(without)} of {len(cases)} training cases have no class, {without[0]!r} first",
                      "Give every case its class, or take these cases out")
    counts = training_counts(dataset)
    known = tuple(name for name, count in counts.items() if count)
    if len(known) == 1 and len(counts) > 1:
        lacking = ", ".join(name for name, count in counts.items() if not count)
        raise Refused("DATASET_EMPTY", dataset.root,
                      f"all training cases are of the class {known[0]}; of {lacking} there is none",
                      "Give training cases of the other classes, or a data set of that class alone")
    return known


def class_warnings(dataset: Dataset) -> tuple[str, ...]:
    """What is odd about the classes and is taken all the same, with what to do about it.

    Few images of a class are named, not refused: filling what is rare is what synthetic cases are for.
    """
    counts = training_counts(dataset)
    warnings = []
    if len(counts) == 1:
        warnings.append(f"There is one class only, {next(iter(counts))}: its images are learned without a condition, "
                        "and nothing can be said of telling classes apart.")
    absent = [name for name, count in counts.items() if not count]
    if absent:
        warnings.append(f"No training case is of the class {', '.join(absent)}: no image of it can be made.")
    few = {name: count for name, count in counts.items() if 0 < count < FEW}
    if few:
        shown = ", ".join(f"{name} ({count})" for name, count in few.items())
        warnings.append(f"Fewer than {FEW} training images of a class: {shown}. What is made of it will be next to "
                        "copies of these; merge it with another class, give more images, or begin with a run on more "
                        "data (training.from).")
    return tuple(warnings)


def even_factor(counts: Mapping[str, int], total: int) -> float:
    """The smallest factor, in hundredths, at which `total` cases become enough to make these classes even.

    Args:
        counts: Class -> cases; classes without any cannot be filled and do not count.
        total: All training cases.
    """
    present = [count for count in counts.values() if count]
    missing = sum(max(present) - count for count in present) if present else 0
    return math.ceil(100 * (1 + missing / max(1, total)) - 1e-9) / 100
