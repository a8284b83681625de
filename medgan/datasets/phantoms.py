"""Built-in phantoms: labelled CT, MR and chest X-ray cases that are computed, so that no data set is needed.

`phantom` makes one case, `write_phantoms` a data set of them. Every case is another patient: size, pose, anatomy,
texture, noise, and number, place and shape of the lesions are drawn from its seed. They stand in for real data in
first trials and in tests; what a model learns from them says nothing about patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medgan.datasets import phantom_ct, phantom_mr, phantom_torso, phantom_xray
from medgan.datasets.phantom_shapes import Canvas, Field, Point, rotation
from medgan.errors import Refused
from medgan.imaging.nifti import write_nifti
from medgan.imaging.planar import write_planar
from medgan.imaging.volume import Modality, Volume
from medgan.storage import write_json

Seed = int | Sequence[int]

#: Mask value -> name, background included, for each modality that has phantoms.
LESION_CLASSES: dict[Modality, dict[int, str]] = {
    "ct": {phantom_ct.BACKGROUND: "background", phantom_ct.NODULE: "nodule", phantom_ct.LIVER_LESION: "liver-lesion"},
    "mr": {phantom_mr.BACKGROUND: "background", phantom_mr.LESION: "lesion", phantom_mr.TUMOUR: "tumour"},
    "xray": {phantom_xray.BACKGROUND: "background", phantom_xray.NODULE: "nodule", phantom_xray.OPACITY: "opacity"},
}

#: Organ name -> value in the map that `organs` gives.
ORGANS: dict[Modality, dict[str, int]] = {
    "ct": phantom_torso.ORGANS,
    "mr": phantom_mr.ORGANS,
    "xray": phantom_torso.ORGANS,
}

#: Classes of whole radiographs, as `write_class_phantoms` names its folders.
IMAGE_CLASSES = ("normal", "opacity")

_CHANNELS: dict[Modality, str] = {"ct": "CT", "mr": "FLAIR", "xray": "X-ray"}
_SHAPES: dict[Modality, tuple[int, ...]] = {"ct": (128, 128, 64), "mr": (96, 112, 80), "xray": (256, 256)}
_SPACINGS_MM: dict[Modality, tuple[float, ...]] = {"ct": (2.8, 2.8, 4.0), "mr": (2.0, 2.0, 2.0), "xray": (1.4, 1.4)}
#: Heights, in anatomical mm, between which the slice of a 2D case lies: through lung or liver, through white matter.
_SLICES_MM: dict[Modality, tuple[tuple[float, float], ...]] = {"ct": ((0, 95), (-92, -48)), "mr": ((-2, 40),)}
#: A 2D case is the middle of so many slices, enough for the point-spread function and the noise.
_SLAB = 5
#: Depth of the body along the X-ray beam, in mm, and in how many steps it is sampled.
_BEAM_MM, _BEAM_STEPS = 258.0, 50
_MOST_LESIONS = 4


@dataclass(frozen=True)
class Phantom:
    """One case: image, lesion mask and organ map on the same grid, each with one channel.

    Args:
        image: CT int16 HU; MR int16 in arbitrary units; X-ray uint8 with bone bright.
        mask: uint8, values as in `LESION_CLASSES`.
        organs: uint8, values as in `ORGANS`; a lesion belongs to the organ it lies in.
    """

    image: Volume
    mask: Volume
    organs: Volume


def phantom(
    modality: Modality,
    seed: Seed,
    *,
    dims: Literal[2, 3] = 3,
    shape: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    lesions: int | None = None,
) -> tuple[Volume, Volume]:
    """Makes one phantom case: an image (1, X, Y[, Z]) and its lesion mask (1, X, Y[, Z]) uint8.

    Args: as for `build`.

    Raises:
        Refused: `INPUT_KIND` or `DIM_UNSUPPORTED`, as for `build`.
    """
    case = build(modality, seed, dims=dims, shape=shape, spacing_mm=spacing_mm, lesions=lesions)
    return case.image, case.mask


def organs(
    modality: Modality,
    seed: Seed,
    *,
    dims: Literal[2, 3] = 3,
    shape: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    lesions: int | None = None,
) -> Volume:
    """The organ map (1, X, Y[, Z]) uint8 of the case that `phantom` makes from the same arguments.

    Args: as for `build`.

    Raises:
        Refused: `INPUT_KIND` or `DIM_UNSUPPORTED`, as for `build`.
    """
    return build(modality, seed, dims=dims, shape=shape, spacing_mm=spacing_mm, lesions=lesions).organs


def build(
    modality: Modality,
    seed: Seed,
    *,
    dims: Literal[2, 3] = 3,
    shape: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    lesions: int | None = None,
) -> Phantom:
    """Makes one phantom case with its organ map.

    The centre of the grid lies at the origin of RAS+ mm. CT and MR axes run along R, A and S. A radiograph's columns
    run to the patient's left and its rows down, as it is hung and as PNG stores it.

    Args:
        modality: `ct`, `mr` or `xray`; there is no ultrasound phantom.
        seed: The same seed and arguments give the same bytes.
        dims: 2 gives one axial CT or MR slice through a lesion; a radiograph always has two axes.
        shape: Voxels along each of the `dims` axes; alone, it keeps the default field of view.
        spacing_mm: Voxel spacing in mm; alone, it keeps the default field of view.
        lesions: How many to draw, 1 to 4 at random where it is None, 0 for a healthy case. One that finds no room
            in its organ is left out, so a small field of view may hold fewer.

    Raises:
        Refused: `INPUT_KIND` for ultrasound, `DIM_UNSUPPORTED` for a shape or spacing of the wrong length or sign.
    """
    if modality not in _SHAPES:
        raise Refused("INPUT_KIND", modality, "there is no phantom of this modality", f"Use {', '.join(_SHAPES)}")
    rng = np.random.default_rng(seed if isinstance(seed, int) else list(seed))
    count = int(rng.integers(1, _MOST_LESIONS + 1)) if lesions is None else lesions
    if modality == "xray":
        grid, steps = _grid(modality, 2, shape, spacing_mm)
        return _radiograph(rng, grid, steps, count)
    grid, steps = _grid(modality, dims, shape, spacing_mm)
    return _volume(modality, rng, grid, steps, count)


def _grid(
    modality: Modality, dims: int, shape: Sequence[int] | None, spacing_mm: Sequence[float] | None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Fills in what the caller left out, so that the field of view stays what it is by default."""
    extent = np.multiply(_SHAPES[modality], _SPACINGS_MM[modality])[:dims]
    for given in (shape, spacing_mm):
        if given is not None and (len(given) != dims or min(given) <= 0):
            raise Refused("DIM_UNSUPPORTED", str(tuple(given)), f"not {dims} positive numbers",
                          f"Give {dims} numbers, one for each spatial axis")
    if spacing_mm is None:
        spacing_mm = _SPACINGS_MM[modality][:dims] if shape is None else tuple(extent / np.array(shape))
    if shape is None:
        shape = tuple(np.maximum(np.rint(extent / np.array(spacing_mm)), 1).astype(int))
    return tuple(int(n) for n in shape), tuple(float(step) for step in spacing_mm)


