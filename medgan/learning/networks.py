"""The networks: one definition for 2D and 3D, built on MONAI's dimension-generic layers.

Residual blocks start as the identity (their last convolution is zero), discriminators have no normalisation
(Huang et al. 2024, "The GAN is dead; long live the GAN!", R3GAN), generators use group normalisation whose scale
and shift follow the condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

SLOPE = 0.2
#: How strongly a latent vector, class or texture modulates features at the start.
MODULATION = 1.0
#: Channels a group of the group normalisation; small, since the widths are.
GROUP = 8


def convolution(dims: int, inputs: int, outputs: int, kernel: int = 3, *, zero: bool = False,
                padding: int | None = None) -> nn.Module:
    """A convolution in 2 or 3 dimensions, size-preserving without `padding`, its weights zero when `zero`."""
    margin = kernel // 2 if padding is None else padding
    layer = cast(nn.Module, Conv[Conv.CONV, dims](inputs, outputs, kernel, padding=margin))
    if zero:
        nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    else:
        nn.init.kaiming_normal_(layer.weight, a=SLOPE)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def down(dims: int) -> nn.Module:
    """Halves every spatial axis by averaging."""
    return cast(nn.Module, Pool[Pool.AVG, dims](2))


def up(x: Tensor) -> Tensor:
    """Doubles every spatial axis, linearly interpolated so that no checkerboard can arise."""
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(x, scale_factor=2, mode=mode, align_corners=False)


def laid_out(x: Tensor) -> Tensor:
    """The same tensor with its channels last in memory: several times faster for small convolutions on CPUs."""
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def spread(vector: Tensor, like: Tensor) -> Tensor:
    """(B, F) -> (B, F, 1, 1[, 1]) to go with `like`."""
    return vector.reshape(*vector.shape, *([1] * (like.ndim - 2)))


class ConditionedBlock(nn.Module):
    """A residual block whose normalisation is scaled and shifted by a condition vector, with noise as extra input.

    `modulation` is how strongly the condition speaks at the start: a latent vector or texture that nothing else tells
    has to be heard from the first step.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, condition: int, noise: int = 0, *,
                 modulation: float = 0.0) -> None:
        super().__init__()
        # Noise is mixed up to the features' own number and added: odd channel counts would slow the convolution.
        self.grain = convolution(dims, noise, inputs, 1) if noise else None
        self.first = convolution(dims, inputs, outputs)
        self.second = convolution(dims, outputs, outputs, zero=True)
        self.norm = nn.GroupNorm(max(1, inputs // GROUP), inputs)
        self.middle = nn.GroupNorm(max(1, outputs // GROUP), outputs)
        self.film = nn.Linear(condition, 2 * outputs)
        nn.init.normal_(self.film.weight, std=modulation / condition**0.5)
        nn.init.zeros_(self.film.bias)
        self.skip = convolution(dims, inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor, noise: Tensor | None = None) -> Tensor:
        """x (B, inputs, ...), condition (B, F), noise (B, noise, ...) of x's size -> (B, outputs, ...)."""
        h = F.leaky_relu(self.norm(x), SLOPE)
        if self.grain is not None and noise is not None:
            h = h + self.grain(laid_out(noise))
        h = self.middle(self.first(h))
        scale, shift = self.film(condition).chunk(2, dim=1)
        h = h * (1 + spread(scale, h)) + spread(shift, h)
        return cast(Tensor, self.skip(x) + self.second(F.leaky_relu(h, SLOPE)))


class LesionGenerator(nn.Module):
    """A U-Net that draws tissue or a lesion into a void.

    Args:
        dims: 2 or 3.
        channels: Image channels C.
        labels: Mask values without background, L.
        width: Features at full resolution; doubled at each lower level.
        levels: Resolutions.
        noise: Noise channels at each level.
        textures: Texture clusters K in the condition.
        latent: Numbers that vary a drawing as a whole (its brightness, say), which noise in space cannot; may be 0.
        reach: Largest change of the smooth fill, in network values.
    """

    reach = 2.5

    def __init__(self, dims: int, channels: int, labels: int, *, width: int, levels: int, noise: int,
                 textures: int = 0, latent: int = 0) -> None:
        super().__init__()
        self.dims, self.channels, self.noise, self.levels, self.latent = dims, channels, noise, levels, latent
        features = [width * 2**level for level in range(levels)]
        condition = 4 * width
        # log size, share of each label, texture cluster, and whether there is a lesion at all
        self.embed = nn.Sequential(nn.Linear(labels + textures + 2 + latent, condition), nn.LeakyReLU(SLOPE),
                                   nn.Linear(condition, condition), nn.LeakyReLU(SLOPE))
        # image with smooth fill, void, signed distance, labels
        self.stem = convolution(dims, channels + 2 + labels, width)
        self.encode = nn.ModuleList(
            ConditionedBlock(dims, features[max(0, i - 1)], features[i], condition, noise, modulation=MODULATION)
            for i in range(levels))
        self.middle = ConditionedBlock(dims, features[-1], features[-1], condition, noise, modulation=MODULATION)
        # Below features are narrowed where they are still small, then added: half the decoder's cost of joining them.
        self.narrow = nn.ModuleList(convolution(dims, features[i + 1], features[i], 1)
                                    for i in reversed(range(levels - 1)))
        self.decode = nn.ModuleList(
            ConditionedBlock(dims, features[i], features[i], condition, noise, modulation=MODULATION)
            for i in reversed(range(levels - 1)))
        self.down = down(dims)
        self.head = convolution(dims, width, channels, zero=True)

    def noise_shapes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """Shapes of the noise inputs for images of spatial `size`, in the order they are used."""
        at = [tuple(n // 2**level for n in size) for level in range(self.levels)]
        order = [*range(self.levels), self.levels - 1, *reversed(range(self.levels - 1))]
        whole = [(self.latent, *[1] * self.dims)] if self.latent else []
        return whole + [(self.noise, *at[level]) for level in order]

    def forward(self, filled: Tensor, void: Tensor, distance: Tensor, labels: Tensor, condition: Tensor,
                noise: Sequence[Tensor]) -> Tensor:
        """Draws into the void.

        Args:
            filled: (B, C, ...) image whose void holds the smooth fill.
            void: (B, 1, ...) 1 where the image may change.
            distance: (B, 1, ...) signed distance to the lesion's border, positive inside, scaled to about [-1, 1].
            labels: (B, L, ...) one-hot mask values without background.
            condition: (B, L + K + 2) log size, share of each label, texture cluster, 1 where there is a lesion.
            noise: Tensors (B, ...) as `noise_shapes` says.

        Returns:
            (B, C, ...) network values everywhere; only those inside the void are meant.
        """
        draws = iter(noise)
        embedded = self.embed(torch.cat([condition, next(draws).flatten(1)], dim=1) if self.latent else condition)
        h = self.stem(laid_out(torch.cat([filled, void, distance, labels], dim=1)))
        kept: list[Tensor] = []
        for level, block in enumerate(self.encode):
            if level:
                h = self.down(h)
            h = block(h, embedded, next(draws))
            kept.append(h)
        h = self.middle(kept.pop(), embedded, next(draws))
        for narrow, block in zip(self.narrow, self.decode, strict=True):
            h = block(up(narrow(h)) + kept.pop(), embedded, next(draws))
        change = self.head(F.leaky_relu(h, SLOPE)).float()
        return filled.float() + self.reach * torch.tanh(change / self.reach)


class PlainBlock(nn.Module):
    """A residual block without normalisation."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = convolution(dims, inputs, outputs)
        self.second = convolution(dims, outputs, outputs, zero=True)
        self.skip = convolution(dims, inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs, ...) -> (B, outputs, ...)."""
        h = self.first(F.leaky_relu(x, SLOPE))
        return cast(Tensor, self.skip(x) + self.second(F.leaky_relu(h, SLOPE)))


class LesionDiscriminator(nn.Module):
    """Judges what stands in the mask: local logits averaged under it, and a global head that sees the context.

    The class enters by projection (Miyato & Koyama 2018).
    """

    global_share = 0.5

    def __init__(self, dims: int, channels: int, labels: int, *, width: int, levels: int, textures: int = 0) -> None:
        super().__init__()
        self.stem = convolution(dims, channels + 1 + labels, width)
        features = [width * 2**level for level in range(levels)]
        self.blocks = nn.ModuleList(PlainBlock(dims, features[max(0, i - 1)], features[i]) for i in range(levels))
        self.down = down(dims)
        self.local = convolution(dims, features[-1], 1, 1)
        self.whole = nn.Linear(features[-1], 1)
        self.project = nn.Linear(labels + textures + 2, features[-1], bias=False)
        self.under = cast(nn.Module, Pool[Pool.MAX, dims](2 ** (levels - 1)))

    def forward(self, image: Tensor, void: Tensor, labels: Tensor, condition: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B,), larger for real, and the features of each level (B, F, ...) for feature matching."""
        h = self.stem(laid_out(torch.cat([image, void, labels], dim=1)))
        kept = []
        for level, block in enumerate(self.blocks):
            if level:
                h = self.down(h)
            h = block(h)
            kept.append(h)
        h = F.leaky_relu(h, SLOPE)
        mask = self.under(void)
        axes = tuple(range(2, h.ndim))
        local = (self.local(h) * mask).sum(dim=(1, *axes)) / mask.sum(dim=(1, *axes)).clamp(min=1)
        pooled = (h * mask).sum(dim=axes) / mask.sum(dim=axes).clamp(min=1)
        projected = (self.project(condition) * pooled).sum(dim=1) / pooled.shape[1] ** 0.5
        whole = self.whole(h.mean(dim=axes)).squeeze(1)
        return local + projected + self.global_share * whole, kept


class LesionReader(nn.Module):
    """Tells at half the resolution which label each place of a crop has: the small task network beside the game."""

    def __init__(self, dims: int, channels: int, labels: int, *, width: int) -> None:
        super().__init__()
        self.down = down(dims)
        self.stem = convolution(dims, channels, width)
        self.near = PlainBlock(dims, width, 2 * width)
        self.far = PlainBlock(dims, 2 * width, 2 * width)
        self.head = convolution(dims, 2 * width, labels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, ...) network values -> (B, L, ... / 2) logits."""
        h = self.near(self.stem(self.down(laid_out(image))))
        h = h + up(self.far(self.down(h)))
        return cast(Tensor, self.head(F.leaky_relu(h, SLOPE)).float())
