"""From the frames of a series to volumes on a regular, straight grid, or a refusal that says why not.

Slices are ordered by where they lie, never by InstanceNumber, and spacing comes from positions, never from
SliceThickness. What is tilted or unevenly spaced is refused or, where the rules say so, planned to be resampled.
Everything here works on headers alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Note, Refused
from medgan.imaging.dicom_header import Frame, Instance, frames_of, numbers, text, texts
from medgan.imaging.dicom_pixels import is_inverted, rescale_of
from medgan.imaging.irregular import Plan, new_step, plan
from medgan.imaging.rules import DEFAULT_RULES, Rules

#: How far a slice may lie from its place on the regular grid, as a share of the slice spacing.
GRID_TOLERANCE = 0.1
#: Angle between the slice normal and the line through the slice positions, in degrees.
TILT_TOLERANCE_DEG = 0.05
#: No gantry tilts further than this; images that lie so much beside each other are no stack.
MOST_TILT_DEG = 45.0
#: A gap wider than this many of the new steps is a hole: to fill it would be to make up what is not there.
MOST_FILLED = 10
#: No slice lies further than this from the origin, in mm; what does is a broken number.
FURTHEST_MM = 1e6
#: Slices closer together than this, in mm, lie at the same position.
SAME_POSITION_MM = 1e-3
#: Deviation of the length of a direction cosine vector from 1.
UNIT_TOLERANCE = 1e-2
#: Scalar product of row and column cosines.
ORTHOGONAL_TOLERANCE = 2e-3
#: Difference of direction cosines, and relative difference of pixel spacing and of thickness, between slices of one
#: series.
SAME_GEOMETRY_TOLERANCE = 1e-3
#: Relative difference between the nominal and the real slice spacing that is worth a note.
NOMINAL_TOLERANCE = 0.01
#: At most this share of the steps between slices may be a hole before the series counts as unevenly spaced.
HOLE_SHARE = 1 / 3
#: So many equal, wider steps in a row at an end of the stack are how it was scanned, not slices that were lost.
WIDE_RUN = 3
#: The setting that takes what is refused here.
_RESAMPLE = "resample it with --set data.irregular=resample"

#: Modalities whose images are slices of a volume and mean nothing without a place in the patient.
SLICE_MODALITIES = frozenset({"CT", "MR", "PT"})
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
#: How frames at the same position are told apart, in this order: note code, key of `Frame.keys`, and whether the key
#: is trusted when it does not give groups of equal size.
_SPLITS = (
    ("SERIES_SPLIT_ECHO", "echo", True),
    ("SERIES_SPLIT_4D", "time", True),
    ("SERIES_SPLIT", "kind", False),
    ("SERIES_SPLIT_4D", "diffusion", False),
    ("SERIES_SPLIT_4D", "trigger", False),
    ("SERIES_SPLIT_4D", "acquisition", False),
)


@dataclass(frozen=True, eq=False)
class Series:
    """The files of one series, not yet checked against each other.

    Args:
        source: The file or folder asked for.
        uid: SeriesInstanceUID.
        instances: Its files in the order of their names.
        notes: What was odd on the way here.
    """

    source: Path
    uid: str
    instances: list[Instance]
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Stack:
    """Frames that make one volume, in order along the slice normal.

    Args:
        source: The file or folder asked for.
        frames: The frames, sorted.
        affine: (4, 4) voxel to RAS+ mm, of the volume that they make.
        dims: 2 for a single image, 3 for a volume.
        notes: What is odd about them.
        plan: How they are resampled to make that volume; None where they are stacked as they are.
    """

    source: Path
    frames: list[Frame]
    affine: NDArray[np.float64]
    dims: int
    notes: list[Note]
    plan: Plan | None = None

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Columns, rows and number of frames."""
        first = self.frames[0].instance
        return first.columns, first.rows, len(self.frames)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows and planes of the volume: the stored ones, unless it is resampled."""
        return self.stored_shape if self.plan is None else self.plan.shape

    def frame_at(self, plane: float) -> float:
        """Where a (fractional) plane of the volume lies among the frames, counted from 0."""
        return plane if self.plan is None else self.plan.slice_at(plane)

    @property
    def slice_thickness_mm(self) -> float | None:
        """What all frames of a volume say of their thickness, in mm.

        None where they do not agree or one is silent, and where planes were made between them.
        """
        first = self.frames[0].thickness
        if self.dims == 2 or first is None or (self.plan is not None and not self.plan.keeps_slices):
            return None
        alike = all(frame.thickness is not None and abs(frame.thickness / first - 1) <= SAME_GEOMETRY_TOLERANCE
                    for frame in self.frames)
        return first if alike else None


def arrange(series: Series, rules: Rules = DEFAULT_RULES, *, labels: bool = False) -> list[Stack]:
    """Checks the geometry of a series and sorts it into volumes.

    Args:
        series: The series.
        rules: Whether tilted and unevenly spaced slices are refused or resampled. Slices that are missing, lie at
            one position, jump sideways or differ in anything else are refused either way: there the data are not
            what they claim to be, and no interpolation brings back what is not there.
        labels: It is a mask, which is resampled otherwise; here only what is said of it differs.

    Returns:
        One stack a volume; several where the series holds echoes, time points, image kinds or enhanced stacks.

    Raises:
        Refused: `PIX_COLOUR`, `PIX_BAD_RESCALE` or one of the `GEOM_` codes.
    """
    where = series.source
    for instance in series.instances:
        if instance.is_colour:
            raise Refused("PIX_COLOUR", instance.path, "its pixels are not grey values",
                          "Give grey-scale images (MONOCHROME1 or MONOCHROME2)")
    frames = [frame for instance in series.instances for frame in frames_of(instance)]
    for frame in frames:
        rescale_of(frame)
    notes = [*series.notes, *_value_notes(frames, where)]
    if frames[0].instance.modality not in SLICE_MODALITIES and all(
            frame.position is None or frame.orientation is None for frame in frames):
        if len(frames) > 1:
            notes.append(Note("SERIES_SPLIT", str(where), f"{len(frames)} images without a place are kept apart"))
        return [_planar(series, frame, notes) for frame in frames]
    parts = [part for group in _grouped(frames, "stack") for part in _split(_alike(group))]
    codes = dict.fromkeys(code for codes, _ in parts for code in codes)
    if not codes and len(parts) > 1:
        codes["SERIES_SPLIT"] = None
    notes += [Note(code, str(where), f"the series holds {len(parts)} volumes, which are kept apart") for code in codes]
    return [_stack(series, part, notes, rules, labels) for _, part in parts]


def _grouped(frames: list[Frame], key: str) -> list[list[Frame]]:
    groups: dict[str, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(frame.keys[key], []).append(frame)
    return list(groups.values())


def _value_notes(frames: list[Frame], where: Path) -> list[Note]:
    notes = []
    if frames[0].instance.modality == "CT" and any(
            not f.has_lut and (f.slope is None or f.intercept is None) for f in frames):
        notes.append(Note("NO_RESCALE_ASSUMED_IDENTITY", str(where), "stored values were taken as HU"))
    if is_inverted(frames[0].instance):
        notes.append(Note("MONOCHROME1_INVERTED", str(where), "values were inverted so that bright means high"))
    return notes


def _planar(series: Series, frame: Frame, notes: list[Note]) -> Stack:
    """A radiograph or other image without a place in the patient; its affine holds the pixel spacing alone."""
    header, path = frame.instance.header, frame.instance.path
    spacing = next((found for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
                    if (found := numbers(header, keyword, 2)) is not None), None)
    if spacing is None:
        notes = [*notes, Note("GEOM_NO_SPACING", str(path), "no pixel spacing is recorded; 1 mm was put in its place")]
        spacing = np.ones(2)
    _check_spacing(spacing, path)
    return Stack(series.source, [frame], np.diag([spacing[1], spacing[0], 1.0, 1.0]), 2, list(notes))


def _check_spacing(spacing: NDArray[np.float64], path: Path) -> None:
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise Refused("GEOM_BAD_SPACING", path, "the pixel spacing is zero, negative or no number",
                      "Export the image again from its source")


def _alike(frames: list[Frame]) -> list[Frame]:
    """Refuses frames without a full place, and frames that differ in anything but their position."""
    first = frames[0]
    for frame in frames:
        instance, path = frame.instance, frame.instance.path
        if (instance.rows, instance.columns) != (first.instance.rows, first.instance.columns):
            raise Refused("GEOM_MIXED_MATRIX", path, f"it has {instance.rows}x{instance.columns} pixels, "
                          f"{first.instance.path.name} {first.instance.rows}x{first.instance.columns}",
                          "Put the images into separate folders")
        if text(instance.header, "FrameOfReferenceUID") != text(first.instance.header, "FrameOfReferenceUID"):
            raise Refused("GEOM_MIXED_FRAME_OF_REFERENCE", path, f"its frame of reference is not that of "
                          f"{first.instance.path.name}", "Put the images into separate folders")
        if frame.orientation is None:
            raise Refused("GEOM_NO_ORIENTATION", path, "ImageOrientationPatient is not recorded",
                          "Export the image again with its geometry")
        if frame.spacing is None:
            raise Refused("GEOM_NO_SPACING", path, "PixelSpacing is not recorded",
                          "Export the image again with its geometry")
        if frame.position is None or not (np.abs(frame.position) <= FURTHEST_MM).all():
            raise Refused("GEOM_NO_POSITION", path, "ImagePositionPatient is not recorded or no place in a patient, "
                          "and SliceLocation does not replace it", "Export the image again with its geometry")
        _check_spacing(frame.spacing, path)
        _check_orientation(frame.orientation, path)
        assert first.orientation is not None and first.spacing is not None
        if np.abs(frame.orientation - first.orientation).max() > SAME_GEOMETRY_TOLERANCE:
            raise Refused("GEOM_MIXED_ORIENTATION", path, f"it is oriented otherwise than {first.instance.path.name}",
                          "Put the images into separate folders")
        if np.abs(frame.spacing / first.spacing - 1).max() > SAME_GEOMETRY_TOLERANCE:
            raise Refused("GEOM_MIXED_SPACING", path, f"its pixel spacing is not that of {first.instance.path.name}",
                          "Put the images into separate folders")
    return frames


def _check_orientation(orientation: NDArray[np.float64], path: Path) -> None:
    row, column = orientation[:3], orientation[3:]
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if not np.isfinite(orientation).all() or np.abs(lengths - 1).max() > UNIT_TOLERANCE \
            or abs(row @ column) > ORTHOGONAL_TOLERANCE:
        raise Refused("GEOM_BAD_ORIENTATION", path, "the direction cosines are not orthogonal unit vectors",
                      "Export the image again from its source")


def _axes(frame: Frame) -> NDArray[np.float64]:
    """(3, 3) orthonormal LPS directions in columns: along the row, along the column, slice normal."""
    assert frame.orientation is not None
    row = frame.orientation[:3] / np.linalg.norm(frame.orientation[:3])
    column = frame.orientation[3:] - (frame.orientation[3:] @ row) * row
    column /= np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)], axis=1)


def _positions(frames: Iterable[Frame]) -> NDArray[np.float64]:
    """(N, 3) LPS positions."""
    return np.array([frame.position for frame in frames], dtype=np.float64)


def _most_at_one_position(frames: list[Frame]) -> int:
    along = np.sort(_positions(frames) @ _axes(frames[0])[:, 2])
    groups = np.cumsum(np.concatenate([[0], np.diff(along) > SAME_POSITION_MM]))
    return int(np.bincount(groups.astype(np.int64)).max())


def _split(frames: list[Frame]) -> list[tuple[list[str], list[Frame]]]:
    """Tells frames at the same position apart; each part comes with the codes of the splits that made it."""
    depth = _most_at_one_position(frames)
    if depth == 1:
        return [([], frames)]
    for code, key, trusted in _SPLITS:
        parts = _grouped(frames, key)
        even = len({len(part) for part in parts}) == 1
        if len(parts) > 1 and (even or trusted) and all(_most_at_one_position(part) < depth for part in parts):
            return [([code, *codes], leaf) for part in parts for codes, leaf in _split(part)]
    return [([], frames)]


def _stack(series: Series, frames: list[Frame], notes: list[Note], rules: Rules, labels: bool) -> Stack:
    """Sorts frames along the slice normal; refuses what is no regular, straight stack, or plans to resample it."""
    axes, first, where = _axes(frames[0]), frames[0], series.source
    along = _positions(frames) @ axes[:, 2]
    order = np.argsort(along, kind="stable")
    frames, along = [frames[i] for i in order], along[order]
    positions, notes = _positions(frames), list(notes)
    assert first.spacing is not None
    spacing = (float(first.spacing[1]), float(first.spacing[0]))
    affine = np.eye(4)
    affine[:3, 3] = _LPS_TO_RAS @ positions[0]
    if len(frames) == 1:
        mosaic = "; its Siemens mosaic is not unpacked" if "MOSAIC" in texts(first.instance.header, "ImageType") else ""
        notes.append(Note("SINGLE_SLICE", str(where), f"one slice makes a 2D image{mosaic}"))
        affine[:3, :3] = _LPS_TO_RAS @ axes * [*spacing, 1.0]
        return Stack(where, frames, affine, 2, notes)
    step = _step(frames, along, where)
    if step is None and (widest := np.diff(along).max()) > MOST_FILLED * new_step(np.diff(along)):
        raise Refused("GEOM_VARIABLE_SPACING", where, f"the slice spacing varies from {_range_of(along)}, and "
                      f"{widest:.4g} mm are too much to fill in", "Split it where the spacing changes")
    if step is None and rules.irregular == "refuse":
        raise Refused("GEOM_VARIABLE_SPACING", where, f"the slice spacing varies from {_range_of(along)}",
                      f"Split it where the spacing changes, or {_RESAMPLE}")
    angle = _tilt(frames, along, axes, where)
    if angle > TILT_TOLERANCE_DEG and rules.irregular == "refuse":
        raise Refused("GEOM_GANTRY_TILT", where, f"the slices are sheared by {angle:.3g} degrees against their normal",
                      f"Give a series that is not tilted, or {_RESAMPLE}")
    if step is not None:
        notes += _nominal_notes(frames, step, where)
        if angle <= TILT_TOLERANCE_DEG:
            affine[:3, :3] = _LPS_TO_RAS @ axes * [*spacing, step]
            return Stack(where, frames, affine, 3, notes)
    if angle <= TILT_TOLERANCE_DEG:  # not worth moving a slice by part of a pixel
        positions = positions[0] + np.outer(along - along[0], axes[:, 2])
    grid = plan(positions, axes, spacing, (first.instance.columns, first.instance.rows), step=step)
    affine[:3] = _LPS_TO_RAS @ grid.affine[:3]
    notes.append(Note("GEOM_RESAMPLED", str(where), _what_was_done(grid, along, angle, len(frames), labels)))
    return Stack(where, frames, affine, 3, notes, grid)


def _range_of(along: NDArray[np.float64]) -> str:
    steps = np.diff(along)
    return f"{steps.min():.4g} to {steps.max():.4g} mm"


def _what_was_done(grid: Plan, along: NDArray[np.float64], angle: float, slices: int, labels: bool) -> str:
    """What is said of a series that is resampled, an image or a mask."""
    odd = [f"sheared by {angle:.3g} degrees"] if angle > TILT_TOLERANCE_DEG else []
    done = []
    if grid.keeps_slices:
        done.append(f"moved within their planes{', to the nearest voxel' if labels else ''}")
    else:
        odd.append(f"{_range_of(along)} apart")
        planes = f"{grid.shape[2]} planes {grid.step_mm:.4g} mm apart"
        done.append(f"taken for {planes}, the nearest for each" if labels else f"interpolated to {planes}")
    if odd[0].startswith("sheared"):
        done.append(f"what no slice covers {'is 0' if labels else 'holds the lowest real value'}")
    return f"{slices} slices {' and '.join(odd)} were {'; '.join(done)}"


def _step(frames: list[Frame], along: NDArray[np.float64], where: Path) -> float | None:
    """The slice spacing in mm, from positions along the normal in ascending order; None where it is uneven."""
    steps = np.diff(along)
    if (close := np.flatnonzero(steps <= SAME_POSITION_MM)).size:
        pair = [frames[close[0]], frames[close[0] + 1]]
        raise Refused("GEOM_DUPLICATE_POSITION", where, "two slices lie at the same position: "
                      + " and ".join(f"{f.instance.path.name} (frame {f.index + 1})" for f in pair),
                      "Keep one of them, or separate folders for separate scans")
    step = float(along[-1] - along[0]) / len(steps)
    grid = along[0] + step * np.arange(len(along))
    if np.abs(along - grid).max() <= GRID_TOLERANCE * step:
        return step
    base = float(steps.min())
    holes = steps > (1 + GRID_TOLERANCE) * base
    multiples = np.abs(steps / base - np.round(steps / base)) <= GRID_TOLERANCE
    if multiples.all() and holes.sum() <= HOLE_SHARE * len(steps) and not _wide_at_an_end(np.round(steps / base)):
        after = frames[int(np.argmax(holes))].instance.path.name
        missing = int(np.round(steps[holes] / base - 1).sum())
        raise Refused("GEOM_MISSING_SLICE", where, f"{missing} slices are missing, the first after {after}",
                      "Copy the missing slices from the source")
    return None


def _wide_at_an_end(multiples: NDArray[np.float64]) -> bool:
    """Whether all steps wider than the smallest are equal and follow each other up to an end of the stack."""
    wide = np.flatnonzero(multiples > 1)
    return bool(len(wide) >= WIDE_RUN and len(set(multiples[wide])) == 1 and wide[-1] - wide[0] == len(wide) - 1
                and (wide[0] == 0 or wide[-1] == len(multiples) - 1))


def _tilt(frames: list[Frame], along: NDArray[np.float64], axes: NDArray[np.float64], where: Path) -> float:
    """The angle in degrees between the line of the slices and their normal; refuses slices beside that line."""
    positions = _positions(frames)
    sideways = (positions - positions[0]) @ axes[:, :2]
    length = float(along[-1] - along[0])
    angle = float(np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), length)))
    if angle > MOST_TILT_DEG:
        raise Refused("GEOM_GANTRY_TILT", where, f"the slices are sheared by {angle:.3g} degrees against their normal, "
                      "which no gantry tilts", "Export the images again with their true positions")
    beside = np.linalg.norm(sideways - ((along - along[0]) / length)[:, None] * sideways[-1], axis=1)
    furthest = int(beside.argmax())
    if beside[furthest] > GRID_TOLERANCE * length / (len(along) - 1):
        raise Refused("GEOM_GANTRY_TILT", where, f"{frames[furthest].instance.path.name} lies {beside[furthest]:.3g} "
                      "mm beside the line of the other slices", "Export the images again with their true positions")
    return angle


def _nominal_notes(frames: list[Frame], step: float, where: Path) -> list[Note]:
    header = frames[0].instance.header
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        nominal = numbers(header, keyword, 1)
        if nominal is None:
            continue
        if abs(abs(nominal[0]) / step - 1) <= NOMINAL_TOLERANCE:
            return []
        return [Note("SPACING_FROM_POSITIONS", str(where), f"{keyword} is {nominal[0]:g} mm; the positions say "
                                                           f"{step:.6g} mm and were used")]
    return []
