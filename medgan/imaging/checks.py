"""What every reader asks before it believes a file, and of the values it ends up with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.imaging.nifti_header import rigid
from medgan.imaging.volume import Volume

#: Squares of larger values are beyond single precision.
LARGEST = 1e18

_START_BYTES = 512
_POINTER_MARKS = (b"version https://git-lfs", b"/annex/objects/")


def first_bytes(path: Path) -> bytes:
    """Reads the first 512 bytes of a file that is there, has bytes and is not a pointer to another one.

    Raises:
        Refused: `FILE_MISSING`, `FILE_FORMAT`, `FILE_EMPTY` or `FILE_IS_POINTER`.
    """
    if "\0" in str(path) or not path.exists():
        raise Refused("FILE_MISSING", path, "there is no such file", "Check the path")
    if not path.is_file():
        raise Refused("FILE_FORMAT", path, "not a file", "Give the path of one image")
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    if not start:
        raise Refused("FILE_EMPTY", path, "the file has no bytes", "Fetch the file again")
    if start.startswith(_POINTER_MARKS[0]) or (len(start) < _START_BYTES and _POINTER_MARKS[1] in start):
        raise Refused("FILE_IS_POINTER", path, "a Git LFS or annex pointer lies here, not the image",
                      "Run `git lfs pull` (or `git annex get`)")
    return start


def refuse_nonfinite(array: NDArray[Any], where: str | Path) -> None:
    """Raises `PIX_NONFINITE` where any value is NaN or infinite, counting them only then.

    Raises:
        Refused: `PIX_NONFINITE`.
    """
    if array.dtype.kind != "f":
        return
    with np.errstate(invalid="ignore"):
        ends = float(array.min()), float(array.max())  # both are NaN if any value is, and no copy is made
    if np.isfinite(ends).all():
        return
    wrong = sum(int(np.count_nonzero(~np.isfinite(part))) for part in array.reshape(-1, array.shape[-1]))
    raise Refused("PIX_NONFINITE", where, f"{wrong} of {array.size} values are NaN or infinite",
                  "Repair or mask these voxels first")


def refuse_uncomputable(image: Volume) -> None:
    """Refuses an image whose values or axes cannot be computed with.

    Raises:
        Refused: `PIX_COMPLEX`, `INPUT_KIND`, `PIX_NONFINITE`, `GEOM_SHEAR` or `PIX_PRECISION_LOSS`.
    """
    where = image.source or "image"
    if image.array.dtype.kind not in "biuf":
        code = "PIX_COMPLEX" if image.array.dtype.kind == "c" else "INPUT_KIND"
        raise Refused(code, where, f"dtype {image.array.dtype} is not an image's", "Give integers or floats")
    refuse_nonfinite(image.array, where)
    if not rigid(image.affine):
        raise Refused("GEOM_SHEAR", where, "the affine is sheared, not rotation times scale",
                      "Resample the image onto a grid with orthogonal axes")
    largest = max(abs(float(image.array.min())), abs(float(image.array.max())))
    if largest > LARGEST:
        raise Refused("PIX_PRECISION_LOSS", where, f"values of up to {largest:.3g} cannot be computed with",
                      "Scale the values, or clip what is no measurement")
