"""Peak memory of augmenting a 240 x 240 x 155 case with two channels, by each method.

    python benchmarks/memory.py [--data ../shared/data/glioma] [--methods gan paste procedural]

Each method runs in a process of its own, which makes one synthetic case from a data set of one case; its peak
resident memory is read when it has ended. Without the glioma data a phantom of that size stands in. The generator
is trained for a few steps only, in one more process, since its size and not its skill decides.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: What a method may take, in bytes.
LIMIT = 4 * 2**30
SHAPE = (240, 240, 155)
GLIOMA = Path(__file__).parents[2] / "shared" / "data" / "glioma"
TRAINING = ["training.images=64", "training.report_images=64", "training.batch=16"]


def main() -> None:
    """Prints a row for each method; ends with 1 where one is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=GLIOMA if GLIOMA.is_dir() else None)
    parser.add_argument("--methods", nargs="+", default=["gan", "paste", "procedural"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = one_case(arguments.data, work / "data") if arguments.data else phantom(work / "data")
        print(f"{arguments.data or 'phantom'}: one case, {' x '.join(map(str, SHAPE))} voxels, two channels")
        settings = [text for setting in TRAINING for text in ("--set", setting)]
        over = row("train", ["train", str(data), "--modality", "mr", "--out", str(work / "run"), *settings])
        for method in arguments.methods:
            model = ["--model", str(work / "run")] if method == "gan" else ["--modality", "mr"]
            over |= row(method, ["augment", str(data), "--method", method, "--out", str(work / method), *model])
    sys.exit(over)


def row(name: str, arguments: list[str]) -> bool:
    """Runs medgan in a fresh process and prints its peak; True where it is over the limit."""
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "medgan.cli", *arguments], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"medgan {' '.join(arguments)} ended with status {os.waitstatus_to_exitcode(status)}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{name:12} {peak / 2**30:.2f} GiB, {peak / LIMIT:.2f} of the limit, {time.monotonic() - started:.0f} s")
    return peak > LIMIT


def one_case(source: Path, target: Path) -> Path:
    """The nnU-Net data set `source` cut down to its first case, which must have the size this is about."""
    import nibabel

    label = min((source / "labelsTr").glob("*.nii.gz"))
    if nibabel.load(label).shape != SHAPE:
        raise SystemExit(f"{label} is not of {SHAPE} voxels")
    case = label.name.removesuffix(".nii.gz")
    for path in (label, *sorted((source / "imagesTr").glob(f"{case}_*.nii.gz"))):
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.parent.name / path.name)
    shutil.copyfile(source / "dataset.json", target / "dataset.json")
    return target


def phantom(target: Path) -> Path:
    """One MR phantom of that size, its image twice as the two channels."""
    from medgan.datasets.phantoms import write_phantoms

    write_phantoms(target, "mr", count=1, seed=0, shape=SHAPE)
    first = min((target / "imagesTr").glob("*_0000.nii.gz"))
    shutil.copyfile(first, first.with_name(first.name.replace("_0000.nii.gz", "_0001.nii.gz")))
    description = json.loads((target / "dataset.json").read_text())
    description["channel_names"] = {"0": "FLAIR", "1": "T1"}
    (target / "dataset.json").write_text(json.dumps(description))
    return target


if __name__ == "__main__":
    main()
