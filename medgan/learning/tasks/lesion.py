"""The lesion task: draw a lesion of given mask, class and size into real tissue, or tissue where a lesion was.

The generator sees the image with a void that is smoothly filled, the mask and noise; its drawing is blended in with
a soft mask, so that outside the dilated mask every voxel keeps its value. Lesion-free voids are drawn in the same
batches (the class is then "no lesion"), so that the same network also in-paints healthy tissue; `loss.warmup` lets the
first part of a run draw nothing else. A small task network, which learns on real crops beside the game, has to see what
is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.errors import Refused
from medgan.learning import losses
from medgan.learning.adaptive import kept_by_cutout, next_probability
from medgan.learning.losses import read_error, read_weight
from medgan.learning.networks import LesionDiscriminator, LesionGenerator, LesionReader
from medgan.learning.objectives import OBJECTIVES, penalty, penalty_of
from medgan.learning.task import Batch, Parts, Probe, Task
from medgan.learning.tasks.lesion_batches import (
    healthy_of,
    largest,
    lesion_of,
    middle,
    patches,
    rim_of,
    without_lesions,
)
from medgan.learning.tasks.lesion_source import VERSION, LesionSource
from medgan.lesions.textures import QUANTILES, Textures

#: Two draws of one request are rewarded for differing up to this share of what real lesions differ by, ...
DIVERSITY_SHARE = 0.6
#: ... and at least up to this, in network values, where there is but one lesion to go by.
DIVERSITY_LEAST = 0.02
#: One in so many requests is drawn twice.
TWICE = 8
#: One in so many images has its penalties taken.
PENALISED = 4
#: One in so many real crops teaches the task network, which is much the easier game.
READ = 4
#: Weight of the game while only tissue is drawn (recipe: L1 times ten and a tenth of the adversary).
WARM_GAME = 0.1
#: From this share of the run on, the task network has to see what is made.
SEEN_FROM = 0.3
#: Requests of which each is drawn many times to see whether the draws differ.
PROBED_REQUESTS = 4


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
    """Generator, discriminator and task network of lesions in 2D or 3D; see the module's text."""

    name: ClassVar[str] = "lesion"
    generator: LesionGenerator
    cutout: Tensor
    centres: Tensor
    quantiles: Tensor

    def __init__(self, config: Config, interface: Mapping[str, Any]) -> None:
        super().__init__()
        if interface.get("version") != VERSION:
            raise Refused("CKPT_MISMATCH", "the run's interface", "its lesion networks are of another version, "
                          f"{interface.get('version', 1)} and not {VERSION}", "Train it again")
        net, dims = config.network, config.data.dims
        channels, labels = int(interface["channels"]), len(interface["labels"])
        textures = len(interface["textures"]["centres"])
        self.generator = LesionGenerator(dims, channels, labels, width=net.width, levels=net.levels,
                                         noise=net.noise_channels, textures=textures,
                                         latent=int(interface.get("latent", 0)))
        self.discriminator = LesionDiscriminator(dims, channels, labels, width=net.width, levels=net.levels,
                                                 textures=textures)
        self.weights = config.loss
        self.objective = OBJECTIVES[config.training.objective]
        self.penalty = penalty_of(self.objective, config.training.penalty)
        self.ada_target, self.ada_cap = config.training.ada_target, config.training.ada_cap
        self.reader = LesionReader(dims, channels, labels, width=net.width) if self.weights.seen > 0 else None
        # The layout in which small convolutions are several times faster on CPUs.
        self.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)  # type: ignore[call-overload]
        self.register_buffer("cutout", torch.zeros(()))
        self.register_buffer("centres", torch.from_numpy(Textures.of(interface).centres), persistent=False)
        self.register_buffer("quantiles", torch.from_numpy(QUANTILES).float(), persistent=False)
        self.bound = max(DIVERSITY_SHARE * float(interface["spread"]), DIVERSITY_LEAST)
        voxels = config.data.crop**dims
        self.gamma_start = config.training.gamma * voxels / 4096
        self.gamma, self.progress = self.gamma_start, 0.0
        self._drawn: tuple[Batch, Batch, Tensor] | None = None

    @property
    def players(self) -> dict[str, nn.Module]:
        """The discriminator moves first."""
        readers = {"reader": self.reader} if self.reader is not None else {}
        return {"discriminator": self.discriminator, **readers, "generator": self.generator}

    @property
    def warming(self) -> bool:
        """Whether this is the first part of the run, in which only tissue is drawn."""
        return self.progress < self.weights.warmup

    def at(self, progress: float) -> None:
        """Lets the penalty fall to a tenth along a cosine; the reconstruction in lesions falls with it."""
        self.progress = progress
        self.gamma = self.gamma_start * (0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * progress))))

    def draw(self, batch: Batch) -> Tensor:
        """Images (B, C, ...) with the void drawn anew."""
        return paint(self.generator, batch)

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Parts]:
        """The game of `training.objective`, and for the generator what `config.loss` weighs in."""
        if player == "reader":
            return self._reader_loss(batch)
        if player == "generator":
            return self._generator_loss(*self._played(batch))
        self._drawn = None
        if self.share is not None:
            # Memory is short: the graph is not kept, and the same seed draws the same again.
            with torch.no_grad():
                played, drawn = self._played(batch)
            return self._discriminator_loss(played, drawn)
        # What the generator draws now it would draw again when it moves: its graph is kept till then.
        self.generator.requires_grad_(True)
        played, drawn = self._played(batch)
        self._drawn = batch, played, drawn
        return self._discriminator_loss(played, drawn.detach())

    def forget(self) -> None:
        """Drops the drawings kept from the discriminator's move."""
        super().forget()
        self._drawn = None

    def _played(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch as this part of the run plays it, and what the generator draws into it."""
        if self._drawn is not None and self._drawn[0] is batch:
            _, played, drawn = self._drawn
            self._drawn = None
            return played, drawn
        played = without_lesions(batch) if self.warming else dict(batch)
        played["filled"] = smooth_fill(played["image"], (played["void"] > 0).to(played["image"].dtype))
        return played, self.draw(played)

    def _discriminator_loss(self, batch: Batch, made: Tensor) -> tuple[Tensor, Parts]:
        critic, (real, made, *context) = self.discriminator, self._cut(batch, made)
        logits, _ = critic(torch.cat([real, made]), *[torch.cat([tensor] * 2) for tensor in context])
        real_logits, made_logits = logits.chunk(2)
        game = self.objective.discriminator(real_logits, made_logits)
        # A few images estimate the same mean at a fraction of the cost of the dearest part of the step.
        rows, weight = self.every(PENALISED, len(real))
        total, parts = game, {"game": game}
        if weight > 0:
            few = [tensor[rows] for tensor in (real, made, *context)]
            paid, slopes = penalty(self.penalty, lambda x: critic(x, *few[2:])[0], *few[:2], gamma=self.gamma,
                                   scale=weight * self.penalty_scale)
            total = game + paid
            parts |= {name: weight * slope for name, slope in slopes.items()}
        margin = (real_logits - made_logits).detach()
        if self.ada_cap > 0 and (margins := self.gathered(margin)) is not None:
            self.cutout.copy_(next_probability(self.cutout, margins, self.ada_target, self.ada_cap, self.ada_floor))
        return total, parts | {"margin": margin.mean(), "cutout": self.cutout.clone()}

    def _over(self, seen: Callable[[Batch], Tensor]) -> Tensor | None:
        """What a sum over a part of the batch is divided by, so that the parts' means add up to the batch's.

        Args:
            seen: What it would be divided by for a whole batch.

        Returns:
            A scalar; None for a whole batch, and in the warm-up, whose voids are moved by chance.
        """
        if self.share is None or self.warming:
            return None
        return seen(self.share.whole).clamp(min=1) * self.share.size

    def _cut(self, batch: Batch, made: Tensor) -> tuple[Tensor, ...]:
        """Real and made images and their context as the discriminator sees them: with a box cut from some.

        Flips, quarter turns and shifts need not be adapted: every crop is drawn with all of them (`lesion_source`).
        """
        tensors: tuple[Tensor, ...] = (batch["image"], made, batch["void"], batch["labels"])
        if float(self.cutout) > 0:
            kept = kept_by_cutout(batch["void"], float(self.cutout))
            tensors = tuple(tensor * kept for tensor in tensors)
        return *tensors, batch["condition"]

    def _reader_loss(self, batch: Batch) -> tuple[Tensor, Parts]:
        """A few real crops a step are read; what is not known to be lesion or not is left out."""
        assert self.reader is not None
        rows, weight = self.every(READ, len(batch["image"]))
        if weight == 0:
            error = batch["image"].new_zeros(())
            return error, {"error": error}
        few = {name: tensor[rows] for name, tensor in batch.items()}
        over = None if self.share is None else (
            read_weight(self.share.whole["known"][::READ]).sum().clamp(min=1) * self.share.size)
        error = read_error(self.reader(few["image"]), few["labels"], few["known"], over=over)
        return error, {"error": error}

    def _generator_loss(self, batch: Batch, made: Tensor) -> tuple[Tensor, Parts]:
        weights, real = self.weights, batch["image"]
        seen_real, seen_made, *context = self._cut(batch, made)
        with torch.no_grad():
            real_logits, real_features = self.discriminator(seen_real, *context)
        made_logits, made_features = self.discriminator(seen_made, *context)
        void = batch["void"]
        parts = {
            "adversarial": self.objective.generator(real_logits, made_logits),
            "reconstruction": losses.masked_l1(made, real, lesion_of(batch), over=self._over(
                lambda whole: lesion_of(whole).sum())),
            "healthy": losses.masked_l1(made, real, healthy_of(batch), over=self._over(
                lambda whole: healthy_of(whole).sum())),
            "rim": losses.masked_l1(made, real, rim_of(batch), over=self._over(lambda whole: rim_of(whole).sum())),
            "histogram": losses.sorted_distance(real, made, lesion_of(batch), over=self._over(
                lambda whole: lesion_of(whole).flatten(1).any(dim=1).sum())),
            "features": torch.stack([(a.float().mean(0) - b.float().mean(0)).abs().mean()
                                     for a, b in zip(real_features, made_features, strict=True)]).mean(),
        }
        game = WARM_GAME if self.warming else 1.0
        total = (game * (weights.adversarial * parts["adversarial"] + weights.features * parts["features"])
                 + weights.healthy * parts["healthy"]
                 + weights.reconstruction * (1 - self.progress) * parts["reconstruction"]
                 + weights.rim * parts["rim"] + weights.histogram * parts["histogram"])
        if not self.warming:
            # A few requests drawn twice are enough to feel a collapse; lesions come first in a batch. Every other time
            # they are drawn in another texture instead: a lesion's own tissue betrays its texture, so that without
            # this the texture asked for is not listened to.
            count = len(real) if self.share is None else self.share.count
            rows, weight = self.first(max(1, count // TWICE))
            few = {name: tensor[:rows] for name, tensor in batch.items()}
            if weights.texture > 0 and len(self.centres) > 1 and float(torch.rand(())) < 0.5:
                parts["texture"] = weight * self._texture_error(few) if rows else made.new_zeros(())
                total = total + 2 * weights.texture * parts["texture"]
            elif weights.diversity > 0 and rows:
                change = weight * losses.diversity_ratio(made[:rows], self.draw(few), few["void"], self.bound)
                parts["diversity"] = change
                total = total - 2 * weights.diversity * change / self.bound
        if self.reader is not None and self.progress >= SEEN_FROM:
            parts["seen"] = read_error(self.reader(made), batch["labels"], (void > 0).to(void.dtype), over=self._over(
                lambda whole: read_weight((whole["void"] > 0).to(void.dtype)).sum()))
            total = total + weights.seen * parts["seen"]
        return total, parts

    def _texture_error(self, batch: Batch) -> Tensor:
        """How far lesions drawn in textures picked at random are from these."""
        picked = torch.randint(len(self.centres), (len(batch["image"]),)).to(self.centres.device)
        condition = batch["condition"].clone()
        first = batch["labels"].shape[1] + 1
        condition[:, first:-1] = F.one_hot(picked, len(self.centres)).to(condition.dtype)
        lesion = batch["labels"].sum(dim=1, keepdim=True)
        rim = ((batch["void"] > 0).to(lesion.dtype) - lesion).clamp(min=0)
        around = (batch["image"] * rim).flatten(2).sum(2) / rim.flatten(2).sum(2).clamp(min=1)
        return losses.description_distance(self.draw(batch | {"condition": condition}), lesion, around,
                                           self.centres[picked], self.quantiles)

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

    def probe(self, generator: nn.Module, source: Any, count: int) -> Probe | None:
        """The middles of a few requests' lesions, each drawn many times, beside those of real lesions.

        A request is a class: what the same request gives under differing noise should differ as real lesions do. All
        over the mean of the tissue around, so that tissue does not count as variety.
        """
        device = next(generator.parameters()).device
        batch = largest(source.requests(3 * PROBED_REQUESTS), PROBED_REQUESTS, device)
        draws = max(2, count // PROBED_REQUESTS)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            drawn = [patches(batch | {"image": paint(generator, batch)}) for _ in range(draws)]
        made = np.concatenate(drawn)
        real = patches(largest(source.lesions_only(3 * draws), draws, device))
        classes = np.arange(PROBED_REQUESTS)
        return Probe(made, np.tile(real, (PROBED_REQUESTS, *[1] * (real.ndim - 1))), np.tile(classes, draws),
                     np.repeat(classes, draws))

    @staticmethod
    def source(dataset: Dataset, config: Config) -> LesionSource:
        """Cuts the crops that training draws from."""
        return LesionSource(dataset, config)


def paint(generator: nn.Module, batch: Mapping[str, Tensor], noise: list[Tensor] | None = None, *,
          blend: bool = True) -> Tensor:
    """Draws into the voids of a batch and blends softly; outside the void the image is returned as it is.

    Args:
        generator: A `LesionGenerator`.
        batch: `image` (B, C, ...), `void` (B, 1, ...) soft mask, `labels`, `distance`, `condition`; `filled`, the
            image with its void smoothly filled, where it is known already.
        noise: As `LesionGenerator.noise_shapes` says; drawn from torch's generator when None.
        blend: False leaves the drawing unblended inside the void, for callers that blend on another grid.
    """
    assert isinstance(generator, LesionGenerator)
    image, soft = batch["image"], batch["void"]
    hard = (soft > 0).to(image.dtype)
    if noise is None:
        noise = [torch.randn(len(image), *shape, device=image.device)
                 for shape in generator.noise_shapes(image.shape[2:])]
    filled = batch["filled"] if "filled" in batch else smooth_fill(image, hard)
    drawn = generator(filled, soft, batch["distance"], batch["labels"], batch["condition"], noise)
    return torch.where(hard.bool(), image + (soft if blend else hard) * (drawn - image), image)
