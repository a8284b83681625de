"""Trains the two ends of the up-sampling model that ships with medgan, on CC0 and CC BY images and phantoms only.

    python benchmarks/train_upscale.py --data ../shared/data --out runs/upscale --images 800000
    python benchmarks/train_upscale.py --data ../shared/data --out runs/upscale-sharp --images 40000 \\
        --sharp runs/upscale

The first trains for fidelity alone; the second goes on from it with a discriminator. The results are copied to
`medgan/weights/upscale.*` and `medgan/weights/upscale-sharp.*`; the model cards beside them are written by hand. What
`benchmarks/upsample.py` measures on is left out: subjects 01 and 02, MS patient 26, all gliomas, two of the CTs.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import medgan
from medgan.config import Config
from medgan.datasets.phantoms import phantom
from medgan.imaging.volume import Volume
from medgan.learning import checkpoints
from medgan.learning.loop import State, train
from medgan.learning.tasks.upscale import UpscaleTask
from medgan.learning.tasks.upscale_source import UpscaleSource
from medgan.reports.sheets import save

#: Path below the data folder, and how often it is drawn: the one FLAIR scan as often as three T1 scans.
SCANS = (
    *((f"brain-t1/sub-{n:02d}/anat/sub-{n:02d}_T1w.nii.gz", 1) for n in range(3, 9)),
    ("ms/imagesTr/ms_07.nii.gz", 3), ("ct/lungfcp_native.nii.gz", 1), ("ct/lidcpilot_native.nii.gz", 1),
    ("lung-nodule/imagesTr/lidc_0001.nii.gz", 1),
)
#: Modality and seeds of the phantoms that are mixed in, so that not everything looks like these scanners' heads.
PHANTOMS = (("mr", 9001), ("mr", 9002), ("ct", 9003), ("ct", 9004))
SETTINGS = {
    "loss.adversarial": 0, "network.width": 32, "data.crop": 48, "training.batch": 16, "training.rate": 1.5e-3,
    "training.rate_end": 1e-5, "training.beta1": 0.9, "training.beta2": [0.99, 0.999],
    "training.report_images": 20000, "training.ema_images": 8000,
}
#: What differs for the sharp end.
SHARP = {
    "loss.adversarial": 1.0, "training.rate": 2e-4, "training.beta1": 0.0, "training.beta2": [0.9, 0.99],
    "training.report_images": 4000, "training.ema_images": 4000,
}
WEIGHTS = Path(__file__).parents[1] / "medgan" / "weights"


def volumes(root: Path) -> Iterator[Volume]:
    """The training scans, then the phantoms at 1.2 mm."""
    for path, _ in SCANS:
        print("learning from", path, flush=True)
        yield medgan.read(root / path)
    for modality, seed in PHANTOMS:
        yield phantom(modality, seed, spacing_mm=(1.2, 1.2, 1.2))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the images named above")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--images", type=int, help="a fixed length instead of a time")
    parser.add_argument("--sharp", type=Path, help="the run for fidelity to go on from, with a discriminator")
    arguments = parser.parse_args()
    length = {"training.images": arguments.images} if arguments.images else {"training.minutes": arguments.minutes}
    config = Config.resolve("mr", "upscale", settings=SETTINGS | (SHARP if arguments.sharp else {}) | length)
    source = UpscaleSource.from_volumes(volumes(arguments.data), config, count=len(SCANS) + len(PHANTOMS))
    often = [scan for scan, (_, times) in zip(source.scans, SCANS, strict=False) for _ in range(times - 1)]
    interface = {**source.interface, "modalities": ["mr", "ct"]}
    source = replace(source, scans=(*source.scans, *often), interface=interface)
    run = checkpoints.create_run(arguments.out, config, source.interface, {"name": "see the model card"})
    torch.manual_seed(config.seed)
    task = UpscaleTask(config, source.interface)
    if arguments.sharp:
        checkpoints.load_weights(task.generator, arguments.sharp / checkpoints.WEIGHTS)
    state = State.fresh(task, config.training)
    started, gains = time.perf_counter(), []
    for step in train(state, source, config):
        gains.append(step.parts["generator/gain"])
        if step.report:
            minutes = (time.perf_counter() - started) / 60
            print(f"{step.images} of {step.total} images, {minutes:.1f} min, {step.images_per_second:.0f}/s, "
                  f"gain over linear {np.mean(gains):.2f} dB {step.note}", flush=True)
            gains.clear()
            checkpoints.save_state(state, run.path)
            checkpoints.save_weights(state.average, run.path / checkpoints.WEIGHTS, {"format": "medgan"})
            save(state.task.sheet(state.average, source), run.path / checkpoints.SAMPLES / f"{step.images:08d}.png")
    name = "upscale-sharp" if arguments.sharp else "upscale"
    WEIGHTS.mkdir(exist_ok=True)
    shutil.copyfile(run.path / checkpoints.WEIGHTS, WEIGHTS / f"{name}.safetensors")
    shutil.copyfile(run.path / checkpoints.CONFIG, WEIGHTS / f"{name}.json")


if __name__ == "__main__":
    main()
