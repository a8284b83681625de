"""What others ask of a written data set: nnU-Net v2's integrity rules and the Decathlon's, restated."""

from __future__ import annotations

import json
import re
from pathlib import Path

import dataset_makers as make
import nibabel
import numpy as np
import pytest
from test_layouts import add_one, needs_shared

from medgan.datasets.cards import CARD, PLAN
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused

SHARED = Path(__file__).parents[2] / "shared"


def verify_nnunet(root: Path) -> None:
    """Asserts what nnU-Net v2 asserts of a raw data set before it plans."""
    assert (root / "dataset.json").is_file()
    description = json.loads((root / "dataset.json").read_text())
    assert (root / "imagesTr").is_dir() and (root / "labelsTr").is_dir()
    for key in ("labels", "channel_names", "numTraining", "file_ending"):
        assert key in description, key
    ending, channels = description["file_ending"], len(description["channel_names"])
    # Cases are found as nnU-Net finds them: by every file with the ending, less ending and channel number.
    files = sorted(p.name for p in (root / "imagesTr").iterdir() if p.name.endswith(ending))
    names = sorted({name[: -len(ending) - 5] for name in files})
    assert len(names) == description["numTraining"], "numTraining is not the number of cases"
    labels = {p.name[: -len(ending)] for p in (root / "labelsTr").iterdir() if p.name.endswith(ending)}
    assert set(names) <= labels, "a case has no label file"

    entries = description["labels"].values()
    values = sorted({value for entry in entries for value in (entry if isinstance(entry, list) else [entry])})
    assert values[0] == 0 and np.all(np.ediff1d(values) == 1), "labels are not consecutive from 0"
    if any(isinstance(entry, list) for entry in entries):
        assert "regions_class_order" in description
    for name in names:
        own = [file for file in files if re.fullmatch(re.escape(name) + r"_\d{4}" + re.escape(ending), file)]
        assert own == [f"{name}_{c:04d}{ending}" for c in range(channels)], "channels are missing or misnumbered"
        images = [nibabel.load(root / "imagesTr" / file) for file in own]
        label = nibabel.load(root / "labelsTr" / f"{name}{ending}")
        array = np.asanyarray(label.dataobj)
        assert not np.isnan(array).any()
        assert set(np.unique(array).tolist()) <= set(values), "a mask holds a value that is not declared"
        for image in images:
            assert image.ndim == 3 and not np.isnan(np.asanyarray(image.dataobj)).any()
            assert image.shape == label.shape
            assert np.allclose(image.header.get_zooms(), label.header.get_zooms())
            assert np.allclose(image.affine, label.affine), "image and label lie at different places"
            assert np.allclose(image.affine, images[0].affine)


def verify_decathlon(root: Path) -> None:
    """Asserts what the Decathlon's format says and its readers rely on."""
    description = json.loads((root / "dataset.json").read_text())
    for key in ("name", "modality", "labels", "numTraining", "training", "test", "tensorImageSize"):
        assert key in description, key
    assert sorted(map(int, description["modality"])) == list(range(len(description["modality"])))
    values = sorted(map(int, description["labels"]))
    assert values == list(range(len(values))) and description["labels"]["0"] == "background"
    assert description["numTraining"] == len(description["training"])
    assert description.get("numTest", 0) == len(description["test"])
    listed = []
    for pair in description["training"]:
        assert set(pair) == {"image", "label"} and all(path.startswith("./") for path in pair.values())
        assert Path(pair["image"]).name == Path(pair["label"]).name
        image, label = (nibabel.load(root / pair[key]) for key in ("image", "label"))
        assert image.shape[:3] == label.shape and label.ndim == 3
        assert (image.shape[3] if image.ndim == 4 else 1) == len(description["modality"])
        assert np.allclose(image.affine, label.affine)
        assert not np.isnan(np.asanyarray(image.dataobj)).any()
        assert set(np.unique(np.asanyarray(label.dataobj)).astype(int).tolist()) <= set(values)
        listed.append((root / pair["image"]).resolve())
    assert len(set(listed)) == len(listed)
    assert {p.resolve() for p in (root / "imagesTr").glob("*.nii.gz")} == set(listed), "an image is not listed"
    assert all((root / path).is_file() for path in description["test"])


def test_the_written_nnunet_set_passes_its_integrity_rules(tmp_path: Path) -> None:
    verify_nnunet(make.nnunet(tmp_path / "d"))
    add_one(open_dataset(tmp_path / "d"), tmp_path / "out")
    verify_nnunet(tmp_path / "out")
    assert json.loads((tmp_path / "out/dataset.json").read_text())["numTraining"] == 4


def test_the_written_decathlon_set_follows_its_rules(tmp_path: Path) -> None:
    verify_decathlon(make.decathlon(tmp_path / "d"))
    add_one(open_dataset(tmp_path / "d"), tmp_path / "out")
    verify_decathlon(tmp_path / "out")


def test_the_rules_notice_a_wrong_set(tmp_path: Path) -> None:
    root = make.nnunet(tmp_path / "d")
    make.nifti(root / "labelsTr/glioma_0003.nii.gz", make.mask((1, 7)))
    with pytest.raises(AssertionError, match="not declared"):
        verify_nnunet(root)
    make.nifti(root / "labelsTr/glioma_0003.nii.gz", make.mask(), np.diag([0.8, 1, 2.5, 1]))
    with pytest.raises(AssertionError, match="different places"):
        verify_nnunet(root)


@needs_shared
@pytest.mark.parametrize(("name", "verify"), [("glioma-other", verify_nnunet), ("lung-nodule", verify_decathlon)])
def test_real_sets_pass_before_and_after(name: str, verify: object, tmp_path: Path) -> None:
    assert callable(verify)
    verify(SHARED / "data" / name)
    add_one(open_dataset(SHARED / "data" / name), tmp_path / "out")
    verify(tmp_path / "out")


def test_what_augment_has_not_finished_is_no_data_set(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make.nifti(tmp_path / name / "x.nii.gz", make.image(1))
    assert open_dataset(tmp_path).classes == ("a", "b")
    (tmp_path / PLAN).write_text("{}")
    with pytest.raises(Refused, match="DATASET_UNFINISHED"):
        open_dataset(tmp_path)
    (tmp_path / CARD).write_text("card")
    assert open_dataset(tmp_path).classes == ("a", "b")
