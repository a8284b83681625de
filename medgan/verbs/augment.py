"""`augment`: a data set with synthetic training cases added, in the same layout."""

from __future__ import annotations

import csv
import io
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medgan.config import Config
from medgan.datasets.cards import data_card
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.layout_base import base_of
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.datasets.provenance import Provenance
from medgan.errors import Interrupted, Refused
from medgan.storage import locked, remove_partial, write_json, write_text
from medgan.verbs.cases import Factory, factory, synthetic_case
from medgan.verbs.progress import Progress, Report, silent
from medgan.verbs.train import RUNS, check_trainable, default_task, real_only, train

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run

Method = Literal["gan", "paste", "procedural"]
#: What an output folder was asked to be; it makes a killed run go on and a different one be refused.
PLAN = "medgan-augment.json"
TABLE, CARD, PICTURE = "augmentation.csv", "DATA_CARD.md", "examples.png"
#: Cases that the picture is made from.
PICTURED = 6
COLUMNS = ("id", "origin", "parents", "label", "seed", "model", "lesions", "deviation", "visibility", "contrast",
           "rejected")
#: More is possible but never helped in any published study.
LARGEST_FACTOR = 100.0


@dataclass(frozen=True)
class Augmented:
    """What `augment` made.

    Args:
        out: The new data set.
        originals: Number of real cases in it, of all splits.
        synthetic: Ids of the synthetic cases.
        skipped: Id of a synthetic case that could not be made -> why.
        run: The run that made them; None for methods without one.
    """

    out: Path
    originals: int
    synthetic: tuple[str, ...]
    skipped: Mapping[str, str]
    run: Path | None


def augment(dataset: str | Path, *, factor: float = 2.0, out: str | Path | None = None,
            model: str | Path | Run | None = None, method: Method = "gan", workers: int = 1,
            modality: str | None = None, config: str | Path | None = None,
            settings: Sequence[str] | Mapping[str, Any] = (), seed: int = 0, device: str | None = None,
            progress: Report = silent) -> Augmented:
    """Writes the data set anew with synthetic training cases, until there are `factor` times as many.

    The data set itself is never changed. Validation and test cases are copied, never used as parents. Called again
    with the same arguments on an unfinished output, it goes on where it was and ends with the same bytes.

    Args:
        dataset: A data set of any layout in docs/formats.md, with masks or classes.
        factor: Wanted number of training cases over the present one, at least 1.
        out: The new data set; None: `<dataset>-x<factor>` beside it.
        model: A run folder, or what `train` returned. None: the newest run below `runs/` trained on this data, else
            one is trained first.
        method: `gan`, or without any training `paste` (real lesions moved) or `procedural` (made-up ones).
        workers: Processes that make cases; the result does not depend on it.
        modality: As for `train`; None: what the data set says of itself.
        config: A TOML file of settings.
        settings: Single settings.
        seed: Seed of everything random.
        device: `auto`, `cpu` or `cuda`.
        progress: Told of each case.

    Raises:
        Refused: Whatever is wrong with data, model, settings or output, before any work starts.
        Interrupted: Stopped by the user; finished cases are kept.
    """
    if not 1 <= factor <= LARGEST_FACTOR:
        raise Refused("FACTOR_RANGE", f"--factor {factor:g}", f"it is not between 1 and {LARGEST_FACTOR:g}",
                      "2 doubles the number of training cases")
    if workers < 1:
        raise Refused("CFG_VALUE", f"--workers {workers}", "there must be at least one process", "Use --workers 1")
    opened = open_dataset(dataset)
    modality = modality or opened.modality
    task = default_task(opened)
    if task == "upscale" or (method != "gan" and task != "lesion"):
        raise Refused("LABEL_MISSING", opened.root, "it has no " + ("masks" if method != "gan" else "masks or classes"),
                      "Give labelled cases; medgan upsample sharpens unlabelled ones")
    check_trainable(opened, task)
    target = _target(opened, factor, out)
    run = _find_run(opened, task, modality, model, method)
    _refuse_other_content(target)
    if run is None and modality is None:
        raise Refused("CFG_VALUE", "--modality", f"{dataset} does not say which modality it is",
                      "Use --modality ct, mr, xray or us")
    if method == "gan" and run is None:
        run = _trained(opened, modality, task, config, settings, seed, device, progress)
    if run is not None and modality not in (None, run.config.modality):
        raise Refused("RUN_TASK", run.path, f"it was trained on {run.config.modality}, not {modality}",
                      "Train on data of this modality")
    if run is not None:
        resolved = composing(run, config, settings, seed, device)
    else:
        resolved = Config.resolve(str(modality), task, file=config, settings=settings, seed=seed, device=device)
    plan = {"dataset": opened.fingerprint(), "factor": float(factor), "method": method, "seed": seed,
            "model": run.hash() if run else None,
            "settings": resolved.model_dump(mode="json", exclude={"seed", "device"})}
    work = Work(opened, resolved, method, run.path if run else None, target, seed)
    if not (target / PLAN).is_file() and task == "lesion":
        _read_once(opened)
    target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        _same_plan(target, plan)
        try:
            return _fill(work, factor, workers, progress, run)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; finished cases are in {target}; the same command goes on") from None


