"""Images without a medical header: PNG and other rasters, NPY and NPZ.

A raster's columns become axis X and its rows axis Y. None of these formats says where the image lies in the
patient; where the spacing is not given either, 1 mm is assumed and noted.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Note, Refused
from medgan.imaging import decoding
from medgan.imaging.archives import check_members
from medgan.imaging.arrays import read_array, stored_bytes
from medgan.imaging.checks import first_bytes, refuse_nonfinite
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.imaging.volume import Volume
from medgan.storage import atomic_path

#: Raster suffixes read; only PNG is written, being the one that keeps every value.
RASTERS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

#: Affine and spacing in an archive are a few numbers.
_FEW_BYTES = 2**16
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def lines_down(volume: Volume) -> bool:
    """Whether the second axis of a 2D image runs down the page: that of rasters and arrays does, other formats say."""
    if volume.dims != 2:
        return False
    told = volume.source is not None and not volume.source.name.lower().endswith((*RASTERS, ".npy", ".npz"))
    return not told or volume.orientation[1] in "PI"


def read_planar(path: str | Path, *, rules: Rules = DEFAULT_RULES) -> list[Volume]:
    """Reads a raster (grey, 8 or 16 bits), an `.npy` array or an `.npz` archive.

    A raster gives (1, X = columns, Y = rows). An array of two axes is (X, Y), of three (X, Y, Z), of four
    (C, X, Y, Z). An archive holds `image`, or one array under any name, and may hold `affine` (4, 4) and `spacing_mm`;
    as many axes as there are spacings are spatial, and one more in front is the channels'. Rasters are decoded by
    another program (`decoding.py`).

    Args:
        path: The file.
        rules: The most memory that reading it may take.

    Returns:
        One volume.

    Raises:
        Refused: `FILE_*`, `LIMIT*`, `DIM_UNSUPPORTED`, `HDR_BAD_DTYPE`, `GEOM_*` or `PIX_*`.
    """
    path = Path(path)
    start = first_bytes(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        with path.open("rb") as file:
            array = read_array(file, path.stat().st_size, path, rules.limit)
        return [_volume(array, None, None, path, [])]
    if suffix == ".npz":
        return [_npz(path, rules.limit)]
    if suffix in RASTERS:
        return [_raster(path, start, rules.limit)]
    raise Refused("FILE_FORMAT", path, f"{suffix or 'no suffix'} is not a raster or array", f"Use {', '.join(RASTERS)}")


def write_planar(volume: Volume, path: str | Path, *, says: str = "") -> None:
    """Writes a PNG (2D, one channel, whole numbers), an `.npy` array or an `.npz` archive, whole or not at all.

    PNG gets 16 bits for uint16 or values above 255, else 8. `.npz` keeps everything, its `affine` and `spacing_mm`
    included; PNG and `.npy` hold values only.

    Raises:
        Refused: `FILE_FORMAT`, `DIM_UNSUPPORTED`, `PIX_COLOUR`, `PIX_NONFINITE` or `PIX_PRECISION_LOSS`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".png":
        _write_png(volume, path, says)
        return
    if suffix not in (".npy", ".npz"):
        raise Refused("FILE_FORMAT", path, f"{suffix or 'no suffix'} is not written", "Use .png, .npy, .npz or .nii.gz")
    refuse_nonfinite(volume.array, path)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if suffix == ".npz":
            np.savez_compressed(
                file, image=volume.array, affine=volume.affine, spacing_mm=np.array(volume.spacing_mm),
                **({"notice": np.array(says)} if says else {}),  # type: ignore[arg-type]
            )
        elif volume.channels > 1 and volume.dims == 2:
            raise Refused("DIM_UNSUPPORTED", path, "a 2D image of several channels would be read back as 3D",
                          "Write it as .npz, which keeps the spacing")
        else:
            np.save(file, volume.array[0] if volume.channels == 1 else volume.array, allow_pickle=False)


def _raster(path: Path, start: bytes, limit: int) -> Volume:
    deep_colour = start.startswith(_PNG_MAGIC) and len(start) > 25 and start[24] == 16 and start[25] != 0
    if deep_colour:  # Pillow would cut it to 8 bits without a word
        raise Refused("PIX_COLOUR", path, "a 16-bit colour PNG where grey values are expected",
                      "Convert it to a grey PNG of 8 or 16 bits")
    [(head, pixels)] = decoding.decoded("raster", {"file": os.path.abspath(path)}, path, limit=limit)
    notes = []
    if head["mode"]:
        notes.append(Note("PIX_COLOUR", str(path), f"grey stored as {head['mode']}; one channel was kept"))
    return _volume(np.ascontiguousarray(pixels.T), None, None, path, notes)


