"""`synthesize`: new cases from a run, with the label and size that are asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.hashing import as_asked
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.datasets.provenance import Provenance
from medgan.errors import Interrupted, Refused
from medgan.imaging import files
from medgan.imaging.rules import Rules
from medgan.imaging.volume import Volume
from medgan.storage import claimed, is_unused, os_errors_refused, remove_partial
from medgan.verbs.augment import check_run, composing
from medgan.verbs.cases import GOLDEN, factory, fits_layout, synthetic_case
from medgan.verbs.choose import plan_cases
from medgan.verbs.progress import Progress, Report, silent

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run


#: How many parents are tried for a case before it is given up.
PARENTS = 3


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


@os_errors_refused()
def synthesize(run: str | Path | Run, count: int = 1, *, out: str | Path | None = None, label: str | None = None,
               size_mm: float | None = None, lesions: int = 1, seed: int = 0, device: str | None = None,
               config: str | Path | None = None, settings: Sequence[str] | Mapping[str, Any] = (),
               progress: Report = silent) -> list[Synthetic]:
    """Makes cases with a run: lesions put into its training cases, or whole images of a class.

    Args:
        run: A run folder, or what `train` returned.
        count: How many cases.
        out: Where to write them, as a data set of the layout of the run's data, or in a folder for each class where
            whole images are no cases of it (slices of volumes, cases with masks). None: they are only returned.
        label: A lesion label or class of the run; None: as in the data.
        size_mm: Equivalent diameter of the lesions; None: as in the data.
        lesions: How many lesions a case.
        seed: The same seed gives the same cases.
        device: `auto`, `cpu` or `cuda`.
        config: A TOML file of settings of how lesions are composed (`augment.*`).
        settings: Single settings of the same kind.
        progress: Told of each case.

    Returns:
        The cases, read back from what was written.

    Raises:
        Refused: `RUN_*`, `LABEL_UNKNOWN`, `FACTOR_RANGE`, `OUT_EXISTS`, `PLACE_NONE`.
    """
    from medgan.learning.checkpoints import open_run
    from medgan.learning.loop import pick_device

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
    dataset = open_dataset(opened.dataset["path"], Rules.of(opened.config.data))
    check_run(opened, dataset, opened.config.task)
    opened.generator()  # what is wrong with its weights is said before anything is written
    resolved = composing(opened, config, settings, seed, device)
    dataset = as_asked(replace(dataset, rules=Rules.of(resolved.data)), resolved)
    pick_device(resolved.device)
    reached = 0

    def tell(step: Progress) -> None:
        nonlocal reached
        reached = step.done
        progress(step)

    try:
        if out is None:
            with tempfile.TemporaryDirectory(prefix="medgan-") as folder:
                return _synthesize(opened, dataset, resolved, count, Path(folder), label, size_mm, lesions, tell)
        target = Path(out)
        with claimed(target):
            if not is_unused(target):
                raise Refused("OUT_EXISTS", target, "it exists and is not empty", "Choose another --out")
            remove_partial(target)
            return _synthesize(opened, dataset, resolved, count, target, label, size_mm, lesions, tell)
    except KeyboardInterrupt:
        kept = f"; those finished are in {out}; all of them are made anew in an empty --out" if out and reached else ""
        raise Interrupted(f"stopped after {reached} of {count} cases{kept}") from None


def _plain_images(run: Run, dataset: Dataset, config: Config, count: int, target: Path, label: str | None,
                  progress: Report) -> list[Synthetic]:
    """Whole images on the network's own grid, a NIfTI file with its record each.

    They lie in a folder for each class. With label maps they lie side by side, each with the mask that it follows: that
    of a slice of a training case.
    """
    from medgan.learning.loop import pick_device, step_seed
    from medgan.learning.tasks.image_source import label_map, made_volume

    generator = run.generator(pick_device(config.device))
    classes = [label] if label is not None else list(run.interface["classes"])
    truncation, follows = config.augment.truncation, config.network.label_maps
    made = []
    for number in range(count):
        progress(Progress("synthesizing", number, count, "cases"))
        name, seed = classes[number % len(classes)], step_seed(config.seed, number)
        parent, drawn = _mask_to_follow(dataset, name, number // len(classes)) if follows else (None, None)
        maps = None if drawn is None else label_map(drawn, list(dataset.labels), run.interface["size"])
        new = f"{name}syn{number + 1:04d}"
        record = Provenance(id=new, parents=(parent.id,) if parent else (), patient=parent.patient if parent else new,
                            label=name, seed=seed, model=run.path.name, model_hash=run.hash(), method="gan",
                            settings={"truncation": truncation})
        image = made_volume(generator, run, name, None, seed, truncation=truncation, maps=maps)
        path = (target if follows else target / name) / f"{new}.nii.gz"
        files.write(image, path, says=files.SYNTHETIC)
        mask = None
        if maps is not None:
            values = np.array(sorted(dataset.labels))
            mask = image.with_array(values[maps[0].argmax(axis=0)][None].astype(np.uint16))
            files.write(mask, path.with_name(f"{new}_mask.nii.gz"), says=files.SYNTHETIC)
        record.write(path.with_name(f"{new}.provenance.json"))
        made.append(Synthetic(new, image, mask, record.as_json()))
    progress(Progress("synthesizing", count, count, "cases"))
    return made


def _mask_to_follow(dataset: Dataset, name: str, number: int) -> tuple[Case, Volume]:
    """A training case of a class and its mask, or one of the slices that are learned from, spread evenly."""
    from medgan.imaging.geometry import reorient
    from medgan.learning.tasks.image_source import slices_of

    cases = [case for case in dataset.split("train") if case.mask is not None and not case.synthetic
             and case.label in (name, None)]
    case = cases[number % len(cases)]
    mask = dataset.load(case)[1]
    assert mask is not None
    if mask.dims == 2:
        return case, mask
    turned = reorient(mask)
    slices = slices_of(turned.shape[2])
    return case, replace(turned, array=turned.array[..., slices[int(len(slices) * ((number + 1) * GOLDEN % 1))]])


def _synthesize(run: Run, dataset: Dataset, config: Config, count: int, target: Path, label: str | None,
                size_mm: float | None, lesions: int, progress: Report) -> list[Synthetic]:
    if not fits_layout(run, dataset):
        return _plain_images(run, dataset, config, count, target, label, progress)
    parents = [case for case in dataset.split("train") if not case.synthetic]
    if run.config.task == "image":  # each class in its share, from the first case on
        parents = [parent for parent, _ in plan_cases(dataset.only(tuple(parents)), 2.0)
                   if label is None or parent.label in (label, None)]
    layout = LAYOUTS[dataset.layout]
    make = factory(dataset, config, "gan", run.path, target, config.seed, label=label, size_mm=size_mm, count=lesions)
    made: list[Case] = []
    reasons: list[str] = []
    for number in range(count):
        progress(Progress("synthesizing", number, count, "cases"))
        why = ""
        for turn in range(min(PARENTS, len(parents))):
            parent = parents[(number + turn) % len(parents)]
            new = synthetic_case(parent, number + 1)
            why = make(number, parent, new)
            if not why:
                made.append(new)
                break
        if why:
            reasons.append(f"case {number + 1}: {why}")
    progress(Progress("synthesizing", count, count, "cases", "; ".join(reasons)))
    if not made:
        raise Refused("PLACE_NONE", run.path, reasons[0], "Ask for a smaller size, train the run longer, or raise "
                      "augment.tries")
    placed = [layout.place(target, dataset, case) for case in made]
    layout.finish(target, dataset, placed)
    written = open_dataset(target, dataset.rules)
    records = {case.id: layout.sidecar(placed_case) for case, placed_case in zip(made, placed, strict=True)}
    return [_read(written, case, records) for case in written.cases if case.id in records]


def _read(dataset: Dataset, case: Case, records: Mapping[str, Path]) -> Synthetic:
    import json

    image, mask = dataset.load(case)
    return Synthetic(case.id, image, mask, json.loads(records[case.id].read_text(encoding="utf-8")))
