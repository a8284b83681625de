"""`fill`: missing slices, an artefact or a lesion replaced by tissue as it might be there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from medgan.config import Intensity, Modality
from medgan.datasets.cases import Case
from medgan.errors import Refused
from medgan.imaging import convert, files
from medgan.imaging.checks import refuse_nonfinite, refuse_uncomputable
from medgan.imaging.convert import is_bare, to_volume
from medgan.imaging.geometry import align_mask, reorient
from medgan.imaging.intensity import IntensityMap, intensity_maps
from medgan.imaging.volume import Volume
from medgan.notices import tell
from medgan.storage import held, os_errors_refused
from medgan.verbs.augment import composing
from medgan.verbs.progress import Progress, Report, silent
from medgan.verbs.reading import asked_rules, besides_rules
from medgan.verbs.train import RUNS
from medgan.verbs.upsample import DICOM_SUFFIXES, Device, refuse_taken

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run
    from medgan.lesions.removal import Filler, Void
    from medgan.lesions.scans import Scan

Method = Literal["auto", "gan", "tissue", "smooth"]

#: What is used where there is no run: the nearest to the truth of the two that need none.
WITHOUT_RUN: Method = "smooth"
#: More than this is no margin, in mm.
LARGEST_MARGIN_MM = 50.0
#: From this share of the tissue on, the reader is told that most of it is made up.
MUCH = 0.3


@dataclass(frozen=True)
class FillReport:
    """What `fill` did.

    Args:
        method: `gan`, `tissue` or `smooth`: what filled the voids that have tissue around them in their own slices.
        run: The run folder's name, or None.
        model: Hash of the run's weights, or None.
        voxels: How many voxels the mask has, its margin included.
        voids: How many connected parts of it were filled by `method`.
        missing_slices: How many slices were missing whole, and were filled from the slices beside them instead.
        changed: How many voxels may differ from the input: the mask and a rim around it.
        warnings: What the reader of the result should know.
    """

    method: str
    run: str | None
    model: str | None
    voxels: int
    voids: int
    missing_slices: int
    changed: int
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """What was done, in a line for people."""
        by = []
        if self.missing_slices:
            by.append(f"{self.missing_slices} missing slice{'s' * (self.missing_slices > 1)} from those beside them")
        if self.voids:
            of = f" of {self.run}" if self.run else ""
            by.append(f"{self.voids} void{'s' * (self.voids > 1)} by the method {self.method}{of}")
        return f"{self.voxels} voxels filled: {', '.join(by)}"

    @property
    def derivation(self) -> str:
        """What was done, for the header of a derived series."""
        return f"Tissue made up by medgan; {self.summary}"

    def scalars(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def fill(volume: Any, mask: Any, *, model: str | Path | Run | None = None, method: Method = "auto",
         margin: float = 0.0, modality: Modality | None = None, device: str | None = None, seed: int = 0,
         report: bool = False, input_spacing: Sequence[float] | None = None, config: str | Path | None = None,
         settings: Sequence[str] | Mapping[str, Any] = (), progress: Report = silent) -> Any:
    """Replaces a part of a scan by tissue as it might be there.

    Missing slices are computed from the slices beside them, the way the rest of the scan shows; every other void is
    filled by a lesion run's generator, from tissue of the same scan, or smoothly. Voxels outside the mask and a rim of
    two voxels around it keep their bits.

    Args:
        volume: A path, `Volume`, numpy array, torch tensor, MONAI `MetaTensor`, nibabel or SimpleITK image; 2D or 3D,
            with any number of channels. The fourth axis of a NIfTI file is taken as channels.
        mask: What is to be replaced: every voxel that is not 0. On the grid of `volume`, of any of the same kinds.
        model: A lesion run, or its folder; None with `gan`: the newest finished one in `runs/` that was trained on the
            modality and number of channels of `volume`.
        method: `gan` (a run), `smooth` (bent through the surroundings, with borrowed texture where it is deep),
            `tissue` (healthy tissue of the same scan, mirrored or moved, fitted in), or `auto`: `gan` with a
            model, else `smooth`, which comes nearer to the truth (docs/fill.md).
        margin: So many mm around the mask are replaced with it. A lesion's blurred edge usually lies just outside its
            mask and would colour what is put there: 2 or 3 mm are right for one.
        modality: `ct`, `mr`, `xray` or `us`, where the image does not say; `gan` without a model needs it.
        device: `auto`, `cpu` or `cuda`.
        seed: The same seed gives the same tissue.
        report: Also return a `FillReport`.
        input_spacing: Voxel spacing of a bare array or tensor, in mm; None: 1 along each of its axes.
        config: A TOML file of settings of the run's that its weights do not depend on.
        settings: Single settings of the same kind.
        progress: Told of each void.

    Returns:
        The same kind of image as came in (a `Volume` for a path); with `report` a tuple of it and the report. Without,
        the report's warnings are given as Python warnings.

    Raises:
        Refused: `LABEL_EMPTY`, `LABEL_FULL`, `LABEL_GRID`, `LABEL_DIM`, `RUN_*`, `CFG_VALUE`, `DIM_UNSUPPORTED`,
            `PIX_*`, `GEOM_*`, `CKPT_*`, or what is wrong with a file.
    """
    _check_options(method, modality, device, model, margin)
    rules = asked_rules(config, settings)
    if isinstance(volume, str | Path):
        volume = files.read(volume, channels=True, rules=rules)
    if input_spacing is None and is_bare(volume):
        input_spacing = (1.0,) * min(3, volume.ndim)
    image, back = to_volume(volume, spacing_mm=input_spacing)
    if modality is not None and image.modality not in (None, modality):
        raise Refused("CFG_VALUE", "modality", f"{modality} is named, but the image says that it is {image.modality}",
                      "Leave it out")
    refuse_uncomputable(image)
    tell(image.notes)
    image = replace(image, modality=image.modality or modality)
    if isinstance(mask, str | Path):
        mask = files.read(mask, labels=True, rules=rules)
    unwanted = _unwanted(mask, image, margin)
    run, remarks = _run_for(image, model, method)
    if run is not None:
        resolved = composing(run, config, settings, seed, device)
        image = replace(image, modality=run.config.modality)
    elif config is not None or besides_rules(settings):
        raise Refused("CFG_VALUE", "settings", "the methods without a model have none", "Leave them out, or name a run")
    chosen = "gan" if run else WITHOUT_RUN if method == "auto" else method
    scan, hidden = _scan(image, unwanted, run.config.intensity if run else None)
    filler = _filler(chosen, run, resolved.device if run else "cpu")
    made, told = _filled(scan, hidden, filler, seed, progress, remarks)
    if run is not None:
        told = replace(told, run=run.path.name, model=run.hash())
    array = made if image.dims == 2 else reorient(replace(scan.volume, array=made), image.orientation).array
    result = back(replace(image, array=np.ascontiguousarray(array)))
    if report:
        return result, told
    for text in told.warnings:
        warnings.warn(text, stacklevel=2)
    return result


@os_errors_refused()
def fill_file(source: str | Path, mask: str | Path, target: str | Path, *, seed: int = 0,
              **options: Any) -> FillReport:
    """Fills a file or DICOM folder into a new file or folder, written whole or not at all.

    Args:
        source: Whatever `medgan.read` reads.
        mask: A mask on its grid.
        target: `.nii` or `.nii.gz`; or, for a DICOM source, a folder for the derived series.
        seed: As for `fill`; goes into the UIDs of derived DICOM.
        options: As for `fill`.

    Raises:
        Refused: `OUT_EXISTS`, `FILE_FORMAT`, and as `fill`.
    """
    source, target = Path(source), Path(target)
    refuse_taken(target)
    nifti = files.suffix_of(target) in (".nii", ".nii.gz")
    dicom = not target.suffix and (source.is_dir() or files.suffix_of(source) in ("", *DICOM_SUFFIXES))
    if not nifti and not dicom:
        raise Refused("FILE_FORMAT", target, "a filled volume is written as .nii or .nii.gz, or as a folder where the "
                      "source is DICOM", "Name the output so")
    with held(target):
        refuse_taken(target)
        result, told = fill(source, mask, report=True, seed=seed, **options)
        if nifti:
            files.write(result, target, says=files.DERIVED)
        else:
            from medgan.imaging.dicom_write import write_derived

            write_derived(result, target, source=source, seed=seed, model_hash=told.model or told.method,
                          derivation=told.derivation)
    return cast(FillReport, told)


def _check_options(method: str, modality: str | None, device: str | None, model: str | Path | Run | None,
                   margin: float) -> None:
    for name, value, known in (("method", method, get_args(Method)),
                               ("modality", modality or "mr", get_args(Modality)),
                               ("device", device or "auto", get_args(Device))):
        if value not in known:
            raise Refused("CFG_VALUE", name, f"{value!r} is not one of {', '.join(known)}", "Name one of them")
    if not isinstance(margin, Real) or not 0 <= margin <= LARGEST_MARGIN_MM:
        raise Refused("CFG_VALUE", "margin", f"{margin!r} is not a margin in mm", "Give 0 to 50")
    if model is not None and method not in ("auto", "gan"):
        raise Refused("CFG_VALUE", "model", f"the method {method} has no model", "Leave out the model or the method")


def _unwanted(mask: Any, image: Volume, margin: float) -> NDArray[np.bool_]:
    """(X, Y[, Z]) what is to be replaced, on the image's grid."""
    label, _ = to_volume(mask, spacing_mm=image.spacing_mm if is_bare(mask) else None)
    where = label.source or "mask"
    refuse_nonfinite(label.array, where)
    placed = replace(label, affine=image.affine) if is_bare(mask) else label
    unwanted: NDArray[np.bool_] = align_mask(placed, image).array[0] != 0
    if not unwanted.any():
        raise Refused("LABEL_EMPTY", where, "the mask marks no voxel, so there is nothing to fill",
                      "Mark what is to be replaced with any value but 0")
    if margin:
        from scipy import ndimage

        unwanted = ndimage.distance_transform_edt(~unwanted, sampling=image.spacing_mm) <= margin
    if unwanted.all():
        raise Refused("LABEL_FULL", where, "the mask covers the whole image, which leaves nothing to go by",
                      "Mark only what is to be replaced")
    return unwanted


