"""`upsample`: thick slices in, thin ones out, at the right place and in the same unit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from medgan.errors import Refused
from medgan.imaging import files
from medgan.imaging.checks import MAX_BYTES, refuse_nonfinite
from medgan.imaging.convert import is_bare, to_volume
from medgan.imaging.geometry import zoomed_affine
from medgan.imaging.intensity import intensity_maps
from medgan.imaging.refine import refine
from medgan.imaging.restoration import acquisitions, wanted_factors
from medgan.imaging.slices import FACTORS, PROFILES, Acquisition, Profile
from medgan.imaging.volume import Volume
from medgan.verbs.progress import Progress, Report, silent

if TYPE_CHECKING:
    from medgan.learning.sharpening import Sharpener

Method = Literal["network", "linear"]

#: A volume whose spacings differ by more than this factor is made isotropic unless something else is asked for.
ANISOTROPIC = 1.2
#: The factor for all others.
DEFAULT_FACTOR = 2.0
#: What a DICOM file may be called besides nothing at all.
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class UpsampleReport:
    """What `upsample` did.

    Args:
        method: `network` or `linear`: what was used, which is not always what was asked for.
        model: Hash of the model's weights, or None.
        factors: How many times finer each axis became.
        spacing_mm: The new spacing.
        profile: The slice profile that was assumed.
        thickness_mm: Its full width at half maximum along each axis, in mm.
        consistency: How far the result, acquired again with that profile, is from the input: root mean square over
            the input's intensity range (0.1 to 99.9 percentile of the foreground).
        warnings: What the reader of the result should know.
    """

    method: Method
    model: str | None
    factors: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    profile: Profile
    thickness_mm: tuple[float, ...]
    consistency: float
    warnings: tuple[str, ...]


def upsample(
    volume: Any, *, spacing: Sequence[float] | float | None = None, factor: Sequence[float] | float | None = None,
    profile: Profile | Literal["auto"] = "auto", thickness: float | None = None, method: Method = "network",
    model: str | Path | None = None, device: str = "auto", seed: int = 0, report: bool = False,
    input_spacing: Sequence[float] | None = None, progress: Report = silent,
) -> Any:
    """Makes the voxels of a scan smaller, with the detail that thick slices lost put back as far as can be known.

    The linear method undoes the slice profile by regularised deconvolution; the network draws on top of that what
    it has learned of anatomy. The field of view is kept: with factor f the first new voxel's centre sits at
    (1/f - 1)/2 old voxels. Values keep their unit, and arrays their type; integers are rounded.

    Args:
        volume: A path, `Volume`, numpy array, torch tensor, MONAI `MetaTensor`, nibabel or SimpleITK image; 3D, with
            any number of channels.
        spacing: The spacing wanted in mm, one number for each axis or one for all. For a bare array or tensor
            without `input_spacing` it is the array's own spacing, since nothing else tells it.
        factor: How many times finer, 1 to 8, one number for each axis or one for all; instead of `spacing`. With
            neither, a volume whose spacings differ by more than a factor of 1.2 becomes isotropic at its finest
            spacing (no axis more than 8 times finer), and any other twice as fine.
        profile: The slice profile: `gaussian`, `rect` or `sinc`. `auto` means a Gaussian.
        thickness: Full width at half maximum of the profile along the coarsest refined axis, in mm; by default the
            slice spacing, as it always is along the other axes.
        method: `network`, or `linear` for the deconvolution alone, which needs no torch. Where the model does not
            cover the case, the linear method is used and a warning says so.
        model: A run folder of the task upscale; by default the model that ships with medgan.
        device: `auto`, `cpu` or `cuda`.
        seed: Taken for the sake of uniformity; nothing here is random.
        report: Also return an `UpsampleReport`.
        input_spacing: Voxel spacing of a bare array or tensor, in mm, where `spacing` says what is wanted.
        progress: Told of each slab.

    Returns:
        The same kind of image as came in (a `Volume` for a path); with `report`, a pair of it and the report.
        Without it, the report's warnings are given as Python warnings.

    Raises:
        Refused: `DIM_UNSUPPORTED`, `SINGLE_SLICE`, `PIX_*`, `GEOM_*`, `FACTOR_RANGE`, `LIMIT`, `CFG_VALUE`, `RUN_*`,
            `CKPT_*`, or what is wrong with a file.
    """
    _check_options(profile, method, model)
    if input_spacing is None and spacing is not None and is_bare(volume):
        own = np.atleast_1d(np.asarray(spacing, dtype=float))
        input_spacing, spacing = tuple(own if len(own) > 1 else np.repeat(own, min(3, volume.ndim))), None
    try:
        image, back = to_volume(volume, spacing_mm=input_spacing)
    except Refused as refused:
        if refused.code != "GEOM_NO_SPACING" or input_spacing is not None:
            raise
        raise Refused(refused.code, refused.where, refused.why,
                      "Give its spacing=(x, y, z) in mm") from None
    factors, remarks = _factors(_checked(image), spacing, factor)
    assumed: Profile = "gaussian" if profile == "auto" else profile
    scans = acquisitions(image, factors, assumed, thickness)
    _check_size(image, scans)
    sharpener = _sharpener(scans, model, device, remarks) if method == "network" else None
    maps = intensity_maps(image.array, sharpener.config.intensity) if sharpener else None
    array, consistency = refine(
        image, scans, sharpen=sharpener.add if sharpener else None, maps=maps,
        progress=lambda done, total: progress(Progress("upsample", done, total, "slabs")))
    result = replace(image, array=array, affine=zoomed_affine(image.affine, factors))
    if not report:
        for text in remarks:
            warnings.warn(text, stacklevel=2)
        return back(result)
    widths = tuple(scan.thickness * mm for scan, mm in zip(scans, image.spacing_mm, strict=True))
    return back(result), UpsampleReport(
        "network" if sharpener else "linear", sharpener.hash if sharpener else None, factors, result.spacing_mm,
        assumed, widths, consistency, tuple(remarks))


def upsample_file(source: str | Path, target: str | Path, *, seed: int = 0, **options: Any) -> UpsampleReport:
    """Upsamples a file or DICOM folder into a new file or folder, written whole or not at all.

    Args:
        source: Whatever `medgan.read` reads.
        target: `.nii` or `.nii.gz`; or, for a DICOM source, a folder for the derived series.
        seed: Goes into the UIDs of derived DICOM.
        options: As for `upsample`.

    Raises:
        Refused: `OUT_EXISTS`, `FILE_FORMAT`, and as `upsample`.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise Refused("OUT_EXISTS", target, "there is something already", "Name another output, or remove it")
    nifti = files.suffix_of(target) in (".nii", ".nii.gz")
    dicom = not target.suffix and (source.is_dir() or files.suffix_of(source) in ("", *DICOM_SUFFIXES))
    if not nifti and not dicom:
        raise Refused("FILE_FORMAT", target, "an upsampled volume is written as .nii or .nii.gz, or as a folder "
                      "where the source is DICOM", "Name the output so")
    result, told = upsample(files.read(source), report=True, **options)
    if nifti:
        files.write(result, target)
    else:
        from medgan.imaging.dicom_write import write_derived

        grid = " x ".join(f"{mm:.4g}" for mm in told.spacing_mm)
        write_derived(result, target, source=source, seed=seed, model_hash=told.model or "linear",
                      derivation=f"Upsampled to {grid} mm by medgan ({told.method}, {told.profile} slice profile)")
    return told  # type: ignore[no-any-return]


