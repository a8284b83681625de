"""A small segmentation network trained in several arms, its Dice on real people, and honest intervals.

As in `utility`: every arm gets the same network, start, steps, places in the volumes and augmentation, so that nothing
but the voxels differs; intervals come from resampling people, and seeds with them, and differences are paired.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.layers.factories import Conv, Norm
from numpy.typing import NDArray
from torch import Tensor, nn

from medgan.errors import Refused
from medgan.learning.loop import pick_precision
from medgan.metrics.augmentation import disturbed
from medgan.metrics.labelled import Labelled as Labelled
from medgan.metrics.labelled import read_labelled as read_labelled
from medgan.metrics.utility import (
    BRIGHTNESS,
    RATE,
    RESAMPLES,
    WEIGHT_DECAY,
    Values,
    draw_units,
    estimate,
    with_detectable,
)

Dims = Literal[2, 3]
#: Features at full, half, quarter (and in 2D eighth) resolution.
WIDTHS: dict[Dims, tuple[int, ...]] = {2: (8, 24, 48, 64), 3: (8, 24, 48)}
#: Edges are whole multiples of this, since the network halves them so often.
MULTIPLE: dict[Dims, int] = {dims: 2 ** (len(widths) - 1) for dims, widths in WIDTHS.items()}
#: Edge of the patches and patches a step: what a CPU core does in less than a tenth of a second.
CROP: dict[Dims, int] = {2: 96, 3: 32}
BATCH: dict[Dims, int] = {2: 8, 3: 2}
#: How the voxels lie in memory; the other way takes a CPU a fifth longer.
LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}
#: Slices that a 2D network segments at once.
SLICES = 16
#: Part of the patches whose middle is a labelled voxel; the others lie anywhere.
CENTRED = 0.5
#: Longest edge that the network sees at once when it segments.
WINDOW = 128
#: Name of the measure that is the mean over the labels.
MEAN = "mean"


class SmallUNet(nn.Module):
    """A U-Net of three resolutions, or four in 2D: few features at the full one, where the time goes.

    Args:
        channels: Of the images.
        outputs: Labels, the background included.
        dims: 2 for slices, 3 for volumes.
    """

    def __init__(self, channels: int, outputs: int, dims: Dims = 3) -> None:
        super().__init__()
        self.dims = dims
        widths = WIDTHS[dims]
        steps = list(itertools.pairwise(widths))
        up: Any = Conv["convtrans", dims]
        self.top = _block(channels, widths[0], dims)
        self.down = nn.ModuleList(nn.Sequential(_block(fine, coarse, dims), _block(coarse, coarse, dims))
                                  for fine, coarse in steps)
        self.up = nn.ModuleList(up(coarse, fine, 2, 2) for fine, coarse in reversed(steps))
        self.join = nn.ModuleList(_block(2 * fine, fine, dims) for fine, _ in reversed(steps))
        self.head = Conv["conv", dims](widths[0], outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, X, Y[, Z]) -> (B, outputs, X, Y[, Z]) logits; edges are multiples of `MULTIPLE`."""
        halved = F.max_pool2d if self.dims == 2 else F.max_pool3d
        levels = [self.top(images)]
        for block in self.down:
            levels.append(block(halved(levels[-1], 2)))
        current = levels.pop()
        for up, join in zip(self.up, self.join, strict=True):
            current = join(torch.cat([levels.pop(), up(current)], 1))
        logits: Tensor = self.head(current)
        return logits


def _block(inputs: int, outputs: int, dims: Dims) -> nn.Module:
    return nn.Sequential(Conv["conv", dims](inputs, outputs, 3, padding=1, bias=False), Norm["batch", dims](outputs),
                         nn.LeakyReLU(0.1))


