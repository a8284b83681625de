"""Slice thickness, and real and odd DICOM files against their policy and against highdicom."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_makers import (
    COLUMNS,
    ROWS,
    assert_same,
    codes,
    enhanced,
    make_series,
    make_slice,
    one,
    radiograph,
    refusal,
    save,
)
from pydicom.dataset import Dataset

from medgan.errors import Refused
from medgan.imaging.dicom import read_series
from medgan.imaging.geometry import reorient, resample, resample_to

SHARED = Path(__file__).parents[2] / "shared"
REAL = SHARED / "odd" / "real"


# --- slice thickness ------------------------------------------------------------------------------------------------

def _thicknesses(*given: Any) -> list[Any]:
    items = make_series()
    for item, thickness in zip(items, given, strict=True):
        del item.SliceThickness
        if thickness is not None:
            item.add_new("SliceThickness", "DS", thickness)
    return items


@pytest.mark.parametrize(("given", "expected"), [
    ((2.5,) * 5, 2.5),
    ((4.0,) * 5, 4.0),  # overlapping slices
    ((1,) * 5, 1.0),  # gaps
    ((3.0, 3.0001, 3.0, 2.9999, 3.0), 3.0),  # rounding
    ((None,) * 5, None),
    ((2.5, 2.5, None, 2.5, 2.5), None),
    ((2.5, 2.5, 2.5, 2.5, 3.0), None),
    ((0,) * 5, None),
    ((-2.5,) * 5, None),
    (("",) * 5, None),
    (([2.5, 2.5],) * 5, None),
])
def test_slice_thickness_is_told_where_all_slices_agree(tmp_path: Path, given: Any, expected: float | None) -> None:
    volume = one(save(_thicknesses(*given), tmp_path))
    assert volume.slice_thickness_mm == expected
    assert volume.spacing_mm[2] == pytest.approx(2.5)  # from the positions, whatever the thickness


@pytest.mark.parametrize("word", [b"oops", b"nan ", b"inf "])
def test_slice_thickness_that_is_no_number_is_not_told(tmp_path: Path, word: bytes) -> None:
    folder = save(_thicknesses(*(2.25,) * 5), tmp_path)
    for path in folder.iterdir():
        content = path.read_bytes()
        assert content.count(b"2.25") == 1
        path.write_bytes(content.replace(b"2.25", word))
    assert one(folder).slice_thickness_mm is None


def test_infinite_slice_thickness_is_not_told(tmp_path: Path) -> None:
    items = _thicknesses(*(None,) * 5)
    for item in items:
        item.add_new("SliceThickness", "FD", float("inf"))  # as text pydicom takes it for no number
    assert one(save(items, tmp_path)).slice_thickness_mm is None


@pytest.mark.parametrize(("shared", "own", "expected"), [
    (2.0, None, 2.0), (None, None, None), (None, (3.0,) * 5, 3.0), (None, (3.0, 3.0, 2.0, 3.0, 3.0), None),
])
def test_enhanced_slice_thickness_comes_from_the_pixel_measures(
    tmp_path: Path, shared: float | None, own: Any, expected: float | None,
) -> None:
    item = enhanced([3, 0, 4, 1, 2])
    item.SliceThickness = 7.0  # not the place for it in such a file
    measures = item.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SliceThickness
    if shared is not None:
        measures.SliceThickness = shared
    if own is not None:
        for group, thickness in zip(item.PerFrameFunctionalGroupsSequence, own, strict=True):
            group.PixelMeasuresSequence = [Dataset()]
            group.PixelMeasuresSequence[0].PixelSpacing = [1.5, 0.75]
            group.PixelMeasuresSequence[0].SliceThickness = thickness
    assert one(save([item], tmp_path) / "001.dcm").slice_thickness_mm == expected


def test_a_single_slice_and_a_radiograph_have_no_third_axis_to_be_thick_along(tmp_path: Path) -> None:
    assert one(save(make_series()[:1], tmp_path / "slice")).slice_thickness_mm is None
    assert one(save([radiograph(SliceThickness=2.5)], tmp_path / "xray")).slice_thickness_mm is None


def test_slice_thickness_stays_with_the_third_axis(tmp_path: Path) -> None:
    volume = one(save(make_series(), tmp_path))
    assert volume.orientation == "LPS" and volume.slice_thickness_mm == 2.5
    kept = [reorient(volume), reorient(volume, "PLI"), volume.with_array(volume.array * 2)]
    assert [v.slice_thickness_mm for v in kept] == [2.5] * 3
    lost = [reorient(volume, "SPL"), reorient(volume, "RSA"), resample(volume, (1.5, 1.5, 1.5)),
            resample_to(volume, volume.affine @ np.diag([1, 1, 2, 1]), (COLUMNS, ROWS, 3), order=1)]
    assert [v.slice_thickness_mm for v in lost] == [None] * 4


def test_real_slice_thickness_is_not_the_spacing() -> None:
    volume = one(_needs(SHARED / "data" / "ct-dicom" / "lungfcp"))
    assert volume.slice_thickness_mm == 2.0  # slices overlap
    assert volume.spacing_mm[2] == pytest.approx(1.0)


# --- real and odd files ---------------------------------------------------------------------------------------------

def _cases() -> list[Any]:
    path = SHARED / "odd" / "cases.json"
    if not path.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason="no ../shared/odd"))]
    return [pytest.param(case, id=case["id"]) for case in json.loads(path.read_text())
            if case["path"].startswith("dicom/")]


@pytest.mark.parametrize("case", _cases())
def test_odd_case_behaves_as_its_policy_says(case: dict[str, str]) -> None:
    path = SHARED / "odd" / case["path"]
    try:
        found, verdict = codes(read_series(path)), "accept"
    except Refused as error:
        found, verdict = {error.code}, "refuse"
    assert verdict in case["expect"], found
    assert case["code"] in found or (case["code"] == "OK" and not found)


def _needs(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.parametrize("name", ["data/ct-dicom/lungfcp", "odd/dicom/d_ok", "odd/dicom/d_oblique"])
def test_real_series_agrees_with_highdicom(name: str) -> None:
    highdicom = pytest.importorskip("highdicom")
    folder = _needs(SHARED / name)
    files = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    assert_same(one(folder), highdicom.get_volume_from_series(files))


@pytest.mark.parametrize("name", ["d_enhanced_shuffled_frames", "d_enhanced_per_frame_rescale"])
def test_enhanced_file_agrees_with_highdicom(name: str) -> None:
    highdicom = pytest.importorskip("highdicom")
    path = _needs(SHARED / "odd" / "dicom" / name) / "IM000.dcm"
    theirs = highdicom.imread(path).get_volume(dtype=np.float32, apply_voi_transform=False)
    assert_same(one(path), theirs)


def test_nine_transfer_syntaxes_decode_equal() -> None:
    folder = _needs(REAL / "dcm_qa_ts_nine_transfer_syntaxes")
    volumes = [one(path) for path in sorted(folder.glob("*.dcm"))]
    assert len(volumes) == 9 and volumes[0].array.max() > 1000
    for volume in volumes[1:]:
        np.testing.assert_array_equal(volume.array, volumes[0].array)
        np.testing.assert_allclose(volume.affine, volumes[0].affine)


@pytest.mark.parametrize("codec", ["compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls",
                                   "compressed_rle"])
def test_codecs_agree_with_the_nifti(codec: str) -> None:
    folder = _needs(REAL / "dicom2nifti_generic" / codec)
    volume = one(folder / "001")
    truth = nibabel.as_closest_canonical(nibabel.load(folder / "001_ground_truth.nii.gz"))
    ours = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.array[0].astype(np.float32), volume.affine))
    np.testing.assert_allclose(ours.affine, truth.affine, atol=1e-3)
    np.testing.assert_array_equal(ours.get_fdata(), truth.get_fdata())


def test_real_tilted_and_coloured_series_are_refused() -> None:
    assert refusal(_needs(REAL / "dcm_qa_ct_Philips_S21610")) in {"GEOM_GANTRY_TILT", "GEOM_MIXED_ORIENTATION"}
    assert refusal(_needs(REAL / "dicom2nifti_generic" / "rgb")) == "PIX_COLOUR"


def test_every_real_file_is_read_or_refused_with_a_code() -> None:
    files = [path for path in _needs(REAL / "pydicom_tests").rglob("*") if path.is_file()]
    read = {}
    for path in files:
        try:
            read[path.name] = codes(read_series(path))
        except Refused as error:
            assert error.code != "LIMIT"
    assert {"MR_small.dcm", "MR_small_RLE.dcm", "CT_small.dcm", "693_J2KI.dcm", "image_dfl.dcm"} <= set(read)
    assert not {"MR_truncated.dcm", "rtdose.dcm", "liver_1frame.dcm", "reportsi.dcm", "zipMR.gz"} & set(read)


def test_wrong_sign_in_a_codestream_is_corrected() -> None:
    volume = one(_needs(REAL / "pydicom_tests" / "J2K_pixelrep_mismatch.dcm"))
    assert (volume.array.min(), volume.array.max()) == (-2000, 1896)


def test_memory_stays_below_three_copies(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    items = [make_slice(z, random.integers(0, 4000, (256, 256)).astype(np.int16), (0, 0, 2.5 * z)) for z in range(40)]
    save(items, tmp_path)
    del items
    one(save(make_series(), tmp_path / "warm"))
    tracemalloc.start()
    try:
        volume = one(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 3 * volume.array.nbytes
    finally:
        tracemalloc.stop()
