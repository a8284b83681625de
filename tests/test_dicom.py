"""The DICOM reader: true geometry, real values, and a refusal with its code for everything it cannot vouch for."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_makers import (
    COLUMNS,
    ROWS,
    SLICES,
    assert_same,
    codes,
    enhanced,
    make_series,
    make_slice,
    one,
    radiograph,
    refusal,
    save,
    values,
)
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medgan.imaging.dicom import read_series
from medgan.imaging.dicom_write import write_synthetic
from medgan.imaging.geometry import reorient
from medgan.imaging.volume import Volume

# --- what a good series becomes -------------------------------------------------------------------------------------

def test_series_has_true_values_and_place(tmp_path: Path) -> None:
    items = make_series()
    for item, number in zip(items, (3, 1, 5, 2, 4), strict=True):
        item.InstanceNumber = number  # neither numbers nor names say where a slice lies
    volume = one(save(items, tmp_path))
    assert volume.array.dtype == np.int16 and volume.array.shape == (1, COLUMNS, ROWS, SLICES)
    np.testing.assert_array_equal(volume.array[0], values().transpose(2, 1, 0))
    # LPS (-10, -20, -30) is RAS (10, 20, -30); columns are 0.75 mm apart, rows 1.5 mm.
    expected = [[-0.75, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-12)
    assert volume.modality == "ct" and volume.orientation == "LPS" and volume.notes == ()
    assert volume.source == tmp_path


def test_oblique_series_agrees_with_highdicom(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    row, column = turn[:, 0], turn[:, 1]
    normal = np.cross(row, column)
    items = [make_slice(z, values()[z], (5, 6, 7) + z * 3.1 * normal, (*row, *column)) for z in range(SLICES)]
    save(items, tmp_path)
    assert_same(one(tmp_path), highdicom.get_volume_from_series([pydicom.dcmread(p) for p in tmp_path.iterdir()]))


def _lps_value(points: np.ndarray) -> np.ndarray:
    """A value that tells every place on a grid of whole mm from every other."""
    return np.asarray(points @ [1, 20, 400], dtype=np.int64)


@pytest.mark.parametrize("backwards", [False, True], ids=["up", "down"])
def test_all_24_directions_of_slices_show_the_same_patient(tmp_path: Path, backwards: bool) -> None:
    units = [sign * unit for unit in np.eye(3) for sign in (1, -1)]
    planes = [(row, column) for row in units for column in units if row @ column == 0]
    assert len(planes) == 24
    seen = set()
    for number, (row, column) in enumerate(planes):
        normal = np.cross(row, column) * (-1 if backwards else 1)
        items = []
        for z in range(4):
            position = np.array([3, -2, 5]) + 3 * z * normal
            rows, columns = np.mgrid[:6, :5]
            points = position + 2 * rows[..., None] * column + columns[..., None] * row
            item = make_slice(z, _lps_value(points).astype(np.int16), position, (*row, *column))
            item.PixelSpacing, item.SliceThickness = [2, 1], 3
            items.append(item)
        volume = one(save(items, tmp_path / str(number)))
        assert volume.shape == (5, 6, 4) and volume.notes == ()
        index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
        points = (index @ volume.affine[:3, :3].T + volume.affine[:3, 3]) * [-1, -1, 1]
        np.testing.assert_array_equal(volume.array[0], _lps_value(np.rint(points)))
        assert np.abs(points - np.rint(points)).max() < 1e-9
        seen.add(volume.orientation)
    assert len(seen) == 24  # as stored, a series is never mirrored


@pytest.mark.slow
def test_all_48_orientations_survive_writing_and_reading(tmp_path: Path) -> None:
    original = one(save(make_series(3), tmp_path / "source"))
    small = reorient(Volume(original.array[:, :5, :4], original.affine, "ct"))
    for number, axes in enumerate(itertools.permutations(("RL", "AP", "SI"))):
        for letters in itertools.product(*axes):
            turned = reorient(small, "".join(letters))
            folder = tmp_path / f"{number}{''.join(letters)}"
            write_synthetic(turned, folder, model_hash="0", seed=1, derivation="turned")
            back = reorient(one(folder))
            np.testing.assert_array_equal(back.array, small.array)
            np.testing.assert_allclose(back.affine, small.affine, atol=1e-9)


def test_rescale_is_applied_slice_by_slice(tmp_path: Path) -> None:
    items = make_series()
    for z, item in enumerate(items):
        item.RescaleSlope, item.RescaleIntercept = z + 1, -z
    volume = one(save(items, tmp_path))
    expected = values().astype(int) * np.arange(1, 6)[:, None, None] - np.arange(5)[:, None, None]
    np.testing.assert_array_equal(volume.array[0], expected.transpose(2, 1, 0))
    assert volume.array.dtype == np.int16


def test_fractional_rescale_gives_float32(tmp_path: Path) -> None:
    items = make_series()
    for item in items:
        item.RescaleSlope, item.RescaleIntercept = "0.25", "-1.5"
    volume = one(save(items, tmp_path))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], values().transpose(2, 1, 0) * 0.25 - 1.5)


def test_wide_values_get_the_smallest_type_that_holds_them(tmp_path: Path) -> None:
    for name, high, dtype in (("narrow", 4000, np.int16), ("wide", 65535, np.int32)):
        items = make_series()
        for item in items:
            pixels = np.linspace(0, high, ROWS * COLUMNS).astype(np.uint16)
            item.PixelRepresentation, item.RescaleIntercept, item.PixelData = 0, -1024, pixels.tobytes()
        volume = one(save(items, tmp_path / name))
        assert volume.array.dtype == dtype and volume.array.max() == high - 1024


def test_garbage_in_unused_bits_is_masked(tmp_path: Path) -> None:
    items = make_series()
    for item, plane in zip(items, values(), strict=True):
        item.BitsStored, item.HighBit = 12, 11
        item.PixelData = ((plane.astype(np.uint16) & 0x0FFF) | 0xA000).tobytes()
    np.testing.assert_array_equal(one(save(items, tmp_path)).array[0], values().transpose(2, 1, 0))


def test_high_bit_places_the_value(tmp_path: Path) -> None:
    items = make_series()
    for item, plane in zip(items, values(), strict=True):
        item.BitsStored, item.HighBit = 12, 15
        item.PixelData = ((plane.astype(np.uint16) & 0x0FFF) << 4 | 0x3).astype(np.uint16).tobytes()
    np.testing.assert_array_equal(one(save(items, tmp_path)).array[0], values().transpose(2, 1, 0))


@pytest.mark.parametrize("padding, wrong_sign", [(-2000, False), (-2000, True)])
def test_padding_becomes_the_lowest_real_value(tmp_path: Path, padding: int, wrong_sign: bool) -> None:
    items = make_series()
    for item, plane in zip(items, values(), strict=True):
        plane = plane.copy()
        plane[:2] = padding
        item.PixelData = plane.tobytes()
        item.add_new("PixelPaddingValue", "US" if wrong_sign else "SS", padding & 0xFFFF if wrong_sign else padding)
    volume = one(save(items, tmp_path))
    assert codes([volume]) == {"PADDING_MASKED"}
    expected = values().copy()
    expected[:, :2] = values()[:, 2:].min()
    np.testing.assert_array_equal(volume.array[0], expected.transpose(2, 1, 0))


def test_padding_wider_than_the_stored_bits_spares_real_values(tmp_path: Path) -> None:
    pixels = np.full((ROWS, COLUMNS), 2096, dtype=np.int16)  # -2000 & 0xFFF is 2096
    pixels[0] = -2000
    pixels[1] = 5
    item = make_slice(0, pixels, (0, 0, 0))
    item.BitsStored, item.HighBit, item.PixelRepresentation = 12, 11, 0
    item.add_new("PixelPaddingValue", "US", -2000 & 0xFFFF)
    array = one(save([item], tmp_path)).array[0]
    assert (array[:, 0] == 5).all() and (array[:, 2:] == 2096).all()


def test_monochrome1_is_inverted_only_without_physical_values(tmp_path: Path) -> None:
    items = make_series()
    for item in items:
        item.PhotometricInterpretation = "MONOCHROME1"
    volume = one(save(items, tmp_path / "ct"))
    np.testing.assert_array_equal(volume.array[0], values().transpose(2, 1, 0))
    assert volume.notes == ()
    volume = one(save([radiograph(PhotometricInterpretation="MONOCHROME1")], tmp_path / "cr"))
    np.testing.assert_array_equal(volume.array[0], 4095 - np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS).T)
    assert codes([volume]) == {"MONOCHROME1_INVERTED"}


def test_radiograph_is_two_dimensional(tmp_path: Path) -> None:
    volume = one(save([radiograph()], tmp_path) / "001.dcm")
    assert volume.array.shape == (1, COLUMNS, ROWS) and volume.modality == "xray" and volume.notes == ()
    np.testing.assert_allclose(volume.spacing_mm, (0.1, 0.2))
    np.testing.assert_array_equal(volume.array[0].T.ravel(), np.arange(ROWS * COLUMNS))


def test_radiograph_without_spacing_says_so(tmp_path: Path) -> None:
    item = radiograph()
    del item.ImagerPixelSpacing
    assert codes(read_series(save([item], tmp_path))) == {"GEOM_NO_SPACING"}


def test_radiographs_of_one_series_stay_apart(tmp_path: Path) -> None:
    volumes = read_series(save([radiograph(), radiograph(SOPInstanceUID="1.2.9", Rows=ROWS - 1)], tmp_path))
    assert sorted(volume.shape for volume in volumes) == [(COLUMNS, ROWS - 1), (COLUMNS, ROWS)]
    assert codes(volumes) == {"SERIES_SPLIT"}


def test_modality_lut_is_applied(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [2048, 0, 16])
    table.add_new("LUTData", "US", [1000 + 3 * n for n in range(2048)])
    volume = one(save([radiograph(ModalityLUTSequence=[table])], tmp_path))
    np.testing.assert_array_equal(volume.array[0].T.ravel(), 1000 + 3 * np.arange(ROWS * COLUMNS))


def test_single_slice_keeps_its_place(tmp_path: Path) -> None:
    volume = one(save(make_series()[2:3], tmp_path))
    assert volume.dims == 2 and codes([volume]) == {"SINGLE_SLICE"}
    np.testing.assert_allclose(volume.affine[:3, 3], [10, 20, -25])


CODECS = {"rle": RLELossless, "jpegls": JPEGLSLossless, "jpeg2000": JPEG2000Lossless}


@pytest.mark.parametrize("name", ["implicit", "big endian", "deflated", "rle", "jpegls", "jpeg2000", "no preamble",
                                  "no meta"])
def test_encodings_give_the_same_volume(tmp_path: Path, name: str) -> None:
    items, expected = make_series(), set()
    for item in items:
        if name == "implicit":
            item.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        elif name == "big endian":
            item.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            item.PixelData = np.frombuffer(item.PixelData, np.int16).byteswap().tobytes()
        elif name == "deflated":
            item.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        elif name in CODECS:
            item.compress(CODECS[name], generate_instance_uid=False)
    save(items, tmp_path)
    for path in tmp_path.iterdir():
        if name == "no preamble":
            expected = {"NO_PREAMBLE"}
            path.write_bytes(path.read_bytes()[132:])
        elif name == "no meta":
            expected = {"NO_FILE_META"}
            data = path.read_bytes()
            path.write_bytes(data[144 + struct.unpack("<I", data[140:144])[0]:])
    volume = one(tmp_path)
    np.testing.assert_array_equal(volume.array[0], values().transpose(2, 1, 0))
    assert codes([volume]) == expected


def test_big_endian_words_of_8_bit_pixels(tmp_path: Path) -> None:
    pixels = (np.arange(ROWS * COLUMNS) % 251).astype(np.uint8)
    item = radiograph(BitsAllocated=8, BitsStored=8, HighBit=7)
    item.PixelData = pixels.view(np.uint16).byteswap().tobytes()
    item.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    volume = one(save([item], tmp_path))
    assert volume.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.array[0].T.ravel(), pixels)


def test_enhanced_frames_are_sorted_and_rescaled_one_by_one(tmp_path: Path) -> None:
    volume = one(save([enhanced([3, 0, 4, 1, 2])], tmp_path) / "001.dcm")
    expected = values() + 100 * np.arange(SLICES, dtype=np.int16)[:, None, None]
    np.testing.assert_array_equal(volume.array[0], expected.transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine[:3, 3], [10, 20, -30])
    assert volume.notes == ()


@pytest.mark.parametrize("name", CODECS)
def test_compressed_enhanced_frames_are_the_same(tmp_path: Path, name: str) -> None:
    plain = one(save([enhanced([3, 0, 4, 1, 2])], tmp_path / "plain"))
    item = enhanced([3, 0, 4, 1, 2])
    item.compress(CODECS[name], generate_instance_uid=False)
    volume = one(save([item], tmp_path / name))
    np.testing.assert_array_equal(volume.array, plain.array)
    np.testing.assert_allclose(volume.affine, plain.affine)


def test_enhanced_time_points_are_split(tmp_path: Path) -> None:
    volumes = read_series(save([enhanced([0, 1, 2, 3, 4], times=3)], tmp_path))
    assert len(volumes) == 3 and codes(volumes) == {"SERIES_SPLIT_4D"}


def test_enhanced_without_all_descriptions_is_refused(tmp_path: Path) -> None:
    item = enhanced([0, 1, 2, 3, 4])
    item.PerFrameFunctionalGroupsSequence = list(item.PerFrameFunctionalGroupsSequence)[:3]
    assert refusal(save([item], tmp_path)) == "GEOM_FRAME_COUNT"
