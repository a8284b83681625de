"""`train`: from a folder of images to a run folder with weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.datasets.classes import trainable_classes
from medgan.datasets.hashing import as_asked
from medgan.datasets.layouts import open_dataset
from medgan.errors import Interrupted, Refused
from medgan.imaging.rules import Rules
from medgan.storage import PARTIAL, claimed, is_unused, locked, os_errors_refused, remove_partial, write_text
from medgan.verbs.progress import Progress, Report, silent
from medgan.verbs.reading import asked_rules
from medgan.verbs.stopping import stoppable

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run

#: Where runs go that are given no name.
RUNS = Path("runs")
#: How many phantoms stand in for a data set.
PHANTOMS = 8
#: Length of a run on phantoms: a first look, within three minutes on two cores.
PHANTOM_BUDGET = {"training.images": 2_600, "training.limit_minutes": 2.0, "training.report_images": 1_300}


@os_errors_refused()
def train(dataset: str | Path | None = None, *, modality: str | None = None, task: str | None = None,
          out: str | Path | None = None, minutes: float | None = None, resume: bool = False,
          config: str | Path | None = None, settings: Sequence[str] | Mapping[str, Any] = (),
          seed: int | None = None, device: str | None = None, progress: Report = silent) -> Run:
    """Trains a generator on a data set, or on the built-in phantoms of a modality when there is none.

    Args:
        dataset: A data set of any layout in docs/formats.md; None uses phantoms.
        modality: `ct`, `mr`, `xray` or `us`; None: what the data set says of itself.
        task: `lesion`, `image` or `upscale`. None: lesion if there are masks, else image if there are classes,
            else upscale.
        out: The run folder; None: `runs/<data set>-<task>`, numbered.
        minutes: About how long to train, in minutes of wall time; None: as many images as the settings say.
        resume: Goes on with the run in `out` where it was.
        config: A TOML file of settings.
        settings: Single settings, as `["training.batch=8"]` or a mapping.
        seed: Seed of everything random.
        device: `auto`, `cpu` or `cuda`.
        progress: Told of each step.

    Returns:
        The finished run.

    Raises:
        Refused: Whatever is wrong with the data, the settings or the output folder, before any work starts.
        Interrupted: Stopped by the user; the work is saved and `resume=True` goes on.
    """
    if resume:
        if out is None:
            raise Refused("CFG_VALUE", "--resume", "it is not said which run to go on with", "Name it with --out RUN")
        return _resume(Path(out), dataset, modality, task, minutes, config, settings, seed, device, progress)
    sets = dict(_as_mapping(settings))
    if dataset is None:
        if modality is None:
            raise Refused("CFG_VALUE", "--modality", "without a data set the modality must be named",
                          "Use --modality ct, mr or xray, or give a data set")
        task = task or "lesion"
        sets = PHANTOM_BUDGET | sets
    else:
        opened = open_dataset(dataset, asked_rules(config, settings, task))
        modality = modality or opened.modality
        task = task or default_task(opened)
        if modality is None:
            raise Refused("CFG_VALUE", "--modality", f"{dataset} does not say which modality it is",
                          "Use --modality ct, mr, xray or us")
    if minutes is not None:
        sets |= {"training.minutes": float(minutes), "training.limit_minutes": float(minutes)}
    resolved = Config.resolve(modality, task, file=config, settings=sets, seed=seed, device=device)
    _check_device(resolved)
    folder = Path(out) if out is not None else _next_run(f"{short_name(opened) if dataset else modality + '-phantoms'}"
                                                         f"-{task}")
    _check_start(resolved, None if dataset is None else len(opened.channels))
    with claimed(folder):
        _refuse_used(folder, phantoms=dataset is None)
        remove_partial(folder)
        if dataset is None:
            from medgan.learning.checkpoints import PHANTOM_FOLDER

            opened = _phantoms(folder / PHANTOM_FOLDER, modality, resolved, progress)
        check_trainable(opened, task)
        return _train(opened, resolved, folder, progress)


def _refuse_used(folder: Path, *, phantoms: bool) -> None:
    """Refuses a folder that holds more than what a run that was killed before it began has left."""
    from medgan.learning.checkpoints import PHANTOM_FOLDER

    if is_unused(folder):
        return
    if phantoms and folder.is_dir() and all(inner.name == PHANTOM_FOLDER or inner.name.startswith(PARTIAL)
                                            for inner in folder.iterdir()):
        return
    raise Refused("OUT_EXISTS", folder, "the run folder exists and is not empty",
                  "Name another with --out, or go on with it with --resume")


def default_task(dataset: Dataset) -> str:
    """Lesion if the data set has masks, else image if it has classes, else upscale."""
    if any(case.mask is not None for case in dataset.cases):
        return "lesion"
    return "image" if dataset.classes else "upscale"


def real_only(dataset: Dataset) -> Dataset:
    """The data set without synthetic cases: what is learned from is always real."""
    return dataset.only(tuple(case for case in dataset.cases if not case.synthetic))


def check_trainable(dataset: Dataset, task: str) -> None:
    """Refuses what the task cannot learn from, before any work starts."""
    cases = [case for case in dataset.split("train") if not case.synthetic]
    if not cases:
        raise Refused("DATASET_EMPTY", dataset.root, "there is no training case", "Give cases of the split `train`")
    if task == "lesion" and not any(case.mask is not None for case in cases):
        raise Refused("LABEL_MISSING", dataset.root, "the lesion task needs masks and no training case has one",
                      "Give masks, or use --task image or --task upscale")
    if task == "image":
        trainable_classes(dataset)


def _check_start(config: Config, channels: int | None) -> None:
    """Refuses a run that a new one cannot begin with, before any work starts."""
    if config.training.start is not None:
        from medgan.learning.transfer import check_start

        check_start(config, channels)


def _train(dataset: Dataset, config: Config, folder: Path, progress: Report) -> Run:
    from medgan.learning.checkpoints import create_run
    from medgan.learning.tasks import TASKS

    real = as_asked(real_only(dataset), config)
    progress(Progress("reading", 0, None, "cases", f"{len(real.split('train'))} training cases of {real.name}"))
    source = TASKS[config.task].source(real, config)
    if odd := getattr(source, "warnings", ()):
        progress(Progress("warning", 0, None, "cases", " ".join(odd)))
    about = {"name": real.name, "path": str(dataset.root.resolve()), "fingerprint": real.fingerprint(),
             "training_cases": len(real.split("train"))}
    return _learn(create_run(folder, config, source.interface, about), source, real, progress)


def _resume(folder: Path, dataset: str | Path | None, modality: str | None, task: str | None, minutes: float | None,
            config: str | Path | None, settings: Sequence[str] | Mapping[str, Any], seed: int | None,
            device: str | None, progress: Report) -> Run:
    """Goes on with a run; of its settings only time, memory cap and device may be named anew."""
    from medgan.learning.checkpoints import open_run
    from medgan.learning.tasks import TASKS

    if folder.is_dir() and is_unused(folder):
        raise Refused("RUN_NOT_FOUND", folder, "the run was not begun yet: there is no config.json",
                      "Give the same command without --resume")
    run = open_run(folder)
    for name, value, own in (("--modality", modality, run.config.modality), ("--task", task, run.config.task)):
        if value not in (None, own):
            raise Refused("RUN_TASK", folder, f"it was begun with {name} {own}, not {value}", "Leave it out")
    sets = dict(_as_mapping(settings))
    if minutes is not None:
        sets["training.limit_minutes"] = float(minutes)
    given = run.config.over(file=config, settings=sets, seed=seed, device=device)
    limit = run.config.training.limit_minutes
    as_begun = {"training": given.training.model_copy(update={"limit_minutes": limit}),
                "data": given.data.model_copy(update={"max_gib": run.config.data.max_gib})}
    if given.model_copy(update={"device": run.config.device, **as_begun}) != run.config:
        raise Refused("CFG_VALUE", folder, "the run was begun with other settings",
                      "Leave them out, or start a new run")
    _check_device(given)
    run = replace(run, config=given)
    with contextlib.nullcontext() if run.finished else locked(folder):
        opened = open_dataset(dataset if dataset is not None else run.dataset["path"], Rules.of(given.data))
        real = as_asked(real_only(opened), given)
        if real.fingerprint() != run.dataset["fingerprint"]:
            raise Refused("CKPT_MISMATCH", folder, f"{opened.root} is not, or no longer, the data set that the run was "
                          "begun on", "Start a new run")
        if run.finished:
            progress(Progress("training", 0, None, "images", "the run is finished; there is nothing left to do"
                              + ("; it was given up when it diverged" if run.gave_up else "")))
            return run
        remove_partial(folder)
        return _learn(run, TASKS[run.config.task].source(real, run.config), real, progress)


def _learn(run: Run, source: Any, real: Dataset, progress: Report) -> Run:
    import torch

    from medgan.learning import loop
    from medgan.learning.accumulation import LESS, memory_named
    from medgan.learning.tasks import TASKS

    config = run.config
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        task = TASKS[config.task](config, run.interface)
    state = loop.State.fresh(task, config.training)
    with stoppable(f"stopped at once; the last report is kept; go on with: {_again(run)}") as stopped:
        try:
            with memory_named(str(run.path), LESS):
                _steps(run, state, task, source, real, progress, stopped)
        except Refused as refused:
            if refused.code != "TRAINING_DIVERGED":
                raise
            raise _given_up(run, state, source, refused) from None
    return run


def _steps(run: Run, state: Any, task: Any, source: Any, real: Dataset, progress: Report,
           stopped: Callable[[], bool]) -> None:
    """Goes from what was saved last to the end, saving at each report.

    Raises:
        Interrupted: A stop was asked for; the step under way was finished, and what it led to is saved.
    """
    from medgan.learning import checkpoints, loop
    from medgan.learning.health import in_words
    from medgan.reports.sheets import save
    from medgan.verbs.watching import Watch

    config = run.config
    known = checkpoints.load_state(state, run.path)
    # A run that was killed before its first state begins anew, and so does its log.
    checkpoints.trim_log(run.path, state.images if known else -1)
    if not known and config.training.start is not None:
        _begin(state, run, progress)
    samples = run.path / checkpoints.SAMPLES
    if state.images == 0:
        save(task.sheet(state.average, source), samples / "0000000.png")
    watch, said = Watch(real, source, config), ""
    for step in loop.train(state, source, config):
        said = in_words(step.parts) if step.report else said
        told = [f"{step.images_per_second:.0f} images/s", "" if step.finding else step.note, said]
        progress(Progress("training", step.images, step.total, "images", "; ".join(part for part in told if part)))
        if step.finding is not None:
            # A stage of its own: it stays on the screen, and is printed where there is no bar.
            progress(Progress(step.finding.kind, step.images, step.total, "images", str(step.finding)))
        if step.report or step.note:
            checkpoints.append_log(run.path, _entry(step) | (watch(task, state.average) if step.report else {}))
        if step.report:
            save(task.sheet(state.average, source), samples / f"{step.images:07d}.png")
        if step.report or step.finding is not None:
            # A rate that was halved, or a batch that was split, stays so after a resume.
            checkpoints.save_state(state, run.path)
        if stopped() and not step.done:
            checkpoints.save_state(state, run.path)
            raise Interrupted(f"stopped at {state.images} images; go on with: {_again(run)}")
    _finish(run, state, source)


def _finish(run: Run, state: Any, source: Any, gave_up: str = "") -> None:
    """Writes card and weights; these come last, for they are what makes a run a finished one."""
    from medgan.learning import checkpoints

    remarks = [*_begun(run), *getattr(source, "warnings", ()), *map(str, state.health.findings)]
    write_text(run.path / "MODEL_CARD.md", _card(run, state.images, [*remarks, gave_up] if gave_up else remarks))
    about = {"task": run.config.task, "images": state.images} | ({"gave_up": gave_up} if gave_up else {})
    checkpoints.save_weights(state.average, run.path / checkpoints.WEIGHTS, about)


def _given_up(run: Run, state: Any, source: Any, refused: Refused) -> Refused:
    """Keeps what a run that was given up had learned at its last good report; says where it is."""
    if state.images == 0:
        return Refused(refused.code, run.path, f"{refused.why}; that was before its first report, so there are no "
                       "weights to keep", f"{refused.fix}, and start a new run")
    _finish(run, state, source, f"training was given up: {refused.why}; the weights are those of the last good report, "
            f"at {state.images} images")
    return Refused(refused.code, run.path, f"{refused.why}; the weights of the last good report, at {state.images} "
                   "images, are kept", f"{refused.fix}, and start a new run; or use what was learned till then with "
                   f"--model {run.path}")


def _begin(state: Any, run: Run, progress: Report) -> None:
    """Gives a new run the weights of the one it begins with; what was taken is the first line of its log."""
    from medgan.learning.checkpoints import append_log
    from medgan.learning.transfer import begin_with, check_start

    start = check_start(run.config, run.interface.get("channels"))
    assert start is not None
    note = begin_with(state, start, run.interface)
    append_log(run.path, {"images": 0, "note": note})
    progress(Progress("training", 0, None, "images", note))


def _begun(run: Run) -> list[str]:
    """What the run was begun with, from its log."""
    import json

    from medgan.learning.checkpoints import LOG

    if run.config.training.start is None:
        return []
    lines = (run.path / LOG).read_text(encoding="utf-8").splitlines()
    return [entry["note"] for entry in map(json.loads, lines[:1]) if entry["images"] == 0]


def _entry(step: Any) -> dict[str, Any]:
    return {"images": step.images, "total": step.total, "images_per_second": round(step.images_per_second, 2),
            "waiting": round(step.waiting, 4), "note": step.note,
            **{name: round(value, 5) if math.isfinite(value) else None for name, value in step.parts.items()}}


def _card(run: Run, images: int, remarks: Sequence[str] = ()) -> str:
    config, about = run.config, run.dataset
    odd = "".join(f"- Note: {remark.rstrip('.')}.\n" for remark in remarks)
    return f"""# Model card: {run.path.name}

