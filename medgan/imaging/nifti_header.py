"""What a NIfTI header says, and whether it can be believed: dimensions, data type, scaling and geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Note, Refused

Affine = NDArray[np.float64]

#: Size of a NIfTI-1 and of a NIfTI-2 header, which is also their first field.
HEADER_SIZES = (348, 540)
#: Cosine between two voxel axes up to which they count as orthogonal (0.11 degrees: 0.4 mm over 200 mm).
SHEAR_TOLERANCE = 2e-3
#: |det| of the unit column vectors below which three axes do not span space.
SINGULAR_TOLERANCE = 1e-6
#: qform and sform more than this apart (cosine) point an axis elsewhere: 45 degrees.
OPPOSED_COSINE = math.cos(math.pi / 4)
#: Part of a voxel by which corner voxels may differ between qform and sform, a rounded quaternion's worth.
FORMS_TOLERANCE_VOXELS = 0.25
#: Relative difference between spacings that rounding explains.
SPACING_TOLERANCE = 0.01

_MAGICS = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")}
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_COLOUR_CODES = (128, 2304)
_COMPLEX_CODES = (32, 1792, 2048)
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True)
class Header:
    """The checked header of one NIfTI image.

    Args:
        shape: Stored shape without trailing ones beyond the second axis.
        dtype: Stored type, with its byte order.
        offset: Where the voxels begin in their file.
        parsed_bytes: How much of the file was read for the header.
        slope: Factor from stored to real values.
        intercept: What is added after it.
        affine: (4, 4) voxel indices to RAS+ mm.
        notes: What was odd.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    parsed_bytes: int
    slope: float
    intercept: float
    affine: Affine
    notes: tuple[Note, ...] = field(default=())

    @property
    def scaled(self) -> bool:
        """Whether slope and intercept change anything."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def voxel_bytes(self) -> int:
        """Bytes of stored voxels, as a Python integer that cannot overflow."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_header(stream: IO[bytes], path: Path, *, paired: bool) -> Header:
    """Reads and checks the header at the start of `stream`; `paired` says that the voxels are in a file of their own.

    Raises:
        Refused: `FILE_*`, `FORMAT_ANALYZE`, `HDR_*`, `PIX_COLOUR`, `PIX_COMPLEX`, `PIX_BAD_RESCALE` or `GEOM_*`.
    """
    fields, size = _fields(stream, path, paired)
    notes: list[Note] = []
    shape = _shape(fields, path)
    dtype = _dtype(fields, path, notes)
    slope, intercept = _scaling(fields, path)
    affine = _affine(fields, shape, path, notes)
    offset = _offset(fields, size, path, paired)
    return Header(shape, dtype, offset, size, slope, intercept, affine, tuple(notes))


def rigid(affine: Affine) -> bool:
    """Says whether the affine's axes are orthogonal to each other."""
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(unit.T @ unit - np.eye(3)).max() <= SHEAR_TOLERANCE)


def _fields(stream: IO[bytes], path: Path, paired: bool) -> tuple[Any, int]:
    """The raw header with nibabel's field names and nothing repaired, and its size in bytes."""
    import nibabel

    block = stream.read(HEADER_SIZES[0])
    if not block:
        raise Refused("FILE_EMPTY", path, "the compressed file holds no bytes", "Fetch the file again")
    order = "<" if int.from_bytes(block[:4], "little") in HEADER_SIZES else ">"
    size = int.from_bytes(block[:4], "little" if order == "<" else "big")
    if size not in HEADER_SIZES:
        raise Refused("FILE_NOT_NIFTI", path, "it does not begin like a NIfTI file", "Check what the file really is")
    block += stream.read(size - len(block)) if len(block) == HEADER_SIZES[0] else b""
    if len(block) < size:
        raise Refused("FILE_TRUNCATED", path, f"{len(block)} of {size} header bytes are there", "Fetch the file again")
    single, pair = _MAGICS[size]
    magic = block[344:348] if size == HEADER_SIZES[0] else block[4:12]
    if magic not in (single, pair):
        if size == HEADER_SIZES[0] and (paired or not magic.strip(b"\0")):
            raise Refused("FORMAT_ANALYZE", path, "ANALYZE 7.5 does not say which side is left",
                          "Convert it to NIfTI with the tool that wrote it")
        raise Refused("FILE_NOT_NIFTI", path, f"the magic string {magic!r} is not NIfTI's",
                      "Check what the file really is")
    if paired and magic == single:
        raise Refused("FILE_EXTENSION", path, "a single-file NIfTI under the name of a pair", "Rename it to .nii")
    if not paired and magic == pair:
        raise Refused("FILE_PAIR_MISSING", path, "the header of an .hdr/.img pair under another name",
                      "Rename it to .hdr and put its .img beside it")
    kind = nibabel.Nifti1Header if size == HEADER_SIZES[0] else nibabel.Nifti2Header
    return kind(block, endianness=order, check=False), size


