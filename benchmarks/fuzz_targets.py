"""What `fuzz.py` runs: each reader on one input, and what a right answer to it looks like.

A right answer is a `Refused` that can be printed, or a result that holds what medgan promises: finite values, a rigid
affine, a sane shape, paths inside the data set. Everything else is a finding.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_seeds

#: What reading may take: far more than the seeds need, little enough to be quick.
MOST_BYTES = 2**27
#: What decoding one frame may take before it is ended, where the default would make fuzzing slow.
FRAME_SECONDS = 10.0
#: The flag of a planar seed is an index of this.
PLANAR_SUFFIXES = (".png", ".tif", ".jpg", ".bmp", ".npy", ".npz")


class Wrong(Exception):
    """A result that breaks a promise."""


@dataclass(frozen=True)
class Target:
    """One reader.

    Args:
        include: Modules whose branches guide the search.
        load: Imports them.
        run: Reads one input; gets its bytes and an empty folder to put them into.
        largest: Bytes of an input.
    """

    include: tuple[str, ...]
    load: Callable[[], None]
    run: Callable[[bytes, Path], None]
    largest: int = 4096


def emptied(folder: Path) -> Path:
    """The folder, made anew."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    return folder


def _check_volumes(volumes: list[Any]) -> None:
    import numpy as np

    from medgan.imaging.nifti_header import rigid

    if not volumes:
        raise Wrong("no volume and no refusal")
    for volume in volumes:
        array, affine = volume.array, volume.affine
        if array.ndim not in (3, 4) or array.dtype.kind not in "biuf" or not 0 < array.nbytes <= MOST_BYTES:
            raise Wrong(f"an array {array.shape} of {array.dtype}")
        if not np.isfinite(array).all():
            raise Wrong("values that are not finite")
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12 or not rigid(affine):
            raise Wrong("an affine that is not rigid")
        if min(volume.spacing_mm) <= 0 or len(volume.orientation) != volume.dims or "None" in volume.orientation:
            raise Wrong(f"spacing {volume.spacing_mm}, orientation {volume.orientation}")
        if array.min() == array.max() and "PIX_CONSTANT" not in {note.code for note in volume.notes}:
            raise Wrong("a constant image without a note")
        for note in volume.notes:
            str(note).encode()


def _read(path: Path, *, resample: bool = False) -> None:
    from medgan.imaging import decoding
    from medgan.imaging.files import read_all
    from medgan.imaging.rules import Rules

    decoding.FRAME_SECONDS = FRAME_SECONDS
    _check_volumes(read_all(path, rules=Rules(MOST_BYTES, "resample" if resample else "refuse")))


def _dicom(data: bytes, folder: Path) -> None:
    emptied(folder)
    if data[:1] and data[0] % 2:
        for number, file in enumerate(fuzz_seeds.unpacked(data[1:])):
            (folder / f"{number}.dcm").write_bytes(file)
        _read(folder, resample=bool(data[0] & 2))
    else:
        (folder / "a.dcm").write_bytes(data[1:])
        _read(folder / "a.dcm")


def _nifti(data: bytes, folder: Path) -> None:
    emptied(folder)
    flag = data[0] % 3 if data else 0
    if flag == 2:
        halves = fuzz_seeds.unpacked(data[1:], 2)
        for suffix, half in zip((".hdr", ".img"), halves, strict=False):
            (folder / f"a{suffix}").write_bytes(half)
        _read(folder / "a.img")
    else:
        path = folder / ("a.nii", "a.nii.gz")[flag]
        path.write_bytes(data[1:])
        _read(path)


def _planar(data: bytes, folder: Path) -> None:
    emptied(folder)
    path = folder / ("a" + PLANAR_SUFFIXES[data[0] % len(PLANAR_SUFFIXES) if data else 0])
    path.write_bytes(data[1:])
    _read(path)


def _npz(data: bytes, folder: Path) -> None:
    emptied(folder)
    (folder / "a.npz").write_bytes(data[1:])
    _open(folder / "a.npz", folder)


