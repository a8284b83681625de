"""Generator and discriminator of whole images of a class, in 2D or 3D by one depth rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from medgan.learning.networks import MODULATION, SLOPE, ConditionedBlock, PlainBlock, convolution, spread, up


class ImageGenerator(nn.Module):
    """Class-conditional whole images from a latent vector, doubling a 4- to 8-voxel grid up to the full size.

    Args:
        dims: 2 or 3.
        channels: Image channels C.
        classes: Number of classes K.
        size: Spatial size of the images; the first grid is `size` halved until an edge would fall below 4.
        width: Features at full resolution; doubled at each lower level, 8 times at most.
        latent: Size of the latent vector.
    """

    def __init__(self, dims: int, channels: int, classes: int, *, size: Sequence[int], width: int,
                 latent: int) -> None:
        super().__init__()
        self.size, self.latent = tuple(size), latent
        levels = image_levels(size)
        features = [width * min(8, 2**level) for level in reversed(range(levels))]
        self.start = tuple(-(-n // 2 ** (levels - 1)) for n in size)
        condition = 2 * latent
        self.classes = nn.Embedding(classes, latent)
        self.embed = nn.Sequential(nn.Linear(2 * latent, condition), nn.LeakyReLU(SLOPE))
        self.basis = nn.Parameter(torch.randn(features[0], *self.start))
        self.gain = nn.Linear(condition, features[0])
        self.blocks = nn.ModuleList(
            ConditionedBlock(dims, features[max(0, i - 1)], features[i], condition, modulation=MODULATION)
            for i in range(levels))
        self.head = convolution(dims, features[-1], channels)

    def forward(self, latent: Tensor, classes: Tensor) -> Tensor:
        """latent (B, latent), classes (B,) integers -> images (B, C, *size) in network values."""
        condition = self.embed(torch.cat([latent, self.classes(classes)], dim=1))
        h = self.basis[None] * (1 + spread(self.gain(condition), self.basis[None]))
        for level, block in enumerate(self.blocks):
            h = block(up(h) if level else h, condition)
        image = self.head(F.leaky_relu(h, SLOPE)).float()
        # Grids that do not halve evenly are drawn a little larger and cropped in the middle.
        for axis, n in enumerate(self.size, start=2):
            image = image.narrow(axis, (image.shape[axis] - n) // 2, n)
        return cast(Tensor, image)


class ImageDiscriminator(nn.Module):
    """Residual classifier of real against made images, without normalisation, class by projection."""

    def __init__(self, dims: int, channels: int, classes: int, *, size: Sequence[int], width: int) -> None:
        super().__init__()
        levels = image_levels(size)
        features = [width * min(8, 2**level) for level in range(levels)]
        self.stem = convolution(dims, channels, width)
        self.blocks = nn.ModuleList(PlainBlock(dims, features[max(0, i - 1)], features[i]) for i in range(levels))
        self.shrink = cast(nn.Module, Pool[Pool.AVG, dims](2, ceil_mode=True))
        self.whole = nn.Linear(features[-1], 1)
        self.project = nn.Embedding(classes, features[-1])

    def forward(self, image: Tensor, classes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B,), larger for real, and the pooled features (B, F)."""
        h = self.stem(image)
        for level, block in enumerate(self.blocks):
            h = block(self.shrink(h) if level else h)
        pooled = F.leaky_relu(h, SLOPE).mean(dim=tuple(range(2, h.ndim)))
        projected = (self.project(classes) * pooled).sum(dim=1) / pooled.shape[1] ** 0.5
        return self.whole(pooled).squeeze(1) + projected, [pooled]


def image_levels(size: Sequence[int]) -> int:
    """How often the smallest edge halves before it falls below 4 voxels, plus one."""
    levels, edge = 1, min(size)
    while edge >= 8:
        edge, levels = -(-edge // 2), levels + 1
    return levels
