"""What every data set layout has in common: reading it, and writing the same layout back case by case."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from medgan.datasets.cases import Case, Dataset
from medgan.datasets.hashing import rejoined
from medgan.datasets.paths import DICOM_ENDINGS, NIFTI_ENDINGS, PROVENANCE_ENDING, ending, image_files, safe_name, stem
from medgan.datasets.provenance import Provenance, read_if_synthetic
from medgan.datasets.splits import leaks
from medgan.errors import Note, Refused
from medgan.imaging.convert import cast
from medgan.imaging.planar import RASTERS
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.imaging.volume import Volume
from medgan.storage import atomic_folder, atomic_path, remove_whole


class Layout(ABC):
    """One way in which cases lie in a folder.

    A layout writes back what it reads: `place` says where a case will lie, `copy` brings an original there byte for
    byte, `save` writes a synthetic case the way its parent's files are written, `finish` writes the description last.
    A case is synthetic to `place` when its id is not among the data set's own; it is given as its parent with a new
    id, so that its `images` and `mask` still name the parent's files.
    """

    #: Key in `LAYOUTS`.
    name: ClassVar[str]
    #: What `detect` looks for, in words.
    looked_for: ClassVar[str]

    @abstractmethod
    def detect(self, root: Path) -> bool:
        """Whether `root` looks like this layout; cheap. A description that cannot be read is refused at once."""

    @abstractmethod
    def open(self, root: Path, rules: Rules = DEFAULT_RULES) -> Dataset:
        """Describes the data set at `root` without reading voxels of images.

        Raises:
            Refused: `TAB_*`, `LABEL_MISSING`, `DATASET_*`, `CFG_UNSAFE` or `SPLIT_LEAK`.
        """

    @abstractmethod
    def place(self, out: Path, dataset: Dataset, case: Case) -> Case:
        """The case as it will lie under `out`: the same id, its new image and mask paths. Touches no file."""

    @abstractmethod
    def finish(self, out: Path, dataset: Dataset, cases: Sequence[Case]) -> None:
        """Writes the description of the placed `cases` (all that lie under `out`), atomically and last."""

    def copy(self, case: Case, placed: Case) -> None:
        """Copies an original's files, side-car included, byte for byte, each atomically; what is there is left."""
        for source, target in zip(case_files(case), case_files(placed), strict=True):
            copy_path(source, target)
        if self.sidecar(case).is_file():
            copy_path(self.sidecar(case), self.sidecar(placed))

    def save(
        self,
        dataset: Dataset,
        placed: Case,
        image: Volume,
        mask: Volume | None,
        parent: Case,
        *,
        provenance: Provenance | None = None,
    ) -> None:
        """Writes a synthetic case's voxels with the parent's file formats and stored types, each file atomically.

        Args:
            dataset: The data set the parent is from.
            placed: The synthetic case as `place` returned it.
            image: (C, X, Y[, Z]) on the parent's grid.
            mask: (1, X, Y[, Z]) on the same grid, or None.
            parent: The original it was made from.
            provenance: Named in DICOM headers (model, seed, method); other formats hold it only in the side-car.
        """
        if len(placed.images) == 1:
            write_like(image, placed.images[0], parent.images[0], provenance)
        else:
            for channel, (path, source) in enumerate(zip(placed.images, parent.images, strict=True)):
                one = replace(image, array=image.array[channel : channel + 1])
                write_like(one, path, source, provenance)
        if placed.mask is not None and mask is not None:
            write_like(mask, placed.mask, parent.mask or placed.mask, provenance)

    def sidecar(self, placed: Case) -> Path:
        """Where the provenance JSON of a synthetic case lies: beside its first image."""
        first = placed.images[0]
        return first.with_name(stem(first.name) + PROVENANCE_ENDING)


def base_of(dataset: Dataset) -> Path:
    """The folder that the data set's paths are relative to."""
    return dataset.root if dataset.root.is_dir() else dataset.root.parent


def moved(out: Path, dataset: Dataset, case: Case) -> Case:
    """The case with every path at the same place below `out` as it has below the data set's folder."""
    base = base_of(dataset)
    return replace(
        case,
        images=tuple(out / path.relative_to(base) for path in case.images),
        mask=None if case.mask is None else out / case.mask.relative_to(base),
    )


def beside(out: Path, dataset: Dataset, case: Case, name: str | None = None) -> Case:
    """A synthetic case in the same folders as its parent, its files called after its id."""
    there = moved(out, dataset, case)
    name = name or safe_name(case.id)
    images = tuple(path.with_name(name + written_ending(path)) for path in there.images)
    if len(images) > 1:
        images = tuple(path.with_name(f"{name}_{c:04d}{written_ending(path)}") for c, path in enumerate(there.images))
    mask = None if there.mask is None else there.mask.with_name(name + written_ending(there.mask))
    if mask is not None and mask in images:
        mask = mask.with_name(f"{name}_mask{written_ending(mask)}")
    return replace(there, images=images, mask=mask, synthetic=True)


def written_ending(path: Path) -> str:
    """The ending of a synthetic file made from `path`: PNG for every raster, none for DICOM, a folder of slices."""
    found = ending(path.name)
    if found in RASTERS:
        return ".png"
    return "" if found in DICOM_ENDINGS else found


def case_files(case: Case) -> list[Path]:
    """Every file and series folder of a case, images first."""
    return [*case.images, *([case.mask] if case.mask is not None else [])]