A `{config.task}` generator ({config.data.dims}D, {config.modality}) trained with medgan.

- Data: {about["name"]}, {about["training_cases"]} training cases (fingerprint `{about["fingerprint"]}`).
- Channels: {", ".join(run.interface.get("channel_names", [])) or run.interface.get("channels")}.
- Recipe: {images} images seen, batch {config.training.batch}, objective {config.training.objective}, seed
  {config.seed}; every setting is in `config.json`, the losses in `log.jsonl`, pictures in `samples/`.
{odd}- Licence: the weights may be used as the training data's own terms allow.
- Limits: made for data augmentation in research, from the patients named above and nobody else. It adds no scanner,
  disease or population that the data lacks. Whether its samples help must be measured on held-out real patients.
  Not for diagnosis.
"""


def _again(run: Run) -> str:
    return f"medgan train --out {run.path} --resume"


def _check_device(config: Config) -> None:
    from medgan.learning.loop import pick_device

    pick_device(config.device)


def short_name(dataset: Dataset) -> str:
    """A data set's name for files: its folder's, or its file's without the ending."""
    root = dataset.root
    return root.name if root.is_dir() else root.name.split(".")[0]


def _phantoms(folder: Path, modality: str, config: Config, progress: Report) -> Dataset:
    from medgan.datasets.phantoms import LESION_CLASSES, write_phantoms

    if modality not in LESION_CLASSES:
        raise Refused("INPUT_KIND", modality, "there is no phantom of this modality",
                      f"Give a data set, or use {', '.join(LESION_CLASSES)}")
    progress(Progress("making phantoms", 0, None, "cases",
                      f"no data set given: {PHANTOMS} built-in {modality} phantoms stand in"))
    write_phantoms(folder, modality, count=PHANTOMS, seed=config.seed)
    return open_dataset(folder)


def _next_run(name: str) -> Path:
    """`runs/<name>`, or `runs/<name>-2` and so on where that is taken."""
    number = 1
    while (folder := RUNS / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def _as_mapping(settings: Sequence[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    from medgan.config import parse_setting

    if isinstance(settings, Mapping):
        return settings
    return dict(parse_setting(text) for text in ([settings] if isinstance(settings, str) else settings))


