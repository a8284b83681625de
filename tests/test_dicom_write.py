"""The DICOM writer: valid objects about nobody, or about the source's patient and no more, that read back equal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medgan.errors import Refused
from medgan.imaging import dicom_write
from medgan.imaging.dicom import read_series
from medgan.imaging.dicom_write import write_derived, write_synthetic
from medgan.imaging.volume import Volume

SHARED = Path(__file__).parents[2] / "shared"
DCIODVFY = Path(sys.executable).parent / "dciodvfy"
SHAPE = (16, 20, 5)


def affine(step: float = 2.5) -> np.ndarray:
    """An oblique LPS-like grid, right-handed in DICOM's sense, far from the origin."""
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    result = np.eye(4)
    result[:3, :3] = turn * [0.7, 0.9, step]
    result[:3, 3] = [-123.456, 78.9, -1000.125]
    return result


def volume(modality: Any, low: int = 0, high: int = 2000, dtype: Any = np.int16, dims: int = 3) -> Volume:
    array = np.random.default_rng(1).integers(low, high, (1, *SHAPE)).astype(dtype)
    array[0, 0, 0], array[0, 0, 1] = low, high
    return Volume(array if dims == 3 else array[..., 0], affine(), modality)


def write(item: Volume, folder: Path, seed: int = 7) -> list[Path]:
    return write_synthetic(item, folder, model_hash="sha256:abc", seed=seed, derivation="lesion synthesis")


def headers(files: list[Path]) -> list[Any]:
    return [pydicom.dcmread(path) for path in files]


