"""NIfTI out: other programs read what was meant, and a write that fails leaves nothing."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nifti_makers import AFFINE, TURN, values

from medgan.errors import Refused
from medgan.imaging import nifti
from medgan.imaging.nifti import read_nifti, write_nifti
from medgan.imaging.volume import Volume

# --- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "?", "f2", "i8", "u8", ">i2"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_written_files_are_equal_for_nibabel_and_simpleitk(tmp_path: Path, dtype: str, name: str) -> None:
    array = values((1, 9, 8, 5)) > 100 if dtype == "?" else values((1, 9, 8, 5), dtype)
    write_nifti(Volume(array, AFFINE), tmp_path / name, description="medgan test")
    other = nibabel.load(tmp_path / name)
    kept = {"?": "u1", "f2": "f4", "i8": "i4", "u8": "i4", ">i2": "i2"}.get(dtype, dtype)
    assert other.get_data_dtype() == np.dtype(kept)
    assert np.array_equal(np.asarray(other.dataobj), array[0]) and np.array_equal(other.affine, AFFINE)
    assert (int(other.header["sform_code"]), int(other.header["qform_code"])) == (1, 1)
    assert other.header.get_xyzt_units()[0] == "mm" and other.header["descrip"] == b"medgan test"
    assert np.allclose(other.get_qform(), AFFINE, atol=1e-6)
    itk = sitk.ReadImage(tmp_path / name)
    assert np.array_equal(sitk.GetArrayFromImage(itk).T, array[0])
    for index in itertools.product((0, 8), (0, 7), (0, 4)):
        world = np.diag([-1, -1, 1]) @ itk.TransformContinuousIndexToPhysicalPoint([float(i) for i in index])
        assert np.abs(world - (AFFINE @ [*index, 1])[:3]).max() < 1e-6
    again = read_nifti(tmp_path / name)[0]
    assert np.array_equal(again.array, array) and np.array_equal(again.affine, AFFINE) and again.notes == ()


def test_large_integers_are_written_as_they_are(tmp_path: Path) -> None:
    for array in (values(dtype=np.int64) - 2**40, values(dtype=np.uint64) + np.uint64(2**63)):
        write_nifti(Volume(array[None], AFFINE), tmp_path / "a.nii")
        volume = read_nifti(tmp_path / "a.nii")[0]
        assert volume.array.dtype == array.dtype and np.array_equal(volume.array[0], array)


def test_oblique_and_sheared_affines(tmp_path: Path) -> None:
    oblique = AFFINE.copy()
    oblique[:3, :3] = TURN @ AFFINE[:3, :3]
    write_nifti(Volume(values()[None], oblique), tmp_path / "a.nii")
    volume = read_nifti(tmp_path / "a.nii")[0]
    assert np.abs(volume.affine - oblique).max() < 1e-6 and volume.notes == ()
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.3
    write_nifti(Volume(values()[None], sheared), tmp_path / "b.nii")
    header = nibabel.load(tmp_path / "b.nii").header
    assert int(header["qform_code"]) == 0 and np.allclose(header.get_sform(), sheared)


@pytest.mark.parametrize("shape", [(3, 6, 5, 4), (3, 6, 5), (1, 6, 5)])
def test_channels_and_slices_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    volume = Volume(values(shape), AFFINE)
    write_nifti(volume, tmp_path / "a.nii.gz")
    again = read_nifti(tmp_path / "a.nii.gz", channels=True)[0]
    assert np.array_equal(again.array, volume.array) and np.array_equal(again.affine, AFFINE)


def test_a_very_long_axis_is_written_as_nifti_2(tmp_path: Path) -> None:
    volume = Volume(values((1, 40000, 2, 2)), AFFINE)
    write_nifti(volume, tmp_path / "a.nii.gz")
    assert isinstance(nibabel.load(tmp_path / "a.nii.gz"), nibabel.Nifti2Image)
    assert np.array_equal(read_nifti(tmp_path / "a.nii.gz")[0].array, volume.array)


def test_equal_volumes_give_equal_bytes_and_no_name(tmp_path: Path) -> None:
    volume = Volume(values()[None], AFFINE)
    fortran = Volume(np.asfortranarray(volume.array), AFFINE)
    write_nifti(volume, tmp_path / "secret.nii.gz")
    write_nifti(fortran, tmp_path / "other.nii.gz")
    content = (tmp_path / "secret.nii.gz").read_bytes()
    assert content == (tmp_path / "other.nii.gz").read_bytes()
    assert content[3] == 0 and content[4:8] == bytes(4)  # neither a name nor a time
    zlib.decompress(content, wbits=31)


@pytest.mark.parametrize(
    ("array", "name", "code"),
    [
        (np.full((1, 3, 3, 3), np.nan), "a.nii", "PIX_NONFINITE"),
        (np.ones((1, 3, 3, 3), complex), "a.nii", "PIX_COMPLEX"),
        (np.full((1, 3, 3, 3), "x"), "a.nii", "HDR_BAD_DTYPE"),
        (np.ones((1, 3, 3, 3)), "a.img", "FILE_FORMAT"),
    ],
)
def test_what_is_not_written_leaves_nothing(tmp_path: Path, array: np.ndarray, name: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        write_nifti(Volume(array), tmp_path / name)
    assert refused.value.code == code and list(tmp_path.iterdir()) == []


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(Volume(values()[None], AFFINE), path)
    before = path.read_bytes()

    def broken(*arguments: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(nifti, "_slabs", broken)
    with pytest.raises(OSError, match="no space"):
        write_nifti(Volume(values()[None] + 1, AFFINE), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]
