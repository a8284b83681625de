"""Bad input to `medgan.upsample` and `medgan upsample`: a code, a reason, a fix, and nothing written."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_makers as make
import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

import medgan
from medgan import cli
from medgan.errors import CODES, Refused
from medgan.imaging.volume import Volume

RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def grey(**changes: Any) -> Volume:
    array = np.random.default_rng(0).normal(100, 20, (1, 8, 8, 6)).astype(np.float32)
    for place, value in changes.get("voxels", {}).items():
        array[place] = value
    return Volume(array, np.diag([1.0, 1.0, 3.0, 1.0]))


def unsaved_nifti(affine: Any) -> nibabel.Nifti1Image:
    image = nibabel.Nifti1Image(np.ones((8, 8, 6), np.float32), np.eye(4))
    image.affine[:] = affine
    return image


#: What is wrong -> (code, image, options).
BAD: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "a 2D array": ("DIM_UNSUPPORTED", lambda: np.ones((8, 8), np.float32), {"input_spacing": (1, 1)}),
    "a 2D array with a 3D spacing": ("DIM_UNSUPPORTED", lambda: np.ones((8, 8), np.float32),
                                     {"input_spacing": (1, 1, 3)}),
    "a 2D array, its spacing as spacing": ("DIM_UNSUPPORTED", lambda: np.ones((8, 8)), {"spacing": (1, 1)}),
    "a 2D tensor": ("DIM_UNSUPPORTED", lambda: torch.ones(8, 8), {"input_spacing": (1, 1)}),
    "a 2D MetaTensor": ("DIM_UNSUPPORTED", lambda: MetaTensor(torch.ones(1, 8, 8)), {}),
    "NaN": ("PIX_NONFINITE", lambda: grey(voxels={(0, 3, 3, 3): np.nan}), {}),
    "infinity": ("PIX_NONFINITE", lambda: grey(voxels={(0, 0, 0, 0): -np.inf}), {}),
    "NaN in an array": ("PIX_NONFINITE", lambda: grey(voxels={(0, 3, 3, 3): np.nan}).array,
                        {"input_spacing": (1, 1, 3)}),
    "a singular affine": ("GEOM_SINGULAR_AFFINE", lambda: MetaTensor(
        torch.ones(1, 8, 8, 6), affine=torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0]))), {}),
    "a singular nibabel affine": ("GEOM_SINGULAR_AFFINE", lambda: unsaved_nifti(np.diag([1.0, 1.0, 0.0, 1.0])), {}),
    "a factor below 1": ("FACTOR_RANGE", grey, {"factor": 0.99}),
    "a factor of 0": ("FACTOR_RANGE", grey, {"factor": 0}),
    "a negative factor": ("FACTOR_RANGE", grey, {"factor": (1, 1, -2)}),
    "a factor above 8": ("FACTOR_RANGE", grey, {"factor": 8.01}),
    "one axis above 8": ("FACTOR_RANGE", grey, {"factor": (1, 1, 9)}),
    "a factor that is no number": ("CFG_VALUE", grey, {"factor": np.nan}),
    "an infinite factor": ("CFG_VALUE", grey, {"factor": np.inf}),
    "a coarser spacing": ("FACTOR_RANGE", grey, {"spacing": (1, 1, 4)}),
    "a coarser spacing in plane": ("FACTOR_RANGE", grey, {"spacing": 2.0}),
    "a spacing finer than an eighth": ("FACTOR_RANGE", grey, {"spacing": (1, 1, 0.3)}),
    "a spacing of 0": ("CFG_VALUE", grey, {"spacing": (1, 1, 0)}),
    "no spacing for an array": ("GEOM_NO_SPACING", lambda: grey().array, {}),
    "no spacing for an array of 3 axes": ("GEOM_NO_SPACING", lambda: grey().array[0], {"factor": 2}),
    "no spacing for a tensor": ("GEOM_NO_SPACING", lambda: torch.ones(8, 8, 6), {}),
    "a spacing of an array that is none": ("GEOM_BAD_SPACING", lambda: grey().array, {"input_spacing": (1, 0, 3)}),
    "a colour array": ("PIX_COLOUR", lambda: np.zeros((8, 8, 6), RGB), {"input_spacing": (1, 1, 3)}),
    "a colour nibabel image": ("PIX_COLOUR", lambda: nibabel.Nifti1Image(np.zeros((8, 8, 6), RGB), np.eye(4)), {}),
    "complex values": ("PIX_COMPLEX", lambda: np.ones((8, 8, 6), np.complex64), {"input_spacing": (1, 1, 3)}),
    "words": ("INPUT_KIND", lambda: np.full((8, 8, 6), "x"), {"input_spacing": (1, 1, 3)}),
}


def says_what_and_how(refused: Refused, code: str) -> None:
    assert refused.code == code and code in CODES
    assert len(refused.why.split()) > 2 and len(refused.fix.split()) > 1 and refused.where
    assert re.fullmatch(r"error\[[A-Z0-9_]+\] [^\n]+: [^\n]+\. [A-Z0-9][^\n]+\.", str(refused)), str(refused)


@pytest.mark.parametrize("name", BAD)
def test_in_python(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, image, options = BAD[name]
    with pytest.raises(Refused) as refused:
        medgan.upsample(image(), **({"method": "linear"} | options))
    says_what_and_how(refused.value, code)
    assert list(tmp_path.iterdir()) == []


def flat_nifti(path: Path) -> Path:
    return make.nifti(path / "in.nii.gz", make.image(1, shape=(9, 8)))


def holed_nifti(path: Path) -> Path:
    array = make.image(1, "float32")
    array[2, 2, 2] = np.nan
    return make.nifti(path / "in.nii.gz", array)


def singular_nifti(path: Path) -> Path:
    made = make.nifti(path / "in.nii.gz", make.image(1))
    image = nibabel.load(made)
    header = image.header.copy()
    header["srow_x"], header["srow_y"], header["srow_z"] = (1, 0, 0, 0), (2, 0, 0, 0), (0, 0, 2.5, 0)
    header["sform_code"], header["qform_code"] = 1, 0
    plain = path / "in.nii"
    plain.write_bytes(bytes(header.binaryblock) + b"\0" * 4 + np.asarray(image.dataobj).tobytes(order="F"))
    made.unlink()
    return plain


def colour_nifti(path: Path) -> Path:
    path.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 6), RGB), np.eye(4)), path / "in.nii.gz")
    return path / "in.nii.gz"


def colour_png(path: Path) -> Path:
    path.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path / "in.png")
    return path / "in.png"


def grey_png(path: Path) -> Path:
    path.mkdir(parents=True)
    Image.fromarray(make.image(1, "uint8", (9, 8))).save(path / "in.png")
    return path / "in.png"


def good(path: Path) -> Path:
    return make.nifti(path / "in.nii.gz", make.image(1))


#: What is wrong -> (code, file, further arguments).
BAD_FILES: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...]]] = {
    "a 2D NIfTI": ("DIM_UNSUPPORTED", flat_nifti, ()),
    "a grey picture": ("DIM_UNSUPPORTED", grey_png, ()),
    "NaN": ("PIX_NONFINITE", holed_nifti, ()),
    "a singular affine": ("GEOM_SINGULAR_AFFINE", singular_nifti, ()),
    "a colour NIfTI": ("PIX_COLOUR", colour_nifti, ()),
    "a colour picture": ("PIX_COLOUR", colour_png, ()),
    "a factor below 1": ("FACTOR_RANGE", good, ("--factor", "0.5")),
    "a factor above 8": ("FACTOR_RANGE", good, ("--factor", "8.5")),
    "a factor that is no number": ("CFG_VALUE", good, ("--factor", "nan")),
    "a coarser spacing": ("FACTOR_RANGE", good, ("--spacing", "0.8", "1", "3")),
    "a spacing of 0": ("CFG_VALUE", good, ("--spacing", "0.8", "1", "0")),
    "a spacing and a factor": ("CFG_VALUE", good, ("--spacing", "0.8", "1", "1", "--factor", "2")),
    "no thickness": ("CFG_VALUE", good, ("--thickness", "0")),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_on_the_command_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture[str]) -> None:
    code, maker, arguments = BAD_FILES[name]
    source = maker(tmp_path / "data")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = make.tree(tmp_path)
    command = ["medgan", "upsample", str(source), "out.nii.gz", "--method", "linear", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    last = told.err.splitlines()[-1]
    assert ended.value.code == 3 and told.out == "" and "Traceback" not in told.err
    assert re.fullmatch(rf"error\[{code}\] [^\n]+: [^\n]+\. [A-Z0-9][^\n]+\.", last), last
    assert make.tree(tmp_path) == before and list(Path().iterdir()) == []
