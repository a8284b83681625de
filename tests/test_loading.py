"""From a case to voxels: channels, masks, and which masks are refused."""

from __future__ import annotations

import json
from pathlib import Path

import dataset_makers as make
import numpy as np
import pytest

from medgan.datasets.cases import Case, Dataset
from medgan.datasets.layouts import open_dataset
from medgan.datasets.loading import found_labels, load_case
from medgan.errors import Refused

ODD = Path(__file__).parents[2] / "shared" / "odd"
PAIRS = [
    case for case in (json.loads((ODD / "cases.json").read_text()) if (ODD / "cases.json").is_file() else [])
    if case["path"].startswith("nifti/pairs/")
]


def dataset_of(root: Path, images: tuple[Path, ...], mask: Path | None, labels: dict[int, str]) -> Dataset:
    channels = ("T1w",) if len(images) == 1 else tuple(f"channel{c}" for c in range(len(images)))
    return Dataset(root, "images", "x", channels, labels, (), (Case("a", images, mask),))


def load(root: Path, mask: np.ndarray, labels: dict[int, str] | None = None, **kwargs: np.ndarray) -> np.ndarray:
    image = make.nifti(root / "image.nii.gz", make.image(1))
    dataset = dataset_of(root, (image,), make.nifti(root / "m.nii.gz", mask, **kwargs), labels or {})
    loaded = load_case(dataset, dataset.cases[0])[1]
    assert loaded is not None
    return loaded.array


@pytest.mark.skipif(not PAIRS, reason="../shared/odd is not there")
@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case["id"])
def test_every_odd_pair_does_what_is_expected(case: dict[str, str]) -> None:
    if case["expect"] == "refuse":
        with pytest.raises(Refused) as caught:
            dataset = open_dataset(ODD / case["path"])
            dataset.load(dataset.cases[0])
        assert caught.value.code == case["code"]
        return
    dataset = open_dataset(ODD / case["path"])
    image, mask = dataset.load(dataset.cases[0])
    assert mask is not None and mask.shape == image.shape and np.array_equal(mask.affine, image.affine)
    assert [note.code for note in mask.notes] == ([] if case["code"] == "OK" else [case["code"]])


@pytest.mark.skipif(not PAIRS, reason="../shared/odd is not there")
def test_a_flipped_mask_lands_where_the_unflipped_one_does() -> None:
    loaded = []
    for name in ("m_ok", "m_flipped_axis"):
        dataset = open_dataset(ODD / "nifti/pairs" / name)
        loaded.append(dataset.load(dataset.cases[0])[1])
    assert loaded[0] is not None and loaded[1] is not None
    np.testing.assert_array_equal(loaded[0].array, loaded[1].array)


