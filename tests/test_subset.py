"""Holding patients back, and writing the others out as a data set of their own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_makers import tree

from medgan.datasets.cases import Case
from medgan.datasets.layouts import open_dataset
from medgan.datasets.subset import check_disjoint, divisions, write_subset
from medgan.errors import Refused


def case(name: str, patient: str, split: str = "train") -> Case:
    return Case(name, (Path(f"{name}.nii"),), patient=patient, split=split)  # type: ignore[arg-type]


def test_divisions_hold_each_patient_back_once() -> None:
    cases = [case(f"c{n}", f"p{n // 2}") for n in range(8)]
    for wanted, folds in ((1, 4), (2, 2), (None, 4), (4, 2)):
        parts = divisions(cases, wanted)
        assert len(parts) == folds
        assert sorted(c.id for _, held in parts for c in held) == [c.id for c in cases]
        for training, held in parts:
            assert not {c.patient for c in training} & {c.patient for c in held}


def test_two_patients_are_left_out_in_turn() -> None:
    parts = divisions([case("a", "a"), case("b", "b")])
    assert sorted((training[0].id, held[0].id) for training, held in parts) == [("a", "b"), ("b", "a")]


def test_few_patients_are_trained_on_in_turn_and_all_others_held_back() -> None:
    cases = [case(f"c{n}", f"p{n}") for n in range(4)]
    parts = divisions(cases, train_patients=1)
    assert sorted(training[0].id for training, _ in parts) == [c.id for c in cases]
    for training, held in parts:
        assert len(training) == 1 and training[0].split == "train"
        assert {c.id for c in held} == {c.id for c in cases} - {training[0].id}


def test_a_data_sets_own_split_is_kept_unless_a_number_is_asked_for() -> None:
    cases = [case("a", "a"), case("b", "b"), case("v", "v", "val"), case("t", "t", "test")]
    [(training, held)] = divisions(cases)
    assert [c.id for c in training] == ["a", "b"] and [c.id for c in held] == ["t"]
    assert [c.id for c in divisions(cases[:3])[0][1]] == ["v"]
    assert {c.id for part in divisions(cases, 1) for c in part[1]} == {"a", "b"}
    assert divisions(cases, 0) == [((cases[0], cases[1]), ())]


def test_a_subset_holds_nothing_of_who_is_held_back(mr_set: Path, tmp_path: Path) -> None:
    whole = open_dataset(mr_set)
    kept = write_subset(whole, whole.cases[:2], tmp_path / "part")
    assert [c.id for c in kept.cases] == [c.id for c in whole.cases[:2]]
    assert kept.labels == whole.labels and kept.channels == whole.channels
    files = tree(tmp_path / "part")
    assert not [name for name in files if whole.cases[2].id in name]
    assert set(files.values()) - set(tree(mr_set).values()) == {files["dataset.json"]}, "images are copied bit for bit"
    assert write_subset(whole, whole.cases[:2], tmp_path / "part").fingerprint() == kept.fingerprint()


def test_a_folder_that_holds_a_held_back_patient_is_refused(mr_set: Path, tmp_path: Path) -> None:
    whole = open_dataset(mr_set)
    write_subset(whole, whole.cases, tmp_path / "part")
    with pytest.raises(Refused, match="SPLIT_LEAK"):
        write_subset(whole, whole.cases[:2], tmp_path / "part")


def test_rows_of_an_archive_are_taken_out_and_keep_their_ids(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 8, 8), np.uint8)
    (tmp_path / "whole").mkdir()
    np.savez(tmp_path / "whole" / "set.npz", train_images=images[:4], train_labels=np.array([[0], [1], [0], [1]]),
             test_images=images[4:], test_labels=np.array([[0], [1]]))
    whole = open_dataset(tmp_path / "whole")
    kept = [whole.split("train")[1], whole.split("train")[3]]
    part = write_subset(whole, kept, tmp_path / "part")
    assert [(c.id, c.label, c.split) for c in part.cases] == [(c.id, "1", "train") for c in kept]
    for mine, theirs in zip(part.cases, kept, strict=True):
        assert np.array_equal(part.load(mine)[0].array, whole.load(theirs)[0].array)
    with np.load(tmp_path / "part" / "set.npz") as archive:
        assert sorted(archive.files) == ["train_ids", "train_images", "train_labels"] and len(archive["train_ids"]) == 2


def test_an_image_in_both_data_sets_is_seen_under_another_name(mr_set: Path, tmp_path: Path) -> None:
    shutil.copytree(mr_set, tmp_path / "other")
    for path in (tmp_path / "other").rglob("mrphantom_0001*"):
        path.rename(path.with_name(path.name.replace("0001", "0077")))
    other = open_dataset(tmp_path / "other")
    with pytest.raises(Refused, match="mrphantom_0001"):
        check_disjoint(open_dataset(mr_set), replace(other, cases=other.cases[2:]))
    check_disjoint(open_dataset(mr_set), replace(other, cases=()))
