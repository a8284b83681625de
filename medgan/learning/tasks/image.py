"""The image task: whole images of a class from noise, in 2D or 3D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.learning import losses
from medgan.learning.image_networks import ImageDiscriminator, ImageGenerator
from medgan.learning.task import Batch, Parts, Task
from medgan.learning.tasks.image_source import ImageSource, sample


class ImageTask(Task):
    """Class-conditional generator and projection discriminator (R3GAN, Huang et al. 2024)."""

    name: ClassVar[str] = "image"
    generator: ImageGenerator

    def __init__(self, config: Config, interface: Mapping[str, Any]) -> None:
        super().__init__()
        net, dims, size = config.network, config.data.dims, tuple(interface["size"])
        channels, self.classes = int(interface["channels"]), len(interface["classes"])
        self.generator = ImageGenerator(dims, channels, self.classes, size=size, width=net.width, latent=net.latent)
        self.discriminator = ImageDiscriminator(dims, channels, self.classes, size=size, width=net.width)
        self.gamma_start = config.training.gamma * float(np.prod(size)) / 4096
        self.gamma = self.gamma_start

    @property
    def players(self) -> dict[str, nn.Module]:
        """The discriminator moves first."""
        return {"discriminator": self.discriminator, "generator": self.generator}

    def at(self, progress: float) -> None:
        """Lets the penalty fall to a tenth along a cosine."""
        self.gamma = self.gamma_start * (0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * progress))))

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Parts]:
        """The relativistic game with R1 and R2, pairs drawn within a class."""
        critic, real, classes = self.discriminator, batch["image"], batch["class"]
        latent = torch.randn(len(real), self.generator.latent, device=real.device)
        if player == "discriminator":
            with torch.no_grad():
                made = self.generator(latent, classes)
            real_logits, made_logits = critic(real, classes)[0], critic(made, classes)[0]
            game = losses.relativistic_discriminator(real_logits, made_logits)
            # Every other image estimates the same mean at half the cost of the dearest part of the step.
            r1 = losses.zero_centred_penalty(lambda x: critic(x, classes[::2])[0], real[::2])
            r2 = losses.zero_centred_penalty(lambda x: critic(x, classes[::2])[0], made[::2])
            margin = (real_logits - made_logits).mean()
            return game + 0.5 * self.gamma * (r1 + r2), {"game": game, "r1": r1, "r2": r2, "margin": margin}
        with torch.no_grad():
            real_logits = critic(real, classes)[0]
        game = losses.relativistic_generator(real_logits, critic(self.generator(latent, classes), classes)[0])
        return game, {"adversarial": game}

    def sheet(self, generator: nn.Module, source: Any) -> NDArray[np.uint8]:
        """For each class, a row of real images and two rows of made ones."""
        from medgan.reports.sheets import grey, sheet

        rows = []
        for index, name in enumerate(source.interface["classes"]):
            real = source.of_class(index)[:12]
            rows.append((f"{name}: real", [grey(_picture(x)) for x in real]))
            for seed in (0, 1):
                made = sample(generator, index, 12, seed)
                rows.append((f"{name}: made", [grey(_picture(x)) for x in made]))
        return sheet(rows, zoom=max(1, 64 // max(source.interface["size"])))

    @staticmethod
    def source(dataset: Dataset, config: Config) -> ImageSource:
        """Reads and resizes the training images."""
        return ImageSource(dataset, config)


def _picture(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, X, Y[, Z]) -> (X, Y): first channel, middle slice."""
    return image[0] if image.ndim == 3 else image[0, :, :, image.shape[3] // 2]
