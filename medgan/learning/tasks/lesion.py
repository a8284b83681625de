"""The lesion task: draw a lesion of given mask, class and size into real tissue, or tissue where a lesion was.

The generator sees the image with a void that is smoothly filled, the mask and noise; its drawing is blended in with
a soft mask, so that outside the dilated mask every voxel keeps its value. Lesion-free voids are drawn in the same
batches (the class is then "no lesion"), so that the same network also in-paints healthy tissue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.errors import Refused
from medgan.learning import losses
from medgan.learning.networks import LesionDiscriminator, LesionGenerator
from medgan.learning.task import Batch, Parts, Task
from medgan.lesions.crops import Grid, encode, working_spacing
from medgan.lesions.scans import Scan, mask_values, open_scan
from medgan.lesions.shapes import RIM_VOXELS, Lesion, find_lesions, soft_mask

#: Crops are stored this much larger than they are used, for shifts.
STORED = 1.25
#: A slice with fewer lesion voxels on the working grid teaches nothing about lesions.
SMALLEST_SECTION = 6
#: How many pairs of tissue and mask are tried for each request of the contact sheet.
REQUEST_DRAWS = 24
#: Two draws of one request need not differ by more than this, in network values.
DIVERSITY_BOUND = 0.15


def smooth_fill(image: Tensor, void: Tensor) -> Tensor:
    """Fills a void from its surroundings by normalised averages at ever coarser scales (push-pull).

    Args:
        image: (B, C, ...) network values.
        void: (B, 1, ...) 1 where the image is unknown.

    Returns:
        (B, C, ...), equal to `image` outside the void.
    """
    known = 1 - void
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    if min(image.shape[2:]) < 2 or not bool((void > 0).any()):
        mean = (image * known).flatten(2).sum(2) / known.flatten(2).sum(2).clamp(min=1e-6)
        return image * known + mean.reshape(*mean.shape, *([1] * (image.ndim - 2))) * void
    weight = pool(known, 2)
    coarse = pool(image * known, 2) / weight.clamp(min=1e-6)
    below = smooth_fill(coarse, (weight <= 1e-6).to(image.dtype))
    lifted = F.interpolate(below, size=image.shape[2:], mode=mode, align_corners=False)
    return image * known + lifted * void


class LesionTask(Task):
    """Generator and discriminator of lesions in 2D or 3D; see the module's text."""

    name: ClassVar[str] = "lesion"
    generator: LesionGenerator

    def __init__(self, config: Config, interface: Mapping[str, Any]) -> None:
        super().__init__()
        net, dims = config.network, config.data.dims
        channels, labels = int(interface["channels"]), len(interface["labels"])
        self.generator = LesionGenerator(dims, channels, labels, width=net.width, levels=net.levels,
                                         noise=net.noise_channels)
        self.discriminator = LesionDiscriminator(dims, channels, labels, width=net.width, levels=net.levels)
        self.weights = config.loss
        voxels = config.data.crop**dims
        self.gamma_start = config.training.gamma * voxels / 4096
        self.gamma, self.progress = self.gamma_start, 0.0

    @property
    def players(self) -> dict[str, nn.Module]:
        """The discriminator moves first."""
        return {"discriminator": self.discriminator, "generator": self.generator}

    def at(self, progress: float) -> None:
        """Lets the penalty fall to a tenth along a cosine; the reconstruction in lesions falls with it."""
        self.progress = progress
        self.gamma = self.gamma_start * (0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * progress))))

    def draw(self, batch: Batch) -> Tensor:
        """Images (B, C, ...) with the void drawn anew."""
        return paint(self.generator, batch)

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Parts]:
        """The relativistic game with R1 and R2, and for the generator what `config.loss` weighs in."""
        critic, context = self.discriminator, (batch["void"], batch["labels"], batch["condition"])
        real = batch["image"]
        if player == "discriminator":
            with torch.no_grad():
                made = self.draw(batch)
            real_logits, _ = critic(real, *context)
            made_logits, _ = critic(made, *context)
            game = losses.relativistic_discriminator(real_logits, made_logits)
            # Every other image estimates the same mean at half the cost of the dearest part of the step.
            few = tuple(tensor[::2] for tensor in context)
            r1 = losses.zero_centred_penalty(lambda x: critic(x, *few)[0], real[::2])
            r2 = losses.zero_centred_penalty(lambda x: critic(x, *few)[0], made[::2])
            margin = (real_logits - made_logits).mean()
            return game + 0.5 * self.gamma * (r1 + r2), {"game": game, "r1": r1, "r2": r2, "margin": margin}
        return self._generator_loss(batch)

    def _generator_loss(self, batch: Batch) -> tuple[Tensor, Parts]:
        weights, real = self.weights, batch["image"]
        context = (batch["void"], batch["labels"], batch["condition"])
        made = self.draw(batch)
        with torch.no_grad():
            real_logits, real_features = self.discriminator(real, *context)
        made_logits, made_features = self.discriminator(made, *context)
        void = batch["void"]
        lesion = batch["labels"].sum(dim=1, keepdim=True)
        healthy = spread_over(1 - batch["condition"][:, -1], void) * void
        rim = (void - lesion).clamp(min=0) * spread_over(batch["condition"][:, -1], void)
        parts = {
            "adversarial": losses.relativistic_generator(real_logits, made_logits),
            "reconstruction": losses.masked_l1(made, real, lesion),
            "healthy": losses.masked_l1(made, real, healthy),
            "rim": losses.masked_l1(made, real, rim),
            "histogram": losses.sorted_distance(real, made, lesion),
            "features": torch.stack([(a.float().mean(0) - b.float().mean(0)).abs().mean()
                                     for a, b in zip(real_features, made_features, strict=True)]).mean(),
        }
        total = (weights.adversarial * parts["adversarial"] + weights.healthy * parts["healthy"]
                 + weights.reconstruction * (1 - self.progress) * parts["reconstruction"]
                 + weights.rim * parts["rim"] + weights.histogram * parts["histogram"]
                 + weights.features * parts["features"])
        if weights.diversity > 0:
            # A quarter of the batch drawn twice is enough to feel a collapse.
            few = {name: tensor[: max(1, len(tensor) // 4)] for name, tensor in batch.items()}
            parts["diversity"] = losses.diversity_ratio(made[: len(few["image"])], self.draw(few), few["void"],
                                                        DIVERSITY_BOUND)
            total = total - weights.diversity * parts["diversity"] / DIVERSITY_BOUND
        return total, parts

    def sheet(self, generator: nn.Module, source: Any) -> NDArray[np.uint8]:
        """Rows: tissue before, the mask asked for, the lesion drawn twice; and real lesions for comparison."""
        from medgan.reports.sheets import grey, outlined, sheet

        device = next(generator.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in source.requests(10).items()}
        real = source.lesions_only(10)
        rows = []
        before = middle(batch["image"])
        labels = middle(batch["labels"])
        index = (labels.argmax(axis=1) + 1) * (labels.sum(axis=1) > 0)
        draws = []
        for seed in (0, 1):
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(seed)
                draws.append(middle(paint(generator, batch)))
        real_image, real_labels = middle(real["image"]), middle(real["labels"])
        real_index = (real_labels.argmax(axis=1) + 1) * (real_labels.sum(axis=1) > 0)
        for channel in range(before.shape[1]):
            of = f" (channel {channel})" if before.shape[1] > 1 else ""
            rows += [(f"before{of}", [grey(x[channel]) for x in before]),
                     (f"mask asked for{of}", [outlined(x[channel], y) for x, y in zip(before, index, strict=True)])]
            rows += [(f"after, draw {n}{of}", [grey(x[channel]) for x in draw]) for n, draw in enumerate(draws, 1)]
            rows += [(f"real lesions{of}", [grey(x[channel]) for x in real_image]),
                     (f"real lesions, mask{of}",
                      [outlined(x[channel], y) for x, y in zip(real_image, real_index, strict=True)])]
        return sheet(rows, zoom=2 if before.shape[-1] <= 64 else 1)

    @staticmethod
    def source(dataset: Dataset, config: Config) -> LesionSource:
        """Cuts the crops that training draws from."""
        return LesionSource(dataset, config)


def paint(generator: nn.Module, batch: Mapping[str, Tensor], noise: list[Tensor] | None = None, *,
          blend: bool = True) -> Tensor:
    """Draws into the voids of a batch and blends softly; outside the void the image is returned as it is.

    Args:
        generator: A `LesionGenerator`.
        batch: `image` (B, C, ...), `void` (B, 1, ...) soft mask, `labels`, `distance`, `condition`.
        noise: As `LesionGenerator.noise_shapes` says; drawn from torch's generator when None.
        blend: False leaves the drawing unblended inside the void, for callers that blend on another grid.
    """
    assert isinstance(generator, LesionGenerator)
    image, soft = batch["image"], batch["void"]
    hard = (soft > 0).to(image.dtype)
    if noise is None:
        noise = [torch.randn(len(image), *shape, device=image.device)
                 for shape in generator.noise_shapes(image.shape[2:])]
    drawn = generator(smooth_fill(image, hard), soft, batch["distance"], batch["labels"], batch["condition"], noise)
    return torch.where(hard.bool(), image + (soft if blend else hard) * (drawn - image), image)


def spread_over(vector: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...) to go with `like`."""
    return vector.reshape(-1, *([1] * (like.ndim - 1)))


def middle(tensor: Tensor) -> NDArray[np.float32]:
    """(B, C, X, Y[, Z]) -> the middle slice of each, as an array (B, C, X, Y)."""
    array = tensor.detach().float().cpu().numpy()
    return array if array.ndim == 4 else array[..., array.shape[-1] // 2]


@dataclass(frozen=True, eq=False)
class Crop:
    """A stored crop: network values, label indices, where tissue is, working spacing."""

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    tissue: NDArray[np.bool_]
    spacing_mm: float


class LesionSource:
    """Crops of real lesions and of lesion-free tissue of the training cases, held in memory."""

    def __init__(self, dataset: Dataset, config: Config) -> None:
        self.config, self.dims = config, config.data.dims
        self.lesion_crops: list[Crop] = []
        self.tissue_crops: list[Crop] = []
        self.size = config.data.crop
        self.stored = int(np.ceil(self.size * STORED / 2) * 2)
        values = mask_values(dataset)
        names = {str(value): dataset.labels[value] for value in values}
        finest: list[float] = []
        channels = 0
        for number, case in enumerate(dataset.split("train")):
            if case.mask is None:
                continue
            scan = open_scan(dataset, case, config)
            channels = len(scan.image)
            native = float(scan.spacing_mm[:2].min())
            finest.append(config.data.spacing_mm or native)
            self._cut_case(scan, finest[-1], np.random.default_rng([config.seed, 1, number]))
        if not self.lesion_crops:
            raise Refused("DATASET_EMPTY", dataset.root, "no training case has a lesion in its mask",
                          "Give masks, or train --task image or upscale")
        self.interface: dict[str, Any] = {
            "channels": channels, "labels": names, "spacing_mm": round(float(np.median(finest)), 4),
            "channel_names": list(dataset.channels)}

    def _cut_case(self, scan: Scan, finest_mm: float, rng: np.random.Generator) -> None:
        lesions = find_lesions(scan)
        if not lesions:
            return
        limit = self.config.data.crops_per_case
        tissue = scan.tissue()
        centres = [(lesion, centre) for lesion in lesions for centre in self._centres(lesion)]
        spacings = []
        for index in sorted(rng.permutation(len(centres))[:limit]):
            lesion, centre = centres[index]
            spacing = working_spacing(lesion.extent_mm, finest_mm, self.size)
            # Other lesions in the crop stay what they are to the generator: surroundings.
            own = np.zeros(scan.labels.shape, np.uint8)
            own[tuple(slice(c, c + n) for c, n in zip(lesion.corner, lesion.labels.shape, strict=True))] = lesion.labels
            crop = self._cut(scan, own, tissue, centre, spacing)
            if int((crop.labels > 0).sum()) >= SMALLEST_SECTION:
                self.lesion_crops.append(crop)
                spacings.append(spacing)
        places = np.argwhere(tissue & (scan.labels == 0))
        for _ in range(min(limit, max(4, len(spacings)))):
            if not len(places) or not spacings:
                break
            spacing = float(rng.choice(spacings))
            tries = [self._cut(scan, scan.labels, tissue, places[rng.integers(len(places))].astype(float), spacing)
                     for _ in range(3)]
            self.tissue_crops.append(min(tries, key=lambda crop: int((crop.labels > 0).sum())))

    def _centres(self, lesion: Lesion) -> list[NDArray[np.float64]]:
        """Where crops of a lesion are centred: its middle in 3D, the middle of each of its slices in 2D."""
        if self.dims == 3:
            return [lesion.centre] * max(1, min(8, int(lesion.extent_mm / 4)))
        inside = lesion.labels > 0
        sections = np.flatnonzero(inside.any(axis=(0, 1)))
        middles = [np.array([*np.argwhere(inside[:, :, k]).mean(axis=0), k]) for k in sections]
        return [lesion.corner + middle for middle in middles]

    def _cut(self, scan: Scan, labels: NDArray[np.uint8], tissue: NDArray[np.bool_], centre: NDArray[np.float64],
             spacing: float) -> Crop:
        depth = self.stored if self.dims == 3 else 1
        step = spacing / scan.spacing_mm
        if self.dims == 2:
            step[2] = 1.0
        grid = Grid(np.asarray(centre, float), step, (self.stored, self.stored, depth))
        image = np.stack([grid.cut(channel, order=1) for channel in scan.image])
        mask, inside = grid.cut(labels, order=0), grid.cut(tissue.view(np.uint8), order=0) > 0
        if self.dims == 2:
            image, mask, inside = image[..., 0], mask[..., 0], inside[..., 0]
        return Crop(image, mask, inside, spacing)

    def batch(self, step: int) -> Batch:
        """Lesions first, then lesion-free voids, `training.batch` in all."""
        rng = np.random.default_rng([self.config.seed, 2, step])
        count = self.config.training.batch
        healthy = round(count * self.config.loss.healthy_share) if self.tissue_crops else 0
        rows = [self._lesion_row(rng) for _ in range(count - healthy)] + [self._void_row(rng) for _ in range(healthy)]
        return _stack(rows)

    def requests(self, count: int) -> Batch:
        """The fixed requests of the contact sheet: real masks on other tissue, the best fitting of a few draws."""
        rng = np.random.default_rng([self.config.seed, 3])
        rows = []
        for _ in range(count):
            draws = []
            for _ in range(REQUEST_DRAWS):
                host, shape = self._any(self.tissue_crops or self.lesion_crops, rng), self._any(self.lesion_crops, rng)
                (image, _, tissue), (own, labels, _) = self._window(host, None), self._window(shape, None)
                inside = np.where(tissue, labels, 0).astype(np.uint8)
                rim = ndimage.binary_dilation(labels > 0, iterations=3) & (labels == 0)
                share = (inside > 0).sum() / max(1, (labels > 0).sum())
                fit = float(share - np.abs(image[0][rim] - own[0][rim].mean()).mean())
                draws.append((fit, image, inside, shape.spacing_mm))
            _, image, labels, spacing = max(draws, key=lambda draw: draw[0])
            rows.append(self._row(image, labels, spacing))
        return _stack(rows)

    def lesions_only(self, count: int) -> Batch:
        """Real lesions, for comparison on the contact sheet."""
        rng = np.random.default_rng([self.config.seed, 4])
        chosen = [self._any(self.lesion_crops, rng) for _ in range(count)]
        return _stack([self._row(*self._window(crop, None)[:2], crop.spacing_mm) for crop in chosen])

    @staticmethod
    def _any(crops: list[Crop], rng: np.random.Generator) -> Crop:
        return crops[rng.integers(len(crops))]

    def _lesion_row(self, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        crop = self._any(self.lesion_crops, rng)
        return self._row(*self._window(crop, rng)[:2], crop.spacing_mm)

    def _void_row(self, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        """A void of a lesion's shape in tissue; a lesion that happens to be in the crop stays untouched."""
        host = self._any(self.tissue_crops, rng)
        image, present, tissue = self._window(host, rng)
        _, shape, _ = self._window(self._any(self.lesion_crops, rng), rng)
        inside = np.where(tissue, shape, 0).astype(np.uint8)
        row = self._row(image, inside if inside.any() else shape, host.spacing_mm)
        row["void"] = np.where(present[None] > 0, np.float32(0), row["void"])
        row["labels"][:], row["distance"][:], row["condition"][:] = 0, -1, 0
        return row

    def _window(self, crop: Crop, rng: np.random.Generator | None
                ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        """Image, labels and tissue of the used part of a stored crop: the middle, or moved and turned at random."""
        slack = self.stored - self.size
        if rng is None:
            starts = [slack // 2] * self.dims
        else:
            starts = [int(rng.integers(slack + 1)) for _ in range(self.dims)]
        window = tuple(slice(start, start + self.size) for start in starts)
        maps = [crop.labels[window], crop.tissue[window]]
        image = crop.image[(slice(None), *window)]
        if rng is not None:
            for axis in range(self.dims):
                if rng.random() < 0.5:
                    image, maps = np.flip(image, axis + 1), [np.flip(m, axis) for m in maps]
            turns = int(rng.integers(4))
            image, maps = np.rot90(image, turns, (1, 2)), [np.rot90(m, turns, (0, 1)) for m in maps]
        labels, tissue = maps
        return np.ascontiguousarray(image), np.ascontiguousarray(labels), np.ascontiguousarray(tissue)

    def _row(self, image: NDArray[np.float32], labels: NDArray[np.uint8], spacing_mm: float
             ) -> dict[str, NDArray[np.float32]]:
        told = encode(labels, self.label_count, spacing_mm)
        void = soft_mask(labels, np.ones(labels.ndim), RIM_VOXELS)
        return {"image": image, "void": void[None], "labels": told.labels, "distance": told.distance,
                "condition": told.condition}

    @property
    def label_count(self) -> int:
        """The number of labels L."""
        return len(self.interface["labels"])


def _stack(rows: list[dict[str, NDArray[np.float32]]]) -> Batch:
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


