"""The `medgan` command: parse, call one verb, print. Nothing heavy is imported before a verb is called."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from medgan import __version__
from medgan.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_SKIPPED, Interrupted, Refused
from medgan.terminal import Bar

if TYPE_CHECKING:
    from medgan.verbs.upsample_folder import FolderReport

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Train conditional GANs and super-resolution generators on your own DICOM and NIfTI data.")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="One setting, as a.b=c. May be repeated.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random (0).")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def train(
    dataset: Annotated[Path | None, typer.Argument(help="Data set; none: built-in phantoms.")] = None,
    modality: Annotated[str | None, typer.Option(help="ct, mr, xray or us.")] = None,
    task: Annotated[str | None, typer.Option(help="lesion, image or upscale; none: what the data allows.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; none: runs/<data set>-<task>.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.05, help="About how long to train.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    config: ConfigFile = None, settings: Settings = None, seed: Seed = None, device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Train a generator; without a data set, on phantoms."""
    from medgan.verbs.train import train as verb

    with Bar() as bar:
        run = verb(dataset, modality=modality, task=task, out=out, minutes=minutes, resume=resume, config=config,
                   settings=settings or (), seed=seed, device=device, progress=bar)
    if as_json:
        _print_json({"run": str(run.path), "task": run.config.task, "dataset": dict(run.dataset),
                     "weights": run.hash()})
    else:
        if dataset is None and not resume:
            print(f"No data set was given: trained on built-in phantoms in {run.path / 'phantoms'}.")
        print(f"Run: {run.path}\nPictures: {run.path / 'samples'}")


