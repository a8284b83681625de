"""`upsample`: thick slices in, thin ones out, at the right place and in the same unit."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from medgan.config import Intensity
from medgan.errors import Refused
from medgan.imaging import files
from medgan.imaging.checks import refuse_uncomputable
from medgan.imaging.convert import is_bare, to_volume
from medgan.imaging.estimation import estimate_noise, estimate_profile
from medgan.imaging.geometry import align_mask, zoomed_affine
from medgan.imaging.intensity import intensity_maps
from medgan.imaging.refine import refine
from medgan.imaging.restoration import acquisitions, thick_axis, wanted_factors
from medgan.imaging.slices import FACTORS, PROFILES, Acquisition, Profile, positive_mm
from medgan.imaging.volume import Volume
from medgan.notices import tell
from medgan.storage import held, os_errors_refused, remove_whole
from medgan.verbs.progress import Progress, Report, silent
from medgan.verbs.reading import asked_rules, besides_rules
from medgan.verbs.upsample_report import Method, Origin, UpsampleReport

if TYPE_CHECKING:
    from medgan.learning.sharpening import Sharpener

Device = Literal["auto", "cpu", "cuda"]

#: Estimates of the thickness and headers, in slice spacings, are kept within what the shipped model knows; what is told
#: must be possible.
LIKELY, POSSIBLE = (0.4, 1.5), (0.1, 4.0)
#: An estimate that is less sure than this is warned of.
UNSURE = 0.5
#: A volume whose spacings differ by more than this factor is made isotropic unless something else is asked for.
ANISOTROPIC = 1.2
#: The factor for all others.
DEFAULT_FACTOR = 2.0
#: What a DICOM file may be called besides nothing at all.
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def upsample(
    volume: Any, *, spacing: Sequence[float] | float | None = None, factor: Sequence[float] | float | None = None,
    profile: Profile | Literal["auto"] = "auto", thickness: float | None = None, method: Method = "network",
    adapt: bool = False, sharpness: float = 0.0, labels: Any = None, model: str | Path | None = None,
    device: str = "auto", seed: int = 0, report: bool = False, maps: bool = True,
    input_spacing: Sequence[float] | None = None, config: str | Path | None = None,
    settings: Sequence[str] | Mapping[str, Any] = (), progress: Report = silent,
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
        profile: The slice profile: `gaussian`, `rect` or `sinc`. `auto` estimates it from the scan, whose in-plane
            directions show how sharp the slice direction would be; where that is not possible it means a Gaussian.
        thickness: Full width at half maximum of the profile along the coarsest refined axis, in mm. By default a DICOM
            header's SliceThickness, or else with `auto` what is estimated; or else the slice spacing, as it always is
            along the other axes.
        method: `network`, or `linear` for the deconvolution alone, which needs no torch. Where the model does not
            cover the case, the linear method is used and a warning says so.
        adapt: Whether to train the model on the scan's own in-plane detail first (about a minute); it is left as
            it was where that does not help on slices held back.
        sharpness: 0 to 1: from the truest result to the sharpest look. More looks better and is less true.
        labels: A label map on the grid of `volume`, of any of the same kinds; it is refined class by class.
        model: A run folder of the task upscale; by default the model that ships with medgan.
        device: `auto`, `cpu` or `cuda`.
        seed: Of the adaptation; nothing else here is random.
        report: Also return an `UpsampleReport`.
        maps: Whether the report holds its two maps, which take the network twice as long.
        input_spacing: Voxel spacing of a bare array or tensor, in mm, where `spacing` says what is wanted.
        config: A TOML file of settings over those that the model was trained with: `[intensity]`, and for `adapt`
            `[training]` (such as `images`, `rate`, `limit_minutes`).
        settings: Single settings over those, `["training.images=4800", ...]` or a mapping.
        progress: Told of each slab.

    Returns:
        The same kind of image as came in (a `Volume` for a path); with `labels` or `report`, a tuple of it, the
        labels and the report, as far as they were asked for. Without a report, its warnings are given as Python
        warnings.

    Raises:
        Refused: `DIM_UNSUPPORTED`, `SINGLE_SLICE`, `PIX_*`, `GEOM_*`, `FACTOR_RANGE`, `LIMIT`, `CFG_VALUE`, `RUN_*`,
            `CKPT_*`, or what is wrong with a file.
    """
    check_options(profile=profile, method=method, model=model, adapt=adapt, sharpness=sharpness, thickness=thickness,
                  device=device, settings=config is not None or bool(besides_rules(settings)))
    rules = asked_rules(config, settings, "upscale")
    if input_spacing is None and spacing is not None and is_bare(volume):
        own = np.atleast_1d(np.asarray(spacing, dtype=float))
        input_spacing, spacing = tuple(own if len(own) > 1 else np.repeat(own, min(3, volume.ndim))), None
    if isinstance(volume, str | os.PathLike):
        volume = files.read(os.fspath(volume), rules=rules)
    try:
        image, back = to_volume(volume, spacing_mm=input_spacing)
    except Refused as refused:
        if refused.code != "GEOM_NO_SPACING" or input_spacing is not None:
            raise
        raise Refused(refused.code, refused.where, refused.why,
                      "Give its spacing=(x, y, z) in mm") from None
    factors, remarks = _factors(_checked(image), spacing, factor)
    sharpener = _opened(model, device, sharpness) if method == "network" else None
    chosen = sharpener.config.over(file=config, settings=settings).intensity if sharpener else Intensity()
    ranges = tuple(mapping.straight() for mapping in intensity_maps(image.array, chosen))
    axis = thick_axis(image, factors)
    deviations = [estimate_noise(channel, axis) for channel in image.array]
    # Over half the intensity range, as the network has it.
    noises = tuple(2 * deviation / (mapping.raw[-1] - mapping.raw[0])
                   for deviation, mapping in zip(deviations, ranges, strict=True))
    known = _known(image, axis, profile, thickness, deviations, remarks)
    scans = tuple(replace(scan, certain=known.origin == "told") for scan in acquisitions(
        image, factors, known.profile, known.thickness_mm))
    _check_size(image, scans, rules.limit, maps=report and maps and sharpener is not None)
    affine = zoomed_affine(image.affine, factors)
    new_spacing = replace(image, affine=affine).spacing_mm
    if sharpener:
        reasons = sharpener.uncovered(scans, max(noises), new_spacing, image.modality)
        if reasons:
            remarks.append(f"the linear method was used: {'; '.join(reasons)}")
            sharpener = None
    gained = None
    if adapt and sharpener:
        from medgan.learning.adaptation import adapt as adapt_to

        sharpener, gained, remark = adapt_to(
            sharpener, image, scans, ranges, noises, seed=seed, config=config, settings=settings,
            progress=lambda done, total: progress(Progress("adapt", done, total, "patches")))
        remarks += [remark] if remark else []
    refined = refine(
        image, scans, ranges, noises=noises, sharpen=sharpener.add if sharpener else None,
        maps_wanted=report and maps and sharpener is not None,
        progress=lambda done, total: progress(Progress("upsample", done, total, "slabs")))
    results = [back(replace(image, array=refined.array, affine=affine, slice_thickness_mm=None))]
    if isinstance(labels, str | os.PathLike):
        labels = files.read(os.fspath(labels), labels=True, rules=rules)
    if labels is not None:
        results.append(_labels(labels, image, scans, input_spacing))
    if report:
        widths = tuple(scan.thickness * mm for scan, mm in zip(scans, image.spacing_mm, strict=True))
        results.append(UpsampleReport(
            "network" if sharpener else "linear", sharpener.hash if sharpener else None, factors, new_spacing,
            known.profile, widths, known.origin, known.confidence, tuple(noise / 2 for noise in noises),
            max(refined.consistency), gained, tuple(remarks), refined.deviation, refined.spread))
    else:
        for text in remarks:
            warnings.warn(text, stacklevel=2)
    return results[0] if len(results) == 1 else tuple(results)


