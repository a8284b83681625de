"""The MONAI transform: in a `Compose`, with labels, for every kind of array, and what it refuses."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dataset_makers as make
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureTyped, LoadImaged, Orientationd, RandFlipd

import medgan
from medgan.errors import Refused
from medgan.imaging.labels import refine_labels
from medgan.imaging.restoration import acquisitions
from medgan.transforms import Upsampled
from medgan.verbs.upsample import upsample_file

LINEAR: dict[str, Any] = {"method": "linear", "profile": "gaussian"}


def files(folder: Path) -> dict[str, str]:
    return {"image": str(make.nifti(folder / "a.nii.gz", make.image(1))),
            "label": str(make.nifti(folder / "l.nii.gz", make.mask((1, 4))))}


def pipeline(**options: Any) -> Compose:
    return Compose([LoadImaged(keys=("image", "label"), ensure_channel_first=True),
                    Upsampled(keys=("image",), label_keys=("label",), **(LINEAR | options))])


@pytest.mark.parametrize("options", [{}, {"spacing": (0.8, 1.0, 1.0)}, {"factor": (1, 1, 3)}, {"spacing": 0.8}])
def test_after_a_reader_it_gives_what_the_command_gives(options: dict[str, Any], tmp_path: Path) -> None:
    paths = files(tmp_path)
    made = pipeline(**options)(paths)
    report = upsample_file(paths["image"], tmp_path / "fine.nii.gz", labels=paths["label"],
                           labels_target=tmp_path / "labels.nii.gz", **(LINEAR | options))
    for key, name in (("image", "fine"), ("label", "labels")):
        written = medgan.read(tmp_path / f"{name}.nii.gz")
        assert isinstance(made[key], MetaTensor) and made[key].shape == written.array.shape
        np.testing.assert_allclose(np.asarray(made[key].affine), written.affine, atol=1e-4)
        # The reader gives float32, which is not rounded as the file's integers are.
        assert np.abs(np.asarray(made[key]) - written.array).max() <= (0.51 if key == "image" else 0)
    assert set(np.unique(np.asarray(made["label"]))) == {0, 1, 4}
    assert tuple(made["image"].meta["spatial_shape"]) == tuple(made["image"].shape[1:])
    np.testing.assert_allclose(made["image"].pixdim, report.spacing_mm, rtol=1e-5)


def test_labels_are_refined_on_the_images_grid_and_keep_their_type(tmp_path: Path) -> None:
    case = LoadImaged(keys=("image", "label"), ensure_channel_first=True)(files(tmp_path))
    case["label"] = EnsureTyped(keys="label", dtype=torch.uint8)(case)["label"]
    before = case["image"].clone(), case["label"].clone()
    made = Upsampled(label_keys="label", factor=(1, 1.5, 2), **LINEAR)(case)
    assert torch.equal(case["image"], before[0]) and torch.equal(case["label"], before[1])
    assert made["label"].dtype == torch.uint8 and made["image"].shape == made["label"].shape == (1, 9, 12, 12)
    volume = medgan.read(tmp_path / "l.nii.gz")
    wanted = refine_labels(volume, acquisitions(volume, (1, 1.5, 2), "gaussian", None))
    np.testing.assert_array_equal(np.asarray(made["label"]), wanted.array)
    np.testing.assert_allclose(np.asarray(made["label"].affine), np.asarray(made["image"].affine))


def test_within_a_pipeline_and_a_loader_and_sent_to_other_processes(tmp_path: Path) -> None:
    cases = [files(tmp_path / name) for name in "ab"]
    steps = Compose([LoadImaged(keys=("image", "label"), ensure_channel_first=True),
                     Orientationd(keys=("image", "label"), axcodes="RAS", labels=None),
                     Upsampled(label_keys=("label",), factor=(1, 1, 2), **LINEAR),
                     RandFlipd(keys=("image", "label"), prob=1.0, spatial_axis=2)])
    batch = next(iter(DataLoader(Dataset(cases, steps), batch_size=2, num_workers=0)))
    assert batch["image"].shape == batch["label"].shape == (2, 1, 9, 8, 12)
    again = pickle.loads(pickle.dumps(steps))  # what a worker process gets
    assert torch.equal(again(cases[0])["label"].as_tensor(), batch["label"][0].as_tensor())


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_bare_arrays_need_their_spacing_and_stay_what_they_are(kind: Any) -> None:
    image, label = make.image(1, "float32")[None], make.mask((1, 4))[None]
    case = {"image": kind(image), "label": kind(label), "id": "x"}
    made = Upsampled(label_keys=("label",), input_spacing=(1, 1, 3), **LINEAR)(case)
    assert type(made["image"]) is type(case["image"]) and type(made["label"]) is type(case["label"])
    assert made["image"].shape == made["label"].shape == (1, 9, 8, 18) and made["id"] == "x"
    assert made["label"].dtype == case["label"].dtype
    for spacing in (None, (1, 1, 3)):  # which is what is wanted, and never the array's own
        with pytest.raises(Refused) as refused:
            Upsampled(spacing=spacing, **LINEAR)(case)
        assert refused.value.code == "GEOM_NO_SPACING" and "input_spacing" in refused.value.fix


def test_several_images_each_by_their_own_spacing_and_missing_keys(tmp_path: Path) -> None:
    case = LoadImaged(keys=("image", "label"), ensure_channel_first=True)(files(tmp_path))
    case["other"] = MetaTensor(torch.rand(2, 5, 6, 4), affine=torch.diag(torch.tensor([1.0, 1.0, 4.0, 1.0])))
    made = Upsampled(keys=("image", "other"), label_keys=("label",), **LINEAR)(case)
    assert made["other"].shape == (2, 5, 6, 16) and made["label"].shape == made["image"].shape == (1, 9, 10, 19)
    with pytest.raises(KeyError):
        Upsampled(keys=("image", "gone"), **LINEAR)(case)
    with pytest.raises(KeyError, match="gone"):
        Upsampled(label_keys=("gone",), **LINEAR)(case)
    left = Upsampled(keys=("gone", "image"), label_keys=("gone", "label"), allow_missing_keys=True, **LINEAR)(case)
    assert torch.equal(left["label"], made["label"])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    case = LoadImaged(keys=("image", "label"), ensure_channel_first=True)(files(tmp_path))
    moved = case["label"].clone()
    moved.affine = moved.affine + torch.diag(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    for label, code in ((case["label"][:, :, :, :5], "LABEL_GRID"), (moved, "LABEL_GRID"),
                        (case["label"] + 0.5, "LABEL_NON_INTEGER")):
        with pytest.raises(Refused) as refused:
            Upsampled(label_keys=("label",), **LINEAR)({**case, "label": label})
        assert refused.value.code == code
    with pytest.raises(Refused, match="FACTOR_RANGE"):
        Upsampled(factor=9, **LINEAR)(case)
    with pytest.raises(RuntimeError) as wrapped:
        Compose([Upsampled(factor=9, **LINEAR)])(case)
    assert isinstance(wrapped.value.__cause__, Refused)


def test_warnings_of_the_report_reach_the_user() -> None:
    thick = MetaTensor(torch.rand(1, 6, 6, 6), affine=torch.diag(torch.tensor([0.4, 0.4, 5.0, 1.0])))
    with pytest.warns(UserWarning, match="8 times thinner"):
        Upsampled(**LINEAR)({"image": thick})
