"""Trains the up-sampling model that ships with medgan, on CC0 images and phantoms only.

    python benchmarks/train_upscale.py --data ../shared/data/brain-t1 --out runs/upscale-mr --images 120000

Subjects 01 and 02 of the data set (OpenNeuro ds002748, CC0) are left out for `benchmarks/upsample.py`. The result is
copied to `medgan/weights/upscale-mr.safetensors` and `.json`; the model card beside them is written by hand.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.datasets.phantoms import phantom
from medgan.imaging.volume import Volume
from medgan.learning import checkpoints
from medgan.learning.loop import State, train
from medgan.learning.tasks.upscale import UpscaleTask
from medgan.learning.tasks.upscale_source import UpscaleSource
from medgan.reports.sheets import save

HELD_BACK = ("sub-01", "sub-02")
#: Modality and seeds of the phantoms that are mixed in, so that not everything looks like one scanner's heads.
PHANTOMS = (("mr", 9001), ("mr", 9002), ("ct", 9003), ("ct", 9004))
SETTINGS = {
    "loss.adversarial": 0, "network.width": 32, "data.crop": 48, "training.batch": 16, "training.rate": 1e-3,
    "training.rate_end": 1e-5, "training.beta1": 0.9, "training.beta2": [0.99, 0.999],
    "training.report_images": 8000, "training.ema_images": 4000,
}
WEIGHTS = Path(__file__).parents[1] / "medgan" / "weights"


def volumes(root: Path) -> Iterator[Volume]:
    """The training subjects, then the phantoms at 1 mm."""
    dataset = open_dataset(root)
    for case in dataset.cases:
        if not case.id.startswith(HELD_BACK):
            print("learning from", case.id)
            yield dataset.load(case)[0]
    for modality, seed in PHANTOMS:
        yield phantom(modality, seed, spacing_mm=(1.2, 1.2, 1.2))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="OpenNeuro ds002748, BIDS")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--images", type=int, help="a fixed length instead of a time")
    arguments = parser.parse_args()
    length = {"training.images": arguments.images} if arguments.images else {"training.minutes": arguments.minutes}
    config = Config.resolve("mr", "upscale", settings=SETTINGS | length)
    source = UpscaleSource.from_volumes(itertools.chain(volumes(arguments.data)), config, count=10)
    run = checkpoints.create_run(arguments.out, config, source.interface,
                                 {"name": "OpenNeuro ds002748 sub-03 to sub-08 (CC0) and 4 phantoms"})
    torch.manual_seed(config.seed)
    state = State.fresh(UpscaleTask(config, source.interface), config.training)
    started, gains = time.perf_counter(), []
    for step in train(state, source, config):
        gains.append(step.parts["generator/gain"])
        if step.report:
            minutes = (time.perf_counter() - started) / 60
            print(f"{step.images} images, {minutes:.1f} min, {step.images_per_second:.0f}/s, "
                  f"gain over linear {np.mean(gains):.2f} dB {step.note}", flush=True)
            gains.clear()
            checkpoints.save_state(state, run.path)
            save(state.task.sheet(state.average, source), run.path / checkpoints.SAMPLES / f"{step.images:08d}.png")
    checkpoints.save_weights(state.average, run.path / checkpoints.WEIGHTS, {"format": "medgan"})
    WEIGHTS.mkdir(exist_ok=True)
    shutil.copyfile(run.path / checkpoints.WEIGHTS, WEIGHTS / "upscale-mr.safetensors")
    shutil.copyfile(run.path / checkpoints.CONFIG, WEIGHTS / "upscale-mr.json")


if __name__ == "__main__":
    main()