@dataclass(frozen=True)
class _Known:
    """What is known of the slice profile, and from where."""

    profile: Profile
    thickness_mm: float | None
    origin: Origin
    confidence: float | None = None


def _known(image: Volume, axis: int, profile: str, thickness: float | None, deviations: Sequence[float],
           remarks: list[str]) -> _Known:
    """The slice profile along an axis: told, from the header, estimated or assumed."""
    spacing = image.spacing_mm[axis]
    header = image.slice_thickness_mm if axis == 2 else None
    if thickness is not None and not POSSIBLE[0] <= positive_mm(thickness) / spacing <= POSSIBLE[1]:
        raise Refused("CFG_VALUE", "thickness", f"{thickness:g} mm is {thickness / spacing:.3g} slice spacings, and "
                      f"{POSSIBLE[0]:g} to {POSSIBLE[1]:g} are possible", "Give the slices' full width in mm")
    if profile != "auto" or thickness is not None:
        told = cast(Profile, "gaussian" if profile == "auto" else profile)
        return _Known(told, header if thickness is None else thickness, "told")
    if header is not None:
        width = min(max(header / spacing, LIKELY[0]), LIKELY[1])
        if width != header / spacing:
            remarks.append(f"the header's slice thickness, {header:g} mm, was taken as {width * spacing:.3g} mm; name "
                           "profile and thickness to have it otherwise")
        return _Known("gaussian", width * spacing, "header")
    found = [estimate_profile(channel, image.spacing_mm, axis, deviation)
             for channel, deviation in zip(image.array, deviations, strict=True)]
    estimates = [estimate for estimate in found if estimate is not None]
    if not estimates:
        return _Known("gaussian", None, "assumed")
    best = min(estimates, key=lambda estimate: estimate.deviation)
    if best.confidence < UNSURE:
        remarks.append(f"the slice profile was estimated as a Gaussian of {best.thickness:.2f} slice spacings, which "
                       f"is unsure (confidence {best.confidence:.2f}); name the profile if you know it")
    thickness = min(max(best.thickness, LIKELY[0]), LIKELY[1])
    return _Known(best.profile, thickness * spacing, "estimated", best.confidence)


