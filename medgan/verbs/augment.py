"""`augment`: a data set with synthetic training cases added, in the same layout."""

from __future__ import annotations

import contextlib
import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medgan.config import Config
from medgan.datasets.cards import CARD, PLAN, data_card, ids_remark, notes_remarks
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.classes import ONLY_CLASS, class_warnings, even_factor, trainable_classes, training_counts
from medgan.datasets.hashing import as_asked
from medgan.datasets.layout_base import base_of
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.datasets.provenance import Provenance
from medgan.datasets.splits import patient_key
from medgan.errors import Interrupted, Refused
from medgan.imaging.rules import Rules
from medgan.storage import claimed, os_errors_refused, remove_partial, write_text
from medgan.verbs.cases import fits_layout
from medgan.verbs.choose import CHOSEN, Choice, chosen, plan_cases
from medgan.verbs.masks import check_cases, looked_at
from medgan.verbs.plans import refuse_inside, refuse_other_content, same_plan
from medgan.verbs.pool import Work, made
from medgan.verbs.progress import Progress, Report, silent
from medgan.verbs.reading import asked_rules
from medgan.verbs.showing import show
from medgan.verbs.train import RUNS, check_trainable, default_task, real_only, train

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run

Method = Literal["gan", "paste", "procedural"]
TABLE = "augmentation.csv"
#: The task network of the gates, kept while there are cases to make.
GATE = ".medgan-task-network.safetensors"
COLUMNS = ("id", "origin", "parents", "label", "seed", "model", "lesions", "deviation", "visibility", "contrast",
           "seen", "rejected", "rejected_intensity", "rejected_contrast", "rejected_unseen", "cores", "removed",
           "controls")
