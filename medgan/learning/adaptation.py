"""Adapting the upscale generator to one scan: its own in-plane detail shows what its thick slices lost.

The scan is sharpened once as it is. Its in-plane directions, sharp from the start, then play the thick axis: slices
are simulated along them with the scan's own profile and noise, and the generator goes on learning from that. Blocks of
the scan are held back to judge whether it helped.

References: Zhao et al. 2021, "SMORE"; Shocher et al. 2018, "Zero-shot super-resolution using deep internal learning".
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.imaging.intensity import IntensityMap
from medgan.imaging.refine import refine
from medgan.imaging.restoration import thick_axis
from medgan.imaging.slices import Acquisition
from medgan.imaging.volume import Volume
from medgan.learning.loop import State, train
from medgan.learning.sharpening import Sharpener
from medgan.learning.tasks.upscale import UpscaleGenerator, UpscaleTask
from medgan.learning.tasks.upscale_source import SHARP, SHORTEST, Plan, UpscaleSource

#: How long the generator goes on learning, in patches, and the wall time after which it stops whatever is left.
SETTINGS = {
    "training.images": 9600, "training.minutes": None, "training.limit_minutes": 1.0, "training.batch": 16,
    "training.rate": 6e-4, "training.rate_end": 2e-5, "training.ema_images": 1500, "training.report_images": 10**9,
    "loss.adversarial": 0.0, "data.dims": 2, "data.crop": 48,
}
#: Ends of a training after which the model is used as it is: what was asked for is a sharper scan.
GIVEN_UP = ("TRAINING_DIVERGED", "OUT_OF_MEMORY")
#: The scan is cut into so many blocks along one axis; these are held back.
BLOCKS, HELD_BACK = 9, (2, 6)
#: How far the weights go towards what was learned: through-plane detail is not quite what in-plane detail is, and a
#: part of the way was better on more scans than all of it.
SHARE = 0.6
#: Batches of held-back patches that judge, and what they must gain, in dB: on the scans of docs/upsample.md less than
#: this was no gain across the slices, and more was one.
JUDGES, LEAST_GAIN = 12, 0.4


def adapt(
    sharpener: Sharpener, image: Volume, scans: Sequence[Acquisition], maps: Sequence[IntensityMap],
    noises: Sequence[float], *, seed: int = 0, config: str | Path | None = None,
    settings: Sequence[str] | Mapping[str, Any] = (), progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Sharpener, float | None, str | None]:
    """Trains a copy of a generator on the scan's own sharp directions and keeps it if it is better.

    Args:
        sharpener: What to start from; left as it is.
        image: (C, X, Y, Z), the scan.
        scans: The acquisition of each axis.
        maps: The intensity range of each channel.
        noises: Each channel's noise in network values.
        seed: Of patches and noise.
        config: A TOML file of settings over `SETTINGS`.
        settings: Single settings over those.
        progress: Told patches seen and in all.

    Returns:
        The better sharpener, what adapting gained on patches held back in dB of PSNR (0 where it did not help enough,
        None where nothing could be learned), and a remark in both of these cases.
    """
    if sharpener.generator.dims != 2:
        return sharpener, None, "the model was not adapted: only 2D models can be"
    usual = sharpener.config.over(settings=SETTINGS, seed=seed, device=sharpener.device.type)
    own = usual.over(file=config, settings=settings)
    sources = _sources(sharpener, image, scans, maps, noises, own.data.crop)
    if sources is None:
        return sharpener, None, ("the model was not adapted: no two axes of the scan are sharper than its slices and "
                                 f"{SHORTEST} voxels long")
    learned, judged = (replace(source, config=own) for source in sources)
    task = UpscaleTask(own, learned.interface)
    task.generator.load_state_dict(sharpener.generator.state_dict())
    state = State.fresh(task, own.training)
    try:
        for step in train(state, learned, own):
            progress(step.images, step.total or own.training.images)
    except Refused as refused:
        if refused.code not in GIVEN_UP:
            raise
        return sharpener, 0.0, f"the model was not adapted: {refused.why}"
    generator = copy.deepcopy(sharpener.generator)
    with torch.no_grad():
        for mine, learnt in zip(generator.parameters(), state.average.parameters(), strict=True):
            mine.lerp_(learnt, SHARE)
    before, after = _errors((sharpener.generator, generator), task, judged, sharpener.device)
    gain = 10 * math.log10(before / after)
    if not gain > LEAST_GAIN:
        return sharpener, 0.0, (f"adapting did not help ({gain:+.2f} dB on slices held back); the model was left as "
                                "it is")
    return replace(sharpener, generator=generator, hash=f"{sharpener.hash}+adapted"), gain, None


def _sources(
    sharpener: Sharpener, image: Volume, scans: Sequence[Acquisition], maps: Sequence[IntensityMap],
    noises: Sequence[float], crop: int,
) -> tuple[UpscaleSource, UpscaleSource] | None:
    """Where to learn from and where to judge; None where there is nothing to learn from."""
    thick = thick_axis(image, [scan.factor for scan in scans])
    if scans[thick].factor < sharpener.lowest:
        return None
    # A scan whose axes are all alike has nothing sharper to show; coarser copies of it taught what is not so at its own
    # scale.
    sharp = tuple(axis for axis in range(3) if image.spacing_mm[axis] * SHARP < image.spacing_mm[thick])
    shortest = min((image.shape[axis] for axis in sharp), default=0)
    if len(sharp) < 2 or shortest < SHORTEST:
        return None
    # Neighbouring planes are needed at the pixels' own distance: those of a first result will do.
    alone = [scan if axis == thick else replace(scan, factor=1.0, fine=0) for axis, scan in enumerate(scans)]
    array = refine(image, alone, maps, noises=noises, sharpen=sharpener.add).array
    grid = image.spacing_mm[thick] / math.sqrt(image.spacing_mm[sharp[0]] * image.spacing_mm[sharp[1]])
    plans = (Plan.fixed_to(replace(scans[thick], noise=float(np.mean(noises))), grid, shortest, crop),)
    blocks = list(_blocks(array, thick))
    learned, held = ([part for number, part in enumerate(blocks) if (number in HELD_BACK) is back]
                     for back in (False, True))
    first, second = (UpscaleSource.of_one(parts, maps, sharp, plans, sharpener.config, sharpener.interface)
                     for parts in (learned, held))
    return first, second


def _blocks(array: NDArray[np.generic], cut: int) -> Iterator[NDArray[np.float32]]:
    edges = np.linspace(0, array.shape[cut + 1], BLOCKS + 1).astype(int)
    for start, stop in itertools.pairwise(edges):
        if stop > start:
            part = (slice(None),) * (cut + 1) + (slice(int(start), int(stop)),)
            yield np.asarray(array[part], dtype=np.float32)


@torch.no_grad()
def _errors(generators: Sequence[torch.nn.Module], task: UpscaleTask, source: UpscaleSource,
            device: torch.device) -> list[float]:
    """Mean squared error of each generator on the same patches."""
    totals = [0.0] * len(generators)
    for number in range(JUDGES):
        # Other steps than those learned from, in case the blocks were the same.
        batch = {name: tensor.to(device) for name, tensor in source.batch(10**6 + number).items()}
        truth = task.judged(batch["truth"], batch)
        for index, generator in enumerate(generators):
            assert isinstance(generator, UpscaleGenerator)
            totals[index] += float((task.draw(batch, generator) - truth).square().mean())
    return totals