def complaints(path: Path) -> list[str]:
    if not DCIODVFY.exists():
        pytest.skip("dciodvfy is not installed")
    result = subprocess.run([str(DCIODVFY), str(path)], capture_output=True, text=True, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    assert any(line.strip() in ("CTImage", "MRImage", "CRImage", "SCImage") for line in lines)
    return [line for line in lines if "Error" in line]


KINDS = [("ct", 3), ("mr", 3), ("ct", 2), ("mr", 2), ("xray", 2), ("us", 2), ("us", 3), (None, 3), (None, 2)]


@pytest.mark.parametrize("modality, dims", KINDS)
@pytest.mark.parametrize("scale", [1, 0.37])
def test_synthetic_series_is_valid(tmp_path: Path, modality: Any, dims: int, scale: float) -> None:
    item = volume(modality, -1000 if modality == "ct" else 0, dims=dims)
    item = item.with_array(item.array if scale == 1 else item.array * np.float32(scale))
    files = write(item, tmp_path / "out")
    assert complaints(files[0]) == [] and complaints(files[-1]) == []


@pytest.mark.parametrize("modality, low, high, dtype", [
    ("ct", -1024, 3071, np.int16), ("ct", -1024, 3071, np.float32), ("ct", -32768, 32767, np.int16),
    ("ct", -1024, 60000, np.int32), ("mr", 0, 65535, np.uint16), ("mr", 0, 255, np.uint8),
    (None, 100000, 165000, np.int32), ("us", 0, 255, np.uint8),
])
def test_whole_numbers_come_back_exactly(tmp_path: Path, modality: Any, low: int, high: int, dtype: Any) -> None:
    item = volume(modality, low, high, dtype)
    write(item, tmp_path / "out")
    [back] = read_series(tmp_path / "out")
    np.testing.assert_array_equal(back.array, item.array.astype(np.int64))
    np.testing.assert_allclose(back.affine, item.affine, atol=1e-6)
    assert back.modality == modality and back.notes == ()


@pytest.mark.parametrize("low, high", [(-3.5, 3.25), (-1000.5, 2999.25), (0.0, 1e-4), (1e6, 1.5e6), (-1e7, 1e7)])
def test_fractions_come_back_within_half_a_level(tmp_path: Path, low: float, high: float) -> None:
    array = np.random.default_rng(2).uniform(low, high, (1, *SHAPE))
    array[0, 0, 0, :2] = low, high
    write(Volume(array, affine(), "mr"), tmp_path / "out")
    [back] = read_series(tmp_path / "out")
    level = (high - low) / 65535
    rounding = np.spacing(np.float32(max(abs(low), abs(high))))
    assert np.abs(back.array - array).max() <= 0.51 * level + rounding


def test_other_readers_see_the_same_volume(tmp_path: Path) -> None:
    simpleitk = pytest.importorskip("SimpleITK")
    item = volume("ct", -1000, 2000)
    files = write(item, tmp_path / "out")
    image = simpleitk.ReadImage([str(path) for path in files])
    np.testing.assert_array_equal(simpleitk.GetArrayFromImage(image), item.array[0].T)
    np.testing.assert_allclose(np.array(image.GetOrigin()) * [-1, -1, 1], item.affine[:3, 3], atol=1e-4)
    np.testing.assert_allclose(image.GetSpacing(), item.spacing_mm, atol=1e-5)
    for z, data in enumerate(headers(files)):
        pixels = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
        np.testing.assert_array_equal(pixels, item.array[0, :, :, z].T)


def test_two_dimensional_slice_keeps_its_plane(tmp_path: Path) -> None:
    item = volume("mr", dims=2)
    write(item, tmp_path / "out")
    [back] = read_series(tmp_path / "out")
    np.testing.assert_array_equal(back.array, item.array)
    np.testing.assert_allclose(back.affine[:, [0, 1, 3]], item.affine[:, [0, 1, 3]], atol=1e-6)


def test_radiograph_keeps_its_spacing(tmp_path: Path) -> None:
    item = Volume(volume("xray", dims=2).array, np.diag([0.1, 0.2, 1, 1]), "xray")
    write(item, tmp_path / "out")
    [back] = read_series(tmp_path / "out")
    np.testing.assert_array_equal(back.array, item.array)
    np.testing.assert_allclose(back.affine, item.affine)
    assert back.modality == "xray" and back.notes == ()


def test_mirrored_grid_comes_back_at_the_same_place(tmp_path: Path) -> None:
    flipped = affine()
    flipped[:, 2] *= -1
    item = Volume(volume("ct").array, flipped, "ct")
    write(item, tmp_path / "out")
    [back] = read_series(tmp_path / "out")
    np.testing.assert_array_equal(back.array, item.array[..., ::-1])
    np.testing.assert_allclose(back.affine @ [0, 0, 4, 1], item.affine @ [0, 0, 0, 1], atol=1e-6)


def test_synthetic_series_says_what_it_is(tmp_path: Path) -> None:
    files = write(volume("ct"), tmp_path / "out")
    data = headers(files)
    assert len({item.SOPInstanceUID for item in data}) == len(files) == SHAPE[2]
    for item in data:
        assert item.SyntheticData == "YES" and item.ContentQualification == "RESEARCH"
        assert list(item.ImageType)[:2] == ["DERIVED", "SECONDARY"]
        assert item.SeriesDescription == "SYNTHETIC - medgan - NOT FOR DIAGNOSIS"
        assert item.DerivationDescription == "lesion synthesis"
        assert (item.PatientName, item.PatientID) == ("SYNTHETIC^MEDGAN", "MEDGAN-SYNTHETIC")
        equipment = item.ContributingEquipmentSequence[0]
        purpose = equipment.PurposeOfReferenceCodeSequence[0]
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning) == (
            "109100", "DCM", "Synthesizing Equipment")
        assert "sha256:abc" in equipment.ContributionDescription and equipment.SoftwareVersions
        for uid in (item.SOPInstanceUID, item.SeriesInstanceUID, item.StudyInstanceUID, item.FrameOfReferenceUID):
            assert uid.is_valid
    assert [int(item.InstanceNumber) for item in data] == [1, 2, 3, 4, 5]


def test_bytes_depend_on_content_and_seed_alone(tmp_path: Path) -> None:
    item = volume("ct")
    other = item.array.copy()
    other[0, 3, 3, 3] += 1
    variants = {
        "first": write(item, tmp_path / "first"), "again": write(item, tmp_path / "again"),
        "seed": write(item, tmp_path / "seed", seed=8), "voxel": write(item.with_array(other), tmp_path / "voxel"),
    }
    content = {name: [path.read_bytes() for path in files] for name, files in variants.items()}
    assert content["first"] == content["again"]
    uids = {name: headers(files[:1])[0].SeriesInstanceUID for name, files in variants.items()}
    assert len(set(uids.values())) == 3


