"""NIfTI-1 and NIfTI-2 in and out: `.nii`, `.nii.gz` and `.hdr`/`.img` pairs.

The header is checked first and nothing is allocated before it is believed; the geometry checks are in
`nifti_header.py`. Voxels are read once, gzip to its end so that its checksum counts.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Note, Refused
from medgan.imaging.arrays import DEFLATE_RATIO
from medgan.imaging.checks import first_bytes, refuse_nonfinite
from medgan.imaging.nifti_header import HEADER_SIZES, Header, parse_header, rigid
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.imaging.volume import Volume
from medgan.storage import atomic_path

#: Bytes after the voxels up to which it is a note; more is refused unread.
MAX_TRAILING_BYTES = 2**20
#: How much is read, scaled or written at a time.
CHUNK_BYTES = 2**22
#: Level 6 is zlib's own default; levels above cost minutes on CT for about one percent.
GZIP_LEVEL = 6

_GZIP_MAGIC = b"\x1f\x8b"


def read_nifti(path: str | Path, *, channels: bool = False, rules: Rules = DEFAULT_RULES) -> list[Volume]:
    """Reads a NIfTI file or pair.

    Integers stay as stored where no scaling applies; whole-number scaling gives int16 or int32; everything else gives
    float32. A 4-D file is refused unless `channels` says that its fourth axis holds channels; trailing axes
    of length one are dropped. One slice (X, Y[, 1]) becomes a 2D volume that keeps its place.

    Args:
        path: `.nii`, `.nii.gz`, or either half of an `.hdr`/`.img` pair.
        channels: Take (X, Y, Z, C) as C channels.
        rules: The most memory that reading may take: the voxels as stored, and once more as they are given.

    Returns:
        One volume, (C, X, Y[, Z]) in C order.

    Raises:
        Refused: `FILE_*`, `HDR_*`, `FORMAT_ANALYZE`, `LIMIT*`, `DIM_*`, `GEOM_*` or `PIX_*`.
    """
    path = Path(path)
    header_path, data_path = _halves(path)
    notes: list[Note] = []
    paired = header_path != data_path
    try:
        with _opened(header_path, notes) as (stream, packed):
            header = parse_header(stream, path, paired=paired)
            if not paired:
                raw = _voxels(stream, header, path, packed, header.parsed_bytes, rules.limit, notes)
        if paired:
            with _opened(data_path, notes) as (stream, packed):
                raw = _voxels(stream, header, path, packed, 0, rules.limit, notes)
    except EOFError as error:
        raise _truncated(path, "the gzip stream breaks off") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Refused("FILE_CORRUPT", path, f"the gzip stream is damaged ({error})", "Fetch the file again") from error
    notes += header.notes
    shape = _spatial(header, path, channels, notes)
    array = _scaled(raw, shape, header, path, notes)
    return [Volume(array, header.affine, source=path, notes=tuple(notes))]


def write_nifti(volume: Volume, path: str | Path, *, description: str = "") -> None:
    """Writes a NIfTI file (NIfTI-1, or NIfTI-2 where an axis is longer than 32767), whole or not at all.

    The same volume gives the same bytes. The dtype is kept, except bool (written as uint8), float16 (float32) and
    64-bit integers, which are written in 32 bits where they fit.

    Args:
        volume: (C, X, Y[, Z]); C > 1 is written as (X, Y, Z, C), 2D as one slice.
        path: `.nii` or `.nii.gz`.
        description: Up to 79 ASCII characters for the header.

    Raises:
        Refused: `FILE_FORMAT`, `PIX_COMPLEX`, `PIX_NONFINITE` or `HDR_BAD_DTYPE`.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise Refused("FILE_FORMAT", path, "NIfTI is written as .nii or .nii.gz", "Choose one of the two suffixes")
    array = volume.array if volume.dims == 3 else volume.array[..., None]
    dtype = _written_dtype(array, path)
    header = _header_bytes(array.shape, dtype, volume.affine, description)
    with atomic_path(path) as temporary, temporary.open("wb") as file, contextlib.ExitStack() as stack:
        target: IO[bytes] = file
        if name.endswith(".gz"):
            # No file name and no time in the gzip header: equal volumes give equal files.
            target = stack.enter_context(
                gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0)  # type: ignore[arg-type]
            )
        target.write(header)
        for channel in array:
            for piece in _slabs(channel.shape, dtype.itemsize):
                target.write(channel[..., piece].astype(dtype).tobytes(order="F"))


def _halves(path: Path) -> tuple[Path, Path]:
    """Header file and voxel file, the same but for a pair; checks that a pair is complete."""
    halves = (path, path)
    for suffix, other in ((".hdr", ".img"), (".img", ".hdr")):
        for packed in ("", ".gz"):
            if path.name.lower().endswith(suffix + packed):
                stem, ending = path.name[: -len(suffix + packed)], other + packed
                partner = path.with_name(stem + (ending.upper() if path.name.isupper() else ending))
                halves = (path, partner) if suffix == ".hdr" else (partner, path)
    for half in halves:
        if not half.exists() and any(file.exists() for file in halves):
            raise Refused("FILE_PAIR_MISSING", path, f"its other half {half.name} is missing",
                          "Put both into one folder")
    return halves


