"""Dividing cases by patient, and finding patients that stand on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medgan.datasets.cases import Case, Split
from medgan.errors import Refused

SPLITS: tuple[Split, Split, Split] = ("train", "val", "test")


def patient_key(case: Case) -> str:
    """Whom a case belongs to: its patient, or its own id where no patient is known."""
    return case.patient or case.id


def split_by_patient(
    cases: Sequence[Case],
    fractions: tuple[float, float, float] | None = None,
    *,
    n_test: int | None = None,
    seed: int = 0,
) -> tuple[Case, ...]:
    """Assigns every case to `train`, `val` or `test`, all cases of a patient to the same one.

    Deterministic in (patients, labels, seed) and independent of the order of the cases; each class is divided in the
    same proportions as far as whole patients allow. Synthetic cases are only ever training cases: those whose parent's
    patient falls into `val` or `test` are left out of the result.

    Args:
        cases: The cases to divide; what split they had is forgotten.
        fractions: Parts of the patients for train, val and test.
        n_test: Instead of fractions, how many patients to test on; the others are for training.
        seed: Another seed, another division.

    Returns:
        The same cases, in the same order, each with its split.

    Raises:
        Refused: `CFG_VALUE` when the numbers make no division, `DATASET_EMPTY` when no patient is left to train on.
    """
    strata = _strata(cases, seed)
    patients = sum(map(len, strata.values()))
    if (fractions is None) == (n_test is None):
        raise Refused("CFG_VALUE", "split_by_patient", "give either fractions or n_test", "Leave one of them out")
    if fractions is not None:
        if len(fractions) != 3 or min(fractions) < 0 or not 0.999 < sum(fractions) < 1.001:
            raise Refused("CFG_VALUE", "fractions", f"{fractions} are not three parts of one", "Let them add up to 1")
        n_test = round(fractions[2] * patients)
        n_val = min(round(fractions[1] * patients), patients - n_test)
    else:
        assert n_test is not None
        n_val = 0
    if n_test < 0 or n_test + n_val >= patients:
        raise Refused("DATASET_EMPTY", "split_by_patient",
                      f"{patients} patients less {n_test + n_val} to hold out leave none to train on",
                      "Hold out fewer")
    chosen: dict[str, Split] = {}
    for patient in _take(strata, n_test):
        chosen[patient] = "test"
    for patient in _take(strata, n_val):
        chosen[patient] = "val"
    divided = [replace(case, split=chosen.get(patient_key(case), "train")) for case in cases]
    return tuple(case for case in divided if case.split == "train" or not case.synthetic)


def leave_patients_out(
    cases: Sequence[Case], folds: int, *, seed: int = 0
) -> list[tuple[tuple[Case, ...], tuple[Case, ...]]]:
    """Cross-validation folds by patient: (cases to train on, cases held out), each patient held out exactly once.

    Synthetic cases are never held out, and never train a fold that holds out their parent's patient.

    Raises:
        Refused: `CFG_VALUE` when there are fewer than two folds or fewer patients than folds.
    """
    # Dealing the classes out one after the other gives every fold its share of each.
    order = [patient for patients in _strata(cases, seed).values() for patient in patients]
    if not 2 <= folds <= len(order):
        raise Refused("CFG_VALUE", "folds", f"{folds} folds of {len(order)} patients",
                      "Give at least 2 folds and at most one a patient")
    fold_of = {patient: index % folds for index, patient in enumerate(order)}
    return [
        (
            tuple(replace(c, split="train") for c in cases if fold_of.get(patient_key(c)) != fold),
            tuple(replace(c, split="test") for c in cases if fold_of.get(patient_key(c)) == fold and not c.synthetic),
        )
        for fold in range(folds)
    ]


def leaks(cases: Sequence[Case]) -> list[tuple[str, list[str]]]:
    """Patients (and images) that stand in more than one split: what it is, and the splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        splits[f"patient {patient_key(case)!r}"].add(case.split)
        if case.row is None:
            for image in case.images:
                splits[f"file {image}"].add(case.split)
    return [(what, sorted(found)) for what, found in sorted(splits.items()) if len(found) > 1]


def check_no_leak(cases: Sequence[Case], where: str | Path = "data set") -> None:
    """Refuses cases of which one patient, or one image, stands in two splits.

    Raises:
        Refused: `SPLIT_LEAK`, naming the first of them.
    """
    found = leaks(cases)
    if found:
        what, splits = found[0]
        others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Refused("SPLIT_LEAK", where, f"{what} is in {' and '.join(splits)}{others}",
                      "Move all cases of a patient into one split")


def _strata(cases: Sequence[Case], seed: int) -> dict[str, list[str]]:
    """Class -> its patients (of real cases), shuffled by the seed without regard to the order of the cases."""
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        if not case.synthetic:
            labels[patient_key(case)][case.label or ""] += 1
    strata: dict[str, list[str]] = defaultdict(list)
    for patient, counts in labels.items():
        strata[min(counts, key=lambda label: (-counts[label], label))].append(patient)
    for patients in strata.values():
        patients.sort(key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    return dict(sorted(strata.items()))


def _take(strata: dict[str, list[str]], count: int) -> list[str]:
    """`count` patients, from each class in proportion to its size (largest remainder); they leave `strata`."""
    total = sum(map(len, strata.values()))
    if count == 0:
        return []
    shares = {stratum: count * len(patients) / total for stratum, patients in strata.items()}
    quotas = {stratum: int(share) for stratum, share in shares.items()}
    by_remainder = sorted(shares, key=lambda stratum: (quotas[stratum] - shares[stratum], stratum))
    for stratum in by_remainder[: count - sum(quotas.values())]:
        quotas[stratum] += 1
    return [strata[stratum].pop() for stratum, quota in quotas.items() for _ in range(quota)]