def _open(root: Path, folder: Path) -> None:
    """Opens a data set and reads its first and last case."""
    from medgan.datasets.layout_npz import read_row
    from medgan.datasets.layouts import open_dataset

    dataset = open_dataset(root)
    ids = [case.id for case in dataset.cases]
    if not ids or len(set(ids)) != len(ids) or not all(ids):
        raise Wrong(f"ids {ids[:5]}")
    base = folder.resolve()
    for case in dataset.cases:
        for path in (*case.images, *([case.mask] if case.mask else [])):
            if not path.exists() or not path.resolve().is_relative_to(base):
                raise Wrong(f"the path {path} is not in the data set")
    for note in dataset.notes:
        str(note).encode()
    for case in (dataset.cases[0], dataset.cases[-1]):
        if case.array:
            _check_volumes([read_row(case)])


#: The file that the flag of a table seed means.
_TABLES = ("manifest.csv", "dataset.json", "participants.tsv")
#: What lies beside it.
_LISTED = ("a.nii.gz", "b.nii.gz", "c.nii.gz", "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz",
           "labelsTr/b.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
_DESCRIPTION = "dataset_description.json"


def _tables(data: bytes, folder: Path) -> None:
    if not (folder / _LISTED[-1]).exists():
        for name in _LISTED:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"x")
    for name in (*_TABLES, _DESCRIPTION):
        (folder / name).unlink(missing_ok=True)
    flag = data[0] % len(_TABLES) if data else 0
    (folder / _TABLES[flag]).write_bytes(data[1:])
    if flag == 2:
        (folder / _DESCRIPTION).write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    _open(folder / _TABLES[0] if flag == 0 else folder, folder)  # the folder alone would be taken for BIDS


def _checkpoints(data: bytes, folder: Path) -> None:
    emptied(folder)
    import torch

    from medgan.learning.checkpoints import load_weights, open_run, tensors_of

    if not data or data[0] % 2 == 0:
        (folder / "config.json").write_bytes(data[1:])
        run = open_run(folder)
        if run.finished or not isinstance(run.config.seed, int):
            raise Wrong("a run that is not one")
        dict(run.interface), dict(run.dataset)
        return
    path = folder / "weights.safetensors"
    path.write_bytes(data[1:])
    for tensor in tensors_of(path).values():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Wrong("weights that are not finite")
    module = torch.nn.Linear(3, 2)
    load_weights(module, path)


def _config(data: bytes, folder: Path) -> None:
    emptied(folder)
    from medgan.config import Config

    if not data or data[0] % 2 == 0:
        path = folder / "a.toml"
        path.write_bytes(data[1:])
        settings = Config.resolve("ct", "lesion", file=path)
    else:
        settings = Config.resolve("mr", "image", settings=data[1:].decode("utf-8", "replace").splitlines())
    if Config.checked(settings.model_dump(mode="json"), where="again") != settings:
        raise Wrong("settings that do not survive being written down")


def _loads(*names: str) -> Callable[[], None]:
    def load() -> None:
        import importlib

        for name in names:
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(name)

    return load


_PYDICOM = tuple(f"pydicom.{name}" for name in (
    "filereader", "dataset", "dataelem", "values", "valuerep", "charset", "sequence", "multival", "encaps", "fileutil",
    "filebase", "hooks", "uid"))
_IMAGING = "medgan.imaging"
#: Reader -> what is run.
TARGETS = {
    "dicom": Target((_IMAGING, *_PYDICOM), _loads("medgan.imaging.files", "medgan.imaging.dicom", *_PYDICOM),
                    _dicom, 8192),
    "nifti": Target((_IMAGING, "nibabel.nifti1", "nibabel.quaternions"),
                    _loads("nibabel", "medgan.imaging.files"), _nifti),
    "planar": Target((_IMAGING, "PIL", "zipfile"), _loads("PIL.PngImagePlugin", "PIL.TiffImagePlugin",
                     "PIL.JpegImagePlugin", "PIL.BmpImagePlugin", "medgan.imaging.files"), _planar),
    "npz": Target((_IMAGING, "medgan.datasets"), _loads("medgan.datasets.layouts"), _npz),
    "tables": Target((_IMAGING, "medgan.datasets", "json.decoder"), _loads("medgan.datasets.layouts"), _tables),
    "checkpoints": Target(("medgan.learning.checkpoints", "medgan.config", "json.decoder"),
                          _loads("torch", "medgan.learning.checkpoints"), _checkpoints),
    "config": Target(("medgan.config", "tomllib"), _loads("medgan.config"), _config),
}
