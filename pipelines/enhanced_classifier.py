"""Does up-sampling thick-slice scans help the model that is trained on them? Measured on people held back.

    medgan run enhanced_classifier -- DATASET [--axis 2] [--factor 4] [--profile gaussian] [--pairs] [--out DIR]

Sharp volumes are scanned again with thick slices and made fine again in several ways. The same small U-Net is trained
on each version and asked, on people held back, for the masks that were drawn on the sharp volumes; the networks trained
on sharp volumes are also asked about every version. Writes report.md, report.json, scores.csv and slices.png.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from numpy.typing import NDArray
from scipy import ndimage

import medgan
from medgan.config import Config
from medgan.datasets.cases import Case
from medgan.datasets.layouts import open_dataset
from medgan.datasets.phantoms import write_phantoms
from medgan.datasets.splits import patient_key
from medgan.datasets.subset import divisions
from medgan.datasets.tables import write_table
from medgan.errors import Refused
from medgan.imaging.acquisition import simulate
from medgan.imaging.intensity import intensity_maps
from medgan.imaging.slices import PROFILES, Profile
from medgan.imaging.volume import Volume
from medgan.learning.loop import pick_device
from medgan.lesions.scans import open_scan
from medgan.metrics import segmentation as seg
from medgan.reports.enhancement import ARMS, markdown, verdict
from medgan.reports.sheets import grey, outlined, save, sheet
from medgan.storage import write_json, write_text

#: Which arms are compared.
COMPARED = (("network", "thick"), ("network", "cubic"), ("network", "linear"), ("linear", "thick"),
            ("linear", "cubic"), ("cubic", "thick"), ("thick", "original"), ("network", "original"))
#: The two questions: a network for each version, and the sharp volumes' network for all of them.
OWN, APPLIED = "trained and tested on the same version", "trained on original volumes and applied to each version"
ASKED = {arm: tuple(ARMS) if arm == "original" else (arm,) for arm in ARMS}
#: Phantoms that stand in for a data set: how many, and their shape.
PHANTOMS, PHANTOM_SHAPE = 6, (48, 56, 32)
#: What --quick puts in place of seeds, steps and crop: half a minute on a core.
QUICK = (1, 150, 16)
#: Two steps between stored values are the same where they differ by less than this part.
SAME_STEP = 1e-4
#: Stands for the number of a case that has none; not one less than any number.
NO_NUMBER = -9
#: Voxels shown around the labelled ones, and the enlargement.
MARGIN, ZOOM = 6, 4

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    dataset: Annotated[Path | None, typer.Argument(help="Sharp volumes with masks; none: phantoms.")] = None,
    axis: Annotated[int, typer.Option(min=0, max=2, help="To thin: 0 sagittal, 1 coronal, 2 axial slices.")] = 2,
    factor: Annotated[int, typer.Option(min=2, max=8, help="How many times thicker the slices become.")] = 4,
    profile: Annotated[str, typer.Option(help="Slice profile: gaussian, rect or sinc; medgan is told.")] = "gaussian",
    pairs: Annotated[bool, typer.Option("--pairs", help="Two cases numbered one after the other whose values have "
                                        "the same step are one person's, as left and right are.")] = False,
    folds: Annotated[int, typer.Option(min=2, help="Every person is held back in one of them.")] = 2,
    seeds: Annotated[int, typer.Option(min=1, help="Networks for each arm and fold.")] = 4,
    steps: Annotated[int, typer.Option(min=2, help="Optimiser steps of every network.")] = 250,
    crop: Annotated[int, typer.Option(min=8, help="Edge of the training patches, in voxels.")] = 32,
    model: Annotated[Path | None, typer.Option(help="A run of the task upscale; none: what ships.")] = None,
    modality: Annotated[str | None, typer.Option(help="ct or mr.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the division and the networks.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="A trial: one seed, small patches.")] = False,
    out: Annotated[Path, typer.Option(help="A new folder.")] = Path("enhanced-classifier"),
) -> None:
    """Measure whether up-sampling thick-slice scans helps a small segmentation network on held-back people."""
    if profile not in PROFILES:
        raise Refused("CFG_VALUE", "--profile", f"{profile!r} is not one of {', '.join(PROFILES)}", "Name one of them")
    if out.exists() and any(out.iterdir()):
        raise Refused("OUT_EXISTS", out, "there is something already", "Choose another --out")
    if dataset is None:
        dataset = write_phantoms(out / "phantoms", cast(Any, modality or "mr"), count=PHANTOMS, seed=seed,
                                 shape=PHANTOM_SHAPE)
    seeds, steps, crop = QUICK if quick else (seeds, steps, crop)
    real = open_dataset(dataset)
    if (modality := modality or real.modality) is None:
        raise Refused("CFG_VALUE", "--modality", f"{dataset} does not say which modality it is", "Name it")
    config = Config.resolve(cast(Any, modality), "lesion", seed=seed, device=device)
    cases = [replace(case, split="train") for case in real.cases if case.mask is not None and not case.synthetic]
    if not cases:
        raise Refused("DATASET_EMPTY", dataset, "none of its cases has a mask", "Give volumes with masks")
    names = [name for value, name in sorted(real.labels.items()) if value]
    known: dict[str, dict[str, seg.Labelled]] = {}
    value_steps, told, near = [], [], []
    for number, case in enumerate(cases, 1):
        scan = open_scan(real, case, config)
        if scan.planar:
            raise Refused("DIM_UNSUPPORTED", case.images[0], "a 2D image has no slices to make thicker", "Give volumes")
        made, said = versions(scan.volume, axis, factor, profile, model=model, device=device)
        # What is made from a thick scan keeps that scan's range, so that ringing does not move it.
        ranges = {arm: intensity_maps(made["original" if arm == "original" else "thick"], config.intensity)
                  for arm in ARMS}
        known[case.id] = {arm: seg.Labelled(np.stack([m.forward(channel, np.float32) for m, channel in
                                                      zip(ranges[arm], made[arm], strict=True)]), scan.labels)
                          for arm in ARMS}
        near.append([_psnr(made[arm], made["original"]) for arm in ARMS if arm != "original"])
        value_steps.append(value_step(scan.volume.array))
        told.append(said)
        _say(f"{number} of {len(cases)}: {case.id} scanned again and made fine")
    cases = paired(cases, value_steps) if pairs else cases
    people = len({patient_key(case) for case in cases})
    parts = divisions(cases, max(1, round(people / folds)), seed=seed)
    scored, blind = [], []
    pictures: list[tuple[str, list[NDArray[Any]]]] = []
    for number, (training, held_back) in enumerate(parts):
        _say(f"fold {number + 1} of {len(parts)}: {len(held_back)} volumes held back")
        tests = {arm: [known[case.id][arm] for case in held_back] for arm in ARMS}
        found, shown = seg.score_arms(
            {arm: [known[case.id][arm] for case in training] for arm in ARMS}, tests, ASKED, len(names), steps=steps,
            seeds=[1000 * number + n for n in range(seeds)], crop=crop, device=str(pick_device(device)), tell=_say)
        scored.append(found)
        maps = [known[case.id]["original"].labels for case in training]
        blind += [seg.dice(seg.place_alone(maps, test.labels.shape, len(names)), test.labels, len(names))
                  for test in tests["original"]]
        pictures = pictures or [_row(arm, tests[arm][0], shown[arm, arm], axis) for arm in ARMS]
    order = [case for _, held_back in parts for case in held_back]
    scores = {question: {arm: np.concatenate([part[arm if question == OWN else "original", arm] for part in scored], 1)
                         for arm in ARMS} for question in (OWN, APPLIED)}
    tested = {question: seg.compare_dice(arms, [patient_key(case) for case in order], names, COMPARED, seed=seed)
              for question, arms in scores.items()}
    report = {
        "medgan": medgan.__version__,
        "command": shlex.join(["medgan", "run", "enhanced_classifier", "--", *sys.argv[1:]]),
        "data": {"name": real.root.resolve().name, "fingerprint": real.fingerprint(), "volumes": len(cases),
                 "people": people, "labels": names, "pairs": pairs,
                 "held_back": [sorted({patient_key(case) for case in held}) for _, held in parts]},
        "thinned": {"axis": axis, "factor": factor, "profile": profile},
        "model": next((said.model for said in told if said.model), None),
        "uncovered": sum(said.method != "network" for said in told),
        "warnings": sorted({text for said in told for text in said.warnings}),
        "network": {"seeds": seeds, "steps": steps, "crop": crop, "batch": seg.BATCH, "quick": quick},
        "psnr_db": dict(zip((arm for arm in ARMS if arm != "original"), np.mean(near, axis=0).tolist(), strict=True)),
        "place_alone": {name: float(value) for name, value in zip(names, seg.known_mean(np.transpose(blind)),
                                                                   strict=True) if np.isfinite(value)},
        "tests": tested, "verdict": {question: verdict(question, test) for question, test in tested.items()},
    }
    write_json(out / "report.json", report)
    write_text(out / "report.md", markdown(report))
    write_table(out / "scores.csv", ("test", "arm", "seed", "case", "person", "label", "dice"),
                _rows(scores, order, names))
    save(sheet(pictures, zoom=ZOOM), out / "slices.png")
    typer.echo(f"{out / 'report.md'}\n" + "\n".join(verdict(*item) for item in tested.items()))


def versions(volume: Volume, axis: int, factor: int, profile: Profile, **options: Any
             ) -> tuple[dict[str, NDArray[Any]], Any]:
    """A volume, scanned again with thick slices and made fine again in every way; and what `upsample` said."""
    lacking = [-length % factor if a == axis else 0 for a, length in enumerate(volume.shape)]
    whole = np.pad(volume.array, [(0, 0), *((0, n) for n in lacking)], mode="edge")
    thick = simulate(replace(volume, array=whole.astype(np.float32)), axis=axis,
                     spacing_mm=factor * volume.spacing_mm[axis], profile=profile)
    finer: dict[str, Any] = {"factor": [factor if a == axis else 1 for a in range(3)], "profile": profile}
    network, said = medgan.upsample(thick, **finer, **options, method="network", report=True,
                                    maps=False)
    made = {
        "thick": thick.array.repeat(factor, axis=axis + 1),
        "cubic": np.stack([spline(channel, axis, factor) for channel in thick.array]),
        "linear": medgan.upsample(thick, **finer, method="linear").array,
        "network": network.array,
        "original": volume.array,
    }
    return {arm: made[arm][(slice(None), *(slice(n) for n in volume.shape))] for arm in ARMS}, said


def spline(array: NDArray[Any], axis: int, factor: int) -> NDArray[Any]:
    """(X, Y, Z) made finer by a cubic spline; the outer edges of both grids coincide."""
    matrix, offset, shape = np.ones(3), np.zeros(3), list(array.shape)
    matrix[axis], offset[axis], shape[axis] = 1 / factor, (1 / factor - 1) / 2, array.shape[axis] * factor
    return np.asarray(ndimage.affine_transform(array, matrix, offset, tuple(shape), order=3, mode="nearest"))


def value_step(array: NDArray[Any]) -> float:
    """The step between stored values, which a scan's own scaling gives; 1 for integers."""
    if array.dtype.kind != "f":
        return 1.0
    steps = np.diff(np.unique(array))
    # What is far smaller is rounding.
    return float(steps[steps > 1e-3 * steps.max()].min()) if steps.size else 0.0


