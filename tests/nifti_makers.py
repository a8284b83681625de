"""NIfTI files and what the reader says of them: for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medgan.errors import Refused
from medgan.imaging.nifti import read_nifti
from medgan.imaging.volume import Volume

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
