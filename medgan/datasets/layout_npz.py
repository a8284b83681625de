"""The MedMNIST layout: one `.npz` with `train_images`, `train_labels` and the same for `val` and `test`."""

from __future__ import annotations

import shutil
import sys
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.datasets.cases import Case, Dataset
from medgan.datasets.layout_base import Layout, copy_path, finished, with_provenance
from medgan.datasets.paths import safe_name, stay_inside, visible
from medgan.datasets.provenance import Provenance
from medgan.datasets.splits import SPLITS
from medgan.errors import Note, Refused
from medgan.imaging.archives import ZIP_ERRORS, check_members
from medgan.imaging.arrays import claimed_bytes, read_array, read_header, stored_bytes, taken_bytes
from medgan.imaging.checks import refuse_nonfinite
from medgan.imaging.convert import cast
from medgan.imaging.rules import DEFAULT_RULES, Rules
from medgan.imaging.volume import Volume
from medgan.storage import atomic_path

#: How many arrays are held while their rows are asked for one by one; a split each.
_CACHED_ARRAYS = 3


class Npz(Layout):
    """MedMNIST-style arrays: images (N, H, W) or (N, D, H, W), one class an image as (N,) or (N, 1).

    A row's columns become axis X and its lines axis Y (and D axis Z). Synthetic images are appended to the training
    arrays. Since rows have no names, `train_ids` then names them, `train_synthetic` marks those that were made, and
    their records lie in `<name>-provenance/`.
    """

    name = "npz"
    looked_for = "one .npz with train_images and train_labels (MedMNIST)"

    def detect(self, root: Path) -> bool:
        path = _archive(root)
        return path is not None and any(f"{split}_images" in _shapes(path) for split in SPLITS)

    def open(self, root: Path, rules: Rules = DEFAULT_RULES) -> Dataset:
        path = _archive(root)
        assert path is not None
        shapes = _shapes(path, rules)
        cases: list[Case] = []
        for split in SPLITS:
            if f"{split}_images" not in shapes:
                continue
            shape, dtype = shapes[f"{split}_images"]
            _check_images(shape, dtype, path, split)
            labels = _labels(path, shapes, split, shape[0], rules)
            ids = [f"{split}-{row:05d}" for row in range(shape[0])]
            if f"{split}_ids" in shapes:
                ids = _texts(_array(path, f"{split}_ids", rules).reshape(-1), path, f"{split}_ids")
            if len(ids) != shape[0] or not all(ids):
                raise Refused("TAB_UNMATCHED", path, f"{split}_ids does not name every image", "Correct the file")
            cases += [
                Case(case_id, (path,), label=label, patient=case_id, split=split, row=row,
                     array=f"{split}_images")
                for row, (case_id, label) in enumerate(zip(ids, labels, strict=True))
            ]
        dims = {len(shapes[f"{split}_images"][0]) for split in SPLITS if f"{split}_images" in shapes}
        if len(dims) > 1:
            raise Refused("DIM_UNSUPPORTED", path, "its splits differ in their number of axes", "Correct the file")
        records = _records(path)
        known = with_provenance(self, [c for c in cases if self.sidecar(c) in records])
        marked = {case.row: case for case in known}
        cases = [marked.get(c.row, c) if c.split == "train" else c for c in cases]
        ready, notes = finished(cases, path)
        classes = {case.label for case in ready if case.label is not None}
        return Dataset(
            root, self.name, path.stem, ("image",), {}, tuple(sorted(classes, key=_by_number)), ready,
            {"modality": path.stem}, tuple(notes),
        )

    def place(self, out: Path, dataset: Dataset, case: Case) -> Case:
        there = replace(case, images=(out / case.images[0].name,))
        return there if case.id in dataset.ids else replace(there, row=None, array="train_images", synthetic=True)

    def copy(self, case: Case, placed: Case) -> None:
        # The arrays of the originals are taken over whole by `finish`.
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
        shapes = _shapes(parent.images[0])
        shape, dtype = shapes["train_images"]
        pixels = cast(image.array[0].transpose(), dtype)
        if pixels.shape != shape[1:]:
            raise Refused("DIM_UNSUPPORTED", placed.id, f"an image of shape {pixels.shape} among {shape[1:]}",
                          "Make images of the data set's own shape")
        target = _work(placed)
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.save(file, np.ascontiguousarray(pixels), allow_pickle=False)

    def sidecar(self, placed: Case) -> Path:
        archive = placed.images[0]
        return archive.with_name(f"{archive.stem}-provenance") / f"{safe_name(placed.id)}.json"

    def finish(self, out: Path, dataset: Dataset, cases: Sequence[Case]) -> None:
        source = _archive(dataset.root)
        assert source is not None
        target = out / source.name
        new = sorted((case for case in cases if case.id not in dataset.ids), key=lambda case: case.id)
        if not _already_there(target, new, dataset.rules):
            arrays = {key: _array(source, key, dataset.rules) for key in _shapes(source)}
            if new:
                _append(arrays, new, dataset)
            with atomic_path(target) as temporary:
                _save(arrays, temporary)
        _held.clear()
        shutil.rmtree(_work_folder(target), ignore_errors=True)


