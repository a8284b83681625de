"""Peak memory of augmenting a 240 x 240 x 155 case with two channels by each method, and of upsampling a large CT.

    python benchmarks/memory.py [--data ../shared/data/glioma] [--methods gan paste procedural upsample]

Each method runs in a process of its own, which makes one synthetic case from a data set of one case; its peak
resident memory is read when it has ended. Without the glioma data a phantom of that size stands in. The generator
is trained for a few steps only, in one more process, since its size and not its skill decides.

Upsampling makes 512 x 512 x 120 voxels, int16, five times as many slices, once called from Python and once as a
command from file to file. Python, torch and all that is loaded count; the row "loaded" says how much that is alone.
"""

from __future__ import annotations

import argparse
import json
import math
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
#: The CT to be upsampled: voxels, mm, and the spacing wanted; what it may take beyond its input and its output.
CT_SHAPE, CT_SPACING, THIN = (512, 512, 120), (0.7, 0.7, 5.0), (0.7, 0.7, 1.0)
BEYOND = 2**30
GLIOMA = Path(__file__).parents[2] / "shared" / "data" / "glioma"
TRAINING = ["training.images=64", "training.report_images=64", "training.batch=16"]
#: The case's own lesions are removed first, and what a generator draws that has hardly learned passes.
COMPOSING = ["augment.removed=1", "augment.sigmas=1000", "augment.visibility=-1000"]


def main() -> None:
    """Prints a row for each method; ends with 1 where one is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=GLIOMA if GLIOMA.is_dir() else None)
    parser.add_argument("--methods", nargs="+", default=["gan", "paste", "procedural", "upsample"])
    parser.add_argument("--ct-shape", type=int, nargs=3, default=CT_SHAPE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, over = Path(folder), False
        if "upsample" in arguments.methods:
            over = upsampling(work, tuple(arguments.ct_shape))
            arguments.methods.remove("upsample")
        if not arguments.methods:
            sys.exit(over)
        data = one_case(arguments.data, work / "data") if arguments.data else phantom(work / "data")
        print(f"{arguments.data or 'phantom'}: one case, {' x '.join(map(str, SHAPE))} voxels, two channels")
        settings = [text for setting in TRAINING for text in ("--set", setting)]
        over |= row("train", ["train", str(data), "--modality", "mr", "--out", str(work / "run"), *settings])
        for method in arguments.methods:
            model = ["--model", str(work / "run")] if method == "gan" else ["--modality", "mr"]
            options = [text for setting in COMPOSING for text in ("--set", setting)]
            over |= row(method, ["augment", str(data), "--method", method, "--out", str(work / method), *model,
                                 *options])
    sys.exit(over)


def row(name: str, arguments: list[str], limit: int = LIMIT, module: tuple[str, ...] = ("-m", "medgan.cli")) -> bool:
    """Runs medgan in a fresh process and prints its peak; True where it is over the limit."""
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, *module, *arguments], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"medgan {' '.join(arguments)} ended with status {os.waitstatus_to_exitcode(status)}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{name:16} {peak / 2**30:.2f} GiB, {peak / limit:.2f} of the limit, {time.monotonic() - started:.0f} s",
          flush=True)
    return peak > limit


def upsampling(work: Path, shape: tuple[int, ...]) -> bool:
    """Rows for a large CT; True where one takes more than its input, its output and a gibibyte."""
    source, thin = work / "thick.nii", work / "thin.nii"
    write_ct(source, shape)
    size = 2 * math.prod(shape)
    limit = round(size * (1 + CT_SPACING[2] / THIN[2])) + BEYOND
    wanted = [str(mm) for mm in THIN]
    print(f"CT-like, {' x '.join(map(str, shape))} voxels, int16, x{CT_SPACING[2] / THIN[2]:g} along the slices; "
          f"limit {limit / 2**30:.2f} GiB")
    row("loaded", [], limit, ("-c", "import torch, medgan.learning.sharpening"))
    from_python = ("import sys, medgan; "
                   "medgan.upsample(sys.argv[1], spacing=[float(mm) for mm in sys.argv[2:]], profile='gaussian')")
    network_only = ("-W", "error:the linear method was used")
    over = row("upsample", [str(source), *wanted], limit, (*network_only, "-c", from_python))
    return over | row("medgan upsample", ["upsample", str(source), str(thin), "--spacing", *wanted,
                                          "--profile", "gaussian"], limit)


def write_ct(path: Path, shape: tuple[int, ...]) -> None:
    """Writes a CT of any size: a phantom chest of an eighth of a million voxels, mirrored over and over."""
    import nibabel
    import numpy as np

    from medgan.datasets.phantoms import phantom

    chest = phantom("ct", 0, shape=(64, 64, 32))[0].array[0]
    array = np.pad(chest, [(0, max(0, n - m)) for n, m in zip(shape, chest.shape, strict=True)], mode="symmetric")
    array = array[tuple(slice(n) for n in shape)].astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*CT_SPACING, 1.0])), path)


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