def _labels(labels: Any, image: Volume, scans: Sequence[Acquisition], input_spacing: Sequence[float] | None) -> Any:
    from medgan.imaging.labels import refine_labels

    spacing = input_spacing if input_spacing is not None or not is_bare(labels) else image.spacing_mm
    mask, back = to_volume(labels, spacing_mm=spacing)
    placed = replace(mask, affine=image.affine) if is_bare(labels) else mask
    return back(refine_labels(align_mask(placed, image), scans))


@os_errors_refused()
def upsample_file(source: str | Path, target: str | Path, *, labels: str | Path | None = None,
                  labels_target: str | Path | None = None, seed: int = 0, maps: bool = False,
                  **options: Any) -> UpsampleReport:
    """Upsamples a file or DICOM folder into a new file or folder, written whole or not at all.

    Args:
        source: Whatever `medgan.read` reads.
        target: `.nii` or `.nii.gz`; or, for a DICOM source, a folder for the derived series.
        labels: A label map on the grid of `source`, refined class by class into `labels_target`.
        labels_target: `.nii` or `.nii.gz`.
        seed: Of the adaptation; goes into the UIDs of derived DICOM.
        maps: Whether the report holds its two maps.
        options: As for `upsample`.

    Raises:
        Refused: `OUT_EXISTS`, `FILE_FORMAT`, and as `upsample`.
    """
    source, target = Path(source), Path(target)
    if (labels is None) != (labels_target is None):
        raise Refused("CFG_VALUE", "labels", "a label map needs an output of its own", "Name both or neither")
    mask_target = Path(labels_target) if labels_target is not None else None
    if mask_target is not None and mask_target.resolve() == target.resolve():
        raise Refused("CFG_VALUE", "labels", f"image and labels would both be {target}", "Name two outputs")
    outputs = [path for path in (target, mask_target) if path is not None]
    refuse_taken(*outputs)
    if mask_target is not None and files.suffix_of(mask_target) not in (".nii", ".nii.gz"):
        raise Refused("FILE_FORMAT", mask_target, "a label map is written as .nii or .nii.gz", "Name the output so")
    nifti = files.suffix_of(target) in (".nii", ".nii.gz")
    dicom = not target.suffix and (source.is_dir() or files.suffix_of(source) in ("", *DICOM_SUFFIXES))
    if not nifti and not dicom:
        raise Refused("FILE_FORMAT", target, "an upsampled volume is written as .nii or .nii.gz, or as a folder "
                      "where the source is DICOM", "Name the output so")
    with contextlib.ExitStack() as stack:
        for path in outputs:
            stack.enter_context(held(path))
        refuse_taken(*outputs)
        rules = asked_rules(options.get("config"), options.get("settings", ()), "upscale")
        mask = files.read(labels, labels=True, rules=rules) if labels is not None else None
        result, *refined, told = upsample(files.read(source, rules=rules), labels=mask, report=True, maps=maps,
                                          seed=seed, **options)
        if nifti:
            files.write(result, target, says=files.DERIVED)
        else:
            from medgan.imaging.dicom_write import write_derived

            write_derived(result, target, source=source, seed=seed, model_hash=told.model or "linear",
                          derivation=told.derivation)
        if mask_target is not None:
            try:
                files.write(refined[0], mask_target, says=files.DERIVED)
            except BaseException:
                # Both or neither: an image alone would stand in the way of the next try.
                remove_whole(target) if target.is_dir() else target.unlink(missing_ok=True)
                raise
    return cast(UpsampleReport, told)


