"""`inspect`: what a path is, and what is wrong with it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medgan.errors import Note, Refused
from medgan.imaging.volume import Volume


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Args:
        status: `ok`, `warning` (taken, with notes) or `refused`.
        codes: The codes of notes or of the refusal.
        kind: `volume`, `series`, `dataset`, `run`, or `unknown`.
        volumes: Shape, spacing, orientation, modality, dtype and range of each image that was read.
        notes: Code, where and why of each note; for a refusal also the fix.
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


def inspect(path: str | Path) -> Inspection:
    """Says what a file or folder is: a volume, a DICOM series, a data set or a run, and what is odd about it.

    Args:
        path: Anything medgan reads.

    Returns:
        The findings; a refusal is one of them, not an exception.
    """
    path = Path(path)
    try:
        return _inspect(path)
    except Refused as refused:
        return Inspection("refused", (refused.code,), "unknown", (), (
            {"code": refused.code, "where": refused.where, "why": refused.why, "fix": refused.fix},), {})


def _inspect(path: Path) -> Inspection:
    if (path / "config.json").is_file():
        return _run(path)
    if path.is_file() and path.suffix not in (".csv", ".npz", ".json"):
        return _volumes(path, "volume")
    from medgan.datasets.layouts import open_dataset

    try:
        dataset = open_dataset(path)
    except Refused as refused:
        # A folder that is no data set may still hold one DICOM series, an .npz one array.
        if refused.code != "DATASET_UNKNOWN" and path.suffix != ".npz":
            raise
        return _volumes(path, "series" if path.is_dir() else "volume")
    volumes, notes = [], list(dataset.notes)
    for case in dataset.cases:
        image, mask = dataset.load(case)
        notes += [*image.notes, *(mask.notes if mask is not None else ())]
        volumes.append({"id": case.id, **_describe(image)})
    splits = Counter(case.split for case in dataset.cases)
    summary = {
        "layout": dataset.layout, "name": dataset.name, "modality": dataset.modality,
        "channels": list(dataset.channels), "labels": {str(k): v for k, v in dataset.labels.items()},
        "classes": list(dataset.classes), "cases": len(dataset.cases), "splits": dict(splits),
        "patients": len({case.patient for case in dataset.cases}),
        "synthetic": sum(case.synthetic for case in dataset.cases),
        "by_class": dict(Counter(case.label for case in dataset.cases if case.label is not None)),
    }
    # One line a case is for people; a set of thousands is described by its distinct shapes.
    shown = tuple(volumes) if len(volumes) <= 200 else tuple(_distinct(volumes))
    return _found("dataset", shown, notes, summary)


def _volumes(path: Path, kind: str) -> Inspection:
    from medgan.imaging.files import read_all

    volumes = read_all(path)
    notes = [note for volume in volumes for note in volume.notes]
    return _found(kind, tuple(_describe(volume) for volume in volumes), notes, {})


def _run(path: Path) -> Inspection:
    from medgan.learning.checkpoints import LOG, open_run

    run = open_run(path)
    log = path / LOG
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    summary = {"task": run.config.task, "modality": run.config.modality, "dims": run.config.data.dims,
               "finished": run.finished, "dataset": dict(run.dataset), "interface": dict(run.interface),
               "last_report": json.loads(lines[-1]) if lines else None}
    if run.finished:
        run.generator()
        summary["weights"] = run.hash()
    return _found("run", (), [], summary)


def _found(kind: str, volumes: tuple[dict[str, Any], ...], notes: list[Note], summary: dict[str, Any]) -> Inspection:
    unique = list(dict.fromkeys(notes))
    return Inspection("warning" if unique else "ok", tuple(dict.fromkeys(note.code for note in unique)), kind, volumes,
                      tuple({"code": n.code, "where": n.where, "why": n.why} for n in unique), summary)


def _describe(volume: Volume) -> dict[str, Any]:
    return {"shape": list(volume.shape), "channels": volume.channels,
            "spacing_mm": [round(s, 6) for s in volume.spacing_mm], "orientation": volume.orientation,
            "modality": volume.modality, "dtype": str(volume.array.dtype),
            "range": [float(np.min(volume.array)), float(np.max(volume.array))]}


def _distinct(volumes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = {}
    for volume in volumes:
        key = json.dumps([volume[name] for name in ("shape", "channels", "spacing_mm", "dtype")])
        first = kinds.setdefault(key, {**volume, "count": 0})
        first["count"] += 1
    return list(kinds.values())
