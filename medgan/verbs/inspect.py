"""`inspect`: what a path is, and what is wrong with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medgan import notices
from medgan.errors import Note, Refused
from medgan.imaging.archives import is_pickle
from medgan.imaging.rules import Rules
from medgan.imaging.volume import Volume
from medgan.verbs.reading import SETTINGS, asked_rules, besides_rules
from medgan.verbs.remedies import REMEDIES

if TYPE_CHECKING:
    from medgan.datasets.cases import Dataset

#: A larger data set is described by its distinct shapes.
MOST_VOLUMES = 200
_TABLES = (".csv", ".json")


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Args:
        status: `ok`, `warning` (taken, with notes) or `refused`.
        codes: The codes of refusals and notes, in the order of `notes`.
        kind: `volume`, `series`, `dataset`, `run`, `weights`, or `unknown`.
        volumes: Shape, spacing, orientation, modality, dtype and range of each image that could be read.
        notes: Level (`error` or `warning`), code, where, why and fix of everything that is wrong or odd, errors first.
            Of a data set or a folder of series all damaged cases are named, not only the first.
        summary: Further facts, by kind: cases and splits of a data set, task and progress of a run.
    """

    status: Literal["ok", "warning", "refused"]
    codes: tuple[str, ...]
    kind: str
    volumes: tuple[dict[str, Any], ...]
    notes: tuple[dict[str, str], ...]
    summary: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def inspect(path: str | Path, *, config: str | Path | None = None,
            settings: Sequence[str] | Mapping[str, Any] = ()) -> Inspection:
    """Says what a file or folder is: a volume, a DICOM series, a data set or a run, and what is odd about it.

    Args:
        path: Anything medgan reads or writes.
        config: A TOML file of settings, of which those of reading count: `data.max_gib` and `data.irregular`.
        settings: Single settings of reading.

    Returns:
        The findings; a refusal is one of them, not an exception.

    Raises:
        Refused: `CFG_*` for a setting that is none of these.
    """
    path = Path(path)
    for name in besides_rules(settings):
        raise Refused("CFG_VALUE", name, "it says nothing of how files are read", f"Use {' or '.join(SETTINGS)}")
    rules = asked_rules(config, settings)
    with notices.quiet():
        try:
            return _inspect(path, rules)
        except Refused as refused:
            return _found(_kind(path), [], [refused])


def _inspect(path: Path, rules: Rules) -> Inspection:
    if "\0" in str(path):
        raise Refused("FILE_MISSING", path, "there is no such file", "Check the path")
    if (path / "config.json").is_file():
        return _run(path)
    if path.is_file() and _is_named_weights(path):
        return _weights(path)
    if path.is_file() and path.suffix.lower() not in (*_TABLES, ".npz"):
        return _volumes(path, rules)
    from medgan.datasets.layouts import open_dataset

    try:
        dataset = open_dataset(path, rules)
    except Refused as refused:
        # A folder that is no data set may still hold one DICOM series, an .npz one array.
        if refused.code != "DATASET_UNKNOWN" and path.suffix.lower() != ".npz":
            raise
        return _volumes(path, rules)
    return _dataset(dataset)


def _dataset(dataset: Dataset) -> Inspection:
    volumes: list[dict[str, Any]] = []
    notes, refusals, damaged = list(dataset.notes), [], {}
    for case in dataset.cases:
        try:
            image, mask = dataset.load(case)
        except Refused as refused:
            refusals.append(refused)
            damaged[case.id] = refused.code
            continue
        notes += [*image.notes, *(mask.notes if mask is not None else ())]
        volumes.append({"id": case.id, **_describe(image)})
    summary = {
        "layout": dataset.layout, "name": dataset.name, "modality": dataset.modality,
        "channels": list(dataset.channels), "labels": {str(k): v for k, v in dataset.labels.items()},
        "classes": list(dataset.classes), "cases": len(dataset.cases),
        "splits": dict(Counter(case.split for case in dataset.cases)),
        "patients": len({case.patient for case in dataset.cases}),
        "synthetic": sum(case.synthetic for case in dataset.cases),
        "by_class": dict(Counter(case.label for case in dataset.cases if case.label is not None)),
        **({"damaged": damaged} if damaged else {}),
    }
    # One line a case is for people; a set of thousands is described by its distinct shapes.
    return _found("dataset", notes, refusals, volumes if len(volumes) <= MOST_VOLUMES else _distinct(volumes), summary)


def _volumes(path: Path, rules: Rules) -> Inspection:
    from medgan.imaging.files import read_all

    refusals: list[Refused] = []
    try:
        volumes = read_all(path, rules=rules)
    except Refused as refused:
        volumes, refusals = _series_apart(path, refused, rules)
    notes = [note for volume in volumes for note in volume.notes]
    return _found(_kind(path), notes, refusals, [_describe(volume) for volume in volumes])


