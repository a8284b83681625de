"""`upsample` on a folder: every case of a data set, in the same layout, so that a killed call goes on where it was."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medgan.datasets.cases import Case, Dataset
from medgan.datasets.layout_base import base_of, case_files, copy_path, write_like, written_ending
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.datasets.paths import DICOM_ENDINGS, ending, folders, stem, visible
from medgan.errors import Interrupted, Refused
from medgan.imaging.restoration import wanted_factors
from medgan.imaging.volume import Volume
from medgan.storage import claimed, os_errors_refused, remove_partial, remove_whole, write_text
from medgan.verbs.plans import refuse_inside, refuse_other_content, same_plan
from medgan.verbs.pool import in_parallel
from medgan.verbs.progress import Progress, Report, silent
from medgan.verbs.reading import asked_rules
from medgan.verbs.upsample import check_options, upsample
from medgan.verbs.upsample_report import UpsampleReport

#: What an output folder was asked to be; it makes a killed call go on and a different one be refused.
PLAN = "medgan-upsample.json"
#: What became of each case; rewritten after every one, so that it also says which are left.
TABLE = "upsample.csv"
COLUMNS = ("id", "status", "method", "model", "factors", "spacing", "profile", "profile_from", "confidence",
           "thickness", "noise", "consistency", "warnings", "input")
#: Refusals of what was asked for: no case is at fault, and none would be done.
_OPTIONS_AT_FAULT = ("CFG_", "RUN_", "CKPT_", "OUT_")
#: Options that can be checked before anything is read.
_CHECKED = ("profile", "method", "model", "adapt", "sharpness", "thickness", "device")
#: Options that do not change what is asked for.
_FREE = ("device",)

#: A row of the table.
Row = dict[str, str]


@dataclass(frozen=True)
class FolderReport:
    """What `upsample_folder` did.

    Args:
        out: The new data set.
        done: Ids of the cases that lie there, those of an earlier call included.
        skipped: Id of a case that could not be up-sampled -> why.
        table: `upsample.csv`: a row for each case.
    """

    out: Path
    done: tuple[str, ...]
    skipped: Mapping[str, str]
    table: Path


def is_folder_of_cases(source: str | Path) -> bool:
    """Whether `source` is to be up-sampled case by case; one DICOM series, in whatever folder, is a volume."""
    from medgan.imaging.dicom_file import is_dicom

    source = Path(source)
    if not source.is_dir():
        return source.suffix.lower() in (".csv", ".json")
    loose = [path for path in visible(source) if path.is_file()]
    if any(ending(path.name) in DICOM_ENDINGS or (not path.suffix and is_dicom(path)) for path in loose):
        return False
    if not folders(source) or not LAYOUTS["dicom"].detect(source):
        return True
    cases = open_dataset(source).cases
    return len(cases) > 1 or cases[0].mask is not None


@os_errors_refused()
def upsample_folder(source: str | Path, target: str | Path, *, workers: int = 1, seed: int = 0,
                    progress: Report = silent, **options: Any) -> FolderReport:
    """Upsamples every case of a data set, masks too, into a new one of the same layout and names.

    A plain folder of NIfTI files or of DICOM series is a data set as well. The source is never changed. A case that
    cannot be read or refined is skipped, and the table says why. Called again with the same options, it goes on with
    the cases that are missing or whose input has changed.

    Args:
        source: A data set of any layout in docs/formats.md but `.npz`.
        target: A new folder, or one that an earlier call began.
        workers: Processes; the result does not depend on it.
        seed: As for `upsample_file`.
        progress: Told of each case.
        options: As for `upsample`, but for `labels`, `report` and `input_spacing`.

    Raises:
        Refused: `DATASET_*`, `TAB_*`, `OUT_EXISTS`, `OUT_BUSY`, `CFG_VALUE`, `FACTOR_RANGE`, `RUN_*` or `CKPT_*`, with
            nothing written.
        Interrupted: Stopped by the user; finished cases are kept.
    """
    rules = asked_rules(options.get("config"), options.get("settings", ()), "upscale")
    dataset, target = open_dataset(source, rules), Path(target)
    if workers < 1:
        raise Refused("CFG_VALUE", f"--workers {workers}", "there must be at least one process", "Use --workers 1")
    if dataset.layout == "npz":
        raise Refused("INPUT_KIND", dataset.root, "its arrays have no spacing, and all cases are one file",
                      "Up-sample the arrays in Python: medgan.upsample(array, input_spacing=...)")
    if options.get("factor") is not None:
        wanted_factors(Volume(np.zeros((1, 2, 2, 2))), options["factor"], None)
    _check_target(dataset, target)
    plan = {"layout": dataset.layout, "seed": seed, "options": _plain(options), "weights": _weights(options)}
    _check_spacing(dataset, options.get("spacing"))
    work = Work(dataset, target, seed, dict(options))
    with claimed(target):
        begun = same_plan(target / PLAN, plan)
        try:
            return _fill(work, workers, progress)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; finished cases are in {target}; the same command goes on") from None
        except Refused:
            if not begun:
                _undo(target)
            raise


def _weights(options: Mapping[str, Any]) -> str | None:
    """Hash of the model, so that a call is not gone on with by another one of the same name."""
    check_options(**{name: options[name] for name in options if name in _CHECKED})
    if options.get("method", "network") == "linear":
        return None
    from medgan.learning.sharpening import Sharpener

    return Sharpener.open(options.get("model"), options.get("device", "auto"), options.get("sharpness", 0.0)).hash


def _check_spacing(dataset: Dataset, spacing: Any) -> None:
    """Refuses a spacing that is impossible for the first case that can be read."""
    for case in dataset.cases if spacing is not None else ():
        try:
            image, _ = _loaded(dataset, case)
        except Refused:
            continue
        wanted_factors(image, None, spacing)
        return


@dataclass(frozen=True)
class Work:
    """What a process needs to up-sample cases: small enough to be sent to it."""

    dataset: Dataset
    out: Path
    seed: int
    options: dict[str, Any]


def _fill(work: Work, workers: int, progress: Report) -> FolderReport:
    dataset, out = work.dataset, work.out
    remove_partial(out)
    rows = _finished(work)
    todo = [case for case in dataset.cases if case.id not in rows]
    done, total = len(rows), len(dataset.cases)
    progress(Progress("upsampling", done, total, "cases"))
    for row in _made(work, todo, workers):
        rows[row["id"]] = row
        _write_table(out / TABLE, [rows[case.id] for case in dataset.cases if case.id in rows])
        done += 1
        name = f"{row['id']} skipped: {row['warnings']}" if row["status"] == "skipped" else row["id"]
        progress(Progress("upsampling", done, total, "cases", name))
    ready = [case for case in dataset.cases if rows[case.id]["status"] == "done"]
    _write_table(out / TABLE, [rows[case.id] for case in dataset.cases])
    LAYOUTS[dataset.layout].finish(out, dataset, [placed(work, case) for case in ready])
    skipped = {name: row["warnings"] for name, row in rows.items() if row["status"] == "skipped"}
    return FolderReport(out, tuple(case.id for case in ready), skipped, out / TABLE)


def placed(work: Work, case: Case) -> Case:
    """The case as it lies under the output; a DICOM file becomes a folder of slices without its ending."""
    there = LAYOUTS[work.dataset.layout].place(work.out, work.dataset, case)
    return replace(there, images=tuple(path.with_name(stem(path.name)) if ending(path.name) in DICOM_ENDINGS else path
                                       for path in there.images))


def _finished(work: Work) -> dict[str, Row]:
    """The rows of the cases that an earlier call finished: of the same input, and with every file there."""
    path = work.out / TABLE
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        known = {row["id"]: row for row in csv.DictReader(file) if set(row) == set(COLUMNS)}
    kept = {}
    for case in work.dataset.cases:
        row = known.get(case.id)
        if row and row["status"] == "done" and row["input"] == _input(work, case) and all(
                file.exists() for file in case_files(placed(work, case))):
            kept[case.id] = row
    return kept


def _input(work: Work, case: Case) -> str:
    return work.dataset.only((case,)).fingerprint()


def _made(work: Work, todo: Sequence[Case], workers: int) -> Iterator[Row]:
    """Up-samples the cases and yields their rows as they are finished."""
    if workers == 1 or len(todo) <= 1:
        for case in todo:
            yield _case(work, case)
        return
    yield from in_parallel(_in_worker, todo, workers, _start_worker, (work, workers), where=work.out)


_worker: Work | None = None


def _start_worker(work: Work, workers: int) -> None:
    global _worker
    _worker = work
    if work.options.get("method", "network") == "network":
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _in_worker(case: Case) -> Row:
    assert _worker is not None
    return _case(_worker, case)


def _case(work: Work, case: Case) -> Row:
    """Up-samples one case; what is wrong with it becomes its row.

    Raises:
        Refused: What is wrong is not the case's fault.
    """
    row = {**dict.fromkeys(COLUMNS, ""), "id": case.id, "input": _input(work, case)}
    try:
        image, mask = _loaded(work.dataset, case)
        fine, *refined, told = upsample(image, labels=mask, report=True, maps=False, seed=work.seed, **work.options)
        mask = refined[0] if refined else None
        _save(work, case, fine, mask, told)
    except Refused as refused:
        if refused.code.startswith(_OPTIONS_AT_FAULT):
            raise
        return {**row, "status": "skipped", "warnings": str(refused)}
    unplaced = [note.why for note in image.notes if note.code == "GEOM_NO_SPACING"]
    return {**row, "status": "done", "method": told.method, "model": told.model or "",
            "factors": _numbers(told.factors), "spacing": _numbers(told.spacing_mm), "profile": told.profile,
            "profile_from": told.profile_from, "noise": _numbers(told.noise),
            "confidence": "" if told.confidence is None else f"{told.confidence:.2f}",
            "thickness": _numbers(told.thickness_mm), "consistency": f"{told.consistency:.4g}",
            "warnings": "; ".join((*unplaced, *told.warnings))}


def _loaded(dataset: Dataset, case: Case) -> tuple[Volume, Volume | None]:
    try:
        return dataset.load(case)
    except OSError as error:
        raise Refused("FILE_MISSING", error.filename or case.images[0], str(error.strerror or error),
                      "Make the file readable") from None


def _save(work: Work, case: Case, image: Volume, mask: Volume | None, told: UpsampleReport) -> None:
    there = placed(work, case)
    several = len(case.images) > 1
    for channel, (path, source) in enumerate(zip(there.images, case.images, strict=True)):
        one = replace(image, array=image.array[channel : channel + 1]) if several else image
        if written_ending(path):
            write_like(one, path, source, None)
        else:
            _write_dicom(one, path, source, told, work.seed)
    if mask is not None and case.mask is not None and there.mask is not None:
        write_like(mask, there.mask, case.mask, None)
    if case.synthetic:  # its record says so, and must not be lost
        layout = LAYOUTS[work.dataset.layout]
        copy_path(layout.sidecar(case), layout.sidecar(there))


def _write_dicom(image: Volume, folder: Path, source: Path, told: UpsampleReport, seed: int) -> None:
    """A derived series, which unlike a synthetic one stays its patient's."""
    from medgan.imaging.dicom_write import write_derived

    # A killed call may have got as far as this folder and its mask.
    if folder.is_dir() and all(path.suffix == ".dcm" or ending(path.name) for path in folder.iterdir()):
        remove_whole(folder)
    write_derived(image, folder, source=source, seed=seed, model_hash=told.model or "linear",
                  derivation=told.derivation)


def _check_target(dataset: Dataset, target: Path) -> None:
    if ending(target.name):
        raise Refused("FILE_FORMAT", target, f"{dataset.root} holds several cases, which become a folder",
                      "Name a folder, or give one volume")
    refuse_inside(target, base_of(dataset))
    refuse_other_content(target, (PLAN,), "upsample")


def _undo(target: Path) -> None:
    """Takes back what a call that was refused at its first case has written."""
    remove_partial(target)
    if all(path.name == PLAN for path in target.iterdir()):
        (target / PLAN).unlink(missing_ok=True)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that change the result, as JSON gives them back; what is not given is left out."""
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in sorted(options.items())
            if name not in _FREE and value is not None}
    return dict(json.loads(json.dumps(kept, default=list)))


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
