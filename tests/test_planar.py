"""Rasters and arrays, and the one way in for every file."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medgan.errors import Refused
from medgan.imaging import files
from medgan.imaging.decoders import raster_bytes_per_pixel
from medgan.imaging.nifti import write_nifti
from medgan.imaging.planar import lines_down, read_planar, write_planar
from medgan.imaging.rules import Rules
from medgan.imaging.volume import Volume

#: 4 columns (X) and 3 rows (Y).
ROWS = np.array([[0, 1, 2, 3], [40, 50, 60, 70], [252, 253, 254, 255]])
UNKNOWN = ["GEOM_NO_SPACING"]


def code_of(path: Path, reader: Any = read_planar) -> str:
    with pytest.raises(Refused) as refused:
        reader(path)
    return refused.value.code


def notes_of(volume: Volume) -> list[str]:
    return [note.code for note in volume.notes]


def saved(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg"])
def test_columns_are_x_and_rows_are_y(tmp_path: Path, suffix: str) -> None:
    pixels = np.kron(ROWS, np.ones((8, 8))).astype(np.uint8)  # flat patches survive JPEG
    volume = read_planar(saved(tmp_path / f"a{suffix}", pixels))[0]
    assert volume.array.dtype == np.uint8 and volume.shape == (32, 24)
    assert np.abs(volume.array[0].T.astype(int) - pixels).max() <= (2 if suffix == ".jpg" else 0)
    assert notes_of(volume) == UNKNOWN and np.array_equal(volume.affine, np.eye(4))


def test_depths(tmp_path: Path) -> None:
    deep = (ROWS * 257).astype(np.uint16)
    volume = read_planar(saved(tmp_path / "deep.png", deep))[0]
    assert volume.array.dtype == np.uint16 and np.array_equal(volume.array[0].T, deep)
    volume = read_planar(saved(tmp_path / "bits.png", ROWS > 50))[0]
    assert np.array_equal(volume.array[0].T, (ROWS > 50) * 255)
    volume = read_planar(saved(tmp_path / "real.tif", ROWS.astype(np.float32) / 7))[0]
    assert np.array_equal(volume.array[0].T, ROWS.astype(np.float32) / 7)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_stored_as_colour_is_taken_and_noted(tmp_path: Path, mode: str) -> None:
    Image.fromarray(ROWS.astype(np.uint8)).convert(mode).save(tmp_path / "a.png")
    volume = read_planar(tmp_path / "a.png")[0]
    assert np.array_equal(volume.array[0].T, ROWS) and notes_of(volume) == ["PIX_COLOUR", *UNKNOWN]


def test_colour_is_refused(tmp_path: Path) -> None:
    colour = np.stack([ROWS, ROWS, 255 - ROWS], -1).astype(np.uint8)
    assert code_of(saved(tmp_path / "a.png", colour)) == "PIX_COLOUR"
    faint = np.stack([ROWS] * 4, -1).astype(np.uint8)
    assert code_of(saved(tmp_path / "b.png", faint)) == "PIX_COLOUR"
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "c.jpg")
    assert code_of(tmp_path / "c.jpg") == "PIX_COLOUR"
    # 16 bits a colour: decoded to 8 without a word by most libraries, grey or not.
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    (tmp_path / "d.png").write_bytes(png(header, b"\0" + bytes(6)))
    assert code_of(tmp_path / "d.png") == "PIX_COLOUR"


def png(header: bytes, pixels: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_several_pages_are_refused(tmp_path: Path) -> None:
    page = Image.fromarray(ROWS.astype(np.uint8))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    assert code_of(tmp_path / "a.tif") == "DIM_UNSUPPORTED"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".npy", ".npz"])
def test_every_way_of_cutting_a_file_short(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    array = np.random.default_rng(0).integers(0, 255, (40, 30)).astype(np.uint8)
    if suffix in (".npy", ".npz"):
        write_planar(Volume(array[None]), path)
    else:
        saved(path, array)
    content = path.read_bytes()
    whole = read_planar(path)[0].array
    for length in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        try:
            volume = read_planar(path)[0]
        except Refused:
            continue
        assert np.array_equal(volume.array, whole)  # only what follows the pixels was lost


def test_a_flipped_byte_in_a_png_is_caught(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", ROWS.astype(np.uint8))
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        if position < len(content) - 12 or content[position : position + 1] in b"IEND":
            assert code_of(path) in ("PIX_DECODE_FAILED", "FILE_FORMAT", "FILE_TRUNCATED", "LIMIT", "PIX_COLOUR")
        else:  # the length and checksum of the empty last chunk
            assert np.array_equal(read_planar(path)[0].array[0].T, ROWS)


def test_bombs_are_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0), bytes(1000)))
    (tmp_path / "b.png").write_bytes(png(struct.pack(">IIBBBBB", 12000, 12000, 8, 0, 0, 0, 0), bytes(1000)))
    (tmp_path / "c.npy").write_bytes(npy("(100000, 100000)", "<f8") + bytes(100))
    (tmp_path / "d.npy").write_bytes(npy("(10000, 10000)", "<f8") + bytes(100))
    with zipfile.ZipFile(tmp_path / "e.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", npy("(100000, 100000)", "<f8") + bytes(10**6))
    expected = {"a.png": "LIMIT", "b.png": "FILE_TRUNCATED", "c.npy": "LIMIT_OR_TRUNCATED", "d.npy": "FILE_TRUNCATED",
                "e.npz": "LIMIT_OR_TRUNCATED"}
    for name, code in expected.items():
        tracemalloc.start()
        assert code_of(tmp_path / name) == code
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10e6, name


def npy(shape: str, descr: str) -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def test_arrays_of_every_number_of_axes(tmp_path: Path) -> None:
    for shape, expected in (((4, 3), (1, 4, 3)), ((4, 3, 2), (1, 4, 3, 2)), ((2, 4, 3, 5), (2, 4, 3, 5))):
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        for stored in (array, np.asfortranarray(array), array.astype(">f4")):
            np.save(tmp_path / "a.npy", stored)
            volume = read_planar(tmp_path / "a.npy")[0]
            assert np.array_equal(volume.array, array.reshape(expected)) and notes_of(volume) == UNKNOWN
            assert volume.array.dtype.isnative and volume.array.flags.c_contiguous and volume.array.flags.writeable
    for shape in ((5,), (1, 2, 3, 4, 5), (3, 0)):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        assert code_of(tmp_path / "a.npy") == "DIM_UNSUPPORTED"


def test_arrays_that_are_no_images(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Gadget:
        def __reduce__(self) -> Any:
            return (open, (str(canary), "w"))

    np.save(tmp_path / "a.npy", np.array([[Gadget()]], dtype=object), allow_pickle=True)
    assert code_of(tmp_path / "a.npy") == "FILE_UNSAFE"
    np.savez(tmp_path / "a.npz", image=np.array([[Gadget()]], dtype=object))
    assert code_of(tmp_path / "a.npz") == "FILE_UNSAFE"
    assert not canary.exists()
    for array, code in (
        (np.ones((3, 3), complex), "PIX_COMPLEX"),
        (np.full((3, 3), "x"), "HDR_BAD_DTYPE"),
        (np.full((3, 3), np.nan), "PIX_NONFINITE"),
        (np.full((3, 3), -np.inf, np.float16), "PIX_NONFINITE"),
    ):
        np.save(tmp_path / "b.npy", array)
        assert code_of(tmp_path / "b.npy") == code
    with (tmp_path / "several.npy").open("wb") as file:
        np.save(file, np.eye(3))
        np.save(file, np.eye(3))
    assert code_of(tmp_path / "several.npy") == "FILE_TRAILING_DATA"
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': broken")
    assert code_of(tmp_path / "c.npy") == "FILE_CORRUPT"
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 not a zip")
    assert code_of(tmp_path / "d.npz") == "FILE_CORRUPT"


def test_archives(tmp_path: Path) -> None:
    affine = np.diag([0.5, 2, 3, 1.0])
    channels = np.arange(24.0).reshape(2, 4, 3)
    np.savez(tmp_path / "a.npz", image=channels, spacing_mm=[0.5, 2.0])
    volume = read_planar(tmp_path / "a.npz")[0]
    assert volume.dims == 2 and volume.channels == 2 and volume.spacing_mm == (0.5, 2.0) and volume.notes == ()
    np.savez(tmp_path / "b.npz", anything=channels, affine=affine)
    volume = read_planar(tmp_path / "b.npz")[0]
    assert volume.shape == (2, 4, 3) and np.array_equal(volume.affine, affine)
    np.savez(tmp_path / "c.npz", train_images=channels, test_images=channels)
    assert code_of(tmp_path / "c.npz") == "FILE_FORMAT"
    np.savez(tmp_path / "d.npz", image=channels, spacing_mm=[0.0, 1.0])
    assert code_of(tmp_path / "d.npz") == "GEOM_BAD_SPACING"
    np.savez(tmp_path / "e.npz", image=channels, affine=np.zeros((4, 4)))
    assert code_of(tmp_path / "e.npz") == "GEOM_SINGULAR_AFFINE"
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(np.float64(7.0).tobytes())] ^= 1
    (tmp_path / "f.npz").write_bytes(content)
    assert code_of(tmp_path / "f.npz") == "FILE_CORRUPT"


@pytest.mark.parametrize("shape", [(1, 4, 3), (2, 4, 3), (1, 4, 3, 2), (2, 4, 3, 2)])
def test_archives_keep_everything(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    affine = np.array([[0, -2, 0, 5], [0.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    write_planar(Volume(array, affine), tmp_path / "a.npz")
    first = (tmp_path / "a.npz").read_bytes()
    volume = read_planar(tmp_path / "a.npz")[0]
    assert volume.array.dtype == np.int16 and np.array_equal(volume.array, array)
    assert np.array_equal(volume.affine, affine) and volume.notes == ()
    write_planar(volume, tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == first


@pytest.mark.parametrize(
    ("dtype", "top", "kept"),
    [("u1", 255, "u1"), ("u2", 65535, "u2"), ("u2", 9, "u2"), ("i4", 255, "u1"), ("i8", 256, "u2"), ("?", 1, "u1")],
)
def test_png_is_exact(tmp_path: Path, dtype: str, top: int, kept: str) -> None:
    array = (np.linspace(0, top, 12).round().reshape(1, 4, 3)).astype(dtype)
    write_planar(Volume(array), tmp_path / "a.png")
    volume = read_planar(tmp_path / "a.png")[0]
    assert volume.array.dtype == np.dtype(kept) and np.array_equal(volume.array, array)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (4, 3)


@pytest.mark.parametrize(
    ("array", "name", "code"),
    [
        (np.ones((1, 3, 3), np.float32), "a.png", "PIX_PRECISION_LOSS"),
        (np.full((1, 3, 3), -1), "a.png", "PIX_PRECISION_LOSS"),
        (np.full((1, 3, 3), 65536), "a.png", "PIX_PRECISION_LOSS"),
        (np.ones((3, 3, 3), np.uint8), "a.png", "PIX_COLOUR"),
        (np.ones((1, 3, 3, 3), np.uint8), "a.png", "DIM_UNSUPPORTED"),
        (np.ones((2, 3, 3), np.uint8), "a.npy", "DIM_UNSUPPORTED"),
        (np.full((1, 3, 3), np.nan), "a.npy", "PIX_NONFINITE"),
        (np.full((1, 3, 3), np.inf), "a.npz", "PIX_NONFINITE"),
        (np.ones((1, 3, 3), np.uint8), "a.jpg", "FILE_FORMAT"),
        (np.ones((1, 3, 3), np.uint8), "a.dcm", "FILE_FORMAT"),
        (np.ones((1, 3, 3), np.uint8), "series", "FILE_FORMAT"),
    ],
)
def test_what_is_not_written_leaves_nothing(tmp_path: Path, array: np.ndarray, name: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        files.write(Volume(array), tmp_path / name)
    assert refused.value.code == code and list(tmp_path.iterdir()) == []


# --- one way in ----------------------------------------------------------------------------------------------------


def test_files_are_read_and_written_by_suffix(tmp_path: Path) -> None:
    flat = Volume(np.arange(12, dtype=np.uint8).reshape(1, 4, 3))
    solid = Volume(np.arange(24, dtype=np.int16).reshape(1, 4, 3, 2), np.diag([0.5, 1, 2, 1]))
    for name in ("a.png", "a.PNG", "a.npy", "a.npz", "a.nii", "a.nii.gz", "A.NII.GZ"):
        files.write(flat, str(tmp_path / name))
        assert np.array_equal(files.read(str(tmp_path / name)).array, flat.array), name
    for name in ("b.npy", "b.npz", "b.nii", "b.nii.gz"):
        files.write(solid, tmp_path / name)
        assert np.array_equal(files.read(tmp_path / name).array, solid.array), name
    several = Volume(np.arange(48, dtype=np.int16).reshape(2, 4, 3, 2), solid.affine)
    write_nifti(several, tmp_path / "c.nii.gz")
    assert code_of(tmp_path / "c.nii.gz", files.read) == "DIM_4D"
    assert np.array_equal(files.read(tmp_path / "c.nii.gz", channels=True).array, several.array)


def test_every_reader_is_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    volume = Volume(np.ones((1, 2, 2)))
    for suffix in files.READERS:
        seen: list[Path] = []

        def reader(path: Path, asked: files.Asked, seen: list[Path] = seen) -> list[Volume]:
            seen.append(path)
            return [volume]

        path = tmp_path / f"name.with.dots{suffix}"
        path.write_bytes(b"x")
        monkeypatch.setitem(files.READERS, suffix, reader)
        assert files.read(path) is volume and seen == [path]


def test_one_image_means_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"x")
    volume = Volume(np.ones((1, 2, 2)))
    monkeypatch.setitem(files.READERS, ".nii", lambda path, asked: [volume, volume])
    assert len(files.read_all(path)) == 2
    with pytest.raises(Refused) as refused:
        files.read(path)
    assert refused.value.code == "SERIES_SPLIT" and "read_all" in refused.value.fix
    monkeypatch.setitem(files.READERS, ".nii", lambda path, asked: [])
    assert code_of(path, files.read) == "NO_IMAGES"
    wrong = Volume(np.full((1, 2, 2), np.nan))
    monkeypatch.setitem(files.READERS, ".nii", lambda path, asked: [wrong])
    assert code_of(path, files.read) == "PIX_NONFINITE"


def test_what_no_reader_knows(tmp_path: Path) -> None:
    contents = {"a.txt": (b"hello", "FILE_FORMAT"), "a": (b"\0" * 200, "FILE_FORMAT"), "b": (b"", "FILE_EMPTY"),
                "c": (b"version https://git-lfs.github.com/spec/v1\n", "FILE_IS_POINTER"),
                "d.png": (b"<html>" * 100, "FILE_FORMAT"), "e.tif": (b"II*\0", "FILE_FORMAT")}
    for name, (content, code) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert code_of(tmp_path / name, files.read) == code, name
    assert code_of(tmp_path / "nowhere.png", files.read) == "FILE_MISSING"
    assert code_of(tmp_path / "nowhere", files.read) == "FILE_MISSING"
    assert code_of(Path("a\0b"), files.read) == "FILE_MISSING"
    assert code_of(tmp_path / "a.txt") == "FILE_FORMAT"
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert code_of(tmp_path / "link.png", files.read) == "FILE_MISSING"


def test_a_raster_under_another_rasters_name(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", ROWS.astype(np.uint8)).rename(tmp_path / "a.bmp")
    assert np.array_equal(read_planar(tmp_path / "a.bmp")[0].array[0].T, ROWS)


def test_too_many_pixels_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", ROWS.astype(np.uint8))
    needed = ROWS.size * raster_bytes_per_pixel("L")
    assert np.array_equal(read_planar(path, rules=Rules(needed))[0].array[0].T, ROWS)
    assert code_of(path, lambda path: read_planar(path, rules=Rules(needed - 1))) == "LIMIT"


def test_lines_of_rasters_and_arrays_run_down_and_others_say(tmp_path: Path) -> None:
    flat = np.zeros((1, 4, 6), np.float32)
    up, down = np.diag([1.0, 1, 1, 1]), np.diag([1.0, -1, 1, 1])
    for source in (None, Path("a.png"), Path("a.NPZ"), Path("a.npy"), Path("a.jpeg")):
        assert lines_down(Volume(flat, up, source=source))
    for source in (Path("a.nii.gz"), Path("a.dcm"), Path("series")):
        assert not lines_down(Volume(flat, up, source=source)) and lines_down(Volume(flat, down, source=source))
    assert not lines_down(Volume(np.zeros((1, 4, 6, 3), np.float32), down, source=Path("a.nii")))
