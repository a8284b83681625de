"""Everything that can be wrong with a NIfTI file: a refusal with its code, or a note, and never a crash."""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nifti_makers import AFFINE, TURN, code_of, notes_of, patched, saved, values

from medgan.errors import Refused
from medgan.imaging import nifti
from medgan.imaging.nifti import read_nifti, write_nifti
from medgan.imaging.rules import Rules

# --- what is wrong with a file -----------------------------------------------------------------------------------


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert code_of(tmp_path / "no.nii") == "FILE_MISSING"
    assert code_of(tmp_path / "no.hdr") == "FILE_MISSING"
    (tmp_path / "folder.nii").mkdir()
    assert code_of(tmp_path / "folder.nii") == "FILE_FORMAT"
    nibabel.save(nibabel.Nifti1Pair(values(), AFFINE), tmp_path / "a.img")
    (tmp_path / "a.hdr").rename(tmp_path / "b.hdr")
    assert code_of(tmp_path / "a.img") == "FILE_PAIR_MISSING"
    assert code_of(tmp_path / "b.hdr") == "FILE_PAIR_MISSING"
    (tmp_path / "b.hdr").rename(tmp_path / "b.nii")
    assert code_of(tmp_path / "b.nii") == "FILE_PAIR_MISSING"
    saved(tmp_path, values(), name="s.nii").rename(tmp_path / "s.hdr")
    (tmp_path / "s.img").write_bytes(b"x")
    assert code_of(tmp_path / "s.hdr") == "FILE_EXTENSION"


def test_files_that_are_something_else(tmp_path: Path) -> None:
    contents = {
        b"": "FILE_EMPTY",
        gzip.compress(b""): "FILE_EMPTY",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "FILE_IS_POINTER",
        b"../.git/annex/objects/Xx/Yy/MD5E-s1.nii.gz\n": "FILE_IS_POINTER",
        b"<html>404</html>" * 100: "FILE_NOT_NIFTI",
        gzip.compress(b"<html>404</html>" * 100): "FILE_NOT_NIFTI",
        struct.pack("<i", 348) + b"\0" * 50: "FILE_TRUNCATED",
        struct.pack("<i", 348) + b"\0" * 344: "FORMAT_ANALYZE",
        struct.pack(">i", 540) + b"\0" * 600: "FILE_NOT_NIFTI",
        b"\x1f\x8b": "FILE_TRUNCATED",
    }
    for content, code in contents.items():
        (tmp_path / "a.nii.gz").write_bytes(content)
        assert code_of(tmp_path / "a.nii.gz") == code


def test_every_way_of_cutting_a_file_short(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        content = saved(tmp_path, values(), name=name).read_bytes()
        for length in range(1, len(content), 7):
            (tmp_path / name).write_bytes(content[:length])
            # The very first bytes do not even say that it is NIfTI.
            assert code_of(tmp_path / name) == "FILE_TRUNCATED" or length < 4


def test_any_flipped_byte_of_a_gzip_file_is_caught(tmp_path: Path) -> None:
    path = saved(tmp_path, values())
    content = path.read_bytes()
    for position in range(10, len(content), 11):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        with pytest.raises(Refused):
            read_nifti(path)
    path.write_bytes(content[:-8] + bytes(4) + content[-4:])
    assert code_of(path) == "FILE_CORRUPT"


def test_any_header_byte_set_to_anything_never_crashes(tmp_path: Path) -> None:
    path = saved(tmp_path, values((4, 4, 4)), name="a.nii")
    content = path.read_bytes()
    tracemalloc.start()
    meaningful = (*range(4), *range(40, 58), *range(68, 128), *range(252, 352))
    for position, byte in itertools.product(meaningful, (0, 0x7F, 0x80, 0xFF)):
        path.write_bytes(content[:position] + bytes([byte]) + content[position + 1 :])
        try:
            volume = read_nifti(path)[0]
        except Refused:
            continue
        assert np.isfinite(volume.array).all() and np.isfinite(volume.affine).all()
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("offset", "data", "code"),
    [
        (40, struct.pack("<h", 9), "HDR_BAD_DIM"),
        (40, struct.pack("<h", 0), "HDR_BAD_DIM"),
        (40, struct.pack("<h", 1), "HDR_BAD_DIM"),
        (44, struct.pack("<h", -8), "HDR_BAD_DIM"),
        (44, struct.pack("<h", 0), "HDR_BAD_DIM"),
        (70, struct.pack("<h", 9999), "HDR_BAD_DTYPE"),
        (70, struct.pack("<h", 1536), "HDR_BAD_DTYPE"),
        (70, struct.pack("<h", 1), "HDR_BAD_DTYPE"),
        (70, struct.pack("<h", 2304), "PIX_COLOUR"),
        (70, struct.pack("<h", 1792), "PIX_COMPLEX"),
        (80, struct.pack("<f", 0), "GEOM_BAD_SPACING"),
        (84, struct.pack("<f", -1), "GEOM_BAD_SPACING"),
        (88, struct.pack("<f", np.nan), "GEOM_BAD_SPACING"),
        (108, struct.pack("<f", np.nan), "HDR_BAD_OFFSET"),
        (108, struct.pack("<f", 100), "HDR_BAD_OFFSET"),
        (108, struct.pack("<f", 1e6), "FILE_TRUNCATED"),
        (108, struct.pack("<f", 1e30), "FILE_TRUNCATED"),
        (112, struct.pack("<f", np.inf), "PIX_BAD_RESCALE"),
        (112, struct.pack("<ff", 1, np.nan), "PIX_BAD_RESCALE"),
        (280, struct.pack("<f", np.nan), "GEOM_BAD_AFFINE"),
        (292, struct.pack("<f", -np.inf), "GEOM_BAD_AFFINE"),
        (280, b"\0" * 48, "GEOM_SINGULAR_AFFINE"),
        (280, struct.pack("<4f", 0, 1, 0, 0), "GEOM_SINGULAR_AFFINE"),
        (284, struct.pack("<f", 0.1), "GEOM_SHEAR"),
        (344, b"n+3\0", "FILE_NOT_NIFTI"),
    ],
)
def test_headers_that_lie(tmp_path: Path, offset: int, data: bytes, code: str) -> None:
    assert code_of(patched(saved(tmp_path, values(), name="a.nii"), offset, data)) == code