def train_segmenter(training: Sequence[Labelled], labels: int, *, steps: int, seed: int, dims: Dims = 3,
                    crop: int | None = None, batch: int | None = None,
                    augmentation: Literal["none", "brightness", "geometric"] = "brightness",
                    device: str = "cpu") -> SmallUNet:
    """Trains the small U-Net for exactly `steps` optimiser steps.

    Args:
        training: The volumes; in another arm with the same shapes and labels the patches lie at the same places.
        labels: L, how many labels there are besides the background.
        steps: Steps of AdamW with a one-cycle rate, on `batch` patches each.
        seed: Of the first weights, the patches and their augmentation.
        dims: 2: patches of axial slices, 3: cubes.
        crop: Edge of the patches, in voxels, a multiple of `MULTIPLE`; smaller volumes are padded. None: `CROP`.
        batch: Patches a step; None: `BATCH`.
        augmentation: `none`; `brightness` alone; or `geometric` (2D), which is `augmentation.disturbed`, drawn from
            the seed and the number of the step alone.
        device: Where to train.

    Raises:
        Refused: `DATASET_EMPTY` when no voxel is labelled, `CFG_VALUE` for an edge that is no multiple.
    """
    crop, batch = CROP[dims] if crop is None else crop, BATCH[dims] if batch is None else batch
    if crop % MULTIPLE[dims]:
        fitting = ", ".join(str(MULTIPLE[dims] * n) for n in (6, 8, 12, 16))
        raise Refused("CFG_VALUE", "crop", f"{crop} is not a multiple of {MULTIPLE[dims]}", f"Give one of {fitting}")
    inside = [np.argwhere(volume.labels).astype(np.int32) for volume in training]
    marked = [n for n, places in enumerate(inside) if len(places)]
    if not marked:
        raise Refused("DATASET_EMPTY", "segmentation", f"no voxel of {len(training)} training volumes is labelled",
                      "Give data with masks")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallUNet(training[0].image.shape[0], labels + 1, dims)
    model.to(device=device, memory_format=LAYOUT[dims])  # type: ignore[call-overload]
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    # Over a batch of slices together: of a slice without a label alone, Dice says nothing.
    loss_of = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=dims == 2)
    for step in range(steps):
        patches = []
        for _ in range(batch):
            centred = rng.random() < CENTRED
            chosen = int(rng.choice(marked) if centred else rng.integers(len(training)))
            shape = training[chosen].labels.shape
            middle = inside[chosen][rng.integers(len(inside[chosen]))] if centred else rng.integers(shape)
            image, found = _patch(training[chosen], middle, crop, dims)
            if augmentation == "brightness":
                scale, shift = 1 + rng.uniform(-BRIGHTNESS, BRIGHTNESS), rng.uniform(-BRIGHTNESS, BRIGHTNESS)
                image = image * np.float32(scale) + np.float32(shift)
            patches.append((image, found))
        images, wanted = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*patches, strict=True))
        wanted = wanted[:, None]
        if augmentation == "geometric":
            images, wanted = disturbed(images, wanted, np.random.default_rng([seed, step]))
        with _precision(device, dims):
            logits = model(images.to(memory_format=LAYOUT[dims]))
        loss = loss_of(logits.float(), wanted.long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def _patch(volume: Labelled, middle: NDArray[Any], crop: int, dims: Dims
           ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A cube or square around `middle`, moved inside the volume; where that is smaller its outermost voxels go on."""
    shape = np.array(volume.labels.shape)
    edges = np.array([crop, crop, crop if dims == 3 else 1])
    start = np.clip(middle - edges // 2, 0, np.maximum(shape - edges, 0))
    part = tuple(slice(a, a + n) for a, n in zip(start, edges, strict=True))
    margins = [(0, max(0, n - there)) for n, there in zip(edges, shape, strict=True)]
    image = np.pad(volume.image[:, *part], [(0, 0), *margins], mode="edge")
    labels = np.pad(volume.labels[part], margins)
    return (image, labels) if dims == 3 else (image[..., 0], labels[..., 0])


def _precision(device: str | torch.device, dims: Dims) -> torch.autocast:
    """bf16 for slices where the machine computes in it; 3D convolutions gain little from it."""
    chosen = torch.device(device)
    kind = pick_precision("auto", chosen)
    return torch.autocast(chosen.type, dtype=kind, enabled=dims == 2 and kind != torch.float32)


def segment(model: SmallUNet, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(C, X, Y, Z) network values -> (X, Y, Z) label indices."""
    found: NDArray[np.uint8] = _logits(model, image).argmax(0).to(torch.uint8).cpu().numpy()
    return found


def foreground(model: SmallUNet, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, X, Y, Z) network values -> (X, Y, Z) probability of any label; of one label, it is found from a half on."""
    chances: NDArray[np.float32] = (1 - _logits(model, image).softmax(0)[0]).cpu().numpy()
    return chances


def _logits(model: SmallUNet, image: NDArray[np.float32]) -> Tensor:
    """(outputs, X, Y, Z): of whole volumes in windows, or of slices some at a time."""
    dims: Dims = model.dims
    edges = [-(-n // MULTIPLE[dims]) * MULTIPLE[dims] for n in image.shape[1 : 1 + dims]]
    margins = [(0, edge - n) for edge, n in zip(edges, image.shape[1:], strict=False)]
    whole = np.pad(image, [(0, 0), *margins, *[(0, 0)] * (3 - dims)], mode="edge")
    device = next(model.parameters()).device
    with torch.no_grad(), _precision(device, dims):
        if dims == 3:
            logits = sliding_window_inference(torch.from_numpy(whole[None]).to(device=device, memory_format=LAYOUT[3]),
                                              [min(WINDOW, n) for n in edges], 1, model)[0]
        else:
            slices = torch.from_numpy(np.ascontiguousarray(np.moveaxis(whole, -1, 0)))
            logits = torch.cat([model(part.to(device=device, memory_format=LAYOUT[2])).float()
                                for part in torch.split(slices, SLICES)]).movedim(0, -1)
    x, y, z = image.shape[1:]
    result: Tensor = logits[:, :x, :y, :z]
    return result


def dice(found: NDArray[Any], wanted: NDArray[Any], labels: int) -> Values:
    """(L,) Dice of the labels 1..L; NaN where the wanted map lacks a label, so that all arms count the same volumes."""
    values = np.full(labels, np.nan)
    for label in range(1, labels + 1):
        one, other = found == label, wanted == label
        if other.any():
            values[label - 1] = 2 * int((one & other).sum()) / (int(one.sum()) + int(other.sum()))
    return values


def score_arms(training: Mapping[str, Sequence[Labelled]], tests: Mapping[str, Sequence[Labelled]],
               asked: Mapping[str, Sequence[str]], labels: int, *, seeds: Sequence[int], steps: int, crop: int = 32,
               device: str = "cpu", tell: Callable[[str], None] = lambda _: None
               ) -> tuple[dict[tuple[str, str], Values], dict[tuple[str, str], NDArray[np.uint8]]]:
    """Trains a network for each arm and seed and lets it segment the test volumes.

    Args:
        training: Arm -> its training volumes.
        tests: Version -> the test volumes, the same people in the same order.
        asked: Arm -> the versions that its networks are tested on.
        labels: L.
        seeds: One network an arm for each.
        steps: Optimiser steps, the same for all arms.
        crop: Edge of the training patches, in voxels.
        device: Where to train.
        tell: Told of each arm that is begun, and of its Dice.

    Returns:
        (arm, version) -> (S, N, L) Dice; and (arm, version) -> what the first seed's network found in the first volume.
    """
    scores: dict[tuple[str, str], Values] = {}
    shown: dict[tuple[str, str], NDArray[np.uint8]] = {}
    for arm, volumes in training.items():
        tell(f"{arm}: {len(volumes)} volumes to train on")
        models = [train_segmenter(volumes, labels, steps=steps, seed=seed, crop=crop, device=device) for seed in seeds]
        for version in asked[arm]:
            found = [[segment(model, test.image) for test in tests[version]] for model in models]
            scores[arm, version] = np.array([[dice(one, test.labels, labels) for one, test in
                                              zip(each, tests[version], strict=True)] for each in found])
            shown[arm, version] = found[0][0]
            tell(f"{arm} on {version}: Dice {np.nanmean(scores[arm, version]):.3f}")
    return scores, shown


def place_alone(training: Sequence[NDArray[np.uint8]], shape: Sequence[int], labels: int) -> NDArray[np.uint8]:
    """What the place in the volume says without a look at the image: the training label maps' commonest label.

    Args:
        training: (X, Y, Z) label maps, laid over each other by their middles.
        shape: Of the volume that is asked about, in voxels.
        labels: L.

    Returns:
        (X, Y, Z) label indices.
    """
    counts = np.zeros((labels + 1, *shape))
    for there in training:
        here, from_ = [], []
        for wanted, length in zip(shape, there.shape, strict=True):
            kept = min(wanted, length)
            here.append(slice((wanted - kept) // 2, (wanted - kept) // 2 + kept))
            from_.append(slice((length - kept) // 2, (length - kept) // 2 + kept))
        for label in range(1, labels + 1):
            counts[label][tuple(here)] += there[tuple(from_)] == label
    counts[0] = len(training) - counts[1:].sum(axis=0)
    return np.asarray(counts.argmax(axis=0), np.uint8)


def compare_dice(scores: Mapping[str, Values], people: Sequence[str], labels: Sequence[str],
                 pairs: Sequence[tuple[str, str]], *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Every arm's Dice and the paired differences of some arms, with intervals over people and seeds.

    Args:
        scores: Arm -> (S, N, L): seeds, volumes, labels; NaN where a volume lacks a label.
        people: (N,) whose volume it is; all volumes of a person are drawn together.
        labels: (L,) names; those that no volume has are left out of the result.
        pairs: (arm, other arm): the difference is the first less the second.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        Plain values for JSON: `arms` and `differences`, each a label's name or `MEAN` -> the fields of `Estimate`;
        differences also have `detectable`, the smallest true difference that 8 of 10 such studies would show.
    """
    kept = np.atleast_1d(np.isfinite(next(iter(scores.values()))).any(axis=(0, 1)))
    picked = {label: {arm: values[..., n] for arm, values in scores.items()}
              for n, label in enumerate(labels) if kept[n]}
    picked[MEAN] = {arm: known_mean(values) for arm, values in scores.items()}
    return compare_measures(picked, people, pairs, resamples=resamples, seed=seed)


def compare_measures(measures: Mapping[str, Mapping[str, Values]], people: Sequence[str],
                     pairs: Sequence[tuple[str, str]], *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Any measures of volumes, as `compare_dice` compares Dice.

    Args:
        measures: Measure -> arm -> (S, N): seeds, volumes; NaN where a volume has no such measure.
        people: (N,) what is drawn together.
        pairs: (arm, other arm).
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        As `compare_dice` does.
    """
    rng = np.random.default_rng(seed)
    names, owner = np.unique(np.asarray(people), return_inverse=True)
    draws = draw_units(np.zeros(len(names), np.intp), resamples, rng)[:, owner]
    known = next(iter(measures.values()))
    count = next(iter(known.values())).shape[0]
    seeds = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    arms: dict[str, dict[str, Any]] = {arm: {} for arm in known}
    differences: dict[str, dict[str, Any]] = {f"{one} - {other}": {} for one, other in pairs}
    for measure, values_of in measures.items():
        exact = {arm: _weighted(values, np.ones((1, len(owner)))) for arm, values in values_of.items()}
        drawn = {arm: _weighted(values, draws) for arm, values in values_of.items()}
        for arm in arms:
            arms[arm][measure] = asdict(estimate(exact[arm][0], drawn[arm], seeds))
        for one, other in pairs:
            differences[f"{one} - {other}"][measure] = with_detectable(
                estimate(exact[one][0] - exact[other][0], drawn[one] - drawn[other], seeds))
    return {"people": len(names), "volumes": len(owner), "arms": arms, "differences": differences}


def known_mean(values: Values) -> Values:
    """The mean over the last axis without what is NaN; NaN where all is."""
    known = np.isfinite(values)
    mean: Values = np.divide(np.where(known, values, 0).sum(-1), known.sum(-1), where=known.any(-1),
                             out=np.full(values.shape[:-1], np.nan))
    return mean


def _weighted(values: Values, draws: Values) -> Values:
    """(B, S): the mean over volumes of (S, N) values, each counted as often as (B, N) says."""
    known = np.isfinite(values)
    above, below = draws @ np.where(known, values, 0).T, draws @ known.T
    mean: Values = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return mean
