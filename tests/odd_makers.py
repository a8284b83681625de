"""Odd NIfTI files, masks and tables of the policy's kinds with other numbers than the collection's, made in code.

Each maker writes into an empty folder and returns what is to be read.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_makers as sets
import nibabel
import numpy as np
from nifti_makers import AFFINE, TURN, patched, saved, values

Maker = Callable[[Path], Path]

# --- NIfTI ------------------------------------------------------------------------------------------------------------


def _nifti(edit: Callable[[bytes], bytes], name: str = "a.nii.gz") -> Maker:
    """A file whose bytes, compressed or not as its name says, are changed."""
    def make(folder: Path) -> Path:
        path = saved(folder, values(), name=name)
        path.write_bytes(edit(path.read_bytes()))
        return path
    return make


def _header(offset: int, data: bytes, **saving: Any) -> Maker:
    return lambda folder: patched(saved(folder, saving.get("array", values()), name="a.nii"), offset, data)


def _voxel(value: float, dtype: Any = np.float32, place: int = -1) -> Maker:
    def make(folder: Path) -> Path:
        array = values(dtype=dtype)
        array.reshape(-1)[place] = value
        return saved(folder, array)
    return make


def _forms(qform: np.ndarray) -> Maker:
    def make(folder: Path) -> Path:
        image = nibabel.Nifti1Image(values(), AFFINE)
        image.set_sform(AFFINE, 1)
        image.set_qform(qform, 1)
        nibabel.save(image, folder / "a.nii.gz")
        return folder / "a.nii.gz"
    return make


def _shifted(millimetres: float) -> np.ndarray:
    moved = AFFINE.copy()
    moved[1, 3] += millimetres
    return moved


def _turned(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    turned = AFFINE.copy()
    turned[:3, :3] = turn @ AFFINE[:3, :3]
    return turned


def _array(array: np.ndarray, kind: Any = nibabel.Nifti1Image, name: str = "a.nii.gz", affine: np.ndarray = AFFINE
           ) -> Maker:
    def make(folder: Path) -> Path:
        nibabel.save(kind(array, affine, dtype=array.dtype), folder / name)
        return folder / name
    return make


def _sheared(amount: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 2] += amount
    return affine


def _written(name: str, content: bytes) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name
    return make


_COLOUR = np.zeros((4, 4, 3), [("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")])

NIFTI_REFUSED: dict[str, tuple[set[str], Maker]] = {
    "one NaN": ({"PIX_NONFINITE"}, _voxel(np.nan)),
    "one -infinity in the middle, float64": ({"PIX_NONFINITE"}, _voxel(-np.inf, np.float64, 137)),
    "nothing but NaN": ({"PIX_NONFINITE"}, _array(np.full((4, 4, 4), np.nan, np.float32))),
    "NaN in a half float": ({"PIX_NONFINITE", "HDR_BAD_DTYPE"}, _header(70, struct.pack("<h", 16), array=np.full(
        (4, 4, 4), np.nan, np.float32))),
    "forms turned by 10 degrees": ({"GEOM_QFORM_SFORM"}, _forms(_turned(10))),
    "forms half a turn apart": ({"GEOM_QFORM_SFORM"}, _forms(_turned(180))),
    "forms 20 mm apart": ({"GEOM_QFORM_SFORM"}, _forms(_shifted(20))),
    "a little shear": ({"GEOM_SHEAR"}, _array(values(), affine=_sheared(0.4))),
    "two equal axes": ({"GEOM_SINGULAR_AFFINE"}, _header(280, struct.pack("<8f", *[0.75, 0, 0, 1] * 2))),
    "gzip cut after 10 bytes": ({"FILE_TRUNCATED", "FILE_CORRUPT", "FILE_NOT_NIFTI"}, _nifti(lambda c: c[:10])),
    "gzip cut within its checksum": ({"FILE_TRUNCATED", "FILE_CORRUPT"}, _nifti(lambda c: c[:-5])),
    "gzip without its last byte": ({"FILE_TRUNCATED", "FILE_CORRUPT"}, _nifti(lambda c: c[:-1])),
    "gzip with a wrong length": ({"FILE_CORRUPT"}, _nifti(lambda c: c[:-4] + b"\1\2\3\4")),
    "gzip with a flipped bit": ({"FILE_CORRUPT", "FILE_TRUNCATED"}, _nifti(
        lambda c: c[:300] + bytes([c[300] ^ 16]) + c[301:])),
    "two gzip members, the second cut": ({"FILE_CORRUPT", "FILE_TRUNCATED"}, _nifti(
        lambda c: gzip.compress(gzip.decompress(c)[:400]) + gzip.compress(gzip.decompress(c)[400:])[:-9])),
    "one voxel less": ({"FILE_TRUNCATED"}, _nifti(lambda c: c[:-2], "a.nii")),
    "a header alone": ({"FILE_TRUNCATED"}, _nifti(lambda c: c[:352], "a.nii")),
    "half a header": ({"FILE_TRUNCATED", "FILE_NOT_NIFTI"}, _nifti(lambda c: c[:200], "a.nii")),
    "RGBA": ({"PIX_COLOUR"}, _array(_COLOUR)),
    "complex128": ({"PIX_COMPLEX"}, _array(np.ones((4, 4, 3), np.complex128))),
    "6-D": ({"DIM_5D"}, _array(np.ones((3, 3, 3, 1, 1, 2), np.int16))),
    "dim[0] = 0": ({"HDR_BAD_DIM"}, _header(40, struct.pack("<h", 0))),
    "sizes that overflow": ({"LIMIT_OR_TRUNCATED", "LIMIT", "FILE_TRUNCATED"}, _header(
        40, struct.pack("<8h", 7, *[32767] * 7))),
    "a NIfTI-2 size of 2**62": ({"LIMIT_OR_TRUNCATED", "LIMIT", "FILE_TRUNCATED"}, lambda folder: patched(
        _array(values(), nibabel.Nifti2Image, "a.nii")(folder), 24, struct.pack("<q", 2**62))),
    "a big-endian type that is none": ({"HDR_BAD_DTYPE"}, _header(70, struct.pack("<h", 513 * 3))),
    "a voxel size of -0.75": ({"GEOM_BAD_SPACING"}, _header(80, struct.pack("<f", -0.75))),
    "a slope of -infinity": ({"PIX_BAD_RESCALE"}, _header(112, struct.pack("<f", -np.inf))),
    "a PNG as .nii": ({"FILE_NOT_NIFTI"}, _written("a.nii", b"\x89PNG\r\n\x1a\n" + b"\0" * 600)),
    "JSON as .nii.gz": ({"FILE_NOT_NIFTI"}, _written("a.nii.gz", b'{"error": "not found"}')),
    "a pointer of git annex": ({"FILE_IS_POINTER"}, _written("a.nii.gz", b"/annex/objects/MD5E-s1--abc.nii.gz\n")),
    "spaces alone": ({"FILE_NOT_NIFTI", "FILE_EMPTY", "FILE_TRUNCATED"}, _written("a.nii", b" " * 400)),
}


def _moved(name: str, target: str) -> Maker:
    def make(folder: Path) -> Path:
        return saved(folder, values(), name=name).rename(folder / target)
    return make


def _scaled(folder: Path) -> Path:
    image = nibabel.Nifti1Image(values(), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, folder / "a.nii.gz")
    return folder / "a.nii.gz"


_OBLIQUE = AFFINE.copy()
_OBLIQUE[:3, :3] = TURN @ np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]) @ AFFINE[:3, :3]

NIFTI_GOOD: dict[str, tuple[set[str], tuple[int, ...], Maker]] = {
    **{f"{dtype} voxels": (set(), (9, 8, 5), _array(values(dtype=dtype)))
       for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")},
    "NIfTI-2": (set(), (9, 8, 5), _array(values(), nibabel.Nifti2Image)),
    "a scale": (set(), (9, 8, 5), _scaled),
    "an oblique volume": (set(), (9, 8, 5), _array(values(), affine=_OBLIQUE)),
    "very thick slices": (set(), (9, 8, 5), _array(values(), affine=np.diag([0.2, 0.2, 20, 1.0]))),
    "forms 1 um apart": (set(), (9, 8, 5), _forms(_shifted(1e-3))),
    "an upper-case name": (set(), (9, 8, 5), _moved("a.nii.gz", "A.NII.GZ")),
    "a name in Unicode with spaces": (set(), (9, 8, 5), _moved("a.nii.gz", "größe 画像\n.nii.gz")),
    "a name of dots": (set(), (9, 8, 5), _moved("a.nii.gz", "a.b.c..nii.gz")),
    "several gzip members": (set(), (9, 8, 5), _nifti(
        lambda c: gzip.compress(gzip.decompress(c)[:400]) + gzip.compress(gzip.decompress(c)[400:]))),
    "gzip with a name in its header": (set(), (9, 8, 5), _nifti(
        lambda c: c[:3] + b"\x08" + c[4:10] + b"image.nii\0" + c[10:] if not c[3] & 8 else c)),
    "a pair, compressed": (set(), (9, 8, 5), _array(values(), nibabel.Nifti1Pair, "a.img.gz")),
    "bytes after the image": ({"FILE_TRAILING_DATA"}, (9, 8, 5), _nifti(lambda c: c + b"\1" * 5000, "a.nii")),
}

# --- masks ------------------------------------------------------------------------------------------------------------


def pair(mask: np.ndarray | None, affine: np.ndarray = sets.AFFINE, content: bytes | None = None) -> Maker:
    """A folder of an image and its mask; a mask may also be given as bytes."""
    def make(folder: Path) -> Path:
        sets.nifti(folder / "case/image.nii.gz", sets.image(1))
        if mask is not None:
            sets.nifti(folder / "case/label.nii.gz", mask, affine)
        if content is not None:
            (folder / "case/label.nii.gz").write_bytes(content)
        return folder / "case"
    return make


def _mask(value: float, dtype: Any) -> np.ndarray:
    mask = sets.mask(dtype=dtype)
    mask.reshape(-1)[0] = value
    return mask


def _moved_affine(millimetres: float = 0, degrees: float = 0) -> np.ndarray:
    affine = np.array(sets.AFFINE, dtype=float)
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[2, 3] += millimetres
    return affine


MASKS_REFUSED: dict[str, tuple[set[str], Maker]] = {
    "half a voxel off": ({"LABEL_GRID"}, pair(sets.mask(), _moved_affine(0.5))),
    "turned by 5 degrees": ({"LABEL_GRID"}, pair(sets.mask(), _moved_affine(degrees=5))),
    "a slice less": ({"LABEL_GRID"}, pair(sets.mask()[..., :-1])),
    "axes in another order, same affine": ({"LABEL_GRID"}, pair(np.ascontiguousarray(sets.mask().transpose(2, 1, 0)))),
    "0.5": ({"LABEL_NON_INTEGER"}, pair(_mask(0.5, np.float32))),
    "NaN": ({"PIX_NONFINITE"}, pair(_mask(np.nan, np.float32))),
    "-3 in int8": ({"LABEL_OUT_OF_RANGE"}, pair(_mask(-3, np.int8))),
    "70000": ({"LABEL_OUT_OF_RANGE"}, pair(_mask(70000, np.int32))),
    "three channels": ({"LABEL_DIM"}, pair(np.stack([sets.mask()] * 3, axis=-1))),
    "a plane": ({"LABEL_DIM", "LABEL_GRID"}, pair(np.ascontiguousarray(sets.mask()[..., 0]))),
    "cut short": ({"FILE_TRUNCATED", "FILE_CORRUPT", "FILE_NOT_NIFTI"}, pair(
        None, content=gzip.compress(b"\0" * 9)[:12])),
    "empty": ({"FILE_EMPTY"}, pair(None, content=b"")),
    "none": ({"LABEL_MISSING", "DATASET_UNKNOWN"}, pair(None)),
}
MASKS_GOOD: dict[str, tuple[set[str], Maker]] = {
    "whole numbers as floats": (set(), pair(sets.mask(dtype="float32"))),
    "a mask of truth values": (set(), pair(sets.mask(dtype="uint8"))),
    "10 um off": (set(), pair(sets.mask(), _moved_affine(1e-5))),
    "all of it": ({"LABEL_FULL"}, pair(np.ones_like(sets.mask()))),
    "nothing of it": ({"LABEL_EMPTY"}, pair(np.zeros_like(sets.mask()))),
}

# --- tables and descriptions ------------------------------------------------------------------------------------------


def manifest(content: str | bytes, name: str = "manifest.csv") -> Maker:
    """A manifest or description beside three images."""
    def make(folder: Path) -> Path:
        for image in "abc":
            sets.nifti(folder / f"{image}.nii.gz", sets.image(1))
        sets.text(folder / name, content)
        return folder / name if name.endswith(".csv") else folder
    return make


def _paths(path: str) -> Maker:
    return manifest(f'id,image\nc1,a.nii.gz\nc2,"{path}"\n')


def _decathlon(training: str) -> Maker:
    return manifest('{"name": "x", "labels": {"0": "background"}, "training": ' + training + "}", "dataset.json")


def _linked(target: str) -> Maker:
    def make(folder: Path) -> Path:
        (folder / "d").mkdir()
        path = manifest("id,image\nc1,a.nii.gz\nc2,link.nii.gz\n")(folder / "d")
        (folder / "d/link.nii.gz").symlink_to(target)
        return path
    return make


TABLES_REFUSED: dict[str, tuple[set[str], Maker]] = {
    **{f"the path {path}": ({"TAB_PATH_ESCAPE", "TAB_PATH_MISSING", "TAB_BAD_PATH"}, _paths(path)) for path in (
        "..", "x/../../a.nii.gz", "/etc/hostname", "~root/a.nii.gz", "\\\\host\\share\\a.nii.gz", "C:\\a.nii.gz",
        "https://example.org/a.nii.gz", "s3://bucket/a.nii.gz", "file:a.nii.gz", "%2e%2e/a.nii.gz", "..\\a.nii.gz",
        "a.nii.gz\x1b[2J", "/proc/self/environ", "/dev/zero")},
    "a link out": ({"TAB_PATH_ESCAPE"}, _linked("/etc/hostname")),
    "a link to above": ({"TAB_PATH_ESCAPE", "TAB_PATH_MISSING"}, _linked("../../x.nii.gz")),
    "a link to itself": ({"TAB_PATH_MISSING", "TAB_BAD_PATH"}, _linked("link.nii.gz")),
    "ids that differ by case and space": ({"TAB_DUPLICATE_ID"}, manifest("id,image\nc1,a.nii.gz\n c1 ,b.nii.gz\n")),
    "Latin-1 after a megabyte": ({"TAB_ENCODING"}, manifest(
        b"id,image,note\nc1,a.nii.gz," + b"x" * 2**20 + b"\xe9\n")),
    "a semicolon table in Latin-1": ({"TAB_ENCODING"}, manifest("id;image;Größe\nc1;a.nii.gz;3\n".encode("latin-1"))),
    "NUL everywhere": ({"TAB_BAD_PATH", "TAB_ENCODING", "TAB_COLUMNS", "TAB_DIALECT", "TAB_EMPTY"}, manifest(
        b"\0" * 999)),
    "a picture": ({"TAB_ENCODING", "TAB_COLUMNS", "TAB_BAD_PATH", "TAB_DIALECT"}, manifest(
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")),
    "a label that is infinite": ({"TAB_BAD_LABEL"}, manifest("id,image,label\nc1,a.nii.gz,0\nc2,b.nii.gz,inf\n")),
    "an entry that leaves": ({"TAB_PATH_ESCAPE"}, _decathlon('[{"image": "../../x.nii.gz", "label": "a.nii.gz"}]')),
    "an entry that is a URL": ({"TAB_PATH_ESCAPE"}, _decathlon('["http://localhost/a.nii.gz"]')),
    "an entry that is a number": ({"DATASET_JSON", "TAB_BAD_PATH", "TAB_BAD_JSON"}, _decathlon("[7]")),
    "an entry of entries": ({"DATASET_JSON", "TAB_BAD_PATH", "TAB_BAD_JSON"}, _decathlon('[[["a.nii.gz"]]]')),
    "brackets without end": ({"TAB_BAD_JSON"}, _decathlon("[" * 50_000)),
    "JSON with a trailing comma": ({"TAB_BAD_JSON"}, _decathlon('["a.nii.gz",]')),
    "a training list that is none": ({"DATASET_JSON", "DATASET_EMPTY", "TAB_BAD_JSON"}, _decathlon("{}")),
    "code in a description": ({"CFG_UNSAFE"}, _decathlon('["$import os"]')),
}
TABLES_GOOD: dict[str, tuple[set[str], Maker]] = {
    "a byte order mark": ({"TAB_DIALECT"}, manifest(b"\xef\xbb\xbfid,image\nc1,a.nii.gz\nc2,b.nii.gz\nc3,c.nii.gz\n")),
    "tabs": ({"TAB_DIALECT"}, manifest("id\timage\nc1\ta.nii.gz\nc2\tb.nii.gz\nc3\tc.nii.gz\n")),
    "CRLF and quotes": ({"TAB_DIALECT"}, manifest(
        '"id","image"\r\n"c,1","a.nii.gz"\r\nc2,b.nii.gz\r\nc3,c.nii.gz\r\n')),
    "ids in Unicode": (set(), manifest("id,image\nпациент 1,a.nii.gz\n患者,b.nii.gz\n🩻,c.nii.gz\n")),
    "ids like paths": (set(), manifest("id,image\n../../x,a.nii.gz\n/etc/passwd,b.nii.gz\n-rf,c.nii.gz\n")),
    "an image that is not listed": ({"TAB_UNMATCHED"}, manifest("id,image\nc1,a.nii.gz\nc2,b.nii.gz\n")),
}