@pytest.mark.parametrize(
    ("offset", "data", "code"),
    [
        (72, struct.pack("<h", 99), "HDR_BAD_DTYPE"),
        (80, struct.pack("<f", 3), "SPACING_FROM_POSITIONS"),
        (123, b"\x01", "GEOM_UNITS"),
        (123, b"\x07", "GEOM_UNITS"),
    ],
)
def test_headers_that_are_odd(tmp_path: Path, offset: int, data: bytes, code: str) -> None:
    assert notes_of(read_nifti(patched(saved(tmp_path, values(), name="a.nii"), offset, data))[0]) == [code]


def test_units_are_converted(tmp_path: Path) -> None:
    for unit, factor in ((b"\x01", 1e3), (b"\x02", 1), (b"\x03", 1e-3)):
        volume = read_nifti(patched(saved(tmp_path, values(), name="a.nii"), 123, unit))[0]
        assert np.allclose(volume.affine[:3], AFFINE[:3] * factor, rtol=1e-12)


def test_without_any_form_the_place_is_nibabels_and_noted(tmp_path: Path) -> None:
    path = patched(saved(tmp_path, values(), name="a.nii"), 252, struct.pack("<hh", 0, 0))
    volume = read_nifti(path)[0]
    assert notes_of(volume) == ["GEOM_NO_ORIENTATION"]
    assert np.allclose(volume.affine, nibabel.load(path).affine)


def test_the_qform_alone_is_enough(tmp_path: Path) -> None:
    for sign in (1, -1):
        affine = AFFINE.copy()
        affine[:3, :3] = TURN @ AFFINE[:3, :3] @ np.diag([sign, 1, 1])
        img = nibabel.Nifti1Image(values(), affine)
        img.set_qform(affine, code=1)
        img.set_sform(None, code=0)
        nibabel.save(img, tmp_path / "q.nii")
        volume = read_nifti(tmp_path / "q.nii")[0]
        assert np.allclose(volume.affine, affine, atol=1e-5) and volume.notes == ()
    plain = read_nifti(patched(tmp_path / "q.nii", 76, struct.pack("<f", 1)))[0].affine
    zero = read_nifti(patched(tmp_path / "q.nii", 76, struct.pack("<f", 0)))[0].affine
    assert np.array_equal(zero, plain)  # qfac 0 counts as 1
    assert code_of(patched(tmp_path / "q.nii", 256, struct.pack("<f", np.nan))) == "GEOM_BAD_AFFINE"
    assert code_of(patched(tmp_path / "q.nii", 256, struct.pack("<f", 2))) == "GEOM_BAD_ORIENTATION"


def both_forms(folder: Path, sform: np.ndarray, qform: np.ndarray) -> Path:
    img = nibabel.Nifti1Image(values(), sform)
    img.set_sform(sform, code=2)
    img.set_qform(qform, code=1)
    nibabel.save(img, folder / "both.nii")
    return folder / "both.nii"


