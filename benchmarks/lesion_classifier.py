"""Whether synthetic lesions help a small segmenter and classifier, on the data sets of docs/does-it-help.md.

    python benchmarks/lesion_classifier.py --data ../shared/data --out runs/does-it-help [--only glioma-1] [-- MORE]

Runs the pipeline `lesion_classifier` for each study and prints a row for each comparison: the difference on held-back
patients, its 95 % interval, and the smallest difference that 8 of 10 such studies would show. What follows `--` goes to
the pipeline, such as `--seeds 16` or `--only-fold 1`; a study that was stopped goes on. Studies by patients need at
least two, so the one case of `lung-nodule` makes none, and the scans of `ct` have no masks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medgan.datasets.layouts import open_dataset
from medgan.datasets.phantoms import write_phantoms
from medgan.imaging.geometry import reorient, resample
from medgan.imaging.nifti import write_nifti
from medgan.imaging.volume import Volume
from medgan.reports.comparison import MEASURES, primary
from medgan.storage import write_json
from medgan.verbs.run import run_pipeline

#: Grid of the glioma studies, in mm: lesions as large as these lose nothing by it, and all takes an eighth of the time.
GLIOMA_MM = 2.0
#: CT phantoms to train on and to test on, and their seeds; their masks label these organs too.
PHANTOMS = {"phantoms": (4, 0), "phantoms-test": (40, 1_000_000)}
ORGANS = ("lung", "liver")
#: What every study asks for: generators of so many crops, however fast the machine is, and segmenters that see enough
#: to learn all they will of few real images.
COMMON = "--factor 4 --seeds 8 --steps 1000 --no-classifier --device cpu --set training.images=12000"


@dataclass(frozen=True)
class Study:
    """A data set and what the pipeline is asked for.

    Args:
        dataset: A folder of --data, or one of `PHANTOMS`.
        heldout: Another one, to test on.
        asked: Further arguments.
        spacing_mm: Of the grid that the data are put on first; None: their own.
    """

    dataset: str
    heldout: str | None
    asked: str
    spacing_mm: float | None = None


STUDIES = {
    "glioma-1": Study("glioma", "glioma-other", "--train-patients 1", GLIOMA_MM),
    "glioma-2": Study("glioma", "glioma-other", "--train-patients 2", GLIOMA_MM),
    "glioma-2b": Study("glioma", "glioma-other", "--train-patients 2 --seed 1", GLIOMA_MM),
    "glioma-3": Study("glioma", "glioma-other", "--test-patients 1", GLIOMA_MM),
    "glioma-4": Study("glioma", "glioma-other", "--test-patients 0 --seeds 16", GLIOMA_MM),
    "ms": Study("ms", None, "--train-patients 1 --steps 2000"),
    "phantoms-4": Study("phantoms", "phantoms-test", "--modality ct --test-patients 0 "
                        f"--set data.organs={json.dumps(ORGANS, separators=(',', ':'))}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, required=True, help="gets a folder for each study")
    parser.add_argument("--only", choices=sorted(STUDIES), action="append", help="one of the studies; may be repeated")
    parser.add_argument("more", nargs="*", help="further arguments of the pipeline, after --")
    arguments = parser.parse_args()
    for name in arguments.only or STUDIES:
        study = STUDIES[name]
        places = [str(prepared(which, study.spacing_mm, arguments.data, arguments.out / "data"))
                  for which in (study.dataset, study.heldout) if which is not None]
        try:
            run_pipeline("lesion_classifier", [
                places[0], *(word for place in places[1:] for word in ("--heldout", place)), *COMMON.split(),
                *study.asked.split(), "--out", str(arguments.out / name), *arguments.more])
        except SystemExit as ended:
            if ended.code:
                raise
        report = arguments.out / name / "report.json"
        if report.is_file():
            print("\n".join(rows(name, json.loads(report.read_text(encoding="utf-8")))))


def prepared(name: str, spacing_mm: float | None, data: Path, out: Path) -> Path:
    """Where a study's data set is: phantoms are made, and a coarser grid is written once."""
    if name in PHANTOMS:
        count, seed = PHANTOMS[name]
        there = out / name
        return there if (there / "dataset.json").is_file() else write_phantoms(
            there, "ct", count=count, seed=seed, organs=ORGANS)
    if spacing_mm is None:
        return data / name
    there = out / f"{name}-{spacing_mm:g}mm"
    return there if (there / "dataset.json").is_file() else on_grid(data / name, spacing_mm, there)


def on_grid(source: Path, spacing_mm: float, out: Path) -> Path:
    """Writes a data set of volumes with masks on a coarser grid, all channels, in the nnU-Net layout."""
    dataset = open_dataset(source)
    for case in dataset.cases:
        image, mask = dataset.load(case)
        assert mask is not None
        image, mask = (resample(reorient(volume), [spacing_mm] * 3, order=order)
                       for volume, order in ((image, 1), (mask, 0)))
        for number in range(image.channels):
            write_nifti(_alone(image, number), out / "imagesTr" / f"{case.id}_{number:04d}.nii.gz")
        write_nifti(mask, out / "labelsTr" / f"{case.id}.nii.gz")
    # Written last: what lacks it is not whole.
    write_json(out / "dataset.json", {
        "name": source.name, "channel_names": {str(n): name for n, name in enumerate(dataset.channels)},
        "labels": {"background": 0} | {name: value for value, name in dataset.labels.items() if value},
        "numTraining": len(dataset.cases),
        "file_ending": ".nii.gz"})
    return out


def _alone(image: Volume, channel: int) -> Volume:
    return replace(image, array=image.array[channel : channel + 1])


def rows(name: str, report: Mapping[str, Any]) -> list[str]:
    """What is printed of a study."""
    lines = []
    for test, found in report["tests"].items():
        measure = primary(found)
        real = found["arms"]["real"][measure]["mean"]
        lines += ["", f"{name}, {test}: {found['patients']} patients; {MEASURES[measure]}, real {real:.3f}"]
        for pair, change in found["differences"].items():
            value = change[measure]
            lines.append(f"  {pair:24} {value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]  "
                         f"detectable {value['detectable']:.3f}")
    return lines


if __name__ == "__main__":
    main()