def _npz(path: Path, limit: int) -> Volume:
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path)
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            images = [name for name in members if name not in ("affine", "spacing_mm")]
            image = "image" if "image" in members else images[0] if len(images) == 1 else ""
            if not image:
                raise Refused("FILE_FORMAT", path, f"which of the arrays {sorted(images)} is the image is not said",
                              "Name it `image`, or give the file as a data set")
            for name in {image, "affine", "spacing_mm"} & set(members):
                with archive.open(members[name]) as stream:
                    most = limit if name == image else min(limit, _FEW_BYTES)
                    arrays[name] = read_array(stream, stored_bytes(members[name], path), path, most)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, OSError, ValueError) as error:
        raise Refused("FILE_CORRUPT", path, f"the archive cannot be read ({error})",
                      "Save the archive again") from error
    return _volume(arrays[image], arrays.get("spacing_mm"), arrays.get("affine"), path, [])


def _volume(
    array: NDArray[Any], spacing: NDArray[Any] | None, affine: NDArray[Any] | None, path: Path, notes: list[Note]
) -> Volume:
    if 0 in array.shape:
        raise Refused("DIM_UNSUPPORTED", path, f"an array of shape {array.shape} is empty", "Save an image with voxels")
    refuse_nonfinite(array, path)
    dims = len(np.atleast_1d(spacing)) if spacing is not None else min(array.ndim, 3)
    array = with_channels(array, dims, path)
    if affine is None:
        affine = spacing_affine([1.0] * dims if spacing is None else np.atleast_1d(spacing).tolist(), path)
        if spacing is None:
            notes.append(Note("GEOM_NO_SPACING", str(path), "no spacing is recorded; 1 mm was assumed"))
    if array.min() == array.max():
        notes.append(Note("PIX_CONSTANT", str(path), "every pixel has the same value"))
    return Volume(array, affine, source=path, notes=tuple(notes))


def with_channels(array: NDArray[Any], dims: int, where: str | Path) -> NDArray[Any]:
    """The array as (C, X, Y[, Z]) where `dims` of its axes are spatial.

    Raises:
        Refused: `DIM_UNSUPPORTED`.
    """
    if dims not in (2, 3) or array.ndim not in (dims, dims + 1):
        raise Refused("DIM_UNSUPPORTED", where, f"an array of shape {array.shape} with {dims} spatial axes",
                      "Give (X, Y) or (X, Y, Z), with one channel axis in front if there are channels")
    return array[None] if array.ndim == dims else array


def spacing_affine(spacing_mm: Sequence[float], where: str | Path) -> NDArray[np.float64]:
    """The affine of an image that only knows its spacing: axes along R, A and S from the origin.

    Raises:
        Refused: `GEOM_BAD_SPACING`.
    """
    steps = np.asarray(spacing_mm, dtype=np.float64)
    if steps.ndim != 1 or len(steps) not in (2, 3) or not np.isfinite(steps).all() or (steps <= 0).any():
        raise Refused("GEOM_BAD_SPACING", where, f"{tuple(spacing_mm)} is not a spacing",
                      "Give two or three numbers in mm")
    return np.diag([*steps, *[1.0] * (4 - len(steps))])


def _write_png(volume: Volume, path: Path, says: str) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    array = volume.array
    if volume.dims != 2:
        raise Refused("DIM_UNSUPPORTED", path, "a PNG holds one 2D image", "Write a volume as .nii.gz")
    if volume.channels != 1:
        raise Refused("PIX_COLOUR", path, f"a PNG holds one channel, not {volume.channels}",
                      "Write it as .npz or .nii.gz")
    whole = array.dtype.kind in "biu"
    if not whole or array.min() < 0 or array.max() > 65535:
        raise Refused("PIX_PRECISION_LOSS", path, f"{array.dtype} values do not fit a PNG exactly",
                      "Write it as .nii.gz, or scale and round it to uint8 or uint16 first")
    deep = array.dtype == np.uint16 or array.max() > 255
    pixels = np.ascontiguousarray(array[0].T, dtype=np.uint16 if deep else np.uint8)
    told = PngInfo()
    if says:
        told.add_text("Description", says)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        Image.fromarray(pixels).save(file, format="PNG", pnginfo=told)
