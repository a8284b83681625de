"""Do synthetic cases make a better segmenter and classifier? Measured on real patients that no generator saw.

    medgan run lesion_classifier -- DATASET [--heldout DATASET2] [--test-patients N] [--minutes M] [--out DIR]

For each division of the patients: train a generator on the training patients, augment them, train the same small
segmenter and slice classifier in every arm (real images without and with the usual augmentation, real images repeated,
real + synthetic ones made in several ways) and test all of them on the held-back patients. Writes report.md,
report.json, differences.png, cases.csv, scores.csv and examples.png. Without DATASET, phantoms stand in. Each training
is kept as it is done: the same command goes on with a study that was stopped.
"""

from __future__ import annotations

import functools
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

import medgan
from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.layouts import LAYOUTS, open_dataset
from medgan.datasets.phantoms import write_phantoms
from medgan.datasets.provenance import Provenance
from medgan.datasets.splits import patient_key
from medgan.datasets.subset import Division, check_disjoint, divisions, write_subset
from medgan.datasets.tables import write_table
from medgan.errors import Refused
from medgan.learning.loop import pick_device
from medgan.metrics import study, utility
from medgan.metrics.examples import Examples, Reader
from medgan.metrics.study import FOLD_SEEDS, Effort, Known, Ledger, Model, Part
from medgan.reports.comparison import ARMS, CONTROLS, markdown, verdict
from medgan.reports.forest import forest
from medgan.reports.sheets import save
from medgan.storage import write_json, write_text
from medgan.verbs.augment import Augmented
from medgan.verbs.plans import same_plan
from medgan.verbs.reading import asked_rules
from medgan.verbs.showing import PICTURE
from medgan.verbs.train import PHANTOM_BUDGET, default_task

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run

#: How many phantoms train and test where there is no data set, and their seeds.
PHANTOMS = {"phantoms": (8, 0), "phantoms-test": (6, 1_000_000)}
#: What the small models and generators in an output folder were asked to be, and what each fold has found.
PLAN, RESULTS = "plan.json", "results.jsonl"
#: The test set of this data set's own patients; others go by their path.
HELD_BACK = "held-back patients"
#: Arms that need no synthetic cases, and those that may be asked for.
ALWAYS = ("nothing", "real", "duplicated")
METHODS = ("copy-paste", "paste", "procedural", "gan", "gan+paste", "auto")
#: What is tried where nothing is asked for: for masks, for classes.
DEFAULT_METHODS = {"lesion": ("copy-paste", "paste", "procedural", "gan", "gan+paste"), "image": ("gan",)}