def refuse_taken(*outputs: Path) -> None:
    """Refuses outputs that are there already, or that have no folder to lie in.

    Raises:
        Refused: `FILE_MISSING` or `OUT_EXISTS`.
    """
    for path in outputs:
        if not path.parent.is_dir():
            raise Refused("FILE_MISSING", path.parent, "there is no such folder to write into", "Make it first")
        if path.exists():
            raise Refused("OUT_EXISTS", path, "there is something already", "Name another output, or remove it")


def check_options(*, profile: str = "auto", method: str = "network", model: str | Path | None = None,
                  adapt: bool = False, sharpness: float = 0.0, thickness: float | None = None, device: str = "auto",
                  settings: bool = False) -> None:
    """Refuses options that mean nothing, before anything is read, with `CFG_VALUE`."""
    for name, value, known in (("profile", profile, ("auto", *PROFILES)), ("method", method, get_args(Method)),
                               ("device", device, get_args(Device))):
        if value not in known:
            raise Refused("CFG_VALUE", name, f"{value!r} is not one of {', '.join(known)}", "Name one of them")
    for name, number in (("thickness", thickness), ("sharpness", sharpness)):
        if number is not None and not isinstance(number, Real):
            raise Refused("CFG_VALUE", name, f"{number!r} is not a number", "Give a number")
    if not 0 <= sharpness <= 1:
        raise Refused("CFG_VALUE", "sharpness", f"{sharpness} is not from 0 to 1", "Give a number from 0 to 1")
    for name, given in (("model", model is not None), ("adapt", adapt), ("sharpness", sharpness > 0),
                        ("settings", settings)):
        if method == "linear" and given:
            raise Refused("CFG_VALUE", name, "the linear method has no model", f"Leave out {name} or the method")


def _checked(image: Volume) -> Volume:
    where = image.source or "image"
    if image.dims != 3:
        raise Refused("DIM_UNSUPPORTED", where, f"an image of shape {image.shape} has no slices to refine",
                      "Give a volume with three spatial axes")
    refuse_uncomputable(image)
    tell(image.notes)
    return image


def _factors(image: Volume, spacing: Sequence[float] | float | None,
             factor: Sequence[float] | float | None) -> tuple[tuple[float, ...], list[str]]:
    """One factor for each axis, and what is to be said about them."""
    remarks = []
    if spacing is not None or factor is not None:
        factors = wanted_factors(image, factor, spacing)
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


def _check_size(image: Volume, scans: Sequence[Acquisition], limit: int, *, maps: bool) -> None:
    """Refuses a result that, with the image and the report's two maps, does not fit into the memory."""
    shape = [scan.fine for scan in scans]
    each = image.array.dtype.itemsize + (2 * np.dtype(np.float32).itemsize if maps else 0)
    size = float(np.prod(shape, dtype=np.float64)) * image.channels * each + image.array.nbytes
    if size > limit:
        raise Refused("LIMIT", image.source or "image", f"the result, {' x '.join(map(str, shape))} voxels, would take "
                      f"{size / 2**30:.3g} GiB with what it is made from, and {limit / 2**30:.3g} may be taken",
                      "Ask for a coarser spacing, upsample parts of the volume, or raise data.max_gib")


def _opened(model: str | Path | None, device: str, sharpness: float) -> Sharpener:
    from medgan.learning.sharpening import Sharpener

    return Sharpener.open(model, device, sharpness)