def _save(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """As `np.savez_compressed`, which takes an array called `file` or `allow_pickle` for an argument of its own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_row(case: Case, rules: Rules = DEFAULT_RULES) -> Volume:
    """One image of a MedMNIST-style file as (1, X, Y[, Z]); no spacing is recorded, so 1 mm is assumed.

    Raises:
        Refused: `FILE_*`, `LIMIT`, `PIX_NONFINITE`, or `TAB_UNMATCHED` when the row is not there.
    """
    path = case.images[0]
    images = _array(path, case.array, rules)
    if case.row is None or not 0 <= case.row < len(images):
        raise Refused("TAB_UNMATCHED", path, f"it has no row {case.row} for case {case.id!r}",
                      "Open the data set again")
    array = np.ascontiguousarray(images[case.row].transpose()[None])
    refuse_nonfinite(array, path)
    notes = [Note("GEOM_NO_SPACING", str(path), "no spacing is recorded; 1 mm was assumed")]
    if array.min() == array.max():
        notes.append(Note("PIX_CONSTANT", f"{path} row {case.row}", "every pixel has the same value"))
    return Volume(array, source=path, notes=tuple(notes))


def _archive(root: Path) -> Path | None:
    """The one `.npz` that `root` is or holds."""
    if root.is_file():
        return root if root.suffix == ".npz" else None
    found = [path for path in visible(root) if path.suffix == ".npz" and path.is_file()]
    if len(found) != 1:
        return None
    stay_inside(root, found[0], root)
    return found[0]


def _shapes(path: Path, rules: Rules | None = None) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Name -> shape and dtype of every array, from the headers alone, each checked against the bytes that are there.

    Args:
        path: The file.
        rules: What reading one of the arrays may take; None: it is not asked.

    Raises:
        Refused: `FILE_CORRUPT`, `FILE_UNSAFE` or `LIMIT_OR_TRUNCATED`.
    """
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path)
            for member in archive.infolist():
                with archive.open(member) as stream:
                    header = read_header(stream, path)
                claimed = claimed_bytes(header)
                if claimed > stored_bytes(member, path) or (rules and taken_bytes(header) > rules.limit):
                    raise Refused("LIMIT_OR_TRUNCATED", path, f"{member.filename} claims {claimed:,} bytes",
                                  "Check that the file is whole; if it is, make it smaller or raise data.max_gib")
                found[member.filename.removesuffix(".npy")] = (header[0], header[2])
    except (*ZIP_ERRORS, RuntimeError) as error:
        raise Refused("FILE_CORRUPT", path, f"the archive cannot be read ({error})", "Save it again") from None
    return found


#: (path, name, when and how large the file was) -> array, the one asked for last at the end.
_held: dict[tuple[Path, str, int, int], NDArray[Any]] = {}
_lock = threading.Lock()


def _array(path: Path, name: str, rules: Rules) -> NDArray[Any]:
    """An array of the file, kept for the next row; others make room for it where they do not fit beside it."""
    status = path.stat()
    key = (path, name, status.st_mtime_ns, status.st_size)
    with _lock:
        array = _held.pop(key, None)
        if array is None:
            array = _read(path, name, rules)
        _held[key] = array
    return array