#: Arm -> the method of `augment`, where it is not called so, and settings that make it what it is. Copy-paste as others
#: do it leaves the case's own lesions where they are, and the moved ones as they were.
METHOD = {"auto": "gan", "copy-paste": "paste"}
SETTINGS = {"copy-paste": ["augment.removed=0", "augment.cores=0", "augment.seen=0"]}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    dataset: Annotated[Path | None, typer.Argument(help="Data set with masks or classes; none: phantoms.")] = None,
    heldout: Annotated[list[Path] | None, typer.Option(help="Another data set to test on. May be repeated.")] = None,
    test_patients: Annotated[int | None, typer.Option(
        min=0, help="Patients held back in each fold. 0: none, test on --heldout alone. Not given: the data set's own "
        "test or validation cases, else a quarter.")] = None,
    train_patients: Annotated[int | None, typer.Option(
        min=1, help="Instead: patients trained on in each fold; all others are held back.")] = None,
    folds: Annotated[int, typer.Option(min=1, help="Folds at most.")] = 5,
    only_fold: Annotated[int | None, typer.Option(
        min=1, help="This fold alone, so that processes can share a study; the last one writes the report.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.05, help="Generator training in each fold.")] = None,
    factor: Annotated[float, typer.Option(min=1, help="Wanted training cases over real ones.")] = 2.0,
    method: Annotated[list[str] | None, typer.Option(
        help="copy-paste (as others do it), gan, paste, procedural, gan+paste (half of each) or auto (as augment "
        "--factor auto chooses); may be repeated. None: all that apply, without auto.")] = None,
    segmenter: Annotated[bool | None, typer.Option(help="Train a small segmenter; not given: for masks.")] = None,
    classifier: Annotated[bool, typer.Option(help="Train a small classifier of slices or images.")] = True,
    seeds: Annotated[int, typer.Option(min=1, help="Small models of each kind for each arm and fold.")] = 3,
    steps: Annotated[int, typer.Option(min=2, help="Optimiser steps of every small model.")] = 300,
    spacing: Annotated[float | None, typer.Option(min=0.1, help="Of the segmenter's grid, in mm; none: the data's.")
                       ] = None,
    standardise: Annotated[bool, typer.Option(help="Give the segmenter values less their mean over the tissue, over "
                                              "their deviation, instead of mapped percentiles.")] = False,
    crop: Annotated[int, typer.Option(min=8, help="Edge of the segmenter's patches.")] = 96,
    batch: Annotated[int, typer.Option(min=2, help="Its patches a step.")] = 8,
    size: Annotated[int, typer.Option(min=16, help="Edge of the classifier's pictures.")] = 64,
    positive: Annotated[str | None, typer.Option(help="The class to find; none: the last one.")] = None,
    modality: Annotated[str | None, typer.Option(help="ct, mr, xray or us.")] = None,
    settings: Annotated[list[str] | None, typer.Option(
        "--set", help="One setting of generator and augmentation, a.b=c.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of division, generator and augmentation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("lesion-classifier"),
) -> None:
    """Measure whether synthetic cases help a small segmenter and classifier on real, held-back patients."""
    if out.exists() and not (out / PLAN).is_file() and any(out.iterdir()):
        raise Refused("OUT_EXISTS", out, "it holds something that this pipeline did not write", "Choose another --out")
    if dataset is None:
        modality, test_patients = modality or "mr", 0
        dataset, *heldout = [write_phantoms(out / name, cast(Any, modality), count=count, seed=chance)
                             for name, (count, chance) in PHANTOMS.items()]
        settings = [*(f"{name}={value}" for name, value in PHANTOM_BUDGET.items()), *(settings or [])]
    rules = asked_rules(None, settings or ())
    real, others = open_dataset(dataset, rules), [open_dataset(path, rules) for path in heldout or ()]
    for other in others:
        check_disjoint(real, other)
    task, modality = default_task(real), modality or real.modality
    methods = _methods(method, task)
    models = _models(task, segmenter, classifier)
    if modality is None:
        raise Refused("CFG_VALUE", "--modality", f"{dataset} does not say which modality it is", "Name it")
    config = Config.resolve(modality, task, settings=settings or (), seed=seed, device=device)
    reader = Reader.common(real, others, config, size, positive)
    effort = Effort(steps, crop, batch, str(pick_device(device)))
    plan = {"data": real.fingerprint(), "heldout": [other.fingerprint() for other in others], "modality": modality,
            "task": task, "test_patients": test_patients, "train_patients": train_patients, "factor": factor,
            "minutes": minutes, "settings": settings or [], "steps": steps, "spacing": spacing, "crop": crop,
            "batch": batch, "size": size, "positive": positive, "standardise": standardise, "seed": seed,
            "device": device}
    same_plan(out / PLAN, plan)
    parts = divisions(reader.labelled(real), test_patients, train_patients=train_patients, seed=seed)[:folds]
    if only_fold is not None and only_fold > len(parts):
        raise Refused("CFG_VALUE", "--only-fold", f"{only_fold} of {len(parts)} folds", "Name one that there is")
    read = functools.partial(study.read_case, reader=reader, spacing_mm=spacing, standardised=standardise)
    known = {case.id: read(real, case) for case in reader.labelled(real)}
    outside = {_name(other, others): [read(other, case) for case in reader.labelled(other)] for other in others}
    arms = (*ALWAYS, *methods)
    done = [_Fold(number, part, out / f"fold-{number}", known, outside, range(seeds))
            for number, part in enumerate(parts, 1)]
    for fold in done:
        if only_fold in (None, fold.number):
            _say(f"fold {fold.number} of {len(done)}: {len(fold.training)} cases to train on, "
                 f"{len(fold.held_back)} held back")
            made = functools.partial(_made, real, fold, plan, read)
            study.run_fold(fold.ledger, fold.arms(arms, factor, made), fold.tests, models, fold.seeds, effort, _say)
    missing = [str(fold.number) for fold in done if fold.ledger.pending(arms, models, fold.seeds)]
    if missing:
        typer.echo(f"{out}: fold {', '.join(missing)} still to do; then the same command without --only-fold")
        return
    names = list(done[0].tests)
    tested = {name: [Part(fold.tests[name], fold.ledger, name, fold.seeds) for fold in done] for name in names}
    pairs = [(arm, study.BASELINE) for arm in arms if arm != study.BASELINE]
    pairs += [(one, other) for one in methods for other in CONTROLS if other in arms and one not in CONTROLS]
    compared = {name: {**_counts(test), **study.compare_study(test, arms, pairs, models)}
                for name, test in tested.items()}
    report = {
        "medgan": medgan.__version__,
        "command": shlex.join(["medgan", "run", "lesion_classifier", "--", *sys.argv[1:]]),
        "plan": plan,
        "data": [{"name": each.root.stem, "layout": each.layout, "fingerprint": each.fingerprint(),
                  "patients": len({patient_key(case) for case in reader.labelled(each)}), "channels": each.channels}
                 for each in (real, *others)],
        "models": {"names": models, "seeds": seeds, "steps": steps, "size": size, "pictures": utility.BATCH,
                   "crop": crop, "batch": batch, "spacing_mm": spacing, "channels": reader.channels,
                   "positive": reader.positive, "resamples": utility.RESAMPLES},
        "folds": [fold.described(arms) for fold in done],
        "tests": compared,
        "verdict": {name: verdict(compared, name) for name in methods},
    }
    write_json(out / "report.json", report)
    write_text(out / "report.md", markdown(report))
    save(forest(compared, ARMS), out / "differences.png")
    _write_rows(out, tested, arms, models)
    pictures = [out / "fold-1" / name / PICTURE for name in methods]
    if shown := next((path for path in pictures if path.is_file()), None):
        shutil.copyfile(shown, out / PICTURE)
    typer.echo(f"{out / 'report.md'}\n" + "\n".join(verdict(compared, name) for name in methods))


class _Fold:
    """A division of the patients: its cases, as they are read, and what was found with them."""

    def __init__(self, number: int, division: Division, folder: Path, known: Mapping[str, Known],
                 outside: Mapping[str, Sequence[Known]], seeds: Iterable[int]) -> None:
        self.number, self.folder = number, folder
        self.training, self.held_back = division
        self.real = [known[case.id] for case in self.training]
        own = {HELD_BACK: [known[case.id] for case in self.held_back]} if self.held_back else {}
        self.tests: dict[str, Sequence[Known]] = {**own, **outside}
        self.ledger = Ledger(folder / RESULTS)
        self.augmented: dict[str, tuple[Augmented, Run | None]] = {}
        self.seeds = [FOLD_SEEDS * (number - 1) + seed for seed in seeds]

    def arms(self, names: Iterable[str], factor: float, made: Callable[[str], list[Known]]
             ) -> dict[str, Callable[[], list[Known]]]:
        """Arm -> what reads its cases, from the training cases and nothing else."""
        count = round(factor * len(self.real))
        alone = {"nothing": self.real, "real": self.real,
                 "duplicated": [self.real[n % len(self.real)] for n in range(count)]}

        def with_made(name: str) -> list[Known]:
            return [*self.real, *made(name)]

        return {name: functools.partial(list, alone[name]) if name in alone else functools.partial(with_made, name)
                for name in names}

    def described(self, arms: Iterable[str]) -> dict[str, Any]:
        """For the report."""
        made = {arm: self.ledger.get("made", arm) for arm in arms}
        return {"training_patients": sorted({patient_key(case) for case in self.training}),
                "held_back": sorted({patient_key(case) for case in self.held_back}),
                "made": {arm: record for arm, record in made.items() if record is not None},
                "arms": {arm: self.ledger.get("arm", arm) for arm in arms}}


def _made(real: Dataset, fold: _Fold, plan: Mapping[str, Any], read: Callable[[Dataset, Case], Known], arm: str
          ) -> list[Known]:
    """The synthetic cases of an arm, from the training cases and nothing else; made if they are not there yet."""
    subset = write_subset(real, fold.training, fold.folder / "training")
    mixed = arm.split("+")
    cases: list[Known] = []
    skipped: dict[str, str] = {}
    places: list[str] = []
    noted: dict[str, Any] = {}
    for kept, method in enumerate(mixed):
        if method not in fold.augmented:
            fold.augmented[method] = _augmented(subset, fold.folder, plan, method)
        augmented, run = fold.augmented[method]
        opened = open_dataset(augmented.out, subset.rules)
        synthetic = [case for case in opened.cases if case.synthetic][kept :: len(mixed)]
        cases += [read(opened, case) for case in synthetic]
        places += [place for case in synthetic for place in _places(LAYOUTS[opened.layout].sidecar(case))]
        skipped |= augmented.skipped
        noted |= {"factor": augmented.factor} | ({"weights": run.hash()} if run is not None else {})
    fold.ledger.add("made", arm, cases=len(cases), skipped=skipped, places=places, **noted)
    return cases


def _places(sidecar: Path) -> list[str]:
    """Where a synthetic case has its new lesions, to the millimetre, to see whether methods put them alike."""
    record = Provenance.read(sidecar)
    return [f"{record.id} {', '.join(f'{value:.0f}' for value in lesion.centre_mm)}" for lesion in record.lesions]


def _augmented(subset: Dataset, folder: Path, plan: Mapping[str, Any], method: str) -> tuple[Augmented, Run | None]:
    """What `augment` makes of the training cases; `auto` decides by itself how many the generator's are worth."""
    common: dict[str, Any] = {key: plan[key] for key in ("modality", "settings", "seed", "device")}
    called = METHOD.get(method, method)
    run = _generator(subset, folder / "run", task=plan["task"], minutes=plan["minutes"], **common) \
        if called == "gan" else None
    if plan["task"] == "lesion":
        common["settings"] = [*plan["settings"], *SETTINGS.get(method, [])]
    return medgan.augment(subset.root, factor="auto" if method == "auto" else plan["factor"], out=folder / method,
                          method=cast(Any, called), model=run.path if run else None, **common), run


def _generator(subset: Dataset, folder: Path, **options: Any) -> Run:
    """The generator of a fold: trained, or what an earlier call left of it."""
    if (folder / "config.json").is_file():
        begun = medgan.load(folder)
        return begun if begun.finished else medgan.train(out=folder, resume=True)
    _say(f"training a generator on {len(subset.cases)} cases")
    return medgan.train(subset.root, out=folder, **options)


def _methods(asked: Sequence[str] | None, task: str) -> tuple[str, ...]:
    for name in asked or ():
        if name not in METHODS or (task != "lesion" and name not in ("gan", "auto")):
            raise Refused("CFG_VALUE", "--method", f"{name!r} does not make cases of this data set",
                          f"Use {', '.join(METHODS if task == 'lesion' else ('gan', 'auto'))}")
    return tuple(dict.fromkeys(asked or DEFAULT_METHODS[task]))


def _models(task: str, segmenter: bool | None, classifier: bool) -> list[Model]:
    masks = task == "lesion"
    if segmenter and not masks:
        raise Refused("CFG_VALUE", "--segmenter", "classes have no masks to be found", "Leave it out")
    chosen = {"segmenter": masks if segmenter is None else segmenter, "classifier": classifier}
    if not any(chosen.values()):
        raise Refused("CFG_VALUE", "--no-classifier", "no small model is left to train", "Leave it out")
    return [name for name in study.MODELS if chosen[name]]


def _counts(parts: Sequence[Part]) -> dict[str, int]:
    """Of the test cases, each once."""
    cases = {case.case: case.pictures for part in parts for case in part.cases}
    return Examples.joined(list(cases.values())).counts()


def _write_rows(out: Path, tested: Mapping[str, Sequence[Part]], arms: Sequence[str], models: Sequence[Model]) -> None:
    if "segmenter" in models:
        write_table(out / "cases.csv", ("test", "fold", "arm", "seed", "case", "patient", "dice", "lesions", "found",
                                        "false_positives"),
                    ({"test": name, **row} for name, parts in tested.items() for row in study.case_rows(parts, arms)))
    if "classifier" in models:
        write_table(out / "scores.csv", ("test", "fold", "arm", "seed", "patient", "slice", "positive", "score"),
                    ({"test": name, **row} for name, parts in tested.items()
                     for row in study.scored_pictures(parts, arms).rows()))


def _name(dataset: Dataset, among: Sequence[Dataset]) -> str:
    """The folder's name, or its whole path where another data set is called the same."""
    name = dataset.root.name
    return name if sum(other.root.name == name for other in among) == 1 else str(dataset.root)


def _say(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    app()