def _shape(fields: Any, path: Path) -> tuple[int, ...]:
    count = int(fields["dim"][0])
    if not 1 <= count <= 7:
        raise Refused("HDR_BAD_DIM", path, f"dim[0] is {count}; it must be 1 to 7", "Write the file again")
    shape = [int(n) for n in fields["dim"][1 : count + 1]]
    if min(shape) < 1:
        raise Refused("HDR_BAD_DIM", path, f"a size below one in dim {shape}", "Write the file again")
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    if len(shape) == 1:
        raise Refused("HDR_BAD_DIM", path, f"one axis only, of {shape[0]} voxels", "Give an image of two or three axes")
    return tuple(shape)


def _dtype(fields: Any, path: Path, notes: list[Note]) -> np.dtype[Any]:
    code = int(fields["datatype"])
    if code in _COLOUR_CODES:
        raise Refused("PIX_COLOUR", path, "RGB voxels where grey values are expected", "Convert it to one channel")
    if code in _COMPLEX_CODES:
        raise Refused("PIX_COMPLEX", path, "complex values", "Save the magnitude as an image of its own")
    if code not in _DTYPES:
        raise Refused("HDR_BAD_DTYPE", path, f"data type code {code} is not one that is read",
                      "Save it as int16 or float32")
    dtype: np.dtype[Any] = np.dtype(fields.endianness + _DTYPES[code])
    bits = int(fields["bitpix"])
    if bits != dtype.itemsize * 8:
        notes.append(Note("HDR_BAD_DTYPE", str(path), f"bitpix is {bits} for {dtype.name}; the data type was believed"))
    return dtype


def _scaling(fields: Any, path: Path) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means by the standard that the values are as stored."""
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise Refused("PIX_BAD_RESCALE", path, f"scl_slope {slope} and scl_inter {intercept} are not finite",
                      "Correct the two header fields")
    return slope, intercept


def _offset(fields: Any, size: int, path: Path, paired: bool) -> int:
    offset = float(fields["vox_offset"])
    least = 0 if paired else size + 4
    if offset == 0:
        return least
    if not math.isfinite(offset) or offset < least or not offset.is_integer():
        raise Refused("HDR_BAD_OFFSET", path, f"voxels at byte {offset:g} cannot be", "Write the file again")
    return int(offset)


def _affine(fields: Any, shape: tuple[int, ...], path: Path, notes: list[Note]) -> Affine:
    """The affine in mm: sform before qform, both checked, and compared where both are given."""
    # An axis of one voxel, or none, has no spacing worth refusing a file for.
    sizes = (*shape, 1, 1)[:3]
    steps = fields["pixdim"][1:4]
    for axis, n in enumerate(sizes):
        step = float(steps[axis])
        if not math.isfinite(step) or step <= 0:
            if n > 1:
                raise Refused("GEOM_BAD_SPACING", path, f"pixdim[{axis + 1}] is {step:g}",
                              "Correct the spacing in the header")
            steps[axis] = 1.0
    if fields["pixdim"][0] not in (-1, 1):
        fields["pixdim"][0] = 1  # the standard: 0 counts as 1

    sform = fields.get_sform(coded=True)[0] if fields["sform_code"] > 0 else None
    qform = _qform(fields, path) if fields["qform_code"] > 0 else None
    if sform is not None:
        sform = np.array(sform, dtype=np.float64)
        if sizes[2] == 1 and not sform[:3, 2].any():
            sform[:3, 2] = _normal(sform)
    for name, form in (("sform", sform), ("qform", qform)):
        if form is not None:
            _check(form, name, path)
    if sform is not None and qform is not None:
        same_space = int(fields["sform_code"]) == int(fields["qform_code"])
        _compare(sform, qform, sizes, path, notes, same_space)
    affine = sform if sform is not None else qform
    if affine is None:
        affine = np.array(fields.get_base_affine(), dtype=np.float64)
        why = "neither qform nor sform; taken as LAS with its centre at the origin"
        notes.append(Note("GEOM_NO_ORIENTATION", str(path), why))
    elif sform is not None and (wrong := _other_spacing(affine, steps, sizes)):
        why = f"pixdim disagrees with the sform ({wrong}), which was used"
        notes.append(Note("SPACING_FROM_POSITIONS", str(path), why))
    return _in_mm(affine, int(fields["xyzt_units"]) & 7, path, notes)


def _qform(fields: Any, path: Path) -> Affine:
    terms = [float(fields[name]) for name in ("quatern_b", "quatern_c", "quatern_d")]
    offsets = [float(fields[name]) for name in ("qoffset_x", "qoffset_y", "qoffset_z")]
    if not all(map(math.isfinite, terms + offsets)):
        raise Refused("GEOM_BAD_AFFINE", path, "the qform holds values that are not finite", "Correct the header")
    length = math.hypot(*terms)  # which does not overflow
    if length > math.sqrt(1 + SHEAR_TOLERANCE):
        raise Refused("GEOM_BAD_ORIENTATION", path, "the qform's quaternion is longer than one", "Correct the header")
    norm = max(1.0, length)
    for name, term in zip(("quatern_b", "quatern_c", "quatern_d"), terms, strict=True):
        fields[name] = term / norm
    return np.array(fields.get_qform(), dtype=np.float64)


def _normal(affine: Affine) -> Affine:
    """A unit normal to the first two columns, for slices that have no third one."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    length = float(np.linalg.norm(normal))
    return np.asarray(normal / length if length else normal, dtype=np.float64)