def test_qform_and_sform_that_disagree(tmp_path: Path) -> None:
    assert read_nifti(both_forms(tmp_path, AFFINE, AFFINE))[0].notes == ()
    assert code_of(both_forms(tmp_path, AFFINE, np.diag([-1, 1, 1, 1]) @ AFFINE)) == "GEOM_QFORM_SFORM"
    assert code_of(both_forms(tmp_path, AFFINE, AFFINE @ np.diag([-1, 1, 1, 1]))) == "GEOM_QFORM_SFORM"
    assert code_of(both_forms(tmp_path, AFFINE, AFFINE @ np.diag([2, 1, 1, 1]))) == "GEOM_QFORM_SFORM"
    moved = AFFINE.copy()
    moved[:3, :3] = TURN @ moved[:3, :3]
    volume = read_nifti(both_forms(tmp_path, AFFINE, moved))[0]
    assert notes_of(volume) == ["GEOM_QFORM_SFORM"] and np.array_equal(volume.affine, AFFINE)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    for wrong in (np.nan, np.inf, -np.inf):
        array = values(dtype=np.float32)
        array[3, 2, 1] = wrong
        assert code_of(saved(tmp_path, array)) == "PIX_NONFINITE"
    # float64 beyond float32, and float32 that the scaling takes there
    assert code_of(saved(tmp_path, values(dtype=np.float64) * 1e300)) == "PIX_NONFINITE"
    path = saved(tmp_path, values(dtype=np.float32), name="a.nii")
    assert code_of(patched(path, 112, struct.pack("<ff", 1e38, 0))) == "PIX_NONFINITE"


def test_constant_and_huge_values_are_noted(tmp_path: Path) -> None:
    assert notes_of(read_nifti(saved(tmp_path, np.zeros((4, 4, 4), np.uint8)))[0]) == ["PIX_CONSTANT"]
    array = values(dtype=np.uint64) + np.uint64(2**60)
    volume = read_nifti(saved(tmp_path, array))[0]
    assert notes_of(volume) == ["PIX_PRECISION_LOSS"] and np.array_equal(volume.array[0], array)


def test_trailing_bytes(tmp_path: Path) -> None:
    for name, pack in (("a.nii", bytes), ("a.nii.gz", gzip.compress)):
        path = saved(tmp_path, values(), name="plain.nii")
        content = path.read_bytes()
        (tmp_path / name).write_bytes(pack(content + b"\0" * 160))
        volume = read_nifti(tmp_path / name)[0]
        assert notes_of(volume) == ["FILE_TRAILING_DATA"] and np.array_equal(volume.array[0], values())
        (tmp_path / name).write_bytes(pack(content + b"\0" * 2**21))
        assert code_of(tmp_path / name) == "FILE_TRAILING_DATA"


def header_claiming(shape: tuple[int, ...]) -> bytes:
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header.set_sform(AFFINE, code=1)
    header["vox_offset"] = 352
    return bytes(header.binaryblock) + b"\0" * 4


def test_memory_stays_bounded_whatever_is_claimed(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb") as stream:
        stream.write(header_claiming((512, 512, 100)))
        for _ in range(100):
            stream.write(bytes(512 * 512))
    cases: list[tuple[str, bytes, dict[str, Any], str]] = [
        ("a.nii.gz", bomb.getvalue(), {"rules": Rules(2**20)}, "LIMIT"),
        ("a.nii", header_claiming((32767, 32767, 32767)) + bytes(128), {}, "LIMIT_OR_TRUNCATED"),
        ("a.nii.gz", gzip.compress(header_claiming((32767, 32767, 32767))), {}, "LIMIT_OR_TRUNCATED"),
        ("a.nii", header_claiming((1000, 1000, 1000)) + bytes(128), {}, "FILE_TRUNCATED"),
        ("a.nii.gz", gzip.compress(header_claiming((1000, 1000, 1000))), {}, "FILE_TRUNCATED"),
        ("a.nii", header_claiming((100, 100, 1)) + bytes(10000), {"rules": Rules(19_999)}, "LIMIT"),
        ("a.nii.gz", gzip.compress(header_claiming((8, 8, 8)) + bytes(50_000_000)), {}, "FILE_TRAILING_DATA"),
    ]
    for name, content, options, code in cases:
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        assert code_of(tmp_path / name, **options) == code
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10e6, (name, code)


@pytest.mark.parametrize(
    ("dtype", "slope", "result"), [(np.int16, 1, np.int16), (np.int16, 0.5, np.float32), (np.float64, 1, np.float32)]
)
def test_at_most_three_copies_in_memory(tmp_path: Path, dtype: Any, slope: float, result: Any) -> None:
    array = values((256, 256, 128), dtype)
    path = patched(saved(tmp_path, array, name="a.nii"), 112, struct.pack("<ff", slope, 0))
    copy = array.size * np.dtype(result).itemsize
    del array
    nibabel.load(path)  # what importing costs is no copy
    tracemalloc.start()
    volume = read_nifti(path)[0]
    reading = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    write_nifti(volume, tmp_path / "b.nii")
    writing = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.array.dtype == result
    slack = 4 * nifti.CHUNK_BYTES
    assert reading <= 3 * copy + slack
    assert writing <= 2 * copy + slack
