"""The image task: whole images of a class from noise, in 2D or 3D."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.learning.adaptive import Augmentation, next_probability
from medgan.learning.image_networks import ImageDiscriminator, ImageGenerator
from medgan.learning.objectives import OBJECTIVES, penalty, penalty_of
from medgan.learning.task import Batch, Parts, Probe, Task
from medgan.learning.tasks.image_source import ImageSource, sample

#: One in so many images has its penalties taken: they estimate the same mean at a fraction of the cost.
PENALISED = 8
#: Images a row of the contact sheet.
SHEET_COLUMNS = 12
#: Draws the latent vectors of probes.
PROBE_SEED = 17


class ImageTask(Task):
    """Class-conditional generator and projection discriminator (R3GAN, Huang et al. 2024)."""

    name: ClassVar[str] = "image"
    generator: ImageGenerator
    probability: Tensor

    def __init__(self, config: Config, interface: Mapping[str, Any]) -> None:
        super().__init__()
        net, dims, size = config.network, config.data.dims, tuple(interface["size"])
        channels, classes = int(interface["channels"]), len(interface["classes"])
        maps = len(interface["maps"]) if net.label_maps else 0
        self.generator = ImageGenerator(dims, channels, classes, size=size, width=net.width, latent=net.latent,
                                        maps=maps)
        self.discriminator = ImageDiscriminator(dims, channels, classes, size=size, width=net.width, placed=True,
                                                maps=maps)
        # The layout in which small convolutions are several times faster on CPUs.
        self.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)  # type: ignore[call-overload]
        self.objective = OBJECTIVES[config.training.objective]
        self.penalty = penalty_of(self.objective, config.training.penalty)
        self.gamma_start = config.training.gamma * float(np.prod(size)) / 4096
        self.gamma = self.gamma_start
        self.ada_target, self.ada_cap = config.training.ada_target, config.training.ada_cap
        self.augment = Augmentation(intensity=config.modality != "ct")
        self.register_buffer("probability", torch.zeros(()))
        self._made: tuple[Batch, Tensor] | None = None

    @property
    def players(self) -> dict[str, nn.Module]:
        """The discriminator moves first."""
        return {"discriminator": self.discriminator, "generator": self.generator}

    def at(self, progress: float) -> None:
        """Lets the penalty fall to a tenth along a cosine."""
        self.gamma = self.gamma_start * (0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * progress))))

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Parts]:
        """The game of `training.objective`, pairs drawn within a class, seen through the same augmentation."""
        if player == "discriminator":
            self._made = None
            if self.share is not None:
                # Memory is short: the graph is not kept, and the same seed gives the same images again.
                with torch.no_grad():
                    made = self._make(batch)
                return self._discriminator_loss(batch, made)
            # What the generator makes now it would make again when it moves: its graph is kept till then.
            self.generator.requires_grad_(True)
            made = self._make(batch)
            self._made = batch, made
            return self._discriminator_loss(batch, made.detach())
        made = self._made[1] if self._made is not None and self._made[0] is batch else self._make(batch)
        self._made = None
        real, made = self._seen(batch, made)
        with torch.no_grad():
            real_logits = self.discriminator(real, batch["class"])[0]
        game = self.objective.generator(real_logits, self.discriminator(made, batch["class"])[0])
        return game, {"adversarial": game}

    def forget(self) -> None:
        """Drops the images kept from the discriminator's move."""
        super().forget()
        self._made = None

    def _make(self, batch: Batch) -> Tensor:
        """As many images as the batch has, of its classes and on its label maps."""
        latent = torch.randn(len(batch["class"]), self.generator.latent).to(batch["class"].device)
        return cast(Tensor, self.generator(latent, batch["class"], batch.get("map")))

    def _seen(self, batch: Batch, made: Tensor) -> tuple[Tensor, Tensor]:
        """Real and made images (B, C[+ L], ...) as the discriminator sees them, each pair augmented alike."""
        real, maps = batch["image"], batch.get("map")
        both = self.augment(torch.cat([real, made], dim=1), float(self.probability), maps)
        channels = real.shape[1]
        real, made = both[:, :channels], both[:, channels : 2 * channels]
        if maps is None:
            return real, made
        return torch.cat([real, both[:, 2 * channels :]], dim=1), torch.cat([made, both[:, 2 * channels :]], dim=1)

    def _discriminator_loss(self, batch: Batch, made: Tensor) -> tuple[Tensor, Parts]:
        critic, classes = self.discriminator, batch["class"]
        real, made = self._seen(batch, made)
        real_logits, made_logits = critic(torch.cat([real, made]), torch.cat([classes] * 2))[0].chunk(2)
        game = self.objective.discriminator(real_logits, made_logits)
        (few, weight), channels = self.every(PENALISED, len(real)), batch["image"].shape[1]
        maps, coarse = real[few][:, channels:], torch.is_autocast_enabled(real.device.type)

        def slopes(images: Tensor) -> Tensor:
            """Logits by the image alone. A mean of squares stands coarse numbers, and they come at half the cost."""
            with torch.autocast(images.device.type, torch.bfloat16, enabled=coarse):
                return cast(Tensor, critic(torch.cat([images, maps], dim=1), classes[few])[0])

        total, parts = game, {"game": game}
        if weight > 0:
            paid, slopes_by_name = penalty(self.penalty, slopes, real[few][:, :channels], made[few][:, :channels],
                                           gamma=self.gamma, scale=weight * self.penalty_scale)
            total = game + paid
            parts |= {name: weight * slope for name, slope in slopes_by_name.items()}
        margin = (real_logits - made_logits).detach()
        if self.ada_cap > 0 and (margins := self.gathered(margin)) is not None:
            self.probability.copy_(next_probability(self.probability, margins, self.ada_target, self.ada_cap,
                                                    self.ada_floor))
        return total, parts | {"margin": margin.mean(), "sure": margin.sign().mean(), "p": self.probability.clone()}

    def probe(self, generator: nn.Module, source: Any, count: int) -> Probe:
        """The same latent vectors at every report, and real images spread over those of each class."""
        present = [index for index in range(len(source.interface["classes"])) if len(source.of_class(index))]
        made, real, classes, real_classes = [], [], [], []
        for index in present:
            images, maps = source.of_class(index), source.maps_of_class(index)
            share = max(1, count // len(present))
            kept = _spread_over(len(images), share)
            # The maps of other real images than those they are held against, where there are so many.
            follow = None if maps is None else maps[np.resize(kept[::-1], share)]
            made.append(sample(generator, index, share, PROBE_SEED, maps=follow))
            real.append(images[kept])
            classes += [index] * share
            real_classes += [index] * len(kept)
        return Probe(np.concatenate(made), np.concatenate(real), np.array(classes, dtype=np.int64),
                     np.array(real_classes, dtype=np.int64))

    def sheet(self, generator: nn.Module, source: Any) -> NDArray[np.uint8]:
        """For each class, a row of real images, their label maps where they count, and two rows of made ones."""
        from medgan.reports.sheets import grey, outlined, plane, sheet

        rows, flat = [], functools.partial(plane, lines_down=bool(source.interface.get("lines_down")))
        for index, name in enumerate(source.interface["classes"]):
            images, maps = source.of_class(index), source.maps_of_class(index)
            if not len(images):
                continue
            kept = _spread_over(len(images), SHEET_COLUMNS)
            rows.append((f"{name}: real", [grey(flat(x)) for x in images[kept]]))
            follow = None if maps is None else maps[np.resize(kept, SHEET_COLUMNS)]
            if follow is not None:
                numbers = [flat(x.argmax(axis=0)[None]).astype(np.int64) for x in follow]
                rows.append((f"{name}: label map", [outlined(np.full(y.shape, -1.0), y) for y in numbers]))
            for seed in (0, 1):
                made = sample(generator, index, SHEET_COLUMNS, seed, maps=follow)
                rows.append((f"{name}: made", [grey(flat(x)) for x in made]))
        return sheet(rows, zoom=max(1, 64 // max(source.interface["size"])))

    @staticmethod
    def source(dataset: Dataset, config: Config) -> ImageSource:
        """Reads and resizes the training images."""
        return ImageSource(dataset, config)


def _spread_over(count: int, most: int) -> NDArray[np.intp]:
    """Indices of at most so many of `count` images, evenly spread: data sets come sorted by patient."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.intp))
