"""Generator and discriminator of whole images of a class, in 2D or 3D by one depth rule.

Residual blocks without normalisation that start as the identity, linear resizing, and learned bases between the
coarsest grid and vectors (Huang et al. 2024, "The GAN is dead; long live the GAN!", R3GAN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from medgan.learning.networks import SLOPE, PlainBlock, convolution, laid_out, spread, up

#: Strength of the condition's say in each block at the start.
MODULATION = 0.5


class ImageGenerator(nn.Module):
    """Class-conditional whole images from a latent vector, doubling a 4- to 8-voxel grid up to the full size.

    Args:
        dims: 2 or 3.
        channels: Image channels C.
        classes: Number of classes K.
        size: Spatial size of the images; the first grid is `size` halved until an edge would fall below 4.
        width: Features at full resolution; doubled at each lower level, 8 times at most.
        latent: Size of the latent vector.
        maps: Labels L of the label maps that the images follow; 0: none.
    """

    def __init__(self, dims: int, channels: int, classes: int, *, size: Sequence[int], width: int,
                 latent: int, maps: int = 0) -> None:
        super().__init__()
        self.size, self.latent, self.maps = tuple(size), latent, maps
        levels = image_levels(size)
        features = [width * min(8, 2**level) for level in reversed(range(levels))]
        self.start = tuple(-(-n // 2 ** (levels - 1)) for n in size)
        condition = 2 * latent
        self.classes = nn.Embedding(classes, latent)
        self.embed = nn.Sequential(linear(2 * latent, condition), nn.LeakyReLU(SLOPE),
                                   linear(condition, condition), nn.LeakyReLU(SLOPE))
        # Every place of the coarsest grid hears the whole latent vector: anatomy has its place.
        self.basis = linear(condition, features[0] * math.prod(self.start))
        self.blocks = nn.ModuleList(
            ModulatedBlock(dims, features[max(0, i - 1)], features[i], condition, maps) for i in range(levels))
        self.head = convolution(dims, features[-1], channels)

    def forward(self, latent: Tensor, classes: Tensor, maps: Tensor | None = None) -> Tensor:
        """latent (B, latent), classes (B,) integers, maps (B, L, *size) -> images (B, C, *size) in network values."""
        if (maps is None) == bool(self.maps):
            raise ValueError(f"label maps of {self.maps} labels are needed" if self.maps else "no label maps are known")
        condition = self.embed(torch.cat([latent, self.classes(classes)], dim=1))
        h = laid_out(self.basis(condition).unflatten(1, (-1, *self.start)))
        for level, block in enumerate(self.blocks):
            h = up(h) if level else h
            h = block(h, condition, None if maps is None else shrunk(maps, h.shape[2:]))
        image = self.head(F.leaky_relu(h, SLOPE)).float()
        # Grids that do not halve evenly are drawn a little larger and cropped in the middle.
        for axis, n in enumerate(self.size, start=2):
            image = image.narrow(axis, (image.shape[axis] - n) // 2, n)
        return cast(Tensor, image)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that keeps the variance of leaky features: a latent vector is to be heard from the first step."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    nn.init.zeros_(layer.bias)
    return layer


class ModulatedBlock(nn.Module):
    """A residual block without normalisation whose inner features are scaled and shifted by a condition vector.

    With label maps they are also scaled and shifted place by place, as the map says (Park et al. 2019, SPADE).
    """

    def __init__(self, dims: int, inputs: int, outputs: int, condition: int, maps: int = 0) -> None:
        super().__init__()
        self.first = convolution(dims, inputs, outputs)
        self.second = convolution(dims, outputs, outputs, zero=True)
        self.film = nn.Linear(condition, 2 * outputs)
        nn.init.normal_(self.film.weight, std=MODULATION / condition**0.5)
        nn.init.zeros_(self.film.bias)
        self.skip = convolution(dims, inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.read = nn.Sequential(convolution(dims, maps, outputs), nn.LeakyReLU(SLOPE),
                                  convolution(dims, outputs, 2 * outputs)) if maps else None

    def forward(self, x: Tensor, condition: Tensor, maps: Tensor | None = None) -> Tensor:
        """x (B, inputs, ...), condition (B, F), maps (B, L, ...) of x's size -> (B, outputs, ...)."""
        h = self.first(F.leaky_relu(x, SLOPE))
        scale, shift = self.film(condition).to(h.dtype).chunk(2, dim=1)
        scale, shift = spread(scale, h), spread(shift, h)
        if self.read is not None and maps is not None:
            placed_scale, placed_shift = self.read(laid_out(maps)).chunk(2, dim=1)
            scale, shift = scale + placed_scale, shift + placed_shift
        h = torch.addcmul(shift, h, 1 + scale)
        return cast(Tensor, self.skip(x) + self.second(F.leaky_relu(h, SLOPE)))


