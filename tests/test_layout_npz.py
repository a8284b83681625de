"""MedMNIST-style files: every split kept, finished again after a kill, and refused where wrong."""

from __future__ import annotations

import zipfile
from pathlib import Path

import dataset_makers as make
import numpy as np
import pytest
from layout_makers import add_one, codes

from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.datasets.splits import leave_patients_out
from medgan.datasets.subset import write_subset
from medgan.errors import Refused


def test_npz_keeps_every_split_and_appends_to_train(tmp_path: Path) -> None:
    root = make.npz(tmp_path / "d")
    dataset = open_dataset(root)
    assert [len(dataset.split(split)) for split in ("train", "val", "test")] == [6, 2, 3]
    assert dataset.modality == "xray" and dataset.classes == ("0", "1")
    add_one(dataset, tmp_path / "out")
    with np.load(root / "chestmnist.npz") as old, np.load(tmp_path / "out/chestmnist.npz") as new:
        for key in old.files:
            np.testing.assert_array_equal(new[key][: len(old[key])], old[key])
            assert len(new[key]) == len(old[key]) + key.startswith("train")
            assert new[key].dtype == old[key].dtype
        np.testing.assert_array_equal(dataset.load(dataset.split("val")[1])[0].array[0], old["val_images"][1].T)


def test_npz_finish_can_be_repeated_after_a_kill(tmp_path: Path) -> None:
    dataset = open_dataset(make.npz(tmp_path / "d"))
    placed, new = add_one(dataset, tmp_path / "out")
    before = make.tree(tmp_path / "out")
    LAYOUTS["npz"].finish(tmp_path / "out", dataset, [*placed, new])
    assert make.tree(tmp_path / "out") == before


def test_arrays_may_be_called_what_numpy_calls_its_arguments(tmp_path: Path) -> None:
    root = make.npz(tmp_path / "d")
    path = root / "chestmnist.npz"
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    extra = {"file": np.arange(3), "allow_pickle": np.zeros(2)}
    with zipfile.ZipFile(path, "a") as archive:
        for name, array in extra.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    add_one(open_dataset(root), tmp_path / "out")
    with np.load(tmp_path / "out/chestmnist.npz") as new:
        assert set(new.files) >= set(arrays) | set(extra)
        for name, array in extra.items():
            np.testing.assert_array_equal(new[name], array)


@pytest.mark.parametrize(("arrays", "code"), [
    ({"train_images": np.zeros((2, 5, 5, 3), np.uint8), "train_labels": np.zeros(2, int)}, "PIX_COLOUR"),
    ({"train_images": np.zeros((2, 5, 5), np.uint8), "train_labels": np.zeros((2, 4), int)}, "TAB_BAD_LABEL"),
    ({"train_images": np.zeros((2, 5, 5), np.uint8), "train_labels": np.zeros(3, int)}, "TAB_UNMATCHED"),
    ({"train_images": np.zeros((2, 5, 5), np.uint8), "train_labels": np.array([0, np.nan])}, "TAB_BAD_LABEL"),
    ({"train_images": np.array([{}, {}])}, "FILE_UNSAFE"),
    ({"train_images": np.zeros((2, 5), np.uint8)}, "DIM_UNSUPPORTED"),
])  # fmt: skip
def test_a_wrong_npz_is_refused(arrays: dict[str, np.ndarray], code: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(Refused) as caught:
        open_dataset(tmp_path / "x.npz")
    assert codes(caught) == code


def test_a_case_keeps_its_image_whatever_split_it_is_counted_in(tmp_path: Path) -> None:
    dataset = open_dataset(make.npz(tmp_path / "d"))
    folds = leave_patients_out(dataset.cases, 2)
    moved = [case for part in folds[0] for case in part]
    assert {case.split for case in moved} == {"train", "test"} and len(moved) == len(dataset.cases)
    truth = {case.id: dataset.load(case)[0].array for case in dataset.cases}
    for case in moved:
        np.testing.assert_array_equal(dataset.load(case)[0].array, truth[case.id])
    kept = [case for case in moved if case.split == "train"]
    assert len({case.array for case in kept}) > 1, "the fold should mix what the file keeps apart"
    subset = write_subset(dataset, kept, tmp_path / "some")
    labels = {case.id: case.label for case in dataset.cases}
    for case in subset.cases:
        np.testing.assert_array_equal(subset.load(case)[0].array, truth[case.id])
        assert case.label == labels[case.id]