def paired(cases: Sequence[Case], steps: Sequence[float]) -> list[Case]:
    """The cases with neighbours of the same step made one person's, two at most."""
    result = list(cases)
    for n in range(1, len(cases)):
        before, here = (int("".join(re.findall(r"\d+", case.id)[-1:]) or NO_NUMBER) for case in cases[n - 1 : n + 1])
        if (here == before + 1 and abs(steps[n] - steps[n - 1]) < SAME_STEP * steps[n]
                and result[n - 1].patient == cases[n - 1].patient):
            result[n] = replace(cases[n], patient=patient_key(cases[n - 1]))
    return result


def _row(arm: str, volume: seg.Labelled, found: NDArray[Any], axis: int) -> tuple[str, list[NDArray[Any]]]:
    """A cut along the thinned axis: the image, with the drawn masks, with those found."""
    cut = 0 if axis else 2
    places = np.argwhere(volume.labels)
    low, high = (places.min(0), places.max(0) + 1) if len(places) else (np.zeros(3, int), volume.labels.shape)
    box: list[Any] = [slice(max(0, int(a) - MARGIN), int(b) + MARGIN) for a, b in zip(low, high, strict=True)]
    box[cut] = int(np.median(places[:, cut])) if len(places) else volume.labels.shape[cut] // 2
    image, drawn, maps = volume.image[0][tuple(box)], volume.labels[tuple(box)], found[tuple(box)]
    return ARMS[arm], [grey(image), outlined(image, drawn), outlined(image, maps)]


def _psnr(array: NDArray[Any], original: NDArray[Any]) -> float:
    """In dB, over the original's range from the 0.1 to the 99.9 percentile."""
    low, high = np.percentile(original, [0.1, 99.9])
    error = np.square(array.astype(np.float64) - original).mean()
    return float(10 * np.log10(max(high - low, 1e-12) ** 2 / max(error, 1e-12)))


def _rows(scores: Mapping[str, Mapping[str, NDArray[Any]]], order: Sequence[Case], names: Sequence[str]
          ) -> Iterator[dict[str, object]]:
    for test, arms in scores.items():
        for arm, values in arms.items():
            for (seed, n, label), value in np.ndenumerate(values):
                yield {"test": test, "arm": arm, "seed": seed, "case": order[n].id, "person": patient_key(order[n]),
                       "label": names[label], "dice": f"{value:.6f}"}


def _say(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    app()