def _read(path: Path, name: str, rules: Rules) -> NDArray[Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            with archive.open(member) as stream:
                needed = taken_bytes(read_header(stream, path))
            while _held and (len(_held) >= _CACHED_ARRAYS
                             or sum(each.nbytes for each in _held.values()) + needed > rules.limit):
                _held.pop(next(iter(_held)))
            with archive.open(member) as stream:
                array = read_array(stream, stored_bytes(member, path), path, rules.limit, image=False)
    except (*ZIP_ERRORS, KeyError, RuntimeError) as error:
        raise Refused("FILE_CORRUPT", path, f"{name} cannot be read ({error})", "Save it again") from None
    array.setflags(write=False)
    return array


def _check_images(shape: tuple[int, ...], dtype: np.dtype[Any], path: Path, split: str) -> None:
    if len(shape) == 4 and shape[-1] in (3, 4):
        raise Refused("PIX_COLOUR", path, f"{split}_images has colour channels {shape}", "Convert the images to grey")
    if len(shape) not in (3, 4) or 0 in shape[1:]:
        raise Refused("DIM_UNSUPPORTED", path, f"{split}_images has the shape {shape}",
                      "Give (N, H, W) or (N, D, H, W)")
    if dtype.kind not in "uif":
        raise Refused("HDR_BAD_DTYPE", path, f"{split}_images has the type {dtype}", "Save integers or floats")


def _labels(path: Path, shapes: Mapping[str, Any], split: str, count: int, rules: Rules) -> list[str | None]:
    name = f"{split}_labels"
    if name not in shapes:
        if "train_labels" in shapes:
            raise Refused("TAB_MISSING_LABEL", path, f"{name} is missing", "Add it, or remove the split")
        return [None] * count
    shape, dtype = shapes[name]
    if shape not in ((count,), (count, 1)):
        raise Refused("TAB_UNMATCHED" if shape[:1] != (count,) else "TAB_BAD_LABEL", path,
                      f"{name} has the shape {shape} for {count} images", "Give one class an image")
    if dtype.kind not in "uiUf":
        raise Refused("TAB_BAD_LABEL", path, f"{name} has the type {dtype}", "Give class numbers or names")
    values = _array(path, name, rules).reshape(-1)
    if dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise Refused("TAB_BAD_LABEL", path, f"{name} holds values that are no class numbers", "Give whole numbers")
    texts = _texts(values, path, name) if dtype.kind == "U" else [str(int(value)) for value in values]
    if not all(texts):
        raise Refused("TAB_MISSING_LABEL", path, f"{name} has an empty label", "Fill in the label")
    return list(texts)


def _texts(values: NDArray[Any], path: Path, name: str) -> list[str]:
    """Values as text; numpy itself does not check that what it stores as characters are characters."""
    if values.dtype.kind == "U" and values.dtype.itemsize:
        points = np.ascontiguousarray(values).view(np.uint32)
        if ((points > sys.maxunicode) | ((points >= 0xD800) & (points <= 0xDFFF))).any():
            raise Refused("TAB_ENCODING", path, f"{name} holds what are no characters", "Save it again")
    return [str(value) for value in values]


def _by_number(name: str) -> tuple[int, str]:
    return (int(name), name) if name.lstrip("-").isdigit() else (0, name)


def _records(path: Path) -> set[Path]:
    return set(visible(path.with_name(f"{path.stem}-provenance")))


def _work_folder(archive: Path) -> Path:
    return archive.with_name(f".{archive.stem}-rows")


def _work(placed: Case) -> Path:
    return _work_folder(placed.images[0]) / f"{safe_name(placed.id)}.npy"


def _already_there(target: Path, new: Sequence[Case], rules: Rules) -> bool:
    """Whether an earlier `finish` got as far as the file, so that only the work folder is left to remove."""
    if not target.is_file() or any(_work(case).is_file() for case in new):
        return False
    if not new:
        return True
    if "train_ids" not in _shapes(target):
        return False
    return {case.id for case in new} <= set(_array(target, "train_ids", rules).tolist())


def _append(arrays: dict[str, NDArray[Any]], new: Sequence[Case], dataset: Dataset) -> None:
    images = arrays["train_images"]
    made = np.stack([np.load(_work(case), allow_pickle=False) for case in new])
    arrays["train_images"] = np.concatenate([images, made])
    if "train_labels" in arrays:
        labels = arrays["train_labels"]
        kind = np.str_ if labels.dtype.kind == "U" else labels.dtype
        more = np.array([case.label for case in new]).astype(kind).reshape(-1, *labels.shape[1:])
        arrays["train_labels"] = np.concatenate([labels, more])
    marked = arrays.get("train_synthetic")
    if marked is None or marked.shape != (len(images),):
        marked = np.array([case.synthetic for case in sorted(dataset.split("train"), key=lambda case: case.row or 0)])
    arrays["train_synthetic"] = np.concatenate([marked.astype(bool), np.ones(len(new), bool)])
    by_row = {case.row: case.id for case in dataset.split("train")}
    ids = [by_row[row] for row in range(len(images))] + [case.id for case in new]
    arrays["train_ids"] = np.array(ids, dtype=np.str_)