def _run_for(image: Volume, model: str | Path | Run | None, method: str) -> tuple[Run | None, list[str]]:
    """The run to use, and what is to be said about the choice."""
    if method not in ("auto", "gan") or (method == "auto" and model is None):
        return None, []
    from medgan.learning.checkpoints import WEIGHTS, open_run

    if model is not None:
        run = open_run(model) if isinstance(model, str | Path) else model
        _check_run(run, image)
        return run, []
    found = []
    if image.modality is not None:
        for file in RUNS.glob(f"*/{WEIGHTS}"):
            try:
                run = open_run(file.parent)
                _check_run(run, image)
                run.generator()
            except Refused:
                continue
            found.append((file.stat().st_mtime, str(run.path), run))
    if found:
        return max(found)[2], []
    wanted = f"{image.modality} of {image.channels} channel{'s' * (image.channels > 1)}"
    why = ("the image does not say which modality it is, so no run was looked for" if image.modality is None
           else f"{RUNS}/ has no finished lesion run on {wanted}")
    raise Refused("RUN_NOT_FOUND", image.source or "image", why, "Name a run with --model, or the modality")


def _check_run(run: Run, image: Volume) -> None:
    """Refuses a run that cannot fill this image."""
    if run.config.task != "lesion":
        raise Refused("RUN_TASK", run.path, f"it is a run of the task {run.config.task}, not lesion",
                      "Train one with --task lesion")
    if image.modality not in (None, run.config.modality):
        raise Refused("RUN_TASK", run.path, f"it was trained on {run.config.modality}, not {image.modality}",
                      "Use a run on data of this modality")
    if run.interface["channels"] != image.channels:
        raise Refused("RUN_CHANNELS", run.path, f"it was trained on {run.interface['channels']} channels, the image "
                      f"has {image.channels}", "Use a run on data with the same channels")
    if run.config.data.dims == 3 and image.dims == 2:
        raise Refused("DIM_UNSUPPORTED", run.path, "a 3D generator cannot fill a 2D image", "Use a run of slices")
    if not run.finished:
        raise Refused("RUN_UNFINISHED", run.path, "training did not reach its end, so there are no weights",
                      f"Finish it with medgan train --out {run.path} --resume")