#: What may be set anew of the table `data` for a run that exists: it changes nothing that weights know of.
FREE_OF_DATA = {"hash_ids", "max_gib"}
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
        run: The run that made them; None for methods without one, and where none was made.
        factor: Training cases over real ones, as asked for or as chosen.
        choice: Why this factor, with what each was worth; None where it was asked for.
        warnings: What is odd about the data and was taken all the same.
        hashed_ids: Whether ids in names and records are hashes (`data.hash_ids`).
    """

    out: Path
    originals: int
    synthetic: tuple[str, ...]
    skipped: Mapping[str, str]
    run: Path | None
    factor: float = 1.0
    choice: Choice | None = None
    warnings: tuple[str, ...] = ()
    hashed_ids: bool = False


@os_errors_refused()
def augment(dataset: str | Path, *, factor: float | Literal["auto"] = 2.0, out: str | Path | None = None,
            model: str | Path | Run | None = None, method: Method = "gan", balance: bool = False, workers: int = 1,
            modality: str | None = None, config: str | Path | None = None,
            settings: Sequence[str] | Mapping[str, Any] = (), seed: int = 0, device: str | None = None,
            progress: Report = silent) -> Augmented:
    """Writes the data set anew with synthetic training cases, until there are `factor` times as many.

    The data set itself is never changed. Validation and test cases are copied, never used as parents. Called again
    with the same arguments on an unfinished output, it goes on where it was and ends with the same bytes.

    Args:
        dataset: A data set of any layout in docs/formats.md, with masks or classes.
        factor: Wanted number of training cases over the present one, at least 1; `auto`: chosen by cross-validation
            over the training patients (`medgan.verbs.choose`), where 1, none, is a possible answer.
        out: The new data set; None: `<dataset>-x<factor>` beside it.
        model: A run folder, or what `train` returned. None: the newest run below `runs/` trained on this data, else
            one is trained first.
        method: `gan`, or without any training `paste` (real lesions moved) or `procedural` (made-up ones).
        balance: With masks: fills as many places without a lesion as there are new lesions in a case, in the same
            shapes and with the same rims, so that a model cannot learn the seam. With classes: the rarest class is
            filled first, until it has as many training cases as the next, and so on.
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
    if factor != "auto" and not 1 <= factor <= LARGEST_FACTOR:
        raise Refused("FACTOR_RANGE", f"--factor {factor:g}", f"it is not between 1 and {LARGEST_FACTOR:g}",
                      "2 doubles the number of training cases; auto finds out how many help")
    if workers < 1:
        raise Refused("CFG_VALUE", f"--workers {workers}", "there must be at least one process", "Use --workers 1")
    opened = open_dataset(dataset, asked_rules(config, settings))
    modality = modality or opened.modality
    given = _given(model) if method == "gan" else None
    task = _task(opened, given, method, modality, config, settings)
    if task == "upscale" or (method != "gan" and task != "lesion"):
        raise Refused("LABEL_MISSING", opened.root, "it has no " + ("masks" if method != "gan" else "masks or classes"),
                      "Give labelled cases; medgan upsample sharpens unlabelled ones")
    even = balance and task == "image"
    if even and not opened.classes:
        raise Refused("CFG_VALUE", "--balance", f"{opened.root} has neither lesions to give counterparts nor classes "
                      "to make even", "Leave it out")
    check_trainable(opened, task)
    target = _target(opened, factor, out)
    run = _find_run(opened, task, modality, given, method)
    if run is None and modality is None:
        raise Refused("CFG_VALUE", "--modality", f"{dataset} does not say which modality it is",
                      "Use --modality ct, mr, xray or us")
    if run is not None and modality not in (None, run.config.modality):
        raise Refused("RUN_TASK", run.path, f"it was trained on {run.config.modality}, not {modality}",
                      "Train on data of this modality")
    if run is not None:
        run.generator()  # what is wrong with its weights is said before anything is written
        resolved = composing(run, config, settings, seed, device)
    else:
        resolved = Config.resolve(str(modality), task, file=config, settings=settings, seed=seed, device=device)
        resolved = _whole(opened, resolved, config, settings)
    opened = as_asked(replace(opened, rules=Rules.of(resolved.data)), resolved)
    warnings = (*looked_at(opened, resolved), *(class_warnings(opened) if task == "image" else ()))
    work = Work(opened, resolved, method, run.path if run else None, target, seed, balance)
    with claimed(target):
        if not (target / PLAN).is_file():
            check_cases(opened, resolved, progress)
        choice = _chosen(work, workers, progress) if factor == "auto" else None
        wanted = choice.factor if choice is not None else float(factor)
        if choice is not None and wanted == 1:
            run = None  # what makes no case needs no generator, and is not said to have one
        elif method == "gan" and run is None:
            run = _trained(opened, resolved, task, config, settings, progress)
            resolved = composing(run, config, settings, seed, device)
        work = replace(work, config=resolved, run=run.path if run else None)
        plan = {"dataset": opened.fingerprint(), "factor": "auto" if choice is not None else wanted, "method": method,
                "seed": seed, "model": run.hash() if run else None,
                "settings": resolved.model_dump(mode="json", exclude={
                    "seed": True, "device": True, "evaluate": True, "data": {"max_gib"}})}
        plan |= {"balance": True} if balance else {}
        with _goes_on(f"what is finished is in {target}; the same command goes on"):
            same_plan(target / PLAN, plan)
            return _fill(work, wanted, workers, progress, run, choice, (*warnings, *_uneven(opened, wanted, even)))


