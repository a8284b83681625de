"""NIfTI in and out: good files in every shape and form, and everything that can be wrong with one."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nifti_makers import AFFINE, TURN, code_of, notes_of, patched, saved, values

from medgan.errors import Refused
from medgan.imaging.files import read
from medgan.imaging.geometry import align_mask, reorient
from medgan.imaging.nifti import read_nifti, write_nifti
from medgan.imaging.volume import Volume

ODD = Path(__file__).parents[2] / "shared" / "odd"


# --- the collection of odd files ---------------------------------------------------------------------------------


def odd_cases(prefix: str) -> list[Any]:
    table = ODD / "cases.json"
    if not table.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"the collection of odd files is not at {ODD}"))]
    cases = json.loads(table.read_text())
    return [pytest.param(case, id=case["id"]) for case in cases if case["id"].startswith(prefix)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", odd_cases("n-"))
def test_odd_nifti(case: dict[str, str]) -> None:
    try:
        volume = read_nifti(ODD / case["path"])[0]
    except Refused as refused:
        assert "refuse" in case["expect"]
        assert refused.code == case["code"]
    else:
        assert case["expect"] != "refuse"
        codes = notes_of(volume)
        assert case["code"] in codes if case["code"] != "OK" else codes == []
        assert np.isfinite(volume.array).all()


@pytest.mark.parametrize("case", odd_cases("m-"))
def test_odd_pairs_of_image_and_mask(case: dict[str, str]) -> None:
    image = read(ODD / case["path"] / "image.nii.gz")
    outcome = "OK"
    try:
        mask = align_mask(read(ODD / case["path"] / "label.nii.gz", channels=True), image)
        assert mask.shape == image.shape and np.array_equal(mask.affine, image.affine)
    except Refused as refused:
        outcome = refused.code
    # What the mask's values must be is for the data set to say; here it is only the place that counts.
    values_only = ("LABEL_NON_INTEGER", "LABEL_OUT_OF_RANGE", "LABEL_EMPTY")
    expected = {"LABEL_MISSING": "FILE_MISSING", **dict.fromkeys(values_only, "OK")}.get(case["code"], case["code"])
    assert outcome == expected


@pytest.mark.skipif(not ODD.exists(), reason=f"the collection of odd files is not at {ODD}")
def test_a_flipped_mask_covers_the_same_voxels() -> None:
    straight, flipped = (
        align_mask(read(ODD / "nifti/pairs" / name / "label.nii.gz"), read(ODD / "nifti/pairs" / name / "image.nii.gz"))
        for name in ("m_ok", "m_flipped_axis")
    )
    assert straight.array.any() and np.array_equal(straight.array, flipped.array)


# --- good files --------------------------------------------------------------------------------------------------


def test_all_48_orientations_are_the_same_image(tmp_path: Path) -> None:
    original = Volume(values()[None], AFFINE)
    for axes in itertools.permutations(("RL", "AP", "SI")):
        for letters in itertools.product(*axes):
            turned = reorient(original, "".join(letters))
            path = saved(tmp_path, turned.array[0], turned.affine, "turned.nii")
            volume = read_nifti(path)[0]
            assert volume.orientation == "".join(letters)
            back = reorient(volume)
            assert np.array_equal(back.array, original.array)
            assert np.abs(back.affine - AFFINE).max() < 1e-6
            # What medgan writes, others read alike.
            write_nifti(turned, path)
            other = nibabel.load(path)
            assert np.array_equal(np.asarray(other.dataobj), turned.array[0])
            assert np.abs(other.affine - turned.affine).max() < 1e-6


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.img", "a.hdr"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_versions_byte_orders_and_pairs(tmp_path: Path, name: str, kind: Any, order: str) -> None:
    pair = {nibabel.Nifti1Image: nibabel.Nifti1Pair, nibabel.Nifti2Image: nibabel.Nifti2Pair}
    kind = kind if ".nii" in name else pair[kind]
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(np.int32).newbyteorder(order))
    array = values(dtype=np.int32) * 1000
    nibabel.save(kind(array, AFFINE, header), tmp_path / name)
    volume = read_nifti(tmp_path / name)[0]
    assert volume.array.dtype == np.int32 and volume.array.dtype.isnative
    assert np.array_equal(volume.array[0], array) and np.array_equal(volume.affine, AFFINE)
    assert volume.source == tmp_path / name and volume.modality is None and volume.notes == ()
    assert volume.array.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4"])
def test_the_stored_type_is_kept(tmp_path: Path, dtype: str) -> None:
    array = values(dtype=dtype) // 2
    volume = read_nifti(saved(tmp_path, array))[0]
    assert volume.array.dtype == np.dtype(dtype) and np.array_equal(volume.array[0], array)


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "expected"),
    [
        (np.uint16, 1, -1024, np.int16),
        (np.int16, 2, 0, np.int16),
        (np.int16, 1000, 5, np.int32),
        (np.int32, -1, 0, np.int16),
        (np.int16, 0.5, 0, np.float32),
        (np.uint8, 1, 0.25, np.float32),
        (np.float32, 2, 1, np.float32),
        (np.float64, 0, 0, np.float32),
        (np.int16, 0, 7, np.int16),
    ],
)
def test_scaling(tmp_path: Path, stored: Any, slope: float, intercept: float, expected: Any) -> None:
    array = values(dtype=stored)
    path = patched(saved(tmp_path, array, name="a.nii"), 112, struct.pack("<ff", slope, intercept))
    volume = read_nifti(path)[0]
    wanted = array * np.float64(slope) + intercept if slope else array
    assert volume.array.dtype == expected
    assert np.allclose(volume.array[0], wanted, rtol=1e-7, atol=0)
    assert np.array_equal(volume.array[0], nibabel.load(path).get_fdata(dtype=np.float64).astype(expected))


def test_scaled_integers_beyond_32_bits_are_noted(tmp_path: Path) -> None:
    path = patched(saved(tmp_path, values(), name="a.nii"), 112, struct.pack("<ff", 1e8, 0))
    volume = read_nifti(path)[0]
    assert volume.array.dtype == np.float32 and "PIX_PRECISION_LOSS" in notes_of(volume)


def test_channels(tmp_path: Path) -> None:
    array = values((6, 5, 4, 3))
    path = saved(tmp_path, array)
    assert code_of(path) == "DIM_4D"
    volume = read_nifti(path, channels=True)[0]
    assert volume.array.shape == (3, 6, 5, 4) and np.array_equal(np.moveaxis(volume.array, 0, -1), array)
    assert volume.array.flags.c_contiguous
    assert read_nifti(saved(tmp_path, values((6, 5, 4, 1, 1))))[0].array.shape == (1, 6, 5, 4)
    flat = read_nifti(saved(tmp_path, values((6, 5, 1, 3))), channels=True)[0]
    assert flat.dims == 2 and flat.array.shape == (3, 6, 5)
    assert code_of(saved(tmp_path, values((6, 5, 4, 2, 3))), channels=True) == "DIM_5D"


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1)])
def test_one_slice_keeps_its_place(tmp_path: Path, shape: tuple[int, ...]) -> None:
    affine = AFFINE.copy()
    affine[:3, :3] = TURN @ AFFINE[:3, :3]
    volume = read_nifti(saved(tmp_path, values(shape), affine))[0]
    assert volume.dims == 2 and notes_of(volume) == ["SINGLE_SLICE"]
    assert np.allclose(volume.affine, affine, atol=1e-6)
    write_nifti(volume, tmp_path / "b.nii.gz")
    again = read_nifti(tmp_path / "b.nii.gz")[0]
    assert np.array_equal(again.array, volume.array) and np.allclose(again.affine, affine, atol=1e-6)
    # A slice whose header has no third axis at all still has a normal.
    path = saved(tmp_path, values(shape), name="c.nii")
    for offset in (288, 304, 320):  # the third column of the sform
        patched(path, offset, b"\0" * 4)
    patched(path, 88, b"\0" * 4)  # pixdim[3]
    assert np.allclose(read_nifti(path)[0].affine[:3, 2], [0, 0, 1])


def test_a_file_read_by_its_content_not_its_name(tmp_path: Path) -> None:
    plain, packed = saved(tmp_path, values(), name="a.nii"), saved(tmp_path, values(), name="b.nii.gz")
    for path, name in ((plain, "c.nii.gz"), (packed, "d.nii")):
        volume = read_nifti(path.rename(tmp_path / name))[0]
        assert np.array_equal(volume.array[0], values()) and notes_of(volume) == ["FILE_EXTENSION"]