def _check_options(profile: str, method: str, model: str | Path | None) -> None:
    for name, value, known in (("profile", profile, ("auto", *PROFILES)), ("method", method, get_args(Method))):
        if value not in known:
            raise Refused("CFG_VALUE", name, f"{value!r} is not one of {', '.join(known)}", "Name one of them")
    if method == "linear" and model is not None:
        raise Refused("CFG_VALUE", "model", "the linear method has no model", "Leave out the model or the method")


def _checked(image: Volume) -> Volume:
    where = image.source or "image"
    if image.dims != 3:
        raise Refused("DIM_UNSUPPORTED", where, f"an image of shape {image.shape} has no slices to refine",
                      "Give a volume with three spatial axes")
    if image.array.dtype.kind not in "biuf":
        code = "PIX_COMPLEX" if image.array.dtype.kind == "c" else "INPUT_KIND"
        raise Refused(code, where, f"dtype {image.array.dtype} is not an image's", "Give integers or floats")
    refuse_nonfinite(image.array, where)
    return image


def _factors(image: Volume, spacing: Sequence[float] | float | None,
             factor: Sequence[float] | float | None) -> tuple[tuple[float, ...], list[str]]:
    """One factor for each axis, and what is to be said about them."""
    remarks = []
    if spacing is not None or factor is not None:
        wanted = np.repeat(spacing, 3).tolist() if isinstance(spacing, int | float) else spacing
        factors = wanted_factors(image, factor, wanted)
    else:
        now, finest = image.spacing_mm, min(image.spacing_mm)
        if max(now) <= ANISOTROPIC * finest:
            factors = wanted_factors(image, DEFAULT_FACTOR, None)
        else:
            if max(now) > FACTORS[1] * finest:
                remarks.append(f"slices of {max(now):.4g} mm become {FACTORS[1]:g} times thinner, not {finest:.4g} mm")
            factors = wanted_factors(image, None, [max(finest, mm / FACTORS[1]) for mm in now])
    for axis, (value, count) in enumerate(zip(factors, image.shape, strict=True)):
        if value > 1 and count == 1:
            raise Refused("SINGLE_SLICE", image.source or "image", f"axis {axis} has one voxel",
                          "Give the whole volume, or a factor of 1 for this axis")
    return factors, remarks


def _check_size(image: Volume, scans: Sequence[Acquisition]) -> None:
    shape = [scan.fine for scan in scans]
    size = float(np.prod(shape, dtype=np.float64)) * image.channels * image.array.dtype.itemsize
    if size > MAX_BYTES:
        raise Refused("LIMIT", image.source or "image", f"the result, {' x '.join(map(str, shape))} voxels, would take "
                      f"{size / 2**30:.1f} GiB, and {MAX_BYTES / 2**30:.0f} are possible",
                      "Ask for a coarser spacing, or upsample parts of the volume")


def _sharpener(scans: Sequence[Acquisition], model: str | Path | None, device: str,
               remarks: list[str]) -> Sharpener | None:
    """The model, or None with a remark where it does not cover what is asked for."""
    from medgan.learning.sharpening import Sharpener

    sharpener = Sharpener.open(model, device)
    reasons = sharpener.uncovered(scans)
    if reasons:
        remarks.append(f"the linear method was used: {'; '.join(reasons)}")
        return None
    return sharpener
