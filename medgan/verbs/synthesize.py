"""`synthesize`: new cases from a run, with the label and size that are asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgan.datasets.cases import Case
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.errors import Interrupted, Refused
from medgan.imaging.volume import Volume
from medgan.storage import locked, remove_partial
from medgan.verbs.augment import check_run, composing
from medgan.verbs.cases import factory, synthetic_case
from medgan.verbs.progress import Progress, Report, silent

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run


@dataclass(frozen=True, eq=False)
class Synthetic:
    """One made case.

    Args:
        id: Its id.
        image: (C, X, Y[, Z]).
        mask: (1, X, Y[, Z]) of old and new lesions, or None for whole images.
        record: Its provenance, as in the JSON beside it.
    """

    id: str
    image: Volume
    mask: Volume | None
    record: Mapping[str, Any]


def synthesize(run: str | Path | Run, count: int = 1, *, out: str | Path | None = None, label: str | None = None,
               size_mm: float | None = None, lesions: int = 1, seed: int = 0, device: str | None = None,
               settings: Sequence[str] | Mapping[str, Any] = (), progress: Report = silent) -> list[Synthetic]:
    """Makes cases with a run: lesions put into its training cases, or whole images of a class.

    Args:
        run: A run folder, or what `train` returned.
        count: How many cases.
        out: Where to write them, as a data set of the layout of the run's data; None: they are only returned.
        label: A lesion label or class of the run; None: as in the data.
        size_mm: Equivalent diameter of the lesions; None: as in the data.
        lesions: How many lesions a case.
        seed: The same seed gives the same cases.
        device: `auto`, `cpu` or `cuda`.
        settings: Single settings of how lesions are composed (`augment.*`).
        progress: Told of each case.

    Returns:
        The cases, read back from what was written.

    Raises:
        Refused: `RUN_*`, `LABEL_UNKNOWN`, `FACTOR_RANGE`, `OUT_EXISTS`, `PLACE_NONE`.
    """
    from medgan.learning.checkpoints import open_run

    opened = open_run(run) if isinstance(run, (str, Path)) else run
    if opened.config.task == "upscale":
        raise Refused("RUN_TASK", opened.path, "it is a run of the task upscale, which makes nothing new",
                      "Use medgan upsample --model RUN")
    if count < 1 or lesions < 1 or (size_mm is not None and not 0 < size_mm < 500):
        raise Refused("CFG_VALUE", "synthesize", f"count {count}, lesions {lesions}, size {size_mm} mm cannot be made",
                      "Use counts of at least 1 and a size in millimetres")
    names = tuple(opened.interface["labels"].values() if opened.config.task == "lesion"
                  else opened.interface["classes"])
    if label is not None and label not in names:
        raise Refused("LABEL_UNKNOWN", f"--label {label}", "the run does not know it", f"Use one of {', '.join(names)}")
    if out is None:
        with tempfile.TemporaryDirectory(prefix="medgan-") as folder:
            return _synthesize(opened, count, Path(folder), label, size_mm, lesions, seed, device, settings, progress)
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Refused("OUT_EXISTS", target, "it exists and is not empty", "Choose another --out")
    target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        return _synthesize(opened, count, target, label, size_mm, lesions, seed, device, settings, progress)


def _synthesize(run: Run, count: int, target: Path, label: str | None, size_mm: float | None, lesions: int,
                seed: int, device: str | None, settings: Sequence[str] | Mapping[str, Any],
                progress: Report) -> list[Synthetic]:
    dataset = open_dataset(run.dataset["path"])
    check_run(run, dataset, run.config.task)
    config = composing(run, None, settings, seed, device)
    of_class = label if run.config.task == "image" else None
    parents = [case for case in dataset.split("train") if not case.synthetic
               and (of_class is None or case.label == of_class)]
    layout = LAYOUTS[dataset.layout]
    make = factory(dataset, config, "gan", run.path, target, seed, label=label, size_mm=size_mm, count=lesions)
    made: list[Case] = []
    reasons: list[str] = []
    try:
        for number in range(count):
            progress(Progress("synthesizing", number, count, "cases"))
            parent = parents[number % len(parents)]
            new = synthetic_case(parent, number + 1)
            why = make(number, parent, new)
            if why:
                reasons.append(f"{new.id}: {why}")
            else:
                made.append(new)
    except KeyboardInterrupt:
        remove_partial(target)
        raise Interrupted(f"stopped after {len(made)} of {count} cases") from None
    progress(Progress("synthesizing", count, count, "cases", "; ".join(reasons)))
    if not made:
        raise Refused("PLACE_NONE", run.path, reasons[0], "Ask for a smaller size, or raise augment.tries")
    placed = [layout.place(target, dataset, case) for case in made]
    layout.finish(target, dataset, placed)
    written = open_dataset(target)
    records = {case.id: layout.sidecar(placed_case) for case, placed_case in zip(made, placed, strict=True)}
    return [_read(written, case, records) for case in written.cases if case.id in records]


def _read(dataset: Any, case: Case, records: Mapping[str, Path]) -> Synthetic:
    import json

    image, mask = dataset.load(case)
    return Synthetic(case.id, image, mask, json.loads(records[case.id].read_text(encoding="utf-8")))