@app.command()
def augment(
    dataset: Annotated[Path, typer.Argument(help="Data set with masks or classes.")],
    factor: Annotated[str, typer.Option(help="Wanted training cases over present ones; auto: found out.")] = "2",
    out: Annotated[Path | None, typer.Option(help="New data set; none: DATASET-xF.")] = None,
    model: Annotated[Path | None, typer.Option(help="Run folder; none: the newest on this data.")] = None,
    method: Annotated[str, typer.Option(help="gan, paste or procedural.")] = "gan",
    balance: Annotated[bool, typer.Option("--balance", help="Classes: the rare ones first. Lesions: lesion-free "
                                                    "places are filled as well.")] = False,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    modality: Annotated[str | None, typer.Option(help="ct, mr, xray or us.")] = None,
    config: ConfigFile = None, settings: Settings = None, seed: Seed = None, device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Write a data set anew with synthetic training cases."""
    from medgan.verbs.augment import Method
    from medgan.verbs.augment import augment as verb

    _choice("--method", method, ("gan", "paste", "procedural"))
    with Bar() as bar:
        made = verb(dataset, factor=_factor(factor), out=out, model=model, method=cast(Method, method),
                    balance=balance, workers=workers, modality=modality, config=config, settings=settings or (),
                    seed=seed or 0, device=device, progress=bar)
    if as_json:
        _print_json({"out": str(made.out), "originals": made.originals, "synthetic": list(made.synthetic),
                     "skipped": dict(made.skipped), "run": str(made.run) if made.run else None, "factor": made.factor,
                     "choice": made.choice.as_json() if made.choice else None, "warnings": list(made.warnings),
                     "hashed_ids": made.hashed_ids})
    else:
        for line in made.choice.lines() if made.choice else ():
            print(line)
        print(f"{made.out}: {made.originals} real cases and {len(made.synthetic)} synthetic ones")
        if made.synthetic:
            print("Ids are hashed in what was made." if made.hashed_ids else
                  "Ids of cases are kept in what was made; --set data.hash_ids=true hashes them.")
        for warning in made.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    _end_with(made.skipped)


@app.command()
def synthesize(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    count: Annotated[int, typer.Option(min=1, help="How many cases.")],
    out: Annotated[Path, typer.Option(help="Where to write them.")],
    label: Annotated[str | None, typer.Option(help="Lesion label or class.")] = None,
    size_mm: Annotated[float | None, typer.Option(help="Equivalent diameter of the lesions, in mm.")] = None,
    config: ConfigFile = None, settings: Settings = None, seed: Seed = None, device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Make cases with a run."""
    from medgan.verbs.synthesize import synthesize as verb

    with Bar() as bar:
        made = verb(run, count, out=out, label=label, size_mm=size_mm, seed=seed or 0, device=device,
                    config=config, settings=settings or (), progress=bar)
    if as_json:
        _print_json({"out": str(out), "cases": [case.record for case in made]})
    else:
        print(f"{out}: {len(made)} synthetic cases; names and records hold the ids of their parents, unless "
              "data.hash_ids=true")
    if len(made) < count:
        print(f"{count - len(made)} of {count} found no place in the tissue", file=sys.stderr)
        raise typer.Exit(EXIT_SKIPPED)


@app.command()
def upsample(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A volume, a DICOM series, or a folder of cases.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A new .nii.gz, or a folder for DICOM or cases.")],
    spacing: Annotated[tuple[float, float, float] | None, typer.Option(help="Wanted spacing in mm.")] = None,
    factor: Annotated[float | None, typer.Option(help="How many times finer, instead of --spacing.")] = None,
    profile: Annotated[str, typer.Option(help="Slice profile: auto, gaussian, rect or sinc.")] = "auto",
    thickness: Annotated[float | None, typer.Option(help="Slice thickness (FWHM) in mm; none: found out.")] = None,
    method: Annotated[str, typer.Option(help="network or linear.")] = "network",
    adapt: Annotated[bool, typer.Option("--adapt", help="Train on the scan's own detail first.")] = False,
    sharpness: Annotated[float, typer.Option(help="0, truest, to 1, sharpest.")] = 0.0,
    model: Annotated[Path | None, typer.Option(help="Run folder; none: the model that ships.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Label map of IN, refined along with it.")] = None,
    labels_out: Annotated[Path | None, typer.Option(help="Where the labels go: a new .nii.gz.")] = None,
    workers: Annotated[int, typer.Option(help="Processes, for a folder of cases.")] = 1,
    config: ConfigFile = None, settings: Settings = None, seed: Seed = None, device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Sharpen a scan, or every one of a folder: thick slices to thin ones, or every axis."""
    from medgan.verbs.upsample import upsample_file
    from medgan.verbs.upsample_folder import is_folder_of_cases, upsample_folder

    _choice("--profile", profile, ("auto", "gaussian", "rect", "sinc"))
    _choice("--method", method, ("network", "linear"))
    if spacing is not None and factor is not None:
        raise Refused("CFG_VALUE", "--spacing", "both a spacing and a factor are given", "Give one of them")
    if (labels is None) != (labels_out is None):
        raise Refused("CFG_VALUE", "--labels", "a label map needs an output of its own",
                      "Give both --labels and --labels-out, or neither")
    options: dict[str, Any] = {
        "spacing": spacing, "factor": factor, "profile": profile, "thickness": thickness, "method": method,
        "adapt": adapt, "sharpness": sharpness, "model": model, "device": device or "auto", "seed": seed or 0,
        "config": config, "settings": settings or (),
    }  # fmt: skip
    if is_folder_of_cases(source):
        if labels is not None:
            raise Refused("CFG_VALUE", f"--labels {labels}", f"{source} is a folder of cases, whose own masks are "
                          "refined", "Leave it out, or give one volume")
        with Bar() as bar:
            made = upsample_folder(source, target, workers=workers, progress=bar, **options)
        _print_folder(made, as_json)
        return
    if workers != 1:
        raise Refused("CFG_VALUE", f"--workers {workers}", "one volume is done by one process", "Leave it out")
    with Bar() as bar:
        told = upsample_file(source, target, labels=labels, labels_target=labels_out, maps=as_json, progress=bar,
                             **options)
    if as_json:
        _print_json({"out": str(target), **told.scalars()})
    else:
        print(f"{target}: {' x '.join(f'{mm:.4g}' for mm in told.spacing_mm)} mm, {told.method} method")
        for warning in told.warnings:
            print(f"warning: {warning}", file=sys.stderr)


def _factor(text: str) -> float | Literal["auto"]:
    """A factor from the command line."""
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise Refused("FACTOR_RANGE", f"--factor {text}", "it is neither a number nor auto",
                      "2 doubles the number of training cases") from None


@app.command()
def fill(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A volume or a DICOM series.")],
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="What to replace: every voxel of it that is not 0.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A new .nii.gz, or a folder for DICOM.")],
    model: Annotated[Path | None, typer.Option(help="Lesion run; none, with gan: the newest in runs/.")] = None,
    method: Annotated[str, typer.Option(help="auto, gan, tissue or smooth.")] = "auto",
    margin: Annotated[float, typer.Option(help="Replace so many mm around the mask with it.")] = 0.0,
    modality: Annotated[str | None, typer.Option(help="ct, mr, xray or us, where IN does not say.")] = None,
    config: ConfigFile = None, settings: Settings = None, seed: Seed = None, device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Replace missing or unwanted tissue: missing slices, an artefact, a lesion."""
    from medgan.verbs.fill import fill_file

    _choice("--method", method, ("auto", "gan", "tissue", "smooth"))
    with Bar() as bar:
        told = fill_file(source, mask, target, model=model, method=method, margin=margin, modality=modality,
                         seed=seed or 0, device=device, config=config, settings=settings or (), progress=bar)
    if as_json:
        _print_json({"out": str(target), **told.scalars()})
    else:
        print(f"{target}: {told.summary}")
        for warning in told.warnings:
            print(f"warning: {warning}", file=sys.stderr)


def _print_folder(made: FolderReport, as_json: bool) -> None:
    if as_json:
        _print_json({"out": str(made.out), "done": list(made.done), "skipped": dict(made.skipped),
                     "table": str(made.table)})
    else:
        print(f"{made.out}: {len(made.done)} of {len(made.done) + len(made.skipped)} cases, described in {made.table}")
    _end_with(made.skipped)


def _end_with(skipped: Mapping[str, str]) -> None:
    """Names the cases that were skipped, and ends with the exit code that says so."""
    for case, why in skipped.items():
        print(f"skipped {case}: {why}", file=sys.stderr)
    if skipped:
        raise typer.Exit(EXIT_SKIPPED)


@app.command()
def evaluate(
    real: Annotated[Path, typer.Argument(help="Real data set.")],
    synthetic: Annotated[Path, typer.Argument(help="What augment or synthesize wrote, or any synthetic data set.")],
    heldout: Annotated[Path | None, typer.Option(help="Real images of other patients; none: REAL's own split.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder; none: SYNTHETIC-evaluation.")] = None,
    modality: Annotated[str | None, typer.Option(help="ct, mr, xray or us.")] = None,
    config: ConfigFile = None, settings: Settings = None, seed: Seed = None, device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Say whether synthetic images are like real ones, as varied, copies, and of use."""
    from medgan.verbs.evaluate import evaluate as verb

    with Bar() as bar:
        found = verb(real, synthetic, heldout=heldout, out=out, modality=modality, config=config,
                     settings=settings or (), seed=seed, device=device, progress=bar)
    if as_json:
        _print_json(found.summary())
    else:
        for line in found.lines():
            print(line)
        print(f"Report: {found.report}")
        for warning in found.figures["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)


@app.command()
def inspect(path: Annotated[Path, typer.Argument(help="Volume, series, data set or run.")],
            pictures: Annotated[Path | None, typer.Option(help="For a run: a folder for pictures of what it has "
                                                          "learned.")] = None,
            config: ConfigFile = None, settings: Settings = None, seed: Seed = None, as_json: AsJson = False) -> None:
    """Say what a path is and what is wrong with it; of a run, draw what it has learned."""
    from medgan.verbs.inspect import inspect as verb

    found = verb(path, config=config, settings=settings or ())
    drawn = _pictures(path, pictures, seed) if pictures is not None and found.status != "refused" else {}
    if as_json:
        _print_json(found.as_json() | ({"pictures": drawn} if drawn else {}))
    else:
        print(f"{path}: {found.kind}, {found.status}")
        for key, value in found.summary.items():
            print(f"  {key}: {value}")
        for volume in found.volumes:
            print("  " + ", ".join(f"{name} {value}" for name, value in volume.items()))
        for note in found.notes:
            fix = f". {note['fix']}." if note["fix"] else ""
            print(f"  {note['level']}[{note['code']}] {note['where']}: {note['why']}{fix}")
        for name in drawn.get("files", ()):
            print(f"  picture: {pictures / name if pictures else name}")
    for text in drawn.get("notes", ()):
        print(f"warning: {text}", file=sys.stderr)
    if found.status == "refused":
        raise typer.Exit(EXIT_REFUSED)


def _pictures(path: Path, out: Path, seed: int | None) -> dict[str, Any]:
    from medgan.verbs.pictures import pictures

    with Bar() as bar:
        drawn = pictures(path, out, seed=seed or 0, progress=bar)
    return {"out": str(out), "files": drawn.files, "figures": drawn.figures, "notes": drawn.notes}


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(context: typer.Context,
        pipeline: Annotated[str, typer.Argument(help="lesion_classifier, or a .py file.")]) -> None:
    """Run a pipeline; what follows -- goes to it."""
    from medgan.verbs.run import run_pipeline

    run_pipeline(pipeline, context.args)


def main() -> None:
    """Entry point: verbs' refusals and interruptions become messages and exit codes."""
    # Threads that spin while they wait make training ten times slower where other programs want the cores too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        # Schedulers ask for an end in this way; it is Ctrl-C to all that follows.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except Refused as refused:
        print(refused, file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # everything is said: another one ends it without a word
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit as ended:
        # Typer ends the program without a word when Ctrl-C reaches it.
        if ended.code == EXIT_INTERRUPTED:
            print("interrupted twice: stopped at once; what was finished is kept" if _again(ended)
                  else "interrupted before there was anything to save", file=sys.stderr)
        raise
    except OSError as error:
        # A full disk or a lost mount is the user's to mend, and no traceback helps with it.
        print(f"error: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except (MemoryError, RuntimeError) as error:
        from medgan.learning.accumulation import out_of_memory

        if not out_of_memory(error):
            raise
        print("error: memory did not suffice. Give smaller images or crops, fewer --workers, or a larger machine",
              file=sys.stderr)
        sys.exit(EXIT_FAILED)


def _again(ended: BaseException) -> bool:
    """Whether the interruption that ended the program came while an earlier one was being handled."""
    count, error = 0, ended.__context__
    while error is not None:
        count += isinstance(error, (KeyboardInterrupt, Interrupted))
        error = error.__context__
    return count > 1


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                help="Print the version.")] = False) -> None:
    pass


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise Refused("CFG_VALUE", f"{name} {value}", "there is no such choice", f"Use one of {', '.join(known)}")


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
