"""Reading DICOM: a folder or file becomes volumes, one a series (or time point, or echo), or a refusal.

The order is fixed: headers, grouping, geometry and size first, for everything that will be returned; pixels last.
Slices are ordered by where they lie, never by InstanceNumber, and spacing comes from positions, never from
SliceThickness. LPS coordinates exist only in the `dicom*` modules; a `Volume` is RAS+.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgan.errors import Note, Refused
from medgan.imaging.dicom_file import PassedOver, is_dicom, open_data_set, read_instance
from medgan.imaging.dicom_geometry import Series, Stack, arrange
from medgan.imaging.dicom_header import Instance, text, texts
from medgan.imaging.dicom_pixels import load_frames, memory_beside, memory_kept, working_type
from medgan.imaging.irregular import straightened
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.imaging.volume import Modality, Volume
from medgan.storage import PARTIAL

__all__ = ["Series", "Stack", "arrange", "find_series", "is_dicom", "load_series", "read_series", "template"]

#: Folders nested deeper than this are not searched.
FOLDER_DEPTH = 16

_MODALITIES: dict[str, Modality] = {"CT": "ct", "MR": "mr", "CR": "xray", "DX": "xray", "RG": "xray", "US": "us"}
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", ".dcm.gz")


def read_series(path: Path, rules: Rules = DEFAULT_RULES, *, labels: bool = False) -> list[Volume]:
    """Reads every image series of a DICOM folder or file as volumes with true geometry and real values.

    Args:
        path: A DICOM file (a slice, a radiograph or an enhanced multi-frame object), or a folder of them. Sub-folders
            are searched only where a folder itself holds no image; links are not followed.
        rules: The most memory to take in all, and what becomes of tilted and unevenly spaced series.
        labels: It is a mask: where a series is resampled, the nearest value is taken, and 0 outside.

    Returns:
        One `Volume` a series, time point or echo: (1, X, Y, Z) with X the column index, Y the row index and Z along
        the slice normal, or (1, X, Y) for a radiograph or a single slice. Values are real ones (HU for CT) in the
        smallest type that holds them; MONOCHROME1 is inverted except where values are physical (CT, MR, PT, NM).

    Raises:
        Refused: With one of the codes of `medgan.errors.CODES`; nothing is returned in part.
    """
    stacks = [stack for series in find_series(path) for stack in arrange(series, rules, labels=labels)]
    return _load(stacks, rules, labels)


def load_series(series: Series, rules: Rules = DEFAULT_RULES, *, labels: bool = False) -> list[Volume]:
    """Checks and decodes one series of `find_series`; arguments, result and errors as in `read_series`."""
    return _load(arrange(series, rules, labels=labels), rules, labels)


def template(path: Path) -> Any:
    """Returns the pydicom data set of the first image at `path`, in reading order, without its pixels."""
    return find_series(path)[0].instances[0].header


def find_series(path: Path) -> list[Series]:
    """Reads the headers at `path` and groups them by series; nothing is decoded.

    Raises:
        Refused: For a file that cannot be read, and `FILE_MISSING` or `NO_IMAGES`.
    """
    if not path.exists():
        raise Refused("FILE_MISSING", path, "it does not exist", "Check the path")
    search = _Search(path)
    if path.is_dir():
        search.folder(path)
    else:
        search.file(path)
    if not search.instances:
        raise search.nothing_found()
    instances, notes = _without_duplicates(search.instances, path)
    instances, more = _without_asides(instances, path)
    notes = [*search.notes(), *notes, *more]
    groups: dict[str, list[Instance]] = {}
    for instance in instances:
        groups.setdefault(text(instance.header, "SeriesInstanceUID"), []).append(instance)
    if len(groups) > 1:
        notes.append(Note("SERIES_SPLIT", str(path), f"{len(groups)} series are kept apart"))
    return [Series(path, uid, members, [*notes, *_file_notes(members, path)]) for uid, members in groups.items()]


class _Search:
    """Collects the image files below a path, and what was passed over."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.instances: list[Instance] = []
        self._passed: dict[str, list[str]] = {}
        self._refusals: list[Refused] = []

    def folder(self, folder: Path, depth: int = 0) -> None:
        """Reads the files of a folder; where none is an image, those of its sub-folders."""
        found, below = len(self.instances), []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.name.startswith(PARTIAL):  # half-written output of a run that was killed
                continue
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif entry.is_file(follow_symlinks=False):
                self.file(path)
            else:
                self._pass_over("FS_SKIPPED", path)
        holds_images = len(self.instances) > found
        for path in below:
            if holds_images or depth >= FOLDER_DEPTH:
                self._pass_over("FS_SKIPPED", path)
            else:
                self.folder(path, depth + 1)

    def file(self, path: Path) -> None:
        """Reads one file's header."""
        try:
            self.instances.append(read_instance(path))
        except PassedOver as aside:
            if path == self.root:
                raise aside.refusal from None
            # Hidden files and those not named as DICOM say nothing about why a folder has no images.
            if aside.code != "NON_DICOM_SKIPPED" or path.name.lower().endswith(_DICOM_SUFFIXES):
                self._refusals.append(aside.refusal)
            self._pass_over(aside.code, path)

    def _pass_over(self, code: str, path: Path) -> None:
        self._passed.setdefault(code, []).append(path.name)

    def notes(self) -> list[Note]:
        """One note for each reason to pass something over."""
        return [Note(code, str(self.root), f"passed over {_listed(names)}") for code, names in self._passed.items()]

    def nothing_found(self) -> Refused:
        """Why there is no image: the common reason of all candidates, else `NO_IMAGES`."""
        if self._refusals and len({refusal.code for refusal in self._refusals}) == 1:
            return self._refusals[0]
        passed = [name for names in self._passed.values() for name in names]
        why = f"it holds no DICOM image; passed over {_listed(passed)}" if passed else "the folder is empty"
        return Refused("NO_IMAGES", self.root, why, "Give a folder with DICOM images")


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most]) + (" and more" if len(names) > most else "")
    return f"{len(names)}: {shown}"