def _scan(image: Volume, unwanted: NDArray[np.bool_], intensity: Intensity | None) -> tuple[Scan, NDArray[np.bool_]]:
    """The image as a scan whose `labels` are what is unwanted, and that (X, Y, Z) again.

    What is unwanted takes its nearest neighbour's value first, so that an artefact tells nothing to intensity map,
    tissue mask or filler.
    """
    from medgan.lesions.scans import Scan

    marked = replace(image, array=unwanted[None].astype(np.uint8))
    if image.dims == 3:
        image, marked = reorient(image), reorient(marked)
    hidden = marked.array[0].reshape((*marked.shape, 1)[:3]) > 0
    image = image.with_array(_calmed(image.array.reshape(-1, *hidden.shape), hidden).reshape(image.array.shape))
    if intensity is not None:
        maps = intensity_maps(image.array, intensity)
        values = [known.forward(channel, np.float32) for known, channel in zip(maps, image.array, strict=True)]
    else:
        # Nothing is clipped where no network asks for it.
        maps = tuple(known.straight() for known in intensity_maps(image.array, Intensity()))
        values = [_straight(known, channel) for known, channel in zip(maps, image.array, strict=True)]
    spacing = np.array((*image.spacing_mm, 1.0)[:3])
    scan = Scan(Case(id="", images=()), image, np.stack(values).reshape(-1, *hidden.shape), hidden.astype(np.uint8),
                spacing, maps, image.orientation)
    if not (scan.tissue() & ~hidden).any():
        raise Refused("LABEL_FULL", image.source or "mask", "the mask leaves no tissue to go by",
                      "Mark only what is to be replaced")
    return scan, hidden


