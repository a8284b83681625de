"""Whether synthetic lesions help a small classifier, on the real data sets of docs/does-it-help.md.

    python benchmarks/lesion_classifier.py --data ../shared/data --out runs/does-it-help

Runs the pipeline `lesion_classifier` for each study and prints a row for each comparison: the difference of AUROC
on held-back patients and its 95 % interval. What follows `--` goes to the pipeline.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medgan.verbs.run import run_pipeline

#: Study -> the data set, and what else the pipeline is asked for; "{data}" is the folder of all data sets.
STUDIES = {
    "glioma": ("glioma", "--heldout {data}/glioma-other --test-patients 1 --minutes 4"),
    "glioma-few": ("glioma", "--heldout {data}/glioma-other --train-patients 1 --minutes 3 --steps 150"),
    "ms": ("ms", "--test-patients 1 --minutes 4 --size 96 --steps 200"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, required=True, help="gets a folder for each study")
    parser.add_argument("--only", choices=sorted(STUDIES), help="one of the studies")
    parser.add_argument("more", nargs="*", help="further arguments of the pipeline, after --")
    arguments = parser.parse_args()
    chosen = [arguments.only] if arguments.only else list(STUDIES)
    for name in chosen:
        dataset, asked = STUDIES[name]
        try:
            run_pipeline("lesion_classifier", [str(arguments.data / dataset),
                                               *(part.format(data=arguments.data) for part in asked.split()), "--out",
                                               str(arguments.out / name), *arguments.more])
        except SystemExit as ended:
            if ended.code:
                raise
    for name in chosen:
        report = json.loads((arguments.out / name / "report.json").read_text(encoding="utf-8"))
        for test, found in report["tests"].items():
            real = found["arms"]["real"]["auroc"]["mean"]
            print(f"\n{name}, {test}: {found['patients']} patients, {found['images']} slices, real alone {real:.3f}")
            for pair, change in found["differences"].items():
                value = change["auroc"]
                print(f"  {pair:24} {value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]")


if __name__ == "__main__":
    main()
