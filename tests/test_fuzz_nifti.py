"""Right NIfTI files of many kinds, and one thing wrong with them: refused with its code, or read right and said."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fuzz_makers import NOTHING, STEADY, Truth, Wrong, judged, rotations, sane
from hypothesis import given, settings
from hypothesis import strategies as st

from medgan.errors import CODES

_DTYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8")
_lengths = st.sampled_from((0.4, 0.75, 1.0, 2.5, 7.3))


@dataclass(frozen=True)
class Image:
    """A NIfTI file before it is written.

    Args:
        content: Its bytes, uncompressed.
        truth: What it holds.
        version: 1 or 2.
        order: `<` or `>`.
        packed: Whether it is written as `.nii.gz`.
        offset: Where its voxels begin.
    """

    content: bytes
    truth: Truth
    version: int
    order: str
    packed: bool
    offset: int

    def patched(self, field: str, number: Any, index: int = 0) -> Image:
        """The file with another number in a field of its header."""
        place, kind = _FIELDS[field][self.version - 1]
        place += index * struct.calcsize(kind)
        new = struct.pack(self.order + kind, number)
        return replace(self, content=self.content[:place] + new + self.content[place + len(new) :])


#: Field -> (offset, format) in a header of version 1 and of version 2.
_FIELDS = {
    "size": ((0, "i"), (0, "i")), "dim": ((40, "h"), (16, "q")), "datatype": ((70, "h"), (12, "h")),
    "pixdim": ((76, "f"), (104, "d")), "vox_offset": ((108, "f"), (168, "q")), "slope": ((112, "f"), (176, "d")),
    "inter": ((116, "f"), (184, "d")), "units": ((123, "B"), (500, "i")), "qform_code": ((252, "h"), (344, "i")),
    "sform_code": ((254, "h"), (348, "i")), "quatern": ((256, "f"), (352, "d")), "qoffset": ((268, "f"), (376, "d")),
    "srow": ((280, "f"), (400, "d")), "magic": ((344, "4s"), (4, "4s")),
}


@st.composite
def images(draw: st.DrawFn) -> Image:
    """A right image with at least two voxels along each axis."""
    shape = tuple(draw(st.integers(2, 6)) for _ in range(3))
    dtype, order, version = draw(st.sampled_from(_DTYPES)), draw(st.sampled_from("<>")), draw(st.sampled_from((1, 2)))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    values = random.integers(0, 100, shape).astype(order + dtype)
    values[0, 0, :2] = 0, 100
    turn = draw(rotations())
    if draw(st.booleans()):
        turn = turn * [-1, 1, 1]  # left-handed, as radiology stores
    affine = np.eye(4)
    affine[:3, :3] = turn * [draw(_lengths) for _ in range(3)]
    affine[:3, 3] = [draw(st.integers(-200, 200)) for _ in range(3)]
    header = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(endianness=order)
    image = (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image)(values, affine, header)
    forms = draw(st.sampled_from(("sform", "qform", "both")))
    image.set_sform(affine, 1 if forms != "qform" else 0)
    image.set_qform(affine, 1 if forms != "sform" else 0)
    image.header.set_xyzt_units("mm")
    slope, inter = draw(st.sampled_from(((1, 0), (2, -1024), (0.5, 0.25))))
    content, offset = image.to_bytes(), 352 if version == 1 else 544
    made = Image(content, Truth(values.astype(np.float64) * slope + inter, affine), version, order, draw(st.booleans()),
                 offset)
    return made.patched("slope", slope).patched("inter", inter)


def written(image: Image, folder: Path) -> Path:
    """The image in a file of its kind."""
    path = folder / ("a.nii.gz" if image.packed else "a.nii")
    path.write_bytes(gzip.compress(image.content, mtime=0) if image.packed else image.content)
    return path


Apply = Callable[[st.DataObject, Image], Image]
WRONGS: dict[Wrong, Apply] = {}


def _wrong(name: str, *codes: str, notes: tuple[str, ...] = (), unsaid: bool = False) -> Callable[[Apply], Apply]:
    def register(apply: Apply) -> Apply:
        WRONGS[Wrong(name, frozenset(codes), frozenset(notes), unsaid)] = apply
        return apply

    return register


def _field(name: str, field: str, numbers: tuple[Any, ...], *codes: str, indices: tuple[int, ...] = (0,),
           notes: tuple[str, ...] = (), before: Apply | None = None, unsaid: bool = False) -> None:
    """A wrong that puts another number into one field."""
    def apply(data: st.DataObject, image: Image) -> Image:
        image = before(data, image) if before else image
        return image.patched(field, data.draw(st.sampled_from(numbers)), data.draw(st.sampled_from(indices)))

    WRONGS[Wrong(name, frozenset(codes), frozenset(notes), unsaid)] = apply


def _by_sform(data: st.DataObject, image: Image) -> Image:
    """The same image whose place is told by its sform alone."""
    image = image.patched("qform_code", 0).patched("sform_code", 1)
    for index, number in enumerate(image.truth.affine[:3].reshape(-1)):
        image = image.patched("srow", number, index)
    return image


def _by_qform(data: st.DataObject, image: Image) -> Image:
    header = nibabel.Nifti1Header()
    header.set_qform(image.truth.affine, 1)
    image = image.patched("sform_code", 0).patched("qform_code", 1)
    for index in range(3):
        image = image.patched("quatern", float(header[f"quatern_{'bcd'[index]}"]), index)
        image = image.patched("qoffset", float(image.truth.affine[index, 3]), index)
    return image


_NAN, _INF = float("nan"), float("inf")
_field("header of another size", "size", (0, 347, 349, 1, -348), "FILE_NOT_NIFTI")
_field("dimensions none", "dim", (0, -1, 8, 9, 32767), "HDR_BAD_DIM")
_field("an axis of no length", "dim", (0, -1, -32768), "HDR_BAD_DIM", indices=(1, 2, 3))
_field("an axis that lies", "dim", (32767, 1000), "FILE_TRUNCATED", "LIMIT_OR_TRUNCATED", "LIMIT", indices=(1, 2, 3))
_field("an unknown type", "datatype", (0, 1, 3, 255, 9999, -1), "HDR_BAD_DTYPE")
_field("colour", "datatype", (128, 2304), "PIX_COLOUR")
_field("complex", "datatype", (32, 1792, 2048), "PIX_COMPLEX")
_field("bad spacing", "pixdim", (0.0, -1.0, _NAN, _INF), "GEOM_BAD_SPACING", indices=(1, 2, 3))
_field("bad slope", "slope", (_INF, -_INF), "PIX_BAD_RESCALE")
_field("bad intercept", "inter", (_INF, _NAN), "PIX_BAD_RESCALE", before=lambda data, image: image.patched("slope", 2))
_field("sform not finite", "srow", (_NAN, _INF, -_INF), "GEOM_BAD_AFFINE", indices=tuple(range(12)), before=_by_sform)
_field("qform not finite", "quatern", (_NAN, _INF), "GEOM_BAD_AFFINE", indices=(0, 1, 2), before=_by_qform)
_field("qform too long", "quatern", (2.0, -7.0, 1e30), "GEOM_BAD_ORIENTATION", indices=(0, 1, 2), before=_by_qform)
_field("far away", "srow", (1e12, -1e30), "GEOM_BAD_AFFINE", indices=(3, 7, 11), before=_by_sform)
_field("another magic", "magic", (b"n+3\0", b"xxxx", b"NI1\0"), "FILE_NOT_NIFTI")
_field("magic of a pair", "magic", (b"ni1\0",), "FILE_PAIR_MISSING", "FILE_NOT_NIFTI")
_field("unknown unit", "units", (4, 5, 7), notes=("GEOM_UNITS",))
_field("no unit", "units", (0,), unsaid=True)


@_wrong("voxels elsewhere", "HDR_BAD_OFFSET", "FILE_TRUNCATED", "LIMIT_OR_TRUNCATED")
def _elsewhere(data: st.DataObject, image: Image) -> Image:
    numbers = [1, 100, image.offset - 1, 10**6]
    return image.patched("vox_offset", data.draw(st.sampled_from(numbers)))


@_wrong("no orientation", notes=("GEOM_NO_ORIENTATION",))
def _no_forms(data: st.DataObject, image: Image) -> Image:
    image = image.patched("qform_code", 0).patched("sform_code", 0)
    steps = np.linalg.norm(image.truth.affine[:3, :3], axis=0)
    affine = np.diag([-steps[0], steps[1], steps[2], 1])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(image.truth.array.shape) - 1) / 2
    return replace(image, truth=replace(image.truth, affine=affine))


@_wrong("an empty sform", "GEOM_SINGULAR_AFFINE")
def _singular(data: st.DataObject, image: Image) -> Image:
    image = _by_sform(data, image)
    column = data.draw(st.integers(0, 2))
    for row in range(3):
        image = image.patched("srow", 0.0, 4 * row + column)
    return image


@_wrong("sheared", "GEOM_SHEAR")
def _sheared(data: st.DataObject, image: Image) -> Image:
    image = _by_sform(data, image)
    affine = image.truth.affine.copy()
    affine[:3, 0] += data.draw(st.sampled_from((0.05, 0.4, -1.0))) * affine[:3, 1]
    for index, number in enumerate(affine[:3].reshape(-1)):
        image = image.patched("srow", number, index)
    return image


@_wrong("qform against sform", "GEOM_QFORM_SFORM")
def _opposed(data: st.DataObject, image: Image) -> Image:
    image = _by_qform(data, image)
    affine = image.truth.affine.copy()
    affine[:3, data.draw(st.integers(0, 2))] *= -1
    image = image.patched("sform_code", data.draw(st.sampled_from((1, 2))))
    for index, number in enumerate(affine[:3].reshape(-1)):
        image = image.patched("srow", number, index)
    return image


@_wrong("micrometres", notes=("GEOM_UNITS",))
def _micron(data: st.DataObject, image: Image) -> Image:
    image = _by_sform(data, image)
    for index, number in enumerate((image.truth.affine[:3] * [1000, 1000, 1000, 1000]).reshape(-1)):
        image = image.patched("srow", number, index)
    for axis, step in enumerate(np.linalg.norm(image.truth.affine[:3, :3], axis=0)):
        image = image.patched("pixdim", step * 1000, axis + 1)
    return image.patched("units", 3)


@_wrong("values that are not finite", "PIX_NONFINITE")
def _nonfinite(data: st.DataObject, image: Image) -> Image:
    shape = image.truth.array.shape
    values = np.zeros(shape, dtype=image.order + "f4")
    values[tuple(data.draw(st.integers(0, n - 1)) for n in shape)] = data.draw(st.sampled_from((_NAN, _INF, -_INF)))
    image = image.patched("datatype", 16)
    return replace(image, content=image.content[: image.offset] + values.tobytes(order="F"))


@_wrong("values beyond single precision", "PIX_NONFINITE")
def _too_large(data: st.DataObject, image: Image) -> Image:
    values = np.zeros(image.truth.array.shape, dtype=image.order + "f8")
    values[0, 0, 0] = data.draw(st.sampled_from((1e39, -1e300)))
    image = image.patched("datatype", 64)
    return replace(image, content=image.content[: image.offset] + values.tobytes(order="F"))


@_wrong("one value", notes=("PIX_CONSTANT",))
def _constant(data: st.DataObject, image: Image) -> Image:
    value = data.draw(st.integers(0, 100))
    image = image.patched("datatype", 4).patched("slope", 1).patched("inter", 0)
    values = np.full(image.truth.array.shape, value, dtype=image.order + "i2")
    return replace(image, content=image.content[: image.offset] + values.tobytes(order="F"),
                   truth=replace(image.truth, array=values.astype(np.float64)))


@_wrong("a cut file", "FILE_TRUNCATED", "FILE_EMPTY", "FILE_NOT_NIFTI", "LIMIT_OR_TRUNCATED")
def _cut(data: st.DataObject, image: Image) -> Image:
    return replace(image, content=image.content[: data.draw(st.integers(0, len(image.content) - 1))])


@_wrong("bytes after the voxels", notes=("FILE_TRAILING_DATA",))
def _trailing(data: st.DataObject, image: Image) -> Image:
    return replace(image, content=image.content + bytes(data.draw(st.sampled_from((1, 16, 5000)))))


@_wrong("far more after the voxels", "FILE_TRAILING_DATA")
def _bomb(data: st.DataObject, image: Image) -> Image:
    return replace(image, content=image.content + bytes(2**21))


@_wrong("something else", "FILE_NOT_NIFTI", "FILE_IS_POINTER", "FILE_TRUNCATED", "FILE_EMPTY")
def _else(data: st.DataObject, image: Image) -> Image:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    content = data.draw(st.sampled_from((b"<html>not found</html>" * 30, pointer, bytes(500), b"")))
    return replace(image, packed=False, content=content)


# --- the tests ------------------------------------------------------------------------------------------------------

@settings(STEADY, max_examples=120)
@given(image=images())
def test_right_files_are_read_right(image: Image, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert judged(written(image, tmp_path_factory.mktemp("right")), [image.truth], NOTHING) == ""


@pytest.mark.parametrize("wrong", WRONGS, ids=str)
def test_one_thing_wrong_is_refused_or_said(wrong: Wrong, tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(STEADY, max_examples=20)
    @given(data=st.data(), image=images())
    def check(data: st.DataObject, image: Image) -> None:
        image = WRONGS[wrong](data, image)
        judged(written(image, tmp_path_factory.mktemp("wrong")), [image.truth], wrong)

    check()


@settings(STEADY, max_examples=100)
@given(data=st.data(), image=images())
def test_any_damage_to_a_compressed_file_is_refused_or_harmless(data: st.DataObject, image: Image,
                                                                tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(replace(image, packed=True), tmp_path_factory.mktemp("gz"))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    # A header of gzip has a time, an operating system and more that changes nothing; all else its checksum covers.
    judged(path, [image.truth], Wrong("damaged gzip", frozenset(CODES), unsaid=True))


@settings(STEADY, max_examples=120)
@given(data=st.data(), image=images())
def test_flipped_bytes_of_the_header_never_crash(data: st.DataObject, image: Image,
                                                 tmp_path_factory: pytest.TempPathFactory) -> None:
    content = bytearray(image.content)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, image.offset - 1))] = data.draw(st.integers(0, 255))
    sane(written(replace(image, content=bytes(content)), tmp_path_factory.mktemp("flip")))