@dataclass(frozen=True)
class Work:
    """What a process needs to make cases: small enough to be sent to it."""

    dataset: Dataset
    config: Config
    method: Method
    run: Path | None
    out: Path
    seed: int


def _fill(work: Work, factor: float, workers: int, progress: Report, run: Run | None) -> Augmented:
    dataset, target = work.dataset, work.out
    layout = LAYOUTS[dataset.layout]
    remove_partial(target)
    for number, case in enumerate(dataset.cases):
        progress(Progress("copying", number, len(dataset.cases), "cases"))
        layout.copy(case, layout.place(target, dataset, case))
    planned = plan_cases(dataset, factor)
    todo = [(number, parent, new) for number, (parent, new) in enumerate(planned)
            if not layout.sidecar(layout.place(target, dataset, new)).is_file()]
    skipped: dict[str, str] = {}
    done = len(planned) - len(todo)
    progress(Progress("synthesizing", done, len(planned), "cases"))
    for name, why in _made(work, todo, workers):
        done += 1
        if why:
            skipped[name] = why
        progress(Progress("synthesizing", done, len(planned), "cases", f"{name} skipped: {why}" if why else name))
    kept = [new for _, new in planned if new.id not in skipped]
    placed = [layout.place(target, dataset, case) for case in (*dataset.cases, *kept)]
    records = [Provenance.read(layout.sidecar(case)) for case in placed[len(dataset.cases):]]
    write_text(target / TABLE, table(dataset, records))
    model = {"model": run.path.name, "model_hash": run.hash()} if run else {}
    write_text(target / CARD, data_card(dataset, [*dataset.cases, *kept], method=work.method, seed=work.seed, **model))
    _picture(work, planned, placed[len(dataset.cases):], records)
    layout.finish(target, dataset, placed)
    return Augmented(target, len(dataset.cases), tuple(case.id for case in kept), skipped, run.path if run else None)


def _picture(work: Work, planned: Sequence[tuple[Case, Case]], placed: Sequence[Case],
             records: Sequence[Provenance]) -> None:
    """Before, mask and after of some new lesions, so that nobody trains on them unseen."""
    # Where images lie side by side in the root, a picture there would be taken for one of them.
    if work.config.task != "lesion" or not records or work.dataset.layout == "images":
        return
    from medgan.reports.examples import lesion_examples
    from medgan.reports.sheets import save

    parents = {new.id: parent for parent, new in planned}
    shown = []
    for case, record in list(zip(placed, records, strict=True))[:PICTURED]:
        made, mask = work.dataset.load(case)
        assert mask is not None
        shown.append((work.dataset.load(parents[case.id])[0], made, mask, record.lesions))
    save(lesion_examples(shown, work.config.intensity), work.out / PICTURE)