@contextlib.contextmanager
def _opened(path: Path, notes: list[Note]) -> Iterator[tuple[IO[bytes], bool]]:
    """Opens a file by what it holds, not by its name; yields the stream and whether it is compressed."""
    start = first_bytes(path)
    with path.open("rb") as file:
        packed = start.startswith(_GZIP_MAGIC)
        if packed != path.name.lower().endswith(".gz") and (packed or len(start) >= HEADER_SIZES[0]):
            inside = "gzip" if packed else "no gzip"
            notes.append(Note("FILE_EXTENSION", str(path), f"{inside} inside; read as what it is"))
        if packed:
            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                yield stream, True  # type: ignore[misc]
        else:
            yield file, False


def _truncated(path: Path, why: str) -> Refused:
    return Refused("FILE_TRUNCATED", path, why, "Fetch the file again")


def _voxels(
    stream: IO[bytes], header: Header, path: Path, packed: bool, position: int, limit: int, notes: list[Note]
) -> NDArray[Any]:
    """Reads the stored voxels as one flat array in native byte order, and the stream to its end."""
    claimed = header.offset + header.voxel_bytes
    stored = _size_behind(stream)
    possible = stored * DEFLATE_RATIO if packed else stored
    needed = _bytes_needed(header)
    if needed > limit:
        code = "LIMIT" if possible >= claimed else "LIMIT_OR_TRUNCATED"
        raise Refused(
            code, path, f"reading the {header.voxel_bytes:,} bytes of voxels that the header claims takes {needed:,}, "
            f"above the cap of {limit:,}", "Check the header, crop the image, or raise data.max_gib",
        )
    if possible < claimed:
        raise _truncated(path, f"the header claims {claimed:,} bytes, the file cannot hold more than {possible:,}")
    if header.offset > limit:  # unpacked only to be passed over, which takes no memory but for ever
        raise Refused("LIMIT", path, f"{header.offset:,} bytes lie before the voxels, above the cap of {limit:,}",
                      "Check the header, or raise data.max_gib")
    _skip(stream, header.offset - position, path)
    raw = np.empty(header.voxel_bytes, dtype=np.uint8)
    view, filled = memoryview(raw.data), 0
    while filled < len(view):
        count = stream.readinto(view[filled : filled + CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise _truncated(path, f"{filled:,} of {len(view):,} voxel bytes are there")
        filled += count
    trailing = 0
    while rest := stream.read(MAX_TRAILING_BYTES + 1):
        trailing += len(rest)
        if trailing > MAX_TRAILING_BYTES:
            raise Refused("FILE_TRAILING_DATA", path, "more than a mebibyte follows the voxels",
                          "Check whether the header's dim is that of the data")
    if trailing:
        notes.append(Note("FILE_TRAILING_DATA", str(path), f"{trailing:,} bytes after the voxels were passed over"))
    values = raw.view(header.dtype)
    if not header.dtype.isnative:
        values = values.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    return values


def _bytes_needed(header: Header) -> int:
    """What reading takes: the voxels as stored, and those that come of them."""
    kept = header.dtype.kind in "iu" and not header.scaled
    given = header.dtype.itemsize if kept else max(np.dtype(t).itemsize for t in (np.int32, np.float32))
    return header.voxel_bytes + header.voxel_bytes // header.dtype.itemsize * given


def _size_behind(stream: IO[bytes]) -> int:
    file = stream.fileobj if isinstance(stream, gzip.GzipFile) else stream
    return Path(file.name).stat().st_size


def _skip(stream: IO[bytes], count: int, path: Path) -> None:
    """Passes over header extensions, a piece at a time."""
    while count > 0:
        passed = len(stream.read(min(count, CHUNK_BYTES)))
        if not passed:
            raise _truncated(path, "it ends before the voxels begin")
        count -= passed


def _spatial(header: Header, path: Path, channels: bool, notes: list[Note]) -> tuple[int, ...]:
    """Settles what the axes mean; returns the stored shape as (X, Y, Z, C) with Z = 0 for a 2D image."""
    shape = header.shape
    if len(shape) > 4:
        raise Refused("DIM_5D", path, f"shape {shape}: five or more dimensions", "Save one volume or channel a file")
    if len(shape) == 4 and not channels:
        raise Refused(
            "DIM_4D", path, f"shape {shape}: {shape[3]} volumes where one is expected",
            "Split the series into one file a volume, or list the file as a multi-channel image in a data set",
        )
    x, y, z, c = (*shape, 1, 1, 1)[:4] if len(shape) < 4 else shape
    if 1 in (x, y, z):
        notes.append(Note("SINGLE_SLICE", str(path), "one slice only" + ("; read as a 2D image" if z == 1 else "")))
    return (x, y, 0 if z == 1 else z, c)


def _scaled(
    raw: NDArray[Any], shape: tuple[int, ...], header: Header, path: Path, notes: list[Note]
) -> NDArray[Any]:
    """Applies slope and intercept slab by slab into an array (C, X, Y[, Z]) in C order; checks the values."""
    refuse_nonfinite(raw, path)
    low, high = raw.min(), raw.max()
    x, y, z, c = shape
    stored = raw.reshape((x, y, max(z, 1), c), order="F")
    dtype = _result_dtype(raw.dtype, low, high, header, path, notes)
    array = np.empty((c, x, y, max(z, 1)), dtype=dtype)
    for channel in range(c):
        for piece in _slabs(stored.shape[:3], 8):
            values = stored[:, :, piece, channel]
            if header.scaled:
                values = values * np.float64(header.slope) + np.float64(header.intercept)
            array[channel, :, :, piece] = values
    if low == high or array.min() == array.max():  # a tiny slope, or a huge intercept, leaves one value of many
        notes.append(Note("PIX_CONSTANT", str(path), "every voxel has the same value"))
    return array if z else array[..., 0]


def _result_dtype(
    stored: np.dtype[Any], low: Any, high: Any, header: Header, path: Path, notes: list[Note]
) -> np.dtype[Any]:
    """The dtype the values get, from the type as stored, its extremes and the scaling."""
    exact = stored.kind in "iu" and (not header.scaled or (header.slope.is_integer() and header.intercept.is_integer()))
    slope, intercept = (header.slope, header.intercept) if header.scaled else (1.0, 0.0)
    if exact:
        ends = [int(value) * int(slope) + int(intercept) for value in (low, high)]
        if max(map(abs, ends)) > 2**53:
            notes.append(Note("PIX_PRECISION_LOSS", str(path), "values above 2**53 are rounded in any computation"))
        if not header.scaled:
            return stored
        for candidate in (np.int16, np.int32):
            limits = np.iinfo(candidate)
            if limits.min <= min(ends) and max(ends) <= limits.max:
                return np.dtype(candidate)
        notes.append(Note("PIX_PRECISION_LOSS", str(path), "scaled values do not fit 32-bit integers; kept as float32"))
    peak = max(abs(float(value) * slope + intercept) for value in (low, high))
    if peak > float(np.finfo(np.float32).max):
        raise Refused("PIX_NONFINITE", path, f"values up to {peak:.3g} become infinite in float32",
                      "Rescale the values into the float32 range")
    return np.dtype(np.float32)


def _slabs(shape: tuple[int, ...], itemsize: int) -> Iterator[slice]:
    """Slices of the third axis, each of about `CHUNK_BYTES`."""
    step = max(1, CHUNK_BYTES // (shape[0] * shape[1] * itemsize))
    for start in range(0, shape[2], step):
        yield slice(start, start + step)


def _written_dtype(array: NDArray[Any], path: Path) -> np.dtype[Any]:
    if array.dtype.kind == "c":
        raise Refused("PIX_COMPLEX", path, "complex values", "Save magnitude and phase as two images")
    if array.dtype.kind not in "biuf":
        raise Refused("HDR_BAD_DTYPE", path, f"dtype {array.dtype} has no place in NIfTI", "Use integers or floats")
    dtype = array.dtype
    if dtype == np.bool_:
        dtype = np.dtype(np.uint8)
    elif dtype.kind in "iu" and dtype.itemsize == 8:
        for candidate in (np.int32, np.uint32):
            limits = np.iinfo(candidate)
            if limits.min <= array.min() and array.max() <= limits.max:
                dtype = np.dtype(candidate)
                break
    elif dtype.kind == "f":
        refuse_nonfinite(array, path)
        dtype = np.dtype(np.float64 if dtype.itemsize > 4 else np.float32)
    return dtype.newbyteorder("<")


def _header_bytes(shape: tuple[int, ...], dtype: np.dtype[Any], affine: NDArray[np.float64], description: str) -> bytes:
    """A little-endian single-file header for voxels (C, X, Y, Z), with the four bytes that say: no extensions."""
    import nibabel

    spatial = shape[1:]
    big = max(shape) > np.iinfo(np.int16).max
    header = (nibabel.Nifti2Header if big else nibabel.Nifti1Header)(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(spatial if shape[0] == 1 else (*spatial, shape[0]))
    header.set_sform(affine, code=1)
    # A quaternion holds rotation and scale only; a sheared grid is told by the sform alone.
    header.set_qform(affine, code=1 if rigid(affine) else 0, strip_shears=True)
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header.set_xyzt_units("mm")
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header["vox_offset"] = HEADER_SIZES[1 if big else 0] + 4
    return bytes(header.binaryblock) + b"\0" * 4
