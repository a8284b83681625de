"""The layouts that folders alone describe: DICOM series, pairs, classes, and images side by side."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medgan.datasets.cases import Case, Dataset, Split
from medgan.datasets.layout_base import Layout, base_of, beside, finished, moved, with_provenance
from medgan.datasets.layouts_tables import SPLIT_WORDS
from medgan.datasets.loading import found_labels
from medgan.datasets.paths import (
    NIFTI_ENDINGS,
    PLANAR_ENDINGS,
    PROVENANCE_ENDING,
    folders,
    image_files,
    patient_of,
    safe_name,
    stay_inside,
    stem,
    visible,
)
from medgan.datasets.provenance import read_if_synthetic
from medgan.errors import Note, Refused
from medgan.imaging.rules import DEFAULT_RULES, Rules

#: How deep below the root a DICOM series may lie (patient, study, series, and some).
MAX_DEPTH = 6
#: Names of a mask beside an image.
MASK_STEMS = ("label", "mask")
#: Endings of a mask's stem among images that lie side by side.
MASK_MARKS = ("_mask", "_seg", "_label")
#: A PatientID that names no one.
NO_PATIENT = ("", "0", "na", "n/a", "none", "unknown", "anon", "anonymous", "anonymized", "anonymised")


class _Folders(Layout):
    """What these layouts share: nothing has to be written at the end."""

    def finish(self, out: Path, dataset: Dataset, cases: Sequence[Case]) -> None:
        """Nothing to write: the folders say everything."""


class Pairs(_Folders):
    """`image.nii.gz` and `label.nii.gz` (or `mask.nii.gz`) in the folder itself, or in each of its sub-folders."""

    name = "pairs"
    looked_for = "image.nii.gz beside label.nii.gz, in the folder or in each sub-folder"

    def detect(self, root: Path) -> bool:
        return any(_named(root, folder, ("image",)) for folder in (root, *folders(root)))

    def open(self, root: Path, rules: Rules = DEFAULT_RULES) -> Dataset:
        cases = []
        for folder in (root, *folders(root)):
            image = _named(root, folder, ("image",))
            if image is None:
                continue
            mask = _named(root, folder, MASK_STEMS)
            if mask is None:
                raise Refused("LABEL_MISSING", folder, f"{image.name} has no label.nii.gz beside it", "Add the mask")
            name = folder.resolve().name
            cases.append(Case(name, (image,), mask, patient=patient_of(name)))
        ready, notes = finished(with_provenance(self, cases), root)
        return Dataset(root, self.name, root.resolve().name, ("image",), found_labels(ready, rules), (), ready,
                       notes=tuple(notes))

    def place(self, out: Path, dataset: Dataset, case: Case) -> Case:
        assert case.mask is not None
        # An original keeps the name of its folder, which is its id unless ids are hashed.
        folder = out / safe_name(dataset.names.get(case.id, case.id))
        return replace(
            case, images=(folder / case.images[0].name,), mask=folder / case.mask.name,
            synthetic=case.synthetic or case.id not in dataset.ids,
        )


class DicomSeries(_Folders):
    """A folder of DICOM series, one a folder, at any depth; a mask may lie in or beside the series' folder."""

    name = "dicom"
    looked_for = "sub-folders with one DICOM series each"

    def detect(self, root: Path) -> bool:
        if not root.is_dir() or any(SPLIT_WORDS.get(f.name.lower()) for f in folders(root)):
            return False
        found = _series_folders(root)
        series = [folder for folder in found if not _record_beside(folder)]
        if not series:  # synthetic cases alone, whose records name their class
            return bool(found) and not any(_class_of_record(folder) == folder.parent.name for folder in found)
        return not _are_classes(root, series)

    def open(self, root: Path, rules: Rules = DEFAULT_RULES) -> Dataset:
        cases = []
        for folder in _series_folders(root):
            mask = _named(root, folder, MASK_STEMS)
            unit = folder
            if mask is None and folder.parent != root and len(_with_dicom(folder.parent)) == 1:
                mask = _named(root, folder.parent, MASK_STEMS)
                unit = folder.parent if mask is not None else folder
            case_id = "_".join(unit.relative_to(root).parts)
            cases.append(Case(case_id, (folder,), mask, patient=_patient(root, folder, case_id)))
        ready, notes = finished(with_provenance(self, cases), root)
        if (root / "DICOMDIR").is_file():
            notes.append(Note("DICOMDIR_IGNORED", str(root / "DICOMDIR"), "the index was passed over; the files "
                              "themselves were read"))
        return Dataset(root, self.name, root.resolve().name, ("image",), found_labels(ready, rules), (), ready,
                       notes=tuple(notes))

    def place(self, out: Path, dataset: Dataset, case: Case) -> Case:
        there = moved(out, dataset, case)
        if case.id in dataset.ids:
            return there
        folder = there.images[0]
        outer = there.mask is not None and there.mask.parent == folder.parent
        unit = folder.parent if outer else folder
        front = "".join(f"{part}_" for part in unit.relative_to(out).parts[:-1])
        # With hashed ids, not below the parent's folders either: they may be called after the patient.
        new = out / safe_name(case.id) if dataset.names else unit.with_name(safe_name(case.id.removeprefix(front)))
        mask = None if there.mask is None else new / there.mask.name
        return replace(there, images=(new / folder.name if outer else new,), mask=mask, synthetic=True)

    def sidecar(self, placed: Case) -> Path:
        folder = placed.images[0]
        if placed.mask is not None and placed.mask.parent == folder.parent:
            folder = folder.parent
        return folder.with_name(folder.name + PROVENANCE_ENDING)