def copy_path(source: Path, target: Path) -> None:
    """Copies a file, or the files directly in a folder, whole or not at all; a link is copied as what it points to."""
    if source.is_dir():
        files = [inner for inner in sorted(source.iterdir()) if inner.is_file() and not inner.name.startswith(".")]
        if target.exists():
            for inner in files:
                copy_path(inner, target / inner.name)
        else:  # a series with some of its slices would be a shorter one
            with atomic_folder(target) as temporary:
                for inner in files:
                    copy_path(inner, temporary / inner.name)
    elif not (target.is_file() and target.stat().st_size == source.stat().st_size):
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def write_like(volume: Volume, path: Path, source: Path, provenance: Provenance | None) -> None:
    """Writes voxels at `path` in the stored type of `source`, rounded and clipped where that is an integer type."""
    from medgan.imaging import files

    if written_ending(path) == "":
        from medgan.imaging.dicom_write import write_synthetic

        # A killed run may have got as far as this folder; `write_synthetic` would take it for someone else's.
        if path.is_dir() and all(inner.suffix == ".dcm" for inner in path.iterdir()):
            remove_whole(path)
        derivation = f"medgan {provenance.method}" if provenance else "medgan"
        write_synthetic(volume, path, model_hash=provenance.model_hash if provenance else "",
                        seed=provenance.seed if provenance else 0, derivation=derivation)
        return
    files.write(replace(volume, array=cast(volume.array, stored_dtype(source, volume.array.dtype))), path,
                says=files.SYNTHETIC if provenance else files.DERIVED)


def stored_dtype(path: Path, otherwise: np.dtype[Any]) -> np.dtype[Any]:
    """The type a file's values are stored in; for a scaled NIfTI the type its true values fit."""
    from medgan.imaging import files

    if not path.is_file():
        return otherwise
    if ending(path.name) not in NIFTI_ENDINGS:
        return np.dtype(files.read(path).array.dtype)
    import nibabel

    proxy = nibabel.load(path).dataobj  # the header itself no longer has the scaling once nibabel has read it
    stored: np.dtype[Any] = np.dtype(proxy.dtype).newbyteorder("=")
    slope, intercept = float(proxy.slope), float(proxy.inter)
    if (slope, intercept) == (1.0, 0.0):
        return stored
    if stored.kind in "iu" and slope.is_integer() and intercept.is_integer():
        whole = np.iinfo(stored)
        ends = [end * slope + intercept for end in (whole.min, whole.max)]
        short = (stored == np.int16 and slope == 1) or (min(ends) >= -(2**15) and max(ends) < 2**15)
        return np.dtype(np.int16 if short else np.int32)
    return np.dtype(np.float32)


def with_provenance(layout: Layout, cases: Sequence[Case]) -> list[Case]:
    """Marks the cases that have a provenance record beside them and takes id, patient and label from it."""
    known = []
    for case in cases:
        record = read_if_synthetic(layout.sidecar(case))
        if record is None:
            known.append(case)
        else:
            known.append(replace(case, id=record.id, patient=record.patient, synthetic=True))
    return known


def finished(
    cases: Sequence[Case], where: Path, *, patients_known: bool = False
) -> tuple[tuple[Case, ...], list[Note]]:
    """Sorts the cases and checks what holds for every layout.

    Args:
        cases: All cases.
        where: The data set, for messages.
        patients_known: The patients are recorded, so that a leak is certain; a guessed one only gives a note.

    Raises:
        Refused: `DATASET_EMPTY`, `TAB_DUPLICATE_ID`, `LABEL_MISSING`, `TAB_MISSING_LABEL` or `SPLIT_LEAK`.
    """
    if not cases:
        raise Refused("DATASET_EMPTY", where, "it holds no case", "Check that the images are where the layout has them")
    twice = [case_id for case_id, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise Refused("TAB_DUPLICATE_ID", where, f"two cases have the id {twice[0]!r}", "Give every case its own id")
    for split in ("train", "val", "test"):
        members = [case for case in cases if case.split == split]
        unmasked = [case.id for case in members if case.mask is None]
        if unmasked and len(unmasked) < len(members):
            raise Refused("LABEL_MISSING", where,
                          f"case {unmasked[0]!r} has no mask while others of the {split} split have one",
                          "Add the mask (an empty one where there is nothing to mark) or remove the case")
    cases = rejoined(cases)
    notes = []
    found = leaks(cases)
    if found:
        what, splits = found[0]
        why = f"{what} is in {' and '.join(splits)}"
        if patients_known or what.startswith("file "):
            raise Refused("SPLIT_LEAK", where, why, "Move all cases of a patient into one split")
        notes.append(Note("SPLIT_LEAK", str(where), f"judging by the ids, {why}"))
    return tuple(sorted(cases, key=lambda case: case.id)), notes


def number_of_files(name: str, said: object, found: int, where: Path) -> list[Note]:
    """A note where a description counts another number of cases than there are."""
    if isinstance(said, int) and said != found:
        return [Note("TAB_UNMATCHED", str(where), f"{name} says {said}, {found} cases are there; they were all taken")]
    return []


def unlisted(base: Path, cases: Sequence[Case], where: Path) -> list[Note]:
    """A note on images that lie beside listed ones and are not listed."""
    listed = {path for case in cases for path in case_files(case)}
    beside_them = sorted({path.parent for path in listed if path.is_file()})
    left = [path for folder in beside_them for path in image_files(base, folder) if path not in listed]
    if not left:
        return []
    named = ", ".join(str(path.relative_to(base)) for path in left[:3]) + (" ..." if len(left) > 3 else "")
    return [Note("TAB_UNMATCHED", str(where), f"{len(left)} images there are not listed and were left out: {named}")]
