"""Files of the same kinds as the odd collection's, with other numbers: refused with the right code, or taken right."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dataset_makers as sets
import numpy as np
import odd_dicom_makers as dicom
import odd_makers as odd
import pytest

import medgan
from medgan.errors import Refused
from medgan.imaging.files import read_all

REFUSED = {"nifti": odd.NIFTI_REFUSED, "masks": odd.MASKS_REFUSED, "tables": odd.TABLES_REFUSED}
TAKEN = {"masks": odd.MASKS_GOOD, "tables": odd.TABLES_GOOD}


def refused_with(path: Path, codes: set[str]) -> None:
    found = medgan.inspect(path)
    assert found.status == "refused" and set(found.codes) & codes, f"{found.status} {found.codes}"
    error = next(note for note in found.notes if note["level"] == "error")
    assert error["code"] in codes and error["why"] and error["fix"]


def taken_with(path: Path, codes: set[str]) -> Any:
    found = medgan.inspect(path)
    assert found.status == ("warning" if codes else "ok") and set(found.codes) == codes, f"{found.status} {found.codes}"
    return found


@pytest.mark.parametrize("name", dicom.DICOM_REFUSED)
def test_dicom_that_must_be_refused(name: str, tmp_path: Path) -> None:
    codes, make = dicom.DICOM_REFUSED[name]
    path = make(tmp_path)
    refused_with(path, codes)
    with pytest.raises(Refused) as refused:
        medgan.read(path)
    assert refused.value.code in codes


@pytest.mark.parametrize("name", dicom.DICOM_GOOD)
def test_dicom_that_must_be_taken(name: str, tmp_path: Path) -> None:
    codes, shape, make = dicom.DICOM_GOOD[name]
    path = make(tmp_path)
    found = taken_with(path, codes)
    assert [volume["shape"] for volume in found.volumes] == [list(shape)]
    volume = medgan.read(path)
    assert np.isfinite(volume.array).all() and np.ptp(volume.array) > 0


@pytest.mark.parametrize("name", odd.NIFTI_GOOD)
def test_nifti_that_must_be_taken(name: str, tmp_path: Path) -> None:
    import nibabel

    codes, shape, make = odd.NIFTI_GOOD[name]
    path = make(tmp_path)
    assert taken_with(path, codes).volumes[0]["shape"] == list(shape)
    volume, theirs = medgan.read(path), nibabel.load(path)
    np.testing.assert_allclose(volume.array[0], theirs.get_fdata(), rtol=1e-6)
    np.testing.assert_allclose(volume.affine, theirs.affine, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, made in REFUSED.items() for name in made])
def test_what_must_be_refused(kind: str, name: str, tmp_path: Path) -> None:
    codes, make = REFUSED[kind][name]
    refused_with(make(tmp_path), codes)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, made in TAKEN.items() for name in made])
def test_data_sets_that_must_be_taken(kind: str, name: str, tmp_path: Path) -> None:
    codes, make = TAKEN[kind][name]
    assert taken_with(make(tmp_path), codes).volumes


def test_the_rescale_of_each_slice_is_its_own(tmp_path: Path) -> None:
    import pydicom

    path = dicom.DICOM_GOOD["a rescale of each slice's own"][2](tmp_path)
    ours = medgan.read(path).array[0]
    for number, file in enumerate(sorted(path.glob("*.dcm"), reverse=True)):
        item = pydicom.dcmread(file)
        theirs = item.pixel_array.T * float(item.RescaleSlope) + float(item.RescaleIntercept)
        np.testing.assert_array_equal(ours[..., number], theirs)


def test_48_orientations_of_one_series_of_values(tmp_path: Path) -> None:
    import itertools

    import nibabel

    array = odd.values((7, 6, 5))
    straight = nibabel.Nifti1Image(array, odd.AFFINE)
    expected = None
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turned = straight.as_reoriented(np.array(list(zip(axes, flips, strict=True))))
            nibabel.save(turned, tmp_path / "a.nii.gz")
            found = taken_with(tmp_path / "a.nii.gz", set())
            volume = read_all(tmp_path / "a.nii.gz")[0]
            back = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.array[0], volume.affine))
            expected = back if expected is None else expected
            np.testing.assert_array_equal(back.get_fdata(), expected.get_fdata())
            np.testing.assert_allclose(back.affine, expected.affine, atol=1e-4)
            assert len(found.volumes[0]["orientation"]) == 3


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_augment_writes_nothing_where_any_image_is_damaged(xray_classes: Path, image_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(xray_classes, root)
    _cut(sorted(root.rglob("*.png"))[-1])
    with pytest.raises(Refused) as refused:
        medgan.augment(root, factor=2, model=image_run, modality="xray", out=tmp_path / "out")
    assert refused.value.code == "FILE_TRUNCATED" and not (tmp_path / "out").exists()


def test_augment_writes_nothing_where_a_held_out_case_is_damaged(tmp_path: Path) -> None:
    rows = ["id,image,mask,split"]
    for seed, name in enumerate("abc"):
        sets.nifti(tmp_path / f"set/{name}.nii.gz", sets.image(seed))
        sets.nifti(tmp_path / f"set/{name}_mask.nii.gz", sets.mask())
        rows.append(f"{name},{name}.nii.gz,{name}_mask.nii.gz,{'test' if name == 'c' else 'train'}")
    sets.text(tmp_path / "set/manifest.csv", "\n".join(rows) + "\n")
    _cut(tmp_path / "set/c.nii.gz")
    with pytest.raises(Refused) as refused:
        medgan.augment(tmp_path / "set", factor=2, method="paste", modality="ct", out=tmp_path / "out")
    assert refused.value.code == "FILE_TRUNCATED" and not (tmp_path / "out").exists()
