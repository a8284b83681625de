"""Cases as labelled pictures for the classifier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.imaging.nifti import write_nifti
from medgan.imaging.volume import Volume
from medgan.metrics.examples import OUTSIDE, Examples, Reader
from medgan.storage import write_json

#: Lesion voxels in each slice of the brain made here; a voxel is 2 mm².
LESION = {6: 4, 7: 5, 8: 20}


@pytest.fixture
def brain(tmp_path: Path) -> Dataset:
    """One patient: a box of tissue in slices 3 to 12 of 16, wider along x, lesions in three slices, two channels."""
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    rng = np.random.default_rng(0)
    tissue = np.zeros((40, 24, 16), bool)
    tissue[4:36, 6:16, 3:13] = True
    mask = np.zeros(tissue.shape, np.uint8)
    for z, count in LESION.items():
        mask[10 : 10 + count, 10, z] = 1
    for channel, level in enumerate((100, 500)):
        values = np.where(tissue, level + rng.normal(0, 5, tissue.shape) + 50 * mask, 0).astype(np.float32)
        write_nifti(Volume(values[None], affine), tmp_path / "imagesTr" / f"one_{channel:04d}.nii.gz")
    write_nifti(Volume(mask[None], affine), tmp_path / "labelsTr" / "one.nii.gz")
    write_json(tmp_path / "dataset.json", {"channel_names": {"0": "T1", "1": "FLAIR"},
                                           "labels": {"background": 0, "lesion": 1}, "numTraining": 1,
                                           "file_ending": ".nii.gz"})
    return open_dataset(tmp_path)


def test_slices_with_lesion_without_and_left_out(brain: Dataset) -> None:
    reader = Reader.common(brain, [], Config.resolve("mr"), 16)
    found = reader.read(brain, reader.labelled(brain))
    # Four voxels are 8 mm²: too little to be called either way. Five are 10 mm².
    assert found.counts() == {"patients": 1, "images": 9, "positive": 2, "left_out": 1}
    assert found.places.tolist() == [3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert found.places[found.positive].tolist() == [7, 8]
    assert found.images.shape == (9, 2, 16, 16) and found.images.dtype == np.float32


def test_pictures_are_square_in_millimetres_and_dark_outside(brain: Dataset) -> None:
    found = Reader.common(brain, [], Config.resolve("mr"), 32).read(brain, brain.cases)
    inside = found.images[4, 0] > OUTSIDE + 0.05
    # 30 x 16 mm of tissue after its edge is taken off, in a window of 30 mm.
    assert inside.any(axis=1).sum() == pytest.approx(32, abs=1)
    assert inside.any(axis=0).sum() == pytest.approx(32 * 16 / 30, abs=2)
    assert found.images[4, 0, :, :5].max() == pytest.approx(OUTSIDE, abs=1e-5)


def test_only_channels_that_all_data_sets_have_are_read_by_name(brain: Dataset) -> None:
    other = replace(brain, channels=("flair",))
    both, one = (Reader.common(brain, others, Config.resolve("mr"), 16) for others in ([], [other]))
    assert both.channels == ("T1", "FLAIR") and one.channels == ("FLAIR",)
    assert np.array_equal(one.read(brain, brain.cases).images[:, 0], both.read(brain, brain.cases).images[:, 1])
    with pytest.raises(Refused, match="none of its channels"):
        Reader.common(brain, [replace(brain, channels=("CT",))], Config.resolve("mr"), 16)


def test_images_with_classes(xray_classes: Path) -> None:
    whole = open_dataset(xray_classes)
    config = Config.resolve("xray", "image")
    found = Reader.common(whole, [], config, 16).read(whole, whole.cases)
    assert found.images.shape == (8, 1, 16, 16)
    assert found.positive.tolist() == [case.label == "opacity" for case in whole.cases]
    named = Reader.common(whole, [], config, 16, "normal")
    assert (named.read(whole, whole.cases).positive == ~found.positive).all() and "normal" in named.positive
    with pytest.raises(Refused, match="no such class"):
        Reader.common(whole, [], config, 16, "cat")


def test_a_volume_with_one_class_is_refused(brain: Dataset) -> None:
    case = replace(brain.cases[0], mask=None, label="ill")
    reader = Reader(Config.resolve("mr", "image"), 16, brain.channels, "ill")
    with pytest.raises(Refused, match="DIM_UNSUPPORTED"):
        reader.read(brain, [case])


def test_repeating_keeps_pictures_and_labels_together() -> None:
    whole = Examples(np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1), np.array([True, False, True]),
                     np.array(["a", "b", "b"]), np.arange(3), left_out=2)
    more = whole.repeated(5)
    assert more.images.ravel().tolist() == [0, 1, 2, 0, 1] and more.patients.tolist() == ["a", "b", "b", "a", "b"]
    assert Examples.joined([whole, more]).counts() == {"patients": 2, "images": 8, "positive": 5, "left_out": 4}