def _series_apart(path: Path, first: Refused, rules: Rules) -> tuple[list[Volume], list[Refused]]:
    """The good series of a folder whose reading ended at a bad one, and what is wrong with every bad one."""
    if not path.is_dir():
        raise first
    from medgan.imaging.checks import refuse_nonfinite
    from medgan.imaging.dicom import find_series, load_series

    volumes: list[Volume] = []
    refusals: list[Refused] = []
    try:
        found = find_series(path)
    except Refused:
        return [], [first]
    for series in found:
        try:
            read = load_series(series, rules=rules)
            for volume in read:
                refuse_nonfinite(volume.array, path)
            volumes += read
        except Refused as refused:
            refusals.append(refused)
    return volumes, refusals or [first]


def _run(path: Path) -> Inspection:
    from medgan.learning.checkpoints import STATE, check_weights, open_run, read_log

    run = open_run(path)
    log = read_log(run.path)
    summary: dict[str, Any] = {
        "task": run.config.task, "modality": run.config.modality, "dims": run.config.data.dims,
        "finished": run.finished, "dataset": dict(run.dataset), "interface": dict(run.interface),
        "last_report": log[-1] if log else None,
    }
    notes: list[Note] = []
    refusals: list[Refused] = []
    states = sorted((path / STATE).glob("*.safetensors"))
    try:
        if run.finished:
            run.generator()
            summary["weights"] = run.hash()
        else:
            notes.append(Note("RUN_UNFINISHED", str(path), "training did not reach its end" if states else
                              "training stopped before anything was saved"))
    except Refused as refused:
        refusals.append(refused)
    for state in states:  # what resuming starts from
        try:
            check_weights(state)
        except Refused as refused:
            refusals.append(refused)
    return _found("run", notes, refusals, [], summary)


def _weights(path: Path) -> Inspection:
    """A file of weights alone; a pickle is refused unread."""
    import zipfile

    if path.stat().st_size == 0:
        raise Refused("CKPT_CORRUPT", path, "the file has no bytes", "Fetch the file again")
    if is_pickle(path):
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        if zipped and not zipfile.is_zipfile(path):
            raise Refused("CKPT_CORRUPT", path, "the archive breaks off", "Fetch the file again, as safetensors")
        raise Refused("CKPT_UNSAFE", path, "it is a pickle, which runs code when it is read",
                      "Convert the weights to safetensors")
    from medgan.learning.checkpoints import check_weights

    shapes = check_weights(path)
    return _found("weights", [], [], [], {"tensors": len(shapes),
                                         "parameters": sum(int(np.prod(shape)) for shape in shapes.values())})


def _is_named_weights(path: Path) -> bool:
    return is_pickle(path) or path.suffix.lower() == ".safetensors"


def _kind(path: Path) -> str:
    """What a path is, where it could not be read as it."""
    suffix = path.suffix.lower()
    if "\0" in str(path) or not path.exists():
        return "unknown"
    if path.is_file():
        return "dataset" if suffix in _TABLES else "weights" if _is_named_weights(path) else "volume"
    if (path / "config.json").is_file():
        return "run"
    from medgan.datasets.layouts import LAYOUTS

    try:
        if any(layout.detect(path) for layout in LAYOUTS.values()) or (path / "dataset.json").is_file():
            return "dataset"
    except Refused:
        return "dataset"
    return "series" if any(each.is_file() for each in path.iterdir()) else "unknown"


def _found(kind: str, notes: list[Note], refusals: list[Refused], volumes: list[dict[str, Any]] | None = None,
           summary: dict[str, Any] | None = None) -> Inspection:
    told = [{"level": "error", "code": each.code, "where": each.where, "why": each.why, "fix": each.fix}
            for each in refusals]
    told += [{"level": "warning", "code": note.code, "where": note.where, "why": note.why,
              "fix": REMEDIES.get(note.code, "")} for note in notes]
    unique = list({tuple(each.items()): each for each in told}.values())
    status: Literal["ok", "warning", "refused"] = "refused" if refusals else "warning" if unique else "ok"
    return Inspection(status, tuple(dict.fromkeys(each["code"] for each in unique)), kind, tuple(volumes or ()),
                      tuple(unique), summary or {})


def _describe(volume: Volume) -> dict[str, Any]:
    return {"shape": list(volume.shape), "channels": volume.channels,
            "spacing_mm": [round(s, 6) for s in volume.spacing_mm], "orientation": volume.orientation,
            "origin_mm": [round(float(mm), 4) for mm in volume.affine[:3, 3]],
            "modality": volume.modality, "dtype": str(volume.array.dtype),
            "range": [float(np.min(volume.array)), float(np.max(volume.array))]}


def _distinct(volumes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = {}
    for volume in volumes:
        key = json.dumps([volume[name] for name in ("shape", "channels", "spacing_mm", "dtype")])
        first = kinds.setdefault(key, {**volume, "count": 0})
        first["count"] += 1
    return list(kinds.values())
