"""Do synthetic cases make a better lesion classifier? Measured on real patients that the generator never saw.

    medgan run lesion_classifier -- DATASET [--heldout DATASET2] [--test-patients N] [--minutes M] [--out DIR]

For each division of the patients: train a generator on the training patients, augment them, train the same small
classifier on real images, on real images repeated, and on real + synthetic ones made in several ways, and test all
of them on the held-back patients. Writes report.md, report.json, scores.csv and examples.png. Without DATASET,
phantoms stand in. The same command goes on with a run that was stopped.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

import medgan
from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.layouts import open_dataset
from medgan.datasets.phantoms import write_phantoms
from medgan.datasets.splits import patient_key
from medgan.datasets.subset import check_disjoint, divisions, write_subset
from medgan.datasets.tables import write_table
from medgan.errors import Refused
from medgan.learning.loop import pick_device
from medgan.metrics import utility
from medgan.metrics.examples import Examples, Reader
from medgan.reports.comparison import CONTROLS, markdown, verdict
from medgan.storage import write_json, write_text
from medgan.verbs.augment import PICTURE, Method
from medgan.verbs.train import PHANTOM_BUDGET, default_task

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run

#: How many phantoms train and test where there is no data set, and their seeds.
PHANTOMS = {"phantoms": (8, 0), "phantoms-test": (6, 1_000_000)}
#: What the generators in an output folder were asked to be.
PLAN = "plan.json"
#: The test set of this data set's own patients; others go by their path.
HELD_BACK = "held-back patients"

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
    minutes: Annotated[float | None, typer.Option(min=0.05, help="Generator training in each fold.")] = None,
    factor: Annotated[float, typer.Option(min=1, help="Wanted training cases over real ones.")] = 2.0,
    method: Annotated[list[str] | None, typer.Option(help="gan, paste or procedural; none: all that apply.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Classifiers for each arm and fold.")] = 3,
    steps: Annotated[int, typer.Option(min=2, help="Optimiser steps of every classifier.")] = 250,
    size: Annotated[int, typer.Option(min=16, help="Edge of the classifier's pictures.")] = 64,
    positive: Annotated[str | None, typer.Option(help="The class to find; none: the last one.")] = None,
    modality: Annotated[str | None, typer.Option(help="ct, mr, xray or us.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="One setting of the generator, a.b=c.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of division, generator and augmentation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("lesion-classifier"),
) -> None:
    """Measure whether synthetic cases help a small classifier on real, held-back patients."""
    if out.exists() and not (out / PLAN).is_file() and any(out.iterdir()):
        raise Refused("OUT_EXISTS", out, "it holds something that this pipeline did not write", "Choose another --out")
    if dataset is None:
        modality, test_patients = modality or "mr", 0
        dataset, *heldout = [write_phantoms(out / name, cast(Any, modality), count=count, seed=chance)
                             for name, (count, chance) in PHANTOMS.items()]
        settings = [*(f"{name}={value}" for name, value in PHANTOM_BUDGET.items()), *(settings or [])]
    real, others = open_dataset(dataset), [open_dataset(path) for path in heldout or ()]
    for other in others:
        check_disjoint(real, other)
    task, modality = default_task(real), modality or real.modality
    methods = method or list(get_args(Method) if task == "lesion" else ("gan",))
    if modality is None:
        raise Refused("CFG_VALUE", "--modality", f"{dataset} does not say which modality it is", "Name it")
    plan = {"data": real.fingerprint(), "modality": modality, "task": task, "test_patients": test_patients,
            "train_patients": train_patients, "factor": factor, "minutes": minutes, "settings": settings or [],
            "seed": seed, "device": device}
    config = Config.resolve(modality, task, settings=settings or (), seed=seed, device=device)
    reader = Reader.common(real, others, config, size, positive)
    _same_plan(out, plan)
    parts = divisions(reader.labelled(real), test_patients, train_patients=train_patients, seed=seed)[:folds]
    known = {case.id: reader.read(real, [case]) for case in reader.labelled(real)}
    outside = {str(other.root): reader.read(other, reader.labelled(other)) for other in others}

    tested: dict[str, list[tuple[Examples, Mapping[str, utility.Values]]]] = {}
    described: list[dict[str, Any]] = []
    for number, (training, held_back) in enumerate(parts, 1):
        _say(f"fold {number} of {len(parts)}: {len(training)} cases to train on, {len(held_back)} held back")
        arms, made = _arms(real, training, known, reader, methods, plan, out / f"fold-{number}")
        own = {HELD_BACK: Examples.joined([known[case.id] for case in held_back])} if held_back else {}
        tests = own | outside
        scores = utility.score_arms(arms, tests, seeds=[1000 * number + n for n in range(seeds)], steps=steps,
                                    device=str(pick_device(device)), tell=_say)
        for name, examples in tests.items():
            tested.setdefault(name, []).append((examples, scores[name]))
        described.append({"training_patients": _patients(training), "held_back": _patients(held_back), "made": made,
                          "arms": {arm: {**pictures.counts(), "steps": steps} for arm, pictures in arms.items()}})
    scored = {name: utility.Scored.gathered(scores) for name, scores in tested.items()}
    pairs = [(arm, "real") for arm in described[0]["arms"] if arm != "real"]
    pairs += [("gan", control) for control in CONTROLS if "gan" in methods and control in described[0]["arms"]]
    held = sorted({case.id for _, held_back in parts for case in held_back})
    shown = outside | ({HELD_BACK: Examples.joined([known[name] for name in held])} if held else {})
    compared = {name: {**shown[name].counts(), **utility.compare(test, pairs)} for name, test in scored.items()}
    report = {
        "medgan": medgan.__version__,
        "command": shlex.join(["medgan", "run", "lesion_classifier", "--", *sys.argv[1:]]),
        "plan": plan,
        "data": [{"name": each.root.stem, "layout": each.layout, "fingerprint": each.fingerprint(),
                  "patients": len(_patients(reader.labelled(each))), "channels": each.channels}
                 for each in (real, *others)],
        "classifier": {"size": size, "seeds": seeds, "steps": steps, "batch": utility.BATCH,
                       "channels": reader.channels, "positive": reader.positive, "resamples": utility.RESAMPLES},
        "folds": described,
        "tests": compared,
        "verdict": {name: verdict(compared, name) for name in methods},
    }
    write_json(out / "report.json", report)
    write_text(out / "report.md", markdown(report))
    write_table(out / "scores.csv", ("test", "fold", "arm", "seed", "patient", "slice", "positive", "score"),
                ({"test": name, **row} for name, test in scored.items() for row in test.rows()))
    if (picture := out / "fold-1" / methods[0] / PICTURE).is_file():
        shutil.copyfile(picture, out / PICTURE)
    typer.echo(f"{out / 'report.md'}\n" + "\n".join(verdict(compared, name) for name in methods))


def _arms(real: Dataset, training: Sequence[Case], known: Mapping[str, Examples], reader: Reader,
          methods: Sequence[str], plan: Mapping[str, Any], folder: Path) -> tuple[dict[str, Examples], dict[str, Any]]:
    """Training pictures of every arm, and what was made for them, from the training cases and nothing else."""
    subset = write_subset(real, training, folder / "training")
    alone = Examples.joined([known[case.id] for case in training])
    arms: dict[str, Examples] = {}
    made: dict[str, Any] = {}
    common: dict[str, Any] = {key: plan[key] for key in ("modality", "settings", "seed", "device")}
    for method in methods:
        run = _generator(subset, folder / "run", task=plan["task"], minutes=plan["minutes"], **common) \
            if method == "gan" else None
        augmented = medgan.augment(subset.root, factor=plan["factor"], out=folder / method, method=cast(Any, method),
                                   model=run.path if run else None, **common)
        opened = open_dataset(augmented.out)
        synthetic = [case for case in opened.cases if case.synthetic]
        arms[method] = Examples.joined([alone, *([reader.read(opened, synthetic)] if synthetic else [])])
        made[method] = {"cases": len(augmented.synthetic), "skipped": dict(augmented.skipped),
                        "weights": run.hash() if run else None}
    # As many pictures as the largest arm, so that number can be told from novelty.
    most = max(len(examples) for examples in arms.values())
    return {"real": alone, "duplicated": alone.repeated(most), **arms}, made


def _generator(subset: Dataset, folder: Path, **options: Any) -> Run:
    """The generator of a fold: trained, or what an earlier call left of it."""
    if (folder / "config.json").is_file():
        begun = medgan.load(folder)
        return begun if begun.finished else medgan.train(out=folder, resume=True)
    _say(f"training a generator on {', '.join(_patients(subset.cases)[:8])}")
    return medgan.train(subset.root, out=folder, **options)


def _same_plan(out: Path, plan: dict[str, Any]) -> None:
    """Generators are used again only for what would train the same ones."""
    if (out / PLAN).is_file() and json.loads((out / PLAN).read_text(encoding="utf-8")) != plan:
        raise Refused("OUT_EXISTS", out, "it was begun with other data or settings", "Choose another --out")
    write_json(out / PLAN, plan)


def _patients(cases: Sequence[Case]) -> list[str]:
    return sorted({patient_key(case) for case in cases})


def _say(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    app()
