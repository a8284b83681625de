"""`Seer`: a small network that has learned to see real lesions, so that a made one can be shown to it.

A mask over tissue in which nothing can be seen teaches a model something false, and so does one whose contents no
model trained on real lesions would find. The network works on slices at the working spacing of `crops.py`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.errors import Refused
from medgan.learning.checkpoints import check_weights, load_weights
from medgan.lesions.looks import SECTIONS, Gathered, Look, gather, sections, used_size
from medgan.lesions.placement import Site
from medgan.metrics.utility import auroc
from medgan.storage import atomic_path

#: Channels of the first level; two more levels have twice and four times as many.
WIDTH = 12
#: Optimiser steps and crops a step: most of a minute on one core.
STEPS, BATCH = 240, 12
RATE, WEIGHT_DECAY = 3e-3, 1e-2
#: A lesion's pixels count this much more than tissue's: there are far fewer of them.
LESION_WEIGHT = 3.0
#: Brightness and contrast of the crops vary by this much, in network values and as a share.
BRIGHTNESS, CONTRAST = 0.1, 0.15
#: This share of the real lesions must pass; where the wanted probability would reject more of them, it is lowered.
REAL_SHARE = 0.9
#: But never so far that more than the rest of masks over mere tissue would pass.
TISSUE_SHARE = 0.95
#: A network that tells lesions from tissue no better than this (AUROC, other patients) has learned nothing.
LEAST_AUROC = 0.8
#: A made lesion must raise the probability by this part of the threshold: it is not seen where it was seen before.
RISE = 0.5
#: With fewer lesions than this the network is said to rest on few.
FEW_LESIONS = 5


class Spotter(nn.Module):
    """A U-Net of three levels that says for each pixel of a slice how much it looks like a lesion."""

    def __init__(self, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(channels, width, 2), _block(width, 2 * width, 2),
                                   _block(2 * width, 4 * width, 2)])
        self.up = nn.ModuleList([_block(6 * width, 2 * width, 1), _block(3 * width, width, 1)])
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, n, n) network values -> (B, 1, n, n) logits; n is a multiple of 4."""
        first = self.down[0](image)
        second = self.down[1](F.max_pool2d(first, 2))
        third = self.down[2](F.max_pool2d(second, 2))
        rising = self.up[0](torch.cat([_doubled(third), second], 1))
        logits: Tensor = self.out(self.up[1](torch.cat([_doubled(rising), first], 1)))
        return logits