def _check(form: Affine, name: str, path: Path) -> None:
    if not np.isfinite(form).all():
        raise Refused("GEOM_BAD_AFFINE", path, f"the {name} holds values that are not finite", "Correct the header")
    lengths = np.linalg.norm(form[:3, :3], axis=0)
    if not lengths.all() or abs(np.linalg.det(form[:3, :3] / lengths)) < SINGULAR_TOLERANCE:
        raise Refused("GEOM_SINGULAR_AFFINE", path, f"the {name} does not span three axes",
                      "Copy the geometry of the original image into the header")
    if not rigid(form):
        raise Refused("GEOM_SHEAR", path, f"the {name} is sheared, not rotation times scale",
                      "Resample the image onto a grid with orthogonal axes")


def _compare(sform: Affine, qform: Affine, sizes: tuple[int, ...], path: Path, notes: list[Note], same_space: bool
             ) -> None:
    """Refuses a qform that points an axis elsewhere or has another spacing, or that lies elsewhere in the same space.

    Where the codes name two spaces, such as the scanner's and an atlas's, the image may lie elsewhere: that is noted.
    """
    moving = np.array(sizes) > 1
    unit = [form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in (sform, qform)]
    cosines = (unit[0] * unit[1]).sum(axis=0)[moving]
    spacing = np.linalg.norm(qform[:3, :3], axis=0)
    if (cosines < OPPOSED_COSINE).any() or _other_spacing(sform, spacing, sizes):
        raise Refused(
            "GEOM_QFORM_SFORM", path, "qform and sform disagree on where an axis points or how far it steps",
            "Set the wrong one's code to 0, or copy the right one over it",
        )
    ends = np.array(np.meshgrid(*([0, n - 1] for n in sizes), indexing="ij"), dtype=np.float64).reshape(3, -1)
    difference = sform - qform
    apart = np.linalg.norm((difference[:3, :3] @ ends).T + difference[:3, 3], axis=1).max()
    if apart > FORMS_TOLERANCE_VOXELS * spacing[moving].min(initial=np.inf):
        if same_space:
            raise Refused("GEOM_QFORM_SFORM", path, f"qform and sform name the same space and lie up to {apart:.2f} mm "
                          "apart in it", "Set the wrong one's code to 0, or copy the right one over it")
        why = f"qform and sform lie up to {apart:.2f} mm apart; the sform was used"
        notes.append(Note("GEOM_QFORM_SFORM", str(path), why))


def _other_spacing(affine: Affine, spacing: NDArray[Any], sizes: tuple[int, ...]) -> str:
    """Describes how `spacing` differs from the affine's along axes of more than one voxel; empty where it does not."""
    moving = np.array(sizes) > 1
    stated, own = spacing[moving].astype(np.float64), np.linalg.norm(affine[:3, :3], axis=0)[moving]
    if (np.abs(own / stated - 1) <= SPACING_TOLERANCE).all():
        return ""
    return " x ".join(f"{s:.4g}" for s in stated) + " against " + " x ".join(f"{s:.4g}" for s in own)


def _in_mm(affine: Affine, unit: int, path: Path, notes: list[Note]) -> Affine:
    factor = _MM_PER_UNIT.get(unit)
    if factor is None:
        notes.append(Note("GEOM_UNITS", str(path), f"unknown spatial unit {unit}; taken as mm"))
    elif factor != 1.0:
        why = f"the header's unit is the {'metre' if unit == 1 else 'micron'}; converted to mm"
        notes.append(Note("GEOM_UNITS", str(path), why))
        affine[:3] *= factor
    return affine
