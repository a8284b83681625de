"""Splits by patient: nobody on both sides, classes in proportion, the same seed the same split."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from medgan.datasets.cases import Case
from medgan.datasets.splits import check_no_leak, leave_patients_out, split_by_patient
from medgan.errors import Refused

IMAGE = Path("x.nii.gz")


def people(count: int = 30, *, scans: int = 2, ill_every: int = 3) -> list[Case]:
    return [
        Case(f"p{person}_{scan}", (Path(f"p{person}_{scan}.nii.gz"),), patient=f"p{person}",
             label="ill" if person % ill_every == 0 else "well")
        for person in range(count) for scan in range(scans)
    ]


def test_a_patient_is_in_one_split_and_everyone_is_somewhere() -> None:
    cases = people()
    divided = split_by_patient(cases, (0.6, 0.2, 0.2), seed=3)
    assert [case.id for case in divided] == [case.id for case in cases]
    check_no_leak(divided)
    patients = Counter(split for _, split in {(case.patient, case.split) for case in divided})
    assert patients == {"train": 18, "val": 6, "test": 6}


def test_classes_are_divided_in_proportion() -> None:
    divided = split_by_patient(people(30), (0.6, 0.2, 0.2), seed=5)
    for split, patients in (("train", 6), ("val", 2), ("test", 2)):
        ill = {case.patient for case in divided if case.split == split and case.label == "ill"}
        assert len(ill) == patients, split
    half = split_by_patient(people(8, ill_every=2), n_test=4, seed=0)
    assert len({c.patient for c in half if c.split == "test" and c.label == "ill"}) == 2


def test_the_seed_decides_and_the_order_of_the_cases_does_not() -> None:
    cases = people()
    one = {case.id: case.split for case in split_by_patient(cases, n_test=7, seed=1)}
    again = {case.id: case.split for case in split_by_patient(cases[::-1], n_test=7, seed=1)}
    other = {case.id: case.split for case in split_by_patient(cases, n_test=7, seed=2)}
    assert one == again != other


def test_synthetic_cases_only_train_and_only_with_their_parents_patient() -> None:
    cases = people(10)
    made = [replace(case, id=f"{case.id}_syn0001", synthetic=True) for case in cases]
    divided = split_by_patient([*cases, *made], n_test=3, seed=0)
    tested = {case.patient for case in divided if case.split == "test"}
    assert len(tested) == 3 and not any(case.synthetic for case in divided if case.split == "test")
    assert {case.patient for case in divided if case.synthetic} == {case.patient for case in cases} - tested
    for train, held in leave_patients_out([*cases, *made], 5):
        assert not any(case.synthetic for case in held)
        assert not {case.patient for case in train} & {case.patient for case in held}


def test_every_patient_is_held_out_once() -> None:
    cases = people(11)
    folds = leave_patients_out(cases, 4, seed=9)
    held = [case.id for _, out in folds for case in out]
    assert sorted(held) == sorted(case.id for case in cases)
    for train, out in folds:
        check_no_leak([*train, *out])
        assert len(train) + len(out) == len(cases)
        assert 2 <= len({case.patient for case in out}) <= 3
    assert leave_patients_out(cases[::-1], 4, seed=9)[0][0] == folds[0][0][::-1]
    ill = [len({case.patient for case in out if case.label == "ill"}) for _, out in folds]
    assert max(ill) - min(ill) <= 1


@pytest.mark.parametrize(("fractions", "n_test", "code"), [
    (None, None, "CFG_VALUE"), ((0.8, 0.1, 0.1), 3, "CFG_VALUE"), ((0.5, 0.2, 0.2), None, "CFG_VALUE"),
    ((1.2, -0.2, 0.0), None, "CFG_VALUE"), (None, 30, "DATASET_EMPTY"), ((0.0, 0.5, 0.5), None, "DATASET_EMPTY"),
])  # fmt: skip
def test_impossible_divisions_are_refused(
    fractions: tuple[float, float, float] | None, n_test: int | None, code: str
) -> None:
    with pytest.raises(Refused) as caught:
        split_by_patient(people(), fractions, n_test=n_test)
    assert caught.value.code == code


def test_more_folds_than_patients_are_refused() -> None:
    for folds in (1, 31):
        with pytest.raises(Refused, match="CFG_VALUE"):
            leave_patients_out(people(30), folds)


def test_a_leak_is_refused_by_patient_and_by_image() -> None:
    a = Case("a", (Path("a.nii.gz"),), patient="p", split="train")
    check_no_leak([a, replace(a, id="b", images=(Path("b.nii.gz"),))])
    with pytest.raises(Refused, match=r"SPLIT_LEAK.*'p'"):
        check_no_leak([a, replace(a, id="b", images=(Path("b.nii.gz"),), split="test")])
    with pytest.raises(Refused, match=r"SPLIT_LEAK.*a\.nii\.gz"):
        check_no_leak([a, replace(a, id="b", patient="q", split="val")])
