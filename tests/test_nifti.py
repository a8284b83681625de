"""NIfTI in and out: good files in every shape and form, and everything that can be wrong with one."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from medgan.errors import Refused
from medgan.imaging import nifti
from medgan.imaging.files import read
from medgan.imaging.geometry import align_mask, reorient
from medgan.imaging.nifti import read_nifti, write_nifti
from medgan.imaging.volume import Volume

ODD = Path(__file__).parents[2] / "shared" / "odd"
AFFINE = np.array([[0.75, 0, 0, -16], [0, 1, 0, -24], [0, 0, 2.5, -100], [0, 0, 0, 1.0]])
TURN = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])


def values(shape: tuple[int, ...] = (9, 8, 5), dtype: Any = np.int16) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 200, shape).astype(dtype)


def saved(folder: Path, array: np.ndarray, affine: np.ndarray = AFFINE, name: str = "a.nii.gz") -> Path:
    """Writes a file with nibabel."""
    nibabel.save(nibabel.Nifti1Image(array, affine, dtype=array.dtype), folder / name)
    return folder / name


def patched(path: Path, offset: int, data: bytes) -> Path:
    """Overwrites bytes of an uncompressed file."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


def code_of(path: Path, **options: Any) -> str:
    with pytest.raises(Refused) as refused:
        read_nifti(path, **options)
    assert str(path.name) in str(refused.value)
    return refused.value.code


def notes_of(volume: Volume) -> list[str]:
    return [note.code for note in volume.notes]


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
    cases: list[tuple[str, bytes, dict[str, int], str]] = [
        ("a.nii.gz", bomb.getvalue(), {"max_bytes": 2**20}, "LIMIT"),
        ("a.nii", header_claiming((32767, 32767, 32767)) + bytes(128), {}, "LIMIT_OR_TRUNCATED"),
        ("a.nii.gz", gzip.compress(header_claiming((32767, 32767, 32767))), {}, "LIMIT_OR_TRUNCATED"),
        ("a.nii", header_claiming((1000, 1000, 1000)) + bytes(128), {}, "FILE_TRUNCATED"),
        ("a.nii.gz", gzip.compress(header_claiming((1000, 1000, 1000))), {}, "FILE_TRUNCATED"),
        ("a.nii", header_claiming((100, 100, 1)) + bytes(10000), {"max_bytes": 9999}, "LIMIT"),
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