class ImageDiscriminator(nn.Module):
    """Residual classifier of real against made images, without normalisation, class by projection.

    Args:
        dims: 2 or 3.
        channels: Image channels C.
        classes: Number of classes K.
        size: Spatial size of the images.
        width: Features at full resolution; doubled at each lower level, 8 times at most.
        placed: Features of the coarsest grid are read by where they are, so that anatomy has its place; False: they
            are averaged, and any size goes.
        maps: Labels L of label maps that come as further channels behind those of the image.
    """

    def __init__(self, dims: int, channels: int, classes: int, *, size: Sequence[int], width: int,
                 placed: bool = False, maps: int = 0) -> None:
        super().__init__()
        levels = image_levels(size)
        features = [width * min(8, 2**level) for level in range(levels)]
        self.stem = convolution(dims, channels + maps, width)
        self.blocks = nn.ModuleList(PlainBlock(dims, features[max(0, i - 1)], features[i]) for i in range(levels))
        self.shrink = cast(nn.Module, Pool[Pool.AVG, dims](2, ceil_mode=True))
        end = [-(-n // 2 ** (levels - 1)) for n in size]
        self.gather = linear(features[-1] * math.prod(end), features[-1]) if placed else None
        self.whole = nn.Linear(features[-1], 1)
        self.project = nn.Embedding(classes, features[-1])

    def forward(self, image: Tensor, classes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B,), larger for real, and the pooled features (B, F)."""
        h = self.stem(laid_out(image))
        for level, block in enumerate(self.blocks):
            h = block(self.shrink(h) if level else h)
        h = F.leaky_relu(h, SLOPE)
        if self.gather is None:
            pooled = h.mean(dim=tuple(range(2, h.ndim)))
        else:
            pooled = F.leaky_relu(self.gather(h.flatten(1)), SLOPE)
        projected = (self.project(classes) * pooled).sum(dim=1) / pooled.shape[1] ** 0.5
        return self.whole(pooled).squeeze(1) + projected, [pooled]


def shrunk(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Label maps (B, L, ...) at one of the generator's sizes, each voxel with the shares of its labels.

    The generator's grids are a little larger than the image where that does not halve evenly; the crop at the end is
    from the middle, so the map is widened evenly first, its border repeated.
    """
    levels = max(0, round(math.log2(maps.shape[2] / size[0])))
    whole = [n * 2**levels for n in size]
    widen: list[int] = []
    for n, m in zip(reversed(whole), reversed(maps.shape[2:]), strict=True):
        before = (n - m) // 2
        widen += [before, n - m - before]
    if any(widen):
        maps = F.pad(maps, widen, mode="replicate")
    return (F.avg_pool2d if maps.ndim == 4 else F.avg_pool3d)(maps, 2**levels) if levels else maps


def image_levels(size: Sequence[int]) -> int:
    """How often the smallest edge halves before it falls below 4 voxels, plus one."""
    levels, edge = 1, min(size)
    while edge >= 8:
        edge, levels = -(-edge // 2), levels + 1
    return levels