def _axis(count: int, step_mm: float, scale: float, centre_mm: float) -> Field:
    """Anatomical coordinates of a row of voxels whose middle lies at `centre_mm`."""
    return np.asarray((np.arange(count) - (count - 1) / 2) * step_mm / scale + centre_mm, dtype=np.float32)


def _volume(modality: Modality, rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: tuple[float, ...],
            count: int) -> Phantom:  # fmt: skip
    flat = len(shape) == 2
    if flat:
        shape, spacing_mm = (*shape, _SLAB), (*spacing_mm, _SPACINGS_MM[modality][2])
    # Men and women, large and small; the field of view does not follow, as on a scanner.
    scale: Point = (rng.uniform(0.92, 1.03), rng.uniform(0.92, 1.04), rng.uniform(0.94, 1.06))
    centre = [rng.normal(0, 2.5), rng.normal(0, 2.5), rng.normal(0, 4)]
    if modality == "ct":
        # The back is thicker than the front, so the body's middle lies behind that of the cage.
        centre[1] -= 8
    if flat:
        heights = _SLICES_MM[modality]
        centre[2] = rng.uniform(*heights[rng.integers(len(heights))])
    axes = [_axis(n, step, s, c) for n, step, s, c in zip(shape, spacing_mm, scale, centre, strict=True)]
    lean = 0.05 if modality == "ct" else 0.11
    background = -1000.0 if modality == "ct" else 0.0
    canvas = Canvas((axes[0], axes[1], axes[2]), scale, background, rotation(rng, lean))
    make = phantom_ct.ct_case if modality == "ct" else phantom_mr.mr_case
    arrays: Sequence[NDArray[Any]] = make(canvas, rng, count, flat)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [-0.5 * (n - 1) * step for n, step in zip(shape, spacing_mm, strict=True)]
    if flat:
        affine[2, 3] = 0
        arrays = [array[:, :, _SLAB // 2] for array in arrays]
    return _phantom(modality, arrays, affine)


def _radiograph(
    rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: tuple[float, ...], count: int
) -> Phantom:
    # A deep breath stretches the chest: more lung than in the torso as CT shows it.
    scale: Point = (rng.uniform(0.93, 1.02), rng.uniform(0.9, 1.04), rng.uniform(1.36, 1.5))
    canvas = Canvas(
        (
            _axis(shape[0], spacing_mm[0], scale[0], rng.normal(0, 3)),
            _axis(_BEAM_STEPS, _BEAM_MM / _BEAM_STEPS, scale[1], -8),
            _axis(shape[1], spacing_mm[1], scale[2], rng.uniform(18, 27)),
        ),
        scale,
        -1000.0,
        rotation(rng, 0.05),
    )
    arrays = [array[::-1, ::-1] for array in phantom_xray.xray_case(canvas, rng, count)]
    affine = np.zeros((4, 4))
    affine[0, 0], affine[2, 1], affine[1, 2], affine[3, 3] = -spacing_mm[0], -spacing_mm[1], 1, 1
    affine[0, 3], affine[2, 3] = 0.5 * (shape[0] - 1) * spacing_mm[0], 0.5 * (shape[1] - 1) * spacing_mm[1]
    return _phantom("xray", arrays, affine)


def _phantom(modality: Modality, arrays: Sequence[NDArray[Any]], affine: NDArray[np.float64]) -> Phantom:
    image, mask, organ_map = (
        Volume(np.ascontiguousarray(array)[None], affine, modality=modality) for array in arrays
    )
    return Phantom(image, mask, organ_map)


def write_phantoms(folder: Path, modality: Modality, *, count: int, seed: int, dims: Literal[2, 3] = 3,
                   shape: Sequence[int] | None = None, organs: Sequence[str] = ()) -> Path:  # fmt: skip
    """Writes phantoms as a data set in the nnU-Net v2 layout.

    Case i is `phantom(modality, [seed, i], dims=dims, shape=shape)`. CT and MR are NIfTI, radiographs PNG, which
    nnU-Net reads with its reader for natural images (`file_ending` ".png"). `dataset.json` is written last.

    Args:
        folder: Gets `imagesTr`, `labelsTr` and `dataset.json`.
        modality: `ct`, `mr` or `xray`.
        count: How many cases.
        seed: Of the whole data set.
        dims: 2 for single slices.
        shape: Voxels along each axis, as for `build`.
        organs: Names in `ORGANS` that the masks label too, wherever there is no lesion, for `data.organs`.

    Returns:
        The folder.

    Raises:
        Refused: `OUT_EXISTS` where the folder holds other images, `LABEL_UNKNOWN` for an organ that there is not, and
            what `build` refuses.
    """
    classes = LESION_CLASSES[modality]
    if unknown := [name for name in organs if name not in ORGANS[modality]]:
        raise Refused("LABEL_UNKNOWN", unknown[0], f"{modality} phantoms have no such organ",
                      f"Use some of {', '.join(ORGANS[modality])}")
    labels = {name: value for value, name in classes.items()}
    labels |= {name: max(classes) + number for number, name in enumerate(organs, 1)}
    ending = ".png" if modality == "xray" else ".nii.gz"
    write: Callable[[Volume, Path], None] = write_planar if modality == "xray" else write_nifti
    names = [f"{modality}phantom_{index:04d}" for index in range(count)]
    _refuse_others(folder / "imagesTr", {f"{name}_0000{ending}" for name in names})
    _refuse_others(folder / "labelsTr", {f"{name}{ending}" for name in names})
    for index, name in enumerate(names):
        case = build(modality, [seed, index], dims=dims, shape=shape)
        mask = case.mask.array.copy()
        for organ in organs:
            mask[(case.organs.array == ORGANS[modality][organ]) & (case.mask.array == 0)] = labels[organ]
        write(case.image, folder / "imagesTr" / f"{name}_0000{ending}")
        write(replace(case.mask, array=mask), folder / "labelsTr" / f"{name}{ending}")
    description = {
        "name": f"{modality}phantom",
        "description": f"Computed {_CHANNELS[modality]} phantoms with lesions; no patient data",
        "reference": "medgan.datasets.phantoms",
        "licence": "CC0",
        "channel_names": {"0": _CHANNELS[modality]},
        "labels": labels,
        "numTraining": count,
        "file_ending": ending,
    }
    write_json(folder / "dataset.json", description)
    return folder


def write_class_phantoms(folder: Path, *, count: int, seed: int, shape: Sequence[int] | None = None) -> Path:
    """Writes chest radiographs into one folder per class, `normal` and `opacity`, as PNG.

    Case i has seed [seed, i]; even ones are normal, odd ones bear one to four nodules or opacities.

    Args:
        folder: Gets a sub-folder for each of `IMAGE_CLASSES`.
        count: How many radiographs in all.
        seed: Of the whole data set.
        shape: Pixels along columns and rows, as for `build`.

    Returns:
        The folder.

    Raises:
        Refused: `OUT_EXISTS` where a class folder holds other images.
    """
    for label, kind in enumerate(IMAGE_CLASSES):
        names = {index: f"xrayphantom_{index:04d}.png" for index in range(label, count, len(IMAGE_CLASSES))}
        _refuse_others(folder / kind, set(names.values()))
        for index, name in names.items():
            image, _ = phantom("xray", [seed, index], dims=2, shape=shape, lesions=None if label else 0)
            write_planar(image, folder / kind / name)
    return folder


def _refuse_others(folder: Path, names: set[str]) -> None:
    """Files of another data set beside these would make a mixture; files of the same names are written anew."""
    others = sorted(path.name for path in folder.glob("*") if path.name not in names) if folder.is_dir() else []
    if others:
        raise Refused("OUT_EXISTS", folder, f"it holds {others[0]} and {len(others) - 1} more that are no part of this",
                      "Choose an empty folder")