def test_output_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = dicom_write._save
    count = []

    def fail_late(item: Any, path: Path) -> None:
        count.append(path)
        if len(count) == 3:
            raise OSError("disk full")
        saved(item, path)

    monkeypatch.setattr(dicom_write, "_save", fail_late)
    with pytest.raises(OSError, match="disk full"):
        write(volume("ct"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    assert len(write(volume("ct"), folder)) == SHAPE[2]  # an empty folder is no obstacle
    before = sorted(path.read_bytes() for path in folder.iterdir())
    with pytest.raises(Refused) as caught:
        write(volume("mr"), folder)
    assert caught.value.code == "OUT_EXISTS"
    assert before == sorted(path.read_bytes() for path in folder.iterdir())


@pytest.mark.parametrize("is_folder", [True, False])
def test_output_that_appears_while_it_is_written_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         is_folder: bool) -> None:
    save, other = dicom_write._save, tmp_path / "out" / "other" if is_folder else tmp_path / "out"

    def meanwhile(item: Any, path: Path) -> None:
        save(item, path)
        other.parent.mkdir(exist_ok=True)
        other.write_text("theirs")

    monkeypatch.setattr(dicom_write, "_save", meanwhile)
    with pytest.raises(Refused) as caught:
        write(volume("ct"), tmp_path / "out")
    assert caught.value.code == "OUT_EXISTS" and other.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("code", ["INPUT_KIND", "PIX_NONFINITE", "GEOM_SHEAR"])
def test_what_dicom_cannot_hold_is_refused(tmp_path: Path, code: str) -> None:
    array, place = np.zeros((1, *SHAPE), np.float32), affine()
    if code == "INPUT_KIND":
        array = np.zeros((2, *SHAPE), np.float32)
    elif code == "PIX_NONFINITE":
        array[0, 1, 1, 1] = np.nan
    else:
        place[:3, 2] += 0.1 * place[:3, 0]
    with pytest.raises(Refused) as caught:
        write(Volume(array, place, "ct"), tmp_path / "out")
    assert caught.value.code == code and not (tmp_path / "out").exists()


# --- derived series -------------------------------------------------------------------------------------------------

KEPT = {"PatientName": "Müller^Käthe", "PatientID": "KEEP-1", "StudyInstanceUID": "1.2.3.4", "StudyDate": "20200102",
        "FrameOfReferenceUID": "1.2.3.5", "AccessionNumber": "A1"}
DROPPED = {"InstitutionName": "CANARY Hospital", "DeviceSerialNumber": "CANARY-SN", "OperatorsName": "CANARY^O",
           "StationName": "CANARY"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A scan of a made-up patient, with names to keep and names to drop."""
    for path in write(volume("ct", -1000, 2000), tmp_path / "scan"):
        item = pydicom.dcmread(path)
        for keyword, value in {**KEPT, **DROPPED}.items():
            setattr(item, keyword, value)
        item.private_block(0x0011, "CANARY", create=True).add_new(1, "LO", "CANARY")
        del item.SyntheticData, item.ContributingEquipmentSequence
        item.save_as(path)
    return tmp_path / "scan"


def upsampled(scale: float = 1) -> Volume:
    """The source volume at half its slice spacing, with the same field of view."""
    item = volume("ct", -1000, 2000)
    place = affine(1.25)
    place[:3, 3] = (affine() @ [0, 0, -0.25, 1])[:3]
    return Volume(np.repeat(item.array, 2, axis=3) * scale, place, "ct")


def derive(item: Volume, folder: Path, source: Path, **options: Any) -> list[Path]:
    return write_derived(item, folder, source=source, derivation="up-sampled by 2", model_hash="sha256:abc", seed=3,
                         **options)


def test_derived_series_keeps_patient_and_place_and_no_more(tmp_path: Path, source: Path) -> None:
    item = upsampled()
    files = derive(item, tmp_path / "out", source)
    original = headers(sorted(source.iterdir()))
    for data in headers(files):
        assert all(str(data[keyword].value) == value for keyword, value in KEPT.items())
        assert data.SeriesInstanceUID != original[0].SeriesInstanceUID
        assert data.SyntheticData == "YES" and list(data.ImageType)[:2] == ["DERIVED", "SECONDARY"]
    assert all(b"CANARY" not in path.read_bytes() for path in files)
    [back] = read_series(tmp_path / "out")
    np.testing.assert_array_equal(back.array, item.array)
    np.testing.assert_allclose(back.affine, item.affine, atol=1e-6)


def test_derived_slices_name_the_source_slices_around_them(tmp_path: Path, source: Path) -> None:
    files = derive(upsampled(), tmp_path / "out", source)
    uids = [data.SOPInstanceUID for data in headers(sorted(source.iterdir()))]
    named = [[item.ReferencedSOPInstanceUID for item in data.SourceImageSequence] for data in headers(files)]
    assert named[0] == [uids[0]]  # a quarter of a slice outside the first
    assert named[1] == [uids[0], uids[1]] and named[2] == [uids[0], uids[1]] and named[-1] == [uids[-1]]


@pytest.mark.parametrize("scale", [1, 0.37])
def test_derived_series_is_valid(tmp_path: Path, source: Path, scale: float) -> None:
    files = derive(upsampled(scale), tmp_path / "out", source)
    assert complaints(files[0]) == [] and complaints(files[-1]) == []


def test_derived_series_keeps_the_rescale_that_holds_its_values(tmp_path: Path, source: Path) -> None:
    for path in source.iterdir():
        data = pydicom.dcmread(path)
        data.RescaleSlope, data.RescaleIntercept = "0.5", "-3.25"
        data.save_as(path)
    [scan] = read_series(source)
    data = headers(derive(scan, tmp_path / "out", source))[0]
    assert (float(data.RescaleSlope), float(data.RescaleIntercept)) == (0.5, -3.25)
    [back] = read_series(tmp_path / "out")
    np.testing.assert_array_equal(back.array, scan.array)


def test_derived_series_takes_the_series_of_its_field_of_view(tmp_path: Path, source: Path) -> None:
    moved = affine()
    moved[:3, 3] += 200
    for path in write(Volume(volume("ct").array, moved, "ct"), tmp_path / "other"):
        path.rename(source / f"0{path.name}")
    for chosen, expected in ((None, "KEEP-1"), (0, "MEDGAN-SYNTHETIC")):
        files = derive(upsampled(), tmp_path / f"out{chosen}", source, series=chosen)
        assert headers(files)[0].PatientID == expected


def test_derived_mr_and_radiograph_are_valid(tmp_path: Path) -> None:
    for modality, dims in (("mr", 3), ("xray", 2)):
        item = volume(modality, dims=dims)
        if dims == 2:
            item = Volume(item.array, np.diag([0.1, 0.2, 1, 1]), modality)
        write(item, tmp_path / f"{modality}-scan")
        files = derive(item, tmp_path / modality, tmp_path / f"{modality}-scan")
        assert complaints(files[0]) == []
        assert headers(files)[0].SourceImageSequence


def test_nothing_of_an_identified_scan_reaches_a_synthetic_case(tmp_path: Path) -> None:
    folder = SHARED / "odd" / "dicom" / "d_phi_everywhere"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    [scan] = read_series(folder)
    assert not any("PHI^" in str(note) or "DOE" in str(note) for note in scan.notes)
    for path in write(scan, tmp_path / "synthetic"):
        assert b"PHI" not in path.read_bytes() and b"DOE" not in path.read_bytes()
    for path in derive(scan, tmp_path / "derived", folder):
        content = path.read_bytes()
        assert b"MRN-4711-PHI" in content  # the patient is kept, the hospital, devices and private elements are not
        dropped = (b"Hospital", b"STATION", b"PHI-SN", b"Street", b"NESTED", b"VENDOR")
        assert not any(word in content for word in dropped)


def test_real_series_survives_derivation(tmp_path: Path) -> None:
    folder = SHARED / "odd" / "dicom" / "d_enhanced_shuffled_frames"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    [scan] = read_series(folder)
    files = derive(scan, tmp_path / "out", folder)
    [back] = read_series(tmp_path / "out")
    np.testing.assert_array_equal(back.array, scan.array)
    np.testing.assert_allclose(back.affine, scan.affine, atol=1e-6)
    numbers = [data.SourceImageSequence[0].ReferencedFrameNumber for data in headers(files)]
    assert sorted(numbers) == list(range(1, 13)) and numbers != sorted(numbers)
    assert complaints(files[0]) == []