class ClassFolders(_Folders):
    """`[train|val|test/]CLASS/file` of PNG, NIfTI, NPY or DICOM; a sub-folder of a class is a DICOM series."""

    name = "classes"
    looked_for = "[train|val|test/]CLASS/ folders of PNG, NIfTI, NPY or DICOM"

    def detect(self, root: Path) -> bool:
        return root.is_dir() and any(
            image_files(root, folder) or _with_dicom(folder)
            for _, outer in _split_folders(root) for folder in folders(outer)
        )

    def open(self, root: Path, rules: Rules = DEFAULT_RULES) -> Dataset:
        cases, classes = [], set()
        for split, outer in _split_folders(root):
            for folder in folders(outer):
                images = [*image_files(root, folder), *_with_dicom(folder)]
                if images:
                    classes.add(folder.name)
                front = _front(root, folder)
                for image in images:
                    case_id = front + (image.name if image.is_dir() else stem(image.name))
                    patient = patient_of(case_id.removeprefix(front))
                    # A number counted anew in every folder names no one; a subject label does.
                    patient = case_id if patient == case_id.removeprefix(front) else patient
                    cases.append(Case(case_id, (image,), label=folder.name, patient=patient, split=split or "train"))
        ready, notes = finished(with_provenance(self, cases), root)
        return Dataset(root, self.name, root.resolve().name, ("image",), {}, tuple(sorted(classes)), ready,
                       notes=tuple(notes))

    def place(self, out: Path, dataset: Dataset, case: Case) -> Case:
        if case.id in dataset.ids:
            return moved(out, dataset, case)
        name = case.id.removeprefix(_front(base_of(dataset), case.images[0].parent))
        return beside(out, dataset, case, safe_name(name))


class Images(_Folders):
    """Images side by side in one folder, without classes; `a_mask.nii.gz` is the mask of `a.nii.gz`."""

    name = "images"
    looked_for = "NIfTI, PNG or NPY files side by side"

    def detect(self, root: Path) -> bool:
        return root.is_dir() and bool(image_files(root, root, (*NIFTI_ENDINGS, *PLANAR_ENDINGS)))

    def open(self, root: Path, rules: Rules = DEFAULT_RULES) -> Dataset:
        files = {stem(path.name): path for path in image_files(root, root, (*NIFTI_ENDINGS, *PLANAR_ENDINGS))}
        masks = {name.removesuffix(mark): path for name, path in files.items() for mark in MASK_MARKS
                 if name.endswith(mark) and name.removesuffix(mark) in files}
        cases = [Case(name, (path,), masks.get(name), patient=patient_of(name)) for name, path in files.items()
                 if path not in masks.values()]
        ready, notes = finished(with_provenance(self, cases), root)
        return Dataset(root, self.name, root.resolve().name, ("image",), found_labels(ready, rules), (), ready,
                       notes=tuple(notes))

    def place(self, out: Path, dataset: Dataset, case: Case) -> Case:
        return moved(out, dataset, case) if case.id in dataset.ids else beside(out, dataset, case)


