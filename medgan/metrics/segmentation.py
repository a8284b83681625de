"""A small segmentation network trained in several arms, its Dice on real people, and honest intervals.

As in `utility`: every arm gets the same network, start, steps, places in the volumes and augmentation, so that nothing
but the voxels differs; intervals come from resampling people, and seeds with them, and differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from numpy.typing import NDArray
from torch import Tensor, nn

from medgan.errors import Refused
from medgan.metrics.utility import BRIGHTNESS, RATE, RESAMPLES, WEIGHT_DECAY, Values, draw_units, estimate

#: Features at full, half and quarter resolution.
WIDTHS = (8, 24, 48)
#: Edges are whole multiples of this, since the network halves them twice.
MULTIPLE = 4
#: Patches a step: with an edge of 32, what a CPU core does in less than a tenth of a second.
BATCH = 2
#: How the voxels lie in memory; the other way takes a CPU a fifth longer.
LAYOUT = torch.channels_last_3d
#: Part of the patches whose middle is a labelled voxel; the others lie anywhere.
CENTRED = 0.5
#: Longest edge that the network sees at once when it segments.
WINDOW = 128
#: A difference of 1.96 + 0.84 standard errors is found in 8 of 10 studies, and a 95 % interval is 3.92 wide.
DETECTABLE = (1.96 + 0.84) / (2 * 1.96)
#: Name of the measure that is the mean over the labels.
MEAN = "mean"


@dataclass(frozen=True, eq=False)
class Labelled:
    """One volume and its labels, for a network.

    Args:
        image: (C, X, Y, Z) float32 network values.
        labels: (X, Y, Z) indices: 0 background, 1..L.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]


class SmallUNet(nn.Module):
    """A U-Net of three resolutions: few features at the full one, where the time goes."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        full, half, quarter = WIDTHS
        self.top = _block(channels, full)
        self.middle = nn.Sequential(_block(full, half), _block(half, half))
        self.bottom = nn.Sequential(_block(half, quarter), _block(quarter, quarter))
        self.raise_middle, self.raise_top = (nn.ConvTranspose3d(low, high, 2, 2)
                                             for low, high in ((quarter, half), (half, full)))
        self.join_middle, self.join_top = _block(2 * half, half), _block(2 * full, full)
        self.head = nn.Conv3d(full, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, X, Y, Z) -> (B, outputs, X, Y, Z) logits; edges are multiples of `MULTIPLE`."""
        top = self.top(images)
        middle = self.middle(F.max_pool3d(top, 2))
        bottom = self.bottom(F.max_pool3d(middle, 2))
        middle = self.join_middle(torch.cat([middle, self.raise_middle(bottom)], 1))
        logits: Tensor = self.head(self.join_top(torch.cat([top, self.raise_top(middle)], 1)))
        return logits


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm3d(outputs),
                         nn.LeakyReLU(0.1))


def train_segmenter(training: Sequence[Labelled], labels: int, *, steps: int, seed: int, crop: int = 32,
                    device: str = "cpu") -> SmallUNet:
    """Trains the small U-Net for exactly `steps` optimiser steps.

    Args:
        training: The volumes; in another arm with the same shapes and labels the patches lie at the same places.
        labels: L, how many labels there are besides the background.
        steps: Steps of AdamW with a one-cycle rate, on `BATCH` patches each.
        seed: Of the first weights, the patches and their augmentation.
        crop: Edge of the patches, in voxels, a multiple of `MULTIPLE`; smaller volumes are padded.
        device: Where to train.

    Raises:
        Refused: `DATASET_EMPTY` when no voxel is labelled, `CFG_VALUE` for an edge that is no multiple.
    """
    if crop % MULTIPLE:
        raise Refused("CFG_VALUE", "crop", f"{crop} is not a multiple of {MULTIPLE}", "Give 24, 32, 48 or 64")
    inside = [np.argwhere(volume.labels) for volume in training]
    marked = [n for n, places in enumerate(inside) if len(places)]
    if not marked:
        raise Refused("DATASET_EMPTY", "segmentation", f"no voxel of {len(training)} training volumes is labelled",
                      "Give data with masks")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallUNet(training[0].image.shape[0], labels + 1)
    model.to(device=device, memory_format=LAYOUT)  # type: ignore[call-overload]
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    loss_of = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    for _ in range(steps):
        patches = []
        for _ in range(BATCH):
            centred = rng.random() < CENTRED
            chosen = int(rng.choice(marked) if centred else rng.integers(len(training)))
            shape = training[chosen].labels.shape
            middle = inside[chosen][rng.integers(len(inside[chosen]))] if centred else rng.integers(shape)
            image, found = _patch(training[chosen], middle, crop)
            scale, shift = 1 + rng.uniform(-BRIGHTNESS, BRIGHTNESS), rng.uniform(-BRIGHTNESS, BRIGHTNESS)
            patches.append((image * np.float32(scale) + np.float32(shift), found))
        images, wanted = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*patches, strict=True))
        loss = loss_of(model(images.to(memory_format=LAYOUT)), wanted[:, None].long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def _patch(volume: Labelled, middle: NDArray[np.int64], crop: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A cube around `middle`, moved inside the volume; where the volume is smaller its outermost voxels go on."""
    shape = np.array(volume.labels.shape)
    start = np.clip(middle - crop // 2, 0, np.maximum(shape - crop, 0))
    part = tuple(slice(a, a + crop) for a in start)
    margins = [(0, max(0, crop - n)) for n in shape]
    return (np.pad(volume.image[:, *part], [(0, 0), *margins], mode="edge"), np.pad(volume.labels[part], margins))


def segment(model: SmallUNet, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(C, X, Y, Z) network values -> (X, Y, Z) label indices."""
    edges = [-(-n // MULTIPLE) * MULTIPLE for n in image.shape[1:]]
    batch = np.pad(image, [(0, 0), *((0, edge - n) for edge, n in zip(edges, image.shape[1:], strict=True))],
                   mode="edge")[None]
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = sliding_window_inference(torch.from_numpy(batch).to(device=device, memory_format=LAYOUT),
                                          [min(WINDOW, n) for n in edges], 1, model)
    found: NDArray[np.uint8] = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
    return found[tuple(slice(n) for n in image.shape[1:])]


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
    rng = np.random.default_rng(seed)
    names, owner = np.unique(np.asarray(people), return_inverse=True)
    draws = draw_units(np.zeros(len(names), np.intp), resamples, rng)[:, owner]
    count = next(iter(scores.values())).shape[0]
    seeds = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    arms: dict[str, dict[str, Any]] = {arm: {} for arm in scores}
    differences: dict[str, dict[str, Any]] = {f"{one} - {other}": {} for one, other in pairs}
    kept = np.atleast_1d(np.isfinite(next(iter(scores.values()))).any(axis=(0, 1)))
    for number, label in [*((n, label) for n, label in enumerate(labels) if kept[n]), (-1, MEAN)]:
        picked = {arm: known_mean(values) if label == MEAN else values[..., number]
                  for arm, values in scores.items()}
        exact = {arm: _weighted(values, np.ones((1, len(owner)))) for arm, values in picked.items()}
        drawn = {arm: _weighted(values, draws) for arm, values in picked.items()}
        for arm in arms:
            arms[arm][label] = asdict(estimate(exact[arm][0], drawn[arm], seeds))
        for one, other in pairs:
            found = estimate(exact[one][0] - exact[other][0], drawn[one] - drawn[other], seeds)
            differences[f"{one} - {other}"][label] = {**asdict(found),
                                                      "detectable": DETECTABLE * (found.high - found.low)}
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