def _straight(known: IntensityMap, channel: NDArray[Any]) -> NDArray[np.float32]:
    slope = (known.mapped[-1] - known.mapped[0]) / (known.raw[-1] - known.raw[0])
    return np.asarray(known.mapped[0] + (channel.astype(np.float64) - known.raw[0]) * slope, np.float32)


def _calmed(array: NDArray[Any], hidden: NDArray[np.bool_]) -> NDArray[Any]:
    """(C, X, Y, Z) with the nearest known value in place of what is hidden."""
    from scipy import ndimage

    calm = array.copy()
    parts, _ = ndimage.label(hidden, ndimage.generate_binary_structure(3, 3))
    for tight in ndimage.find_objects(parts):
        # A part's neighbours one voxel out are known: they are no other part's.
        box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in tight)
        nearest = ndimage.distance_transform_edt(hidden[box], return_distances=False, return_indices=True)
        calm[(slice(None), *box)] = calm[(slice(None), *box)][(slice(None), *nearest)]
    return calm


def _filler(method: str, run: Run | None, device: str) -> Filler:
    if run is not None:
        from medgan.lesions.filling import GanFiller

        return GanFiller(run, device)
    if method == "smooth":
        from medgan.lesions.filling import Smooth

        return Smooth()
    from medgan.lesions.removal import Tissue

    return Tissue()


def _filled(scan: Scan, hidden: NDArray[np.bool_], filler: Filler, seed: int, progress: Report,
            remarks: list[str]) -> tuple[NDArray[Any], FillReport]:
    """The scan's raw array, filled, and the report."""
    from medgan.lesions.gaps import AcrossGaps
    from medgan.lesions.removal import fill_all, voids

    tissue = scan.tissue()
    count = sum(1 for _ in voids(scan, hidden))
    across = AcrossGaps(filler, tissue & ~hidden)
    image, changed = fill_all(scan, hidden, _Told(across, count, progress), seed)
    progress(Progress("filling", count, count, "voids"))
    share = float((tissue & hidden).sum() / max(1, tissue.sum()))
    if share > MUCH:
        remarks.append(f"the mask covers {share:.0%} of the tissue; what is put there is mostly made up")
    for gap in across.gaps:
        if gap.start == 0 or gap.stop == hidden.shape[gap.axis]:
            remarks.append(f"{gap.stop - gap.start} missing slices at the end of the scan have neighbours on one side "
                           "only")
    raw = scan.volume.array.copy()
    flat = raw.reshape(image.shape)
    for channel, known in enumerate(scan.maps):
        was, now = scan.image[channel][changed], image[channel][changed]
        made = known.inverse(now)
        # In the rim the difference is added, so that what the map had clipped is not lost.
        flat[channel][changed] = convert.cast(
            np.where(hidden[changed], made, flat[channel][changed] + made - known.inverse(was)), raw.dtype)
    slices = sum(gap.stop - gap.start for gap in across.gaps)
    told = FillReport(filler.name, None, None, int(hidden.sum()), across.others, slices, int(changed.sum()),
                      tuple(remarks))
    return raw, told


class _Told:
    """A filler that tells of each void."""

    def __init__(self, filler: Filler, count: int, progress: Report) -> None:
        self.filler, self.count, self.progress, self.done = filler, count, progress, 0
        self.name = filler.name

    def fill(self, scan: Scan, image: NDArray[np.float32], void: Void, seed: int) -> NDArray[np.float32]:
        """As `Filler.fill`."""
        self.progress(Progress("filling", self.done, self.count, "voids"))
        self.done += 1
        return self.filler.fill(scan, image, void, seed)