def _named(base: Path, folder: Path, stems: Sequence[str]) -> Path | None:
    """The NIfTI of one of these names in a folder."""
    for path in (folder / f"{name}{ending}" for name in stems for ending in NIFTI_ENDINGS):
        if path.is_file():
            stay_inside(base, path, folder)
            return path
    return None


def _dicom_files(folder: Path) -> Iterator[Path]:
    from medgan.imaging.dicom_file import is_dicom

    for path in visible(folder):
        known = path.name.lower().endswith((*NIFTI_ENDINGS, *PLANAR_ENDINGS, ".json", ".csv", ".txt", ".md"))
        if not known and not path.is_symlink() and is_dicom(path):
            yield path


def _with_dicom(folder: Path) -> list[Path]:
    """The sub-folders that hold DICOM files."""
    return [inner for inner in folders(folder) if any(True for _ in _dicom_files(inner))]


def _series_folders(root: Path) -> list[Path]:
    """All folders below `root`, not itself, that hold DICOM files, sorted."""
    found = []
    for here, inner, _ in os.walk(root):
        folder = Path(here)
        deep = len(folder.relative_to(root).parts)
        inner[:] = [] if deep >= MAX_DEPTH else sorted(name for name in inner if not name.startswith("."))
        if deep and any(True for _ in _dicom_files(folder)):
            found.append(folder)
    return sorted(found)


def _record_beside(folder: Path) -> bool:
    return any((each.with_name(each.name + PROVENANCE_ENDING)).is_file() for each in (folder, folder.parent))


def _class_of_record(folder: Path) -> str | None:
    record = read_if_synthetic(folder.with_name(folder.name + PROVENANCE_ENDING))
    return record.label if record is not None else None


def _are_classes(root: Path, series: Sequence[Path]) -> bool:
    """Whether DICOM folders are classes: several series in each folder, or several patients below it."""
    outermost = [folder for folder in series if folder.parent == root]
    if outermost:
        for folder in outermost:
            some = [_header(path, "SeriesInstanceUID") for path, _ in zip(_dicom_files(folder), range(2), strict=False)]
            if len(set(some)) > 1:
                return True
        return False
    if not all(folder.parent.parent == root for folder in series):
        return False
    people: dict[Path, set[str]] = defaultdict(set)
    for folder in series:
        people[folder.parent].add(_header(next(_dicom_files(folder)), "PatientID"))
    return any(len(ids) > 1 for ids in people.values())


def _header(path: Path, keyword: str) -> str:
    """One element of a DICOM file, or an empty string where the file cannot be read; loading says why."""
    from medgan.imaging.dicom_file import PassedOver, read_instance
    from medgan.imaging.dicom_header import text

    try:
        return text(read_instance(path).header, keyword)
    except (PassedOver, Refused):
        return ""


def _patient(root: Path, folder: Path, case_id: str) -> str:
    """A pseudonym of the PatientID, which itself goes nowhere; else the outermost folder, else a guess by the id."""
    patient = _header(next(_dicom_files(folder)), "PatientID").strip()
    if patient.lower() not in NO_PATIENT:
        return f"p-{hashlib.sha256(patient.encode()).hexdigest()[:10]}"
    parts = folder.relative_to(root).parts
    return parts[0] if len(parts) > 1 else patient_of(case_id)


def _split_folders(root: Path) -> list[tuple[Split | None, Path]]:
    """The split folders of a class data set, or the root itself when there is none."""
    found: list[tuple[Split | None, Path]] = []
    for folder in folders(root):
        split = SPLIT_WORDS.get(folder.name.lower())
        if split and not image_files(root, folder):
            found.append((split, folder))
    return found if any(split == "train" for split, _ in found) else [(None, root)]


def _front(base: Path, folder: Path) -> str:
    """What the ids of a class folder begin with: `CLASS_` or `train_CLASS_`."""
    return "".join(f"{part}_" for part in folder.relative_to(base).parts)
