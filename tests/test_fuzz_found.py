"""What fuzzing found, each as the smallest input that showed it."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_makers import make_slice, radiograph, save, values
from nifti_makers import patched

from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.imaging.files import read, read_all
from medgan.imaging.png import missing_bytes


def _refusal(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        read_all(path)
    return caught.value.code


# --- DICOM ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content", [b"\0\0", b"\xfe\xff", b"\xfe\xff\0\xe0\xff\xff"])
def test_a_sequence_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = save([make_slice(0, values()[0], (0, 0, 0))], tmp_path) / "001.dcm"
    data = path.read_bytes()
    # pydicom parses sequences when they are asked for, long after the header.
    table = struct.pack("<HH2sHI", 0x0028, 0x3000, b"SQ", 0, len(content)) + content
    at = data.index(b"\xe0\x7f\x10\0OW")
    path.write_bytes(data[:at] + table + data[at:])
    assert _refusal(path) == "FILE_CORRUPT"


@pytest.mark.parametrize("tag, kind", [(0x0103, b"AT"), (0x0101, b"AT")])
def test_an_element_of_a_type_that_gives_nothing_is_not_absent(tmp_path: Path, tag: int, kind: bytes) -> None:
    path = save([make_slice(0, values()[0], (0, 0, 0))], tmp_path) / "001.dcm"
    data = path.read_bytes()
    old = struct.pack("<HH", 0x0028, tag) + b"US"
    assert old in data
    path.write_bytes(data.replace(old, old[:4] + kind))  # signed values were read as unsigned ones
    assert _refusal(path) == "PIX_BAD_BITS"


@pytest.mark.parametrize("kind", [b"AT", b"FL", b"UL"])
def test_decimal_strings_are_not_read_as_binary_numbers(tmp_path: Path, kind: bytes) -> None:
    item = make_slice(0, values()[0], (0, 0, 0))
    item.PixelSpacing = ["0.4", "0.4"]  # eight bytes, which make two numbers of these types too
    path = save([item], tmp_path) / "001.dcm"
    old = b"\x28\0\x30\0DS"
    path.write_bytes(path.read_bytes().replace(old, old[:4] + kind))
    assert _refusal(path) == "GEOM_BAD_SPACING"


@pytest.mark.parametrize("changes, code", [
    ({"RescaleSlope": "1e300"}, "PIX_NONFINITE"), ({"RescaleIntercept": "-1e300"}, "PIX_NONFINITE"),
    ({"RescaleSlope": "1e30"}, None), ({"RescaleSlope": str(2**40), "RescaleIntercept": str(2**62)}, None),
])
def test_a_rescale_beyond_64_bits_does_not_overflow(tmp_path: Path, changes: dict[str, str], code: str | None) -> None:
    item = make_slice(0, values()[0], (0, 0, 0))
    for keyword, value in changes.items():
        setattr(item, keyword, value)
    folder = save([item], tmp_path)
    if code:
        assert _refusal(folder) == code
    else:
        slope, intercept = float(item.RescaleSlope), float(item.RescaleIntercept)
        np.testing.assert_allclose(read(folder).array[0], values()[0].T * slope + intercept, rtol=1e-6)


def test_values_that_rounding_makes_one_are_said_to_be(tmp_path: Path) -> None:
    item = make_slice(0, values()[0], (0, 0, 0))
    item.RescaleIntercept = "1000000000000"
    (volume,) = read_all(save([item], tmp_path) / "001.dcm")
    assert volume.array.min() == volume.array.max() == np.float32(1e12)
    assert {"PIX_PRECISION_LOSS", "PIX_CONSTANT"} <= {note.code for note in volume.notes}


@pytest.mark.parametrize("spacing", [["1e308", "1e308"], ["1", "1e12"]])
def test_a_spacing_that_is_no_millimetres_is_refused(tmp_path: Path, spacing: list[str]) -> None:
    assert _refusal(save([radiograph(ImagerPixelSpacing=spacing)], tmp_path)) == "GEOM_BAD_AFFINE"


# --- NIfTI ----------------------------------------------------------------------------------------------------------

def _plain(tmp_path: Path, make: Any = nibabel.Nifti1Image) -> Path:
    image = make(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1.0, 2, 3, 1]))
    image.set_qform(image.affine, 1)
    nibabel.save(image, tmp_path / "a.nii")
    return tmp_path / "a.nii"


def test_a_quaternion_of_double_precision_does_not_overflow(tmp_path: Path) -> None:
    path = patched(_plain(tmp_path, nibabel.Nifti2Image), 352, struct.pack("<d", 1e300))
    assert _refusal(path) == "GEOM_BAD_ORIENTATION"


def test_a_slope_that_leaves_one_value_is_noted(tmp_path: Path) -> None:
    path = patched(_plain(tmp_path), 112, struct.pack("<ff", 1e-30, 1000))
    assert "PIX_CONSTANT" in {note.code for note in read(path).notes}


# --- rasters and arrays ---------------------------------------------------------------------------------------------

def _png(rows: bytes, width: int = 6, height: int = 8, interlaced: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


_ROWS = b"".join(b"\0" + bytes(range(10 * row, 10 * row + 6)) for row in range(8))


@pytest.mark.parametrize("left", [0, 7, 28, 55])
def test_a_png_whose_stream_ends_before_its_rows_is_refused(tmp_path: Path, left: int) -> None:
    path = tmp_path / "a.png"  # every checksum is right; Pillow gives zeros for the rest
    path.write_bytes(_png(_ROWS[:left]))
    assert _refusal(path) == "FILE_TRUNCATED"
    assert missing_bytes(path) == len(_ROWS) - left


def test_a_whole_png_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png(_ROWS))
    np.testing.assert_array_equal(read(path).array[0, 0], range(0, 80, 10))


def test_a_png_that_claims_far_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png(_ROWS, height=0x4000008))
    assert _refusal(path) == "FILE_TRUNCATED"


def test_an_interlaced_png_is_counted_by_its_passes(tmp_path: Path) -> None:
    values = np.arange(48, dtype=np.uint8).reshape(8, 6)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for left, top, across, down in passes
                    for row in values[top::down, left::across] if row.size)
    path = tmp_path / "a.png"
    path.write_bytes(_png(rows, interlaced=1))
    np.testing.assert_array_equal(read(path).array[0], values.T)
    path.write_bytes(_png(rows[:-1], interlaced=1))
    assert _refusal(path) == "FILE_TRUNCATED"


def test_a_member_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, image=np.arange(12).reshape(3, 4))
    data = bytearray(path.read_bytes())
    listed = data.index(b"PK\1\2")
    data[listed + 9] |= 8  # the list says that names are UTF-8, and the name before the member is not
    data[30] = 0xFF
    path.write_bytes(data)
    assert _refusal(path) == "FILE_CORRUPT"


@pytest.mark.parametrize("name", ["train_labels", "train_ids"])
@pytest.mark.parametrize("point, code", [(0x110000, "TAB_ENCODING"), (0xFFFFFFFF, "TAB_ENCODING"),
                                         (0xD800, "TAB_ENCODING"), (0, None)])
def test_text_that_is_no_text_in_an_archive_is_refused(tmp_path: Path, name: str, point: int, code: str | None) -> None:
    texts = np.array(["a", "b"])
    texts.view(np.uint32)[1] = point
    arrays = {"train_images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), name: texts}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(Refused) as caught:
        open_dataset(tmp_path / "a.npz")
    empty = {"train_labels": "TAB_MISSING_LABEL", "train_ids": "TAB_UNMATCHED"}
    assert caught.value.code == (code or empty[name])


# --- data sets ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("described", [
    {"channel_names": {"0": "T1"}, "file_ending": ".nii.gz", "dataset": {"": {"images": ["a.nii.gz"]}}},
    {"channel_names": {"0": "T1"}, "file_ending": ".nii.gz", "dataset": {" ": {"images": ["a.nii.gz"]}}},
    {"training": [".nii.gz"], "modality": {"0": "T1"}},
])
def test_a_case_without_a_name_is_refused(tmp_path: Path, described: dict[str, Any]) -> None:
    for name in ("a.nii.gz", ".nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(Refused) as caught:
        open_dataset(tmp_path)
    assert caught.value.code == "DATASET_JSON"
