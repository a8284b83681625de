"""`RandSyntheticLesiond`: in a pipeline, on crops, and what it refuses."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset as MonaiDataset
from monai.transforms import (
    Compose,
    LoadImaged,
    NormalizeIntensityd,
    RandCropByPosNegLabeld,
    RandFlipd,
    ScaleIntensityd,
    SpatialCropd,
)
from online_makers import EASY, KEYS, files, load, online, same, transform
from scipy import ndimage

import medgan
from medgan.datasets.layouts import open_dataset
from medgan.datasets.phantoms import write_phantoms
from medgan.errors import Refused
from medgan.lesions.scans import open_scan
from medgan.lesions.windows import Outline, ready
from medgan.transforms import RECORD

# --- the transform --------------------------------------------------------------------------------------------------


def test_in_a_pipeline_whole_and_cropped(mr_set: Path) -> None:
    crop = RandCropByPosNegLabeld(keys=KEYS, label_key="label", spatial_size=(32, 32, 20), num_samples=2)
    reader = LoadImaged(keys=KEYS, ensure_channel_first=True)
    synthetic = transform(mr_set, settings=EASY | {"augment.removed": 0})
    for steps in ([reader], [reader, crop], [reader, crop, RandFlipd(keys=KEYS, prob=1.0, spatial_axis=1)]):
        before = Compose(steps).set_random_state(3)
        given = before(files(mr_set))
        for case in given if isinstance(given, list) else [given]:
            kept = {key: case[key].clone() for key in KEYS}
            made = synthetic(case)
            assert same(case, kept), "what was given is not touched"
            assert made["image"].meta[RECORD] and made["image"].shape == case["image"].shape
            np.testing.assert_allclose(made["image"].affine, case["image"].affine)
            assert made["label"].dtype == case["label"].dtype and made["image"].dtype == case["image"].dtype
            assert len(made["image"].applied_operations) == len(case["image"].applied_operations)
            new = (made["label"] != case["label"]).numpy()[0]
            differs = (made["image"] != case["image"]).numpy()[0]
            assert new.any() and (case["label"].numpy()[0][new] == 0).all()
            assert not differs[~ndimage.binary_dilation(new, iterations=6)].any()
    batch = next(iter(MonaiLoader(MonaiDataset([files(mr_set, n) for n in range(2)],
                                               Compose([reader, crop, synthetic])), batch_size=2)))
    assert batch["image"].shape == batch["label"].shape == (4, 1, 32, 32, 20)


def test_a_random_state_is_honoured_and_sent_along(mr_set: Path) -> None:
    case = load(mr_set)
    one = transform(mr_set).set_random_state(5)
    again = pickle.loads(pickle.dumps(one))
    first, second = one(case), one(case)
    assert same(again(case), first) and not same(first, second)
    assert same(one.set_random_state(5)(case), first) and not same(one.set_random_state(6)(case), first)
    never = transform(mr_set, prob=0.0)(case)
    assert same(never, case) and never["image"].meta[RECORD] == "" and RECORD not in case["image"].meta


def test_a_crop_takes_tissue_and_values_from_its_whole_scan(mr_set: Path) -> None:
    make = transform(mr_set).prepare()
    dataset = open_dataset(mr_set)
    whole = open_scan(dataset, dataset.cases[0], make.studio.config)
    outline = make.studio.outline(dataset.cases[0])
    np.testing.assert_array_equal(outline.tissue(), whole.tissue())
    seen: list[Any] = []
    real = make.studio.maker.draw
    make.studio.maker.draw = lambda scan, site, seed: seen.append(scan) or real(scan, site, seed)  # type: ignore[method-assign]
    case = load(mr_set)
    inner = SpatialCropd(keys=KEYS, roi_start=(20, 21, 5), roi_end=(44, 45, 21))(dict(case))
    there = whole.tissue()[20:44, 21:45, 5:21]
    make(inner)
    assert seen[0].maps == whole.maps
    np.testing.assert_array_equal(seen[0].tissue(), there)
    # Normalised values are not those of the file: the crop's own scale is taken, and the tissue is still known.
    seen.clear()
    make(NormalizeIntensityd(keys="image")(dict(inner)))
    assert seen[0].maps != whole.maps
    np.testing.assert_array_equal(seen[0].tissue(), there)
    # Cut by hand, its affine says the wrong place; another grid has none: both are judged from what is given.
    seen.clear()
    make({key: case[key][:, 20:44, 21:45, 5:21] for key in KEYS})
    assert seen[0].maps != whole.maps and (seen[0].tissue() != whole.tissue()[:24, :24, :16]).any()
    wider = torch.diag(torch.tensor([1.1, 1, 1, 1], dtype=torch.float64))
    assert outline.box_of(medgan.Volume(inner["image"].numpy(), (inner["image"].affine @ wider).numpy())) is None


def test_lesions_too_large_for_a_crop_are_not_tried(mr_set: Path) -> None:
    make, case = transform(mr_set), load(mr_set)
    tiny = {key: case[key][:, 26:30, 30:34, 10:13] for key in KEYS}
    made = make(tiny)
    assert same(made, tiny) and made["image"].meta[RECORD] == ""


def test_ct_must_be_in_hounsfield_units(tmp_path: Path) -> None:
    write_phantoms(tmp_path, "ct", count=2, seed=3, shape=(48, 48, 24))
    make, case = transform(tmp_path, modality="ct"), load(tmp_path)
    assert make(case)["image"].shape == case["image"].shape
    with pytest.raises(Refused, match="scaled"):
        make(ScaleIntensityd(keys="image")(dict(case)))


def test_outlines_are_small(mr_set: Path) -> None:
    dataset, studio = open_dataset(mr_set), online(mr_set).studio
    scan = open_scan(dataset, dataset.cases[0], studio.config)
    assert len(pickle.dumps(Outline.of(scan))) < scan.volume.array.nbytes / 10
    assert ready(scan, studio.library, studio.config).ground.scan.volume.array.base is None, "a view keeps the whole"