def _block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in range(depth):
        layers += [nn.Conv2d(inputs if n == 0 else outputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs),
                   nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def _doubled(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2.0, mode="nearest")


@dataclass(frozen=True)
class Sight:
    """How probable a lesion is to the network inside a mask, on average.

    Args:
        before: In the tissue that was there.
        after: With the made lesion.
    """

    before: float
    after: float


@dataclass(frozen=True)
class Learned:
    """What the network was trained on and how well it knows it.

    Args:
        channels: Of its images.
        size: Edge of its crops in pixels.
        patients: Patients it learned from.
        lesions: Lesions it learned from.
        auroc: How well the mean probability in a mask tells real lesions from the same masks over tissue, each half
            of the patients judged by a network of the other half; 0 where there was nothing to compare.
        reach: The mean probability that `REAL_SHARE` of the real lesions reach.
        floor: The one that `TISSUE_SHARE` of the same masks over tissue stay below.
    """

    channels: int
    size: int
    patients: int
    lesions: int
    auroc: float
    reach: float
    floor: float

    @property
    def usable(self) -> bool:
        """Whether it tells lesions from tissue at all; a gate with any other network would be a coin."""
        return self.auroc >= LEAST_AUROC

    @property
    def note(self) -> str:
        """What a reader of its verdicts should know, or an empty string."""
        if self.patients == 1:
            return "one patient is too few for a task network to judge others: its gate is open"
        if not self.usable:
            return (f"the task network learned too little from {self.lesions} lesions to judge others "
                    f"(AUROC {self.auroc:.2f}): its gate is open")
        few = "" if self.lesions >= FEW_LESIONS else f"{self.lesions} lesion{'s' * (self.lesions != 1)}"
        return f"the task network learned from {few} only" if few else ""


class Seer:
    """A trained task network and what is known of it; see `Seer.train`."""

    def __init__(self, network: Spotter, learned: Learned) -> None:
        self.network, self.learned = network.eval().requires_grad_(False), learned

    @staticmethod
    def train(dataset: Dataset, config: Config, seed: int = 0, *, steps: int | None = None) -> Seer:
        """Learns the training cases' lesions; the same data and seed give the same network.

        Args:
            dataset: Its training cases with masks are learned from.
            config: Intensities, crop size, working spacing.
            seed: Of first weights, crops and their disturbance.
            steps: Optimiser steps; None: `STEPS`.

        Raises:
            Refused: `DATASET_EMPTY` where no training case has a lesion.
        """
        cases = gather(dataset, config, seed)
        if not cases:
            raise Refused("DATASET_EMPTY", dataset.root, "no training case has a lesion in its mask",
                          "Give masks with at least one lesion")
        size, steps = used_size(config), STEPS if steps is None else steps
        real, sham = _held_out(cases, size, seed, steps // 2)
        told = reach = floor = 0.0
        if len(real) and len(sham):
            told = float(auroc(np.arange(len(real) + len(sham)) < len(real), np.concatenate([real, sham]))[0])
            reach = float(np.percentile(real, 100 * (1 - REAL_SHARE)))
            floor = float(np.percentile(sham, 100 * TISSUE_SHARE))
        return Seer(_trained(cases, size, seed, steps), Learned(
            cases[0].looks[0].images.shape[1], size, len({case.patient for case in cases}),
            sum(case.lesions for case in cases), round(told, 4), round(reach, 4), round(floor, 4)))

    def threshold(self, wanted: float) -> float:
        """The probability a lesion must reach: what is wanted, or less where real lesions do not reach it either."""
        return min(wanted, max(self.learned.reach, self.learned.floor))

    def passes(self, sight: Sight, wanted: float) -> bool:
        """Whether a made lesion is seen, and was not seen there before it was made.

        Args:
            sight: What the network says of it.
            wanted: The setting `augment.seen`; 0 opens the gate.
        """
        if wanted <= 0 or not self.learned.usable:
            return True
        least = self.threshold(wanted)
        return sight.after >= least and sight.after - sight.before >= RISE * least

    def sight(self, image: NDArray[np.float32], after: NDArray[np.float32], site: Site) -> Sight:
        """What the network says of a site without and with a made lesion.

        Args:
            image: (C, X, Y, Z) the scan's network values as they are before it is put in.
            after: (C, x, y, z) the same in the site's box with the lesion.
            site: Where it is.
        """
        before = self._section(image, site, None)
        changed = self._section(image, site, after)
        return Sight(self.look(before), self.look(changed))

    def look(self, look: Look) -> float:
        """Mean probability inside the masks of a look, every pixel counting alike."""
        with torch.no_grad():
            chance = torch.sigmoid(self.network(torch.from_numpy(look.images)))[:, 0].numpy()
        return float(chance[look.masks].mean()) if look.masks.any() else 0.0

    def _section(self, image: NDArray[np.float32], site: Site, after: NDArray[np.float32] | None) -> Look:
        x, y, z = site.box
        slab = image[..., z].copy()
        if after is not None:
            slab[:, x, y] = after
        mask = np.zeros(slab.shape[1:], bool)
        mask[x, y] = site.labels > 0
        return sections(slab, mask, site.voxel_mm, site.spacing_mm, self.learned.size, SECTIONS)

    def save(self, path: str | Path) -> None:
        """Writes the network and what is known of it as one safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        with atomic_path(Path(path)) as temporary:
            save_file(tensors, temporary, metadata={"learned": json.dumps(asdict(self.learned))})

    @staticmethod
    def load(path: str | Path) -> Seer:
        """Reads what `save` wrote.

        Raises:
            Refused: `FILE_MISSING`, `CKPT_CORRUPT`, `CKPT_MISMATCH` or `CKPT_NONFINITE`.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise Refused("FILE_MISSING", path, "there is no such file", "Train the task network anew")
        check_weights(path)
        try:
            with safe_open(path, "pt") as file:
                learned = Learned(**json.loads(file.metadata()["learned"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as wrong:
            raise Refused("CKPT_CORRUPT", path, f"it is no task network ({wrong})", "Train it anew") from wrong
        network = Spotter(learned.channels)
        load_weights(network, path)
        return Seer(network, learned)


def _held_out(cases: Sequence[Gathered], size: int, seed: int, steps: int
              ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What networks of one half of the patients say of the other half's lesions, and of the same masks over tissue.

    On what it learned from, a network is sure of everything: a threshold from there would reject all that is made.
    """
    names = sorted({case.patient for case in cases})
    halves = [[case for case in cases if case.patient in names[part::2]] for part in (0, 1)]
    real: list[float] = []
    sham: list[float] = []
    for learned, judged in itertools.permutations([half for half in halves if half], 2):
        judge = Seer(_trained(learned, size, seed, steps),
                     Learned(learned[0].looks[0].images.shape[1], size, 0, 0, 0.0, 0.0, 0.0))
        real += [judge.look(look) for case in judged for look in case.looks]
        sham += [judge.look(look) for case in judged for look in case.sham]
    return np.array(real), np.array(sham)


def _trained(cases: Sequence[Gathered], size: int, seed: int, steps: int) -> Spotter:
    crops = [crop for case in cases for crop in case.crops]
    images = torch.from_numpy(np.stack([image for image, _ in crops]))
    masks = torch.from_numpy(np.stack([mask for _, mask in crops])[:, None].astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Spotter(images.shape[1])
    # Half of a batch shows lesions, or small ones would hardly ever be met.
    having = torch.arange(len(crops))[masks.flatten(1).any(dim=1)]
    without = torch.arange(len(crops))[~masks.flatten(1).any(dim=1)]
    pools = [pool for pool in (having, without) if len(pool)]
    chance = torch.Generator().manual_seed(seed + 1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=max(2, steps))
    for _ in range(steps):
        index = torch.cat([pool[torch.randint(len(pool), (BATCH // len(pools),), generator=chance)] for pool in pools])
        image, mask = _disturbed(images[index], masks[index], size, chance)
        logits = network(image)
        shown = torch.sigmoid(logits)
        # The overlap of each crop by itself keeps small lesions from being given up for the background.
        overlap = 1 - (2 * (shown * mask).sum((1, 2, 3)) + 1) / ((shown + mask).sum((1, 2, 3)) + 1)
        loss = F.binary_cross_entropy_with_logits(logits, mask, pos_weight=torch.tensor(LESION_WEIGHT))
        loss = loss + overlap.mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return network


def _disturbed(images: Tensor, masks: Tensor, size: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows shifted, flipped and turned at random, each of another brightness and contrast."""
    slack = images.shape[-1] - size
    pictures, wanted = [], []
    for image, mask in zip(images, masks, strict=True):
        x, y, turns, flip = (int(torch.randint(n, (1,), generator=chance)) for n in (slack + 1, slack + 1, 4, 2))
        both = torch.cat([image, mask])[:, x : x + size, y : y + size].rot90(turns, (1, 2))
        both = both.flip(1) if flip else both
        pictures.append(both[:-1])
        wanted.append(both[-1:])
    count, channels = len(images), images.shape[1]
    scale = 1 + CONTRAST * (2 * torch.rand(count, channels, 1, 1, generator=chance) - 1)
    shift = BRIGHTNESS * (2 * torch.rand(count, channels, 1, 1, generator=chance) - 1)
    return torch.stack(pictures) * scale + shift, torch.stack(wanted)