@pytest.mark.parametrize(("mask", "labels", "code"), [
    (make.mask((1,)) * -1.0, {}, "LABEL_OUT_OF_RANGE"),
    (make.mask((1,)).astype(np.int32) * 70_000, {}, "LABEL_OUT_OF_RANGE"),
    (make.mask((1, 3)), {0: "background", 1: "lesion"}, "LABEL_OUT_OF_RANGE"),
    (make.mask((1,)) * np.float32(0.5), {}, "LABEL_NON_INTEGER"),
    (np.stack([make.mask(), make.mask()], axis=-1), {}, "LABEL_DIM"),
    (make.mask()[:, :, :1], {}, "LABEL_DIM"),
    (make.mask()[:-1], {}, "LABEL_GRID"),
])  # fmt: skip
def test_a_wrong_mask_is_refused(mask: np.ndarray, labels: dict[int, str], code: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        load(tmp_path, mask, labels)
    assert caught.value.code == code
    assert "m.nii.gz" in caught.value.where


def test_a_mask_elsewhere_is_refused(tmp_path: Path) -> None:
    moved = make.AFFINE.copy()
    moved[0, 3] += 10
    with pytest.raises(Refused) as caught:
        load(tmp_path, make.mask(), affine=moved)
    assert caught.value.code == "LABEL_GRID"


def test_masks_become_small_integers_on_the_images_grid(tmp_path: Path) -> None:
    small = load(tmp_path, make.mask((1, 2)).astype(np.float32))
    assert small.dtype == np.uint8 and small.shape == (1, *make.SHAPE)
    np.testing.assert_array_equal(small[0], make.mask((1, 2)))
    assert load(tmp_path, make.mask((1,)).astype(np.int32) * 3000).dtype == np.uint16
    nearly = make.mask((1,)).astype(np.float32) * np.float32(0.99999)
    np.testing.assert_array_equal(load(tmp_path, nearly)[0], make.mask())
    flipped = make.AFFINE.copy()
    flipped[:3, 3] += flipped[:3, 0] * (make.SHAPE[0] - 1)
    flipped[:3, 0] *= -1
    np.testing.assert_array_equal(load(tmp_path, make.mask()[::-1], affine=flipped)[0], make.mask())


@pytest.mark.parametrize(("value", "code"), [(0, "LABEL_EMPTY"), (1, "LABEL_FULL")])
def test_an_empty_or_full_mask_is_noted(value: int, code: str, tmp_path: Path) -> None:
    image = make.nifti(tmp_path / "i.nii.gz", make.image(1))
    mask = make.nifti(tmp_path / "m.nii.gz", np.full(make.SHAPE, value, np.uint8))
    dataset = dataset_of(tmp_path, (image,), mask, {})
    loaded = dataset.load(dataset.cases[0])[1]
    assert loaded is not None and [note.code for note in loaded.notes] == [code]


def test_channels_are_stacked_in_order_and_must_share_a_grid(tmp_path: Path) -> None:
    first = make.nifti(tmp_path / "0.nii.gz", make.image(1))
    second = make.nifti(tmp_path / "1.nii.gz", make.image(2))
    dataset = dataset_of(tmp_path, (first, second), None, {})
    image, mask = dataset.load(dataset.cases[0])
    assert mask is None and image.array.dtype == np.int16
    np.testing.assert_array_equal(image.array, np.stack([make.image(1), make.image(2)]))
    other = make.AFFINE.copy()
    other[2, 3] += 5
    make.nifti(second, make.image(2), other)
    with pytest.raises(Refused) as caught:
        dataset.load(dataset.cases[0])
    assert caught.value.code == "GEOM_CHANNELS_DIFFER" and "1.nii.gz" in caught.value.where


def test_the_declared_number_of_channels_must_be_there(tmp_path: Path) -> None:
    root = make.decathlon(tmp_path / "d")
    info = json.loads((root / "dataset.json").read_text())
    make.described(root, {**info, "modality": {"0": "FLAIR", "1": "T1", "2": "T2"}})
    dataset = open_dataset(root)
    with pytest.raises(Refused) as caught:
        dataset.load(dataset.cases[0])
    assert caught.value.code == "DATASET_JSON"
    make.described(root, {**info, "modality": {"0": "FLAIR"}})
    dataset = open_dataset(root)
    with pytest.raises(Refused) as caught:
        dataset.load(dataset.cases[0])
    assert caught.value.code == "DIM_4D"


def test_the_modality_comes_from_the_data_set_where_the_file_has_none(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, (make.nifti(tmp_path / "i.nii.gz", make.image(1)),), None, {})
    assert dataset.load(dataset.cases[0])[0].modality == "mr"


def test_labels_are_found_where_none_are_declared_and_bad_masks_are_passed_over(tmp_path: Path) -> None:
    image = make.nifti(tmp_path / "i.nii.gz", make.image(1))
    masks = [make.nifti(tmp_path / "a.nii.gz", make.mask((1, 4))), make.text(tmp_path / "b.nii.gz", "no image"),
             make.nifti(tmp_path / "c.nii.gz", make.mask((1,)).astype(np.int32) * 1_000_000)]
    cases = [Case(path.name, (image,), path) for path in masks]
    assert found_labels(cases) == {0: "background", 1: "label1", 4: "label4"}
    assert found_labels([Case("x", (image,))]) == {}