def _without_duplicates(instances: list[Instance], where: Path) -> tuple[list[Instance], list[Note]]:
    """Drops copies of an instance; refuses different pixels or places under one SOPInstanceUID."""
    kept: dict[str, Instance] = {}
    copies: list[str] = []
    for instance in instances:
        uid = text(instance.header, "SOPInstanceUID") or str(instance.path)
        first = kept.setdefault(uid, instance)
        if first is instance:
            continue
        if _fingerprint(first) != _fingerprint(instance):
            raise Refused("DUP_UID_CONFLICT", instance.path,
                          f"it has the SOPInstanceUID of {first.path.name}, and other content",
                          "Keep the file that belongs to the series")
        copies.append(instance.path.name)
    notes = [Note("DUP_INSTANCE_IGNORED", str(where), f"ignored copies {_listed(copies)}")] if copies else []
    return list(kept.values()), notes


def _fingerprint(instance: Instance) -> tuple[str, ...]:
    """What must agree for two files to be the same image: the pixel bytes and where they lie."""
    digest = hashlib.sha256()
    with open_data_set(instance) as stream:
        stream.seek(instance.offset)
        left = instance.length
        while left > 0 and (block := stream.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
    keywords = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    place = [str(texts(instance.header, keyword)) for keyword in keywords]
    return (digest.hexdigest(), text(instance.header, "SeriesInstanceUID"), str(instance.rows), *place)


def _without_asides(instances: list[Instance], where: Path) -> tuple[list[Instance], list[Note]]:
    """Leaves scouts and colour captures aside where other images remain."""
    notes = []
    scouts = [instance for instance in instances if instance.is_localizer]
    if 0 < len(scouts) < len(instances):
        notes.append(Note("LOCALIZER_SKIPPED", str(where), f"passed over {_listed([i.path.name for i in scouts])}"))
        instances = [instance for instance in instances if not instance.is_localizer]
    grey = {text(i.header, "SeriesInstanceUID") for i in instances if not i.is_colour}
    captures = [i for i in instances if i.is_colour and text(i.header, "SeriesInstanceUID") not in grey]
    if grey and captures:
        listed = _listed([instance.path.name for instance in captures])
        notes.append(Note("PIX_COLOUR", str(where), f"passed over colour images {listed}"))
        instances = [instance for instance in instances if instance not in captures]
    return instances, notes


def _file_notes(instances: list[Instance], where: Path) -> list[Note]:
    """The notes of the files of a series, one a code."""
    found: dict[str, list[Note]] = {}
    for instance in instances:
        for note in instance.notes:
            found.setdefault(note.code, []).append(note)
    return [notes[0] if len(notes) == 1 else Note(code, str(where), f"{notes[0].why} (in {len(notes)} files)")
            for code, notes in found.items()]


def _load(stacks: list[Stack], rules: Rules, labels: bool) -> list[Volume]:
    """Checks the size of all stacks, then decodes them."""
    needed = sum(map(_bytes_of, stacks)) + max(memory_beside(stack.frames) for stack in stacks)
    if needed > rules.limit:
        raise Refused("LIMIT", stacks[0].source, f"it needs {needed} bytes in memory, the limit is {rules.limit}",
                      "Give fewer images, or raise `data.max_gib`")
    volumes: list[Volume] = []
    for stack in stacks:
        left = rules.limit - sum(volume.array.nbytes for volume in volumes)
        array, notes = load_frames(stack.frames, stack.source, replace(rules, max_bytes=left))
        if stack.plan is not None:
            array = straightened(array, stack.plan, labels=labels)
        array = array[None, ..., 0] if stack.dims == 2 else array[None]
        volumes.append(Volume(array, stack.affine, _MODALITIES.get(stack.frames[0].instance.modality), stack.source,
                              (*stack.notes, *notes), stack.slice_thickness_mm))
    return volumes


def _bytes_of(stack: Stack) -> int:
    """What a stack takes: its values and, where it is resampled, those that come of them."""
    resampled = 0 if stack.plan is None else math.prod(stack.shape)
    return memory_kept(stack.frames) + resampled * working_type(stack.frames).itemsize