@contextlib.contextmanager
def _goes_on(kept: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {kept}") from None


def _chosen(work: Work, workers: int, progress: Report) -> Choice:
    with _goes_on("the choice of the factor was not finished; the same command begins it again"):
        return chosen(work, workers=workers, progress=progress)


def _fill(work: Work, factor: float, workers: int, progress: Report, run: Run | None, choice: Choice | None,
          warnings: tuple[str, ...]) -> Augmented:
    dataset, target = work.dataset, work.out
    layout = LAYOUTS[dataset.layout]
    remove_partial(target)
    for number, case in enumerate(dataset.cases):
        progress(Progress("copying", number, len(dataset.cases), "cases"))
        layout.copy(case, layout.place(target, dataset, case))
    planned = plan_cases(dataset, factor, even=work.balance and work.config.task == "image")
    todo = [(number, parent, new) for number, (parent, new) in enumerate(planned)
            if not layout.sidecar(layout.place(target, dataset, new)).is_file()]
    left_out: dict[str, str] = {}
    done = len(planned) - len(todo)
    work, remarks = _gate(work) if planned else (work, [])
    progress(Progress("synthesizing", done, len(planned), "cases"))
    for name, why in made(work, todo, workers):
        done += 1
        if why:
            left_out[name] = why
        progress(Progress("synthesizing", done, len(planned), "cases", f"{name} skipped: {why}" if why else name))
    skipped = {new.id: left_out[new.id] for _, new in planned if new.id in left_out}
    kept = [new for _, new in planned if new.id not in skipped]
    placed = [layout.place(target, dataset, case) for case in (*dataset.cases, *kept)]
    records = [Provenance.read(layout.sidecar(case)) for case in placed[len(dataset.cases):]]
    write_text(target / TABLE, table(dataset, records))
    model = {"model": run.path.name, "model_hash": run.hash()} if run else {}
    remarks = [*warnings, *ids_remark(dataset), *notes_remarks(records), *_by_class(dataset, kept),
               *(choice.lines() if choice is not None else ()), *remarks,
               *show(work, planned, placed[len(dataset.cases):], records)]
    write_text(target / CARD, data_card(dataset, [*dataset.cases, *kept], method=work.method, seed=work.seed,
                                        remarks=remarks, **model))
    layout.finish(target, dataset, placed)
    (target / GATE).unlink(missing_ok=True)
    return Augmented(target, len(dataset.cases), tuple(case.id for case in kept), skipped, run.path if run else None,
                     factor, choice, warnings, bool(dataset.names))


def _uneven(dataset: Dataset, factor: float, even: bool) -> tuple[str, ...]:
    """Says so where a factor is too small to make the classes even."""
    counts, total = training_counts(dataset, synthetic=True), len(dataset.split("train"))
    enough = even_factor(counts, total)
    if not even or factor >= enough:
        return ()
    return (f"Factor {factor:g} is too small to make the classes even; {enough:g} is enough.",)


def _by_class(dataset: Dataset, kept: Sequence[Case]) -> list[str]:
    """Training cases of each class, before and after."""
    before, new = training_counts(dataset, synthetic=True), Counter(case.label for case in kept)
    if not before:
        return []
    told = ", ".join(f"{name} {count} -> {count + new[name]}" for name, count in before.items())
    return [f"Training cases by class, before -> after: {told}."]


def _gate(work: Work) -> tuple[Work, list[str]]:
    """The work with a task network that has to see each lesion, and what is to be said of it."""
    if work.config.task != "lesion" or work.config.augment.seen <= 0:
        return work, []
    from medgan.lesions.seer import Seer

    if len({patient_key(case) for case in work.dataset.split("train") if case.mask is not None}) < 2:
        return work, ["One patient is too few to train a task network that judges lesions: that gate is open"]
    path = work.out / GATE
    if not path.is_file():
        Seer.train(work.dataset, work.config, work.seed).save(path)
    note = Seer.load(path).learned.note
    return replace(work, gate=path), [note] if note else []


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


def _target(dataset: Dataset, factor: float | str, out: str | Path | None) -> Path:
    base = base_of(dataset)
    lone = base if dataset.layout != "npz" else dataset.root
    named = factor if isinstance(factor, str) else f"{factor:g}"
    target = Path(out) if out is not None else lone.with_name(f"{lone.name.removesuffix('.npz')}-x{named}")
    refuse_inside(target, lone)
    refuse_other_content(target, (PLAN, CHOSEN), "augment")
    return target


def _task(dataset: Dataset, run: Run | None, method: str, modality: str | None, config: str | Path | None,
          settings: Sequence[str] | Mapping[str, Any]) -> str:
    """What is made: whole images of a set with masks where the run, or the settings, read these as label maps."""
    task = default_task(dataset)
    if task == "lesion" and method == "gan":
        if run is not None:
            whole = run.config.task == "image" and run.config.network.label_maps
        else:
            whole = modality is not None and Config.resolve(modality, "image", file=config, settings=settings
                                                            ).network.label_maps
        task = "image" if whole else task
    return task


def _whole(dataset: Dataset, resolved: Config, config: str | Path | None,
           settings: Sequence[str] | Mapping[str, Any]) -> Config:
    """The settings with networks of as many dimensions as the images have: else no whole case could be made."""
    if resolved.task != "image":
        return resolved
    dims = dataset.load(dataset.split("train")[0])[0].dims
    whole = resolved.over(settings={"data.dims": dims})
    if whole.over(file=config, settings=settings).data.dims != dims:
        raise Refused("DIM_UNSUPPORTED", f"data.dims={resolved.data.dims}",
                      f"the images of {dataset.root} are {dims}D, and whole ones are to be made", "Leave it out")
    return whole


def _trained(dataset: Dataset, resolved: Config, task: str, config: str | Path | None,
             settings: Sequence[str] | Mapping[str, Any], progress: Report) -> Run:
    """A run on this data: one that was begun is finished, else a new one is trained."""
    seed, device = resolved.seed, resolved.device
    begun = _newest(dataset, task, resolved.modality, finished=False)
    if begun is not None:
        composing(begun, config, settings, seed, device)
        progress(Progress("training", 0, None, "images", f"going on with {begun.path}, which was begun on this data"))
        return train(out=begun.path, resume=True, device=device, progress=progress)
    progress(Progress("training", 0, None, "images", "no run trained on this data yet: training one first"))
    return train(dataset.root, modality=resolved.modality, task=task,
                 settings=resolved.model_dump(mode="json", exclude={"modality", "task", "seed", "device"}),
                 seed=seed, device=device, progress=progress)


def _given(model: str | Path | Run | None) -> Run | None:
    from medgan.learning.checkpoints import open_run

    return open_run(model) if isinstance(model, str | Path) else model


def _find_run(dataset: Dataset, task: str, modality: str | None, given: Run | None, method: Method) -> Run | None:
    if method != "gan":
        return None
    if given is None:
        return _newest(dataset, task, modality)
    check_run(given, dataset, task)
    if not fits_layout(given, dataset):
        raise Refused("RUN_TASK", given.path, f"it makes {given.config.data.dims}D images "
                      f"{'that follow' if given.config.network.label_maps else 'without'} masks, which are no cases of "
                      f"{dataset.root}", "Train one on the same data with data.dims as the images have, and with "
                      "network.label_maps where they have masks")
    return given


def _newest(dataset: Dataset, task: str, modality: str | None, *, finished: bool = True) -> Run | None:
    """The newest run on this data that can make cases of it."""
    from medgan.learning.checkpoints import newest_run

    run = newest_run(RUNS, real_only(dataset).fingerprint(), task, modality, finished=finished)
    return run if run is not None and fits_layout(run, dataset) else None


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
        from medgan.lesions.scans import mask_values

        wanted = {str(value): dataset.labels[value] for value in mask_values(dataset, run.config.data.organs)}
        if dict(run.interface["labels"]) != wanted:
            raise Refused("LABEL_UNKNOWN", run.path, f"it knows the labels {dict(run.interface['labels'])}, "
                          f"{dataset.root} has {wanted}", "Train a run on data with the same labels")
    if task == "image":
        known = list(run.interface["classes"])
        other = [name for name in trainable_classes(dataset) or (ONLY_CLASS,) if name not in known]
        if other:
            raise Refused("LABEL_UNKNOWN", run.path, f"it knows the classes {', '.join(known)}; {dataset.root} has "
                          f"{', '.join(other)}", "Train a run on data with the same classes")
        maps = [dataset.labels[value] for value in sorted(dataset.labels)]
        if run.config.network.label_maps and list(run.interface["maps"]) != maps:
            raise Refused("LABEL_UNKNOWN", run.path, f"it follows the labels {', '.join(run.interface['maps'])}; "
                          f"{dataset.root} has {', '.join(maps) or 'none'}", "Train a run on data with the same labels")
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
    free: dict[str, Any] = {**dict.fromkeys(("augment", "evaluate", "device", "seed"), True), "data": FREE_OF_DATA}
    theirs, ours = given.model_dump(exclude=free), run.config.model_dump(exclude=free)
    differing = [name for name in ours if theirs[name] != ours[name]]
    if differing:
        raise Refused("CFG_VALUE", ", ".join(differing), f"the run {run.path} was trained with other settings",
                      "Leave them out, or train a run with them and name it with --model")
    return given