def plan_cases(dataset: Dataset, factor: float) -> list[tuple[Case, Case]]:
    """(parent, new case) for every synthetic case: each training case in turn, with a new id."""
    parents = [case for case in dataset.split("train") if not case.synthetic
               and (case.mask is not None or not dataset.labels)]
    count = round((factor - 1) * len(dataset.split("train")))
    planned = []
    for number in range(count):
        parent = parents[number % len(parents)]
        planned.append((parent, synthetic_case(parent, number // len(parents) + 1)))
    return planned


def table(dataset: Dataset, records: Sequence[Provenance]) -> str:
    """`augmentation.csv`: a row for every case, real ones first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for case in dataset.cases:
        writer.writerow({"id": case.id, "origin": "synthetic" if case.synthetic else "real", "label": case.label or ""})
    for record in records:
        writer.writerow({"id": record.id, "origin": record.method, "parents": " ".join(record.parents),
                         "label": record.label or "", "seed": record.seed, "model": record.model_hash,
                         "lesions": len(record.lesions),
                         **{name: f"{score:.4g}" for name, score in record.gates.items() if name in COLUMNS}})
    return text.getvalue()


def _made(work: Work, todo: Sequence[tuple[int, Case, Case]], workers: int) -> Iterator[tuple[str, str]]:
    """Makes the cases and yields (id, why it was skipped or an empty string) as they are finished."""
    if workers == 1 or len(todo) <= 1:
        factory = _factory(work)
        for number, parent, new in todo:
            yield new.id, factory(number, parent, new)
        return
    # Fresh processes: a forked one would share torch's thread pool with this one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), context, _start_worker, (work, workers)) as pool:
        yield from pool.map(_in_worker, todo)


def _factory(work: Work) -> Factory:
    return factory(work.dataset, work.config, work.method, work.run, work.out, work.seed)


_worker_factory: Factory | None = None


def _start_worker(work: Work, workers: int) -> None:
    import torch

    global _worker_factory
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    _worker_factory = _factory(work)


def _in_worker(item: tuple[int, Case, Case]) -> tuple[str, str]:
    number, parent, new = item
    assert _worker_factory is not None
    return new.id, _worker_factory(number, parent, new)


def _target(dataset: Dataset, factor: float, out: str | Path | None) -> Path:
    base = base_of(dataset)
    lone = base if dataset.layout != "npz" else dataset.root
    target = Path(out) if out is not None else lone.with_name(f"{lone.name.removesuffix('.npz')}-x{factor:g}")
    inside, root = target.resolve(), lone.resolve()
    if inside == root or root in inside.parents:
        raise Refused("OUT_EXISTS", target, "the output would lie in the data set itself", "Choose another --out")
    return target


def _refuse_other_content(target: Path) -> None:
    if target.exists() and not (target.is_dir() and ((target / PLAN).is_file() or not any(target.iterdir()))):
        raise Refused("OUT_EXISTS", target, "it exists and holds something that medgan augment did not write",
                      "Choose another --out, or empty it")


def _read_once(dataset: Dataset) -> None:
    """Reads every case that is learned from, so that what is wrong with one is said before anything is written."""
    for case in dataset.split("train"):
        if case.mask is not None:
            dataset.load(case)


def _same_plan(target: Path, plan: Mapping[str, Any]) -> None:
    import json

    if (target / PLAN).is_file():
        try:
            there = json.loads((target / PLAN).read_text(encoding="utf-8"))
        except ValueError:
            there = {}
        differing = [key for key in plan if there.get(key) != plan[key]]
        if differing:
            raise Refused("OUT_EXISTS", target, f"it was begun with another {', '.join(differing)}",
                          "Choose another --out, or call it with the same arguments")
    else:
        write_json(target / PLAN, plan)


def _trained(dataset: Dataset, modality: str | None, task: str, config: str | Path | None,
             settings: Sequence[str] | Mapping[str, Any], seed: int, device: str | None, progress: Report) -> Run:
    """A run on this data: one that was begun is finished, else a new one is trained."""
    from medgan.learning.checkpoints import newest_run

    begun = newest_run(RUNS, real_only(dataset).fingerprint(), task, modality, finished=False)
    if begun is not None:
        composing(begun, config, settings, seed, device)
        progress(Progress("training", 0, None, "images", f"going on with {begun.path}, which was begun on this data"))
        return train(out=begun.path, resume=True, device=device, progress=progress)
    progress(Progress("training", 0, None, "images", "no run trained on this data yet: training one first"))
    return train(dataset.root, modality=modality, task=task, config=config, settings=settings, seed=seed,
                 device=device, progress=progress)


def _find_run(dataset: Dataset, task: str, modality: str | None, model: str | Path | Run | None,
              method: Method) -> Run | None:
    if method != "gan":
        return None
    from medgan.learning.checkpoints import newest_run, open_run

    if model is None:
        return newest_run(RUNS, real_only(dataset).fingerprint(), task, modality)
    run = open_run(model) if isinstance(model, str | Path) else model
    check_run(run, dataset, task)
    return run


def check_run(run: Run, dataset: Dataset, task: str) -> None:
    """Refuses a run that cannot make cases of this data set."""
    if run.config.task != task:
        raise Refused("RUN_TASK", run.path, f"it is a run of the task {run.config.task}, not {task}",
                      f"Train one with --task {task}")
    if run.interface["channels"] != len(dataset.channels):
        raise Refused("RUN_CHANNELS", run.path,
                      f"it was trained on {run.interface['channels']} channels, {dataset.root} has "
                      f"{len(dataset.channels)}", "Train a run on data with the same channels")
    if task == "lesion":
        wanted = {str(value): name for value, name in dataset.labels.items() if value}
        if dict(run.interface["labels"]) != wanted:
            raise Refused("LABEL_UNKNOWN", run.path, f"it knows the labels {dict(run.interface['labels'])}, "
                          f"{dataset.root} has {wanted}", "Train a run on data with the same labels")
    if not run.finished:
        raise Refused("RUN_UNFINISHED", run.path, "training did not reach its end, so there are no weights",
                      f"Finish it with medgan train --out {run.path} --resume")


def composing(run: Run, config: str | Path | None, settings: Sequence[str] | Mapping[str, Any], seed: int,
              device: str | None) -> Config:
    """A run's own settings, of which only how cases are composed may be set anew.

    Raises:
        Refused: `CFG_VALUE` for a setting that the run's weights do not follow.
    """
    given = run.config.over(file=config, settings=settings, seed=seed, device=device)
    free = {"augment", "device", "seed"}
    theirs, ours = given.model_dump(exclude=free), run.config.model_dump(exclude=free)
    differing = [name for name in ours if theirs[name] != ours[name]]
    if differing:
        raise Refused("CFG_VALUE", ", ".join(differing), f"the run {run.path} was trained with other settings",
                      "Leave them out, or train a run with them and name it with --model")
    return given
