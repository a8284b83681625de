"""Adaptive augmentation of what a discriminator sees (Karras et al. 2020, ADA), in 2D and 3D.

With few images a discriminator learns them by heart. Each transform here is done with probability p, to real and made
images alike, and p follows how sure the discriminator is. As long as p stays under about 0.8 the generator does not
learn the transforms: an upright image remains the most frequent one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Images over which the probability goes from 0 to 1 when the discriminator is always too sure.
RISE_IMAGES = 8_000
#: Largest shift, as a share of each edge.
SHIFT = 1 / 8
#: Standard deviation of the logarithm (base 2) of the scale.
SCALE = 0.2
#: Standard deviation of the small turn, in radians: about 6 degrees.
TURN = 0.1
#: Standard deviations of brightness (network values) and of the logarithm (base 2) of contrast.
BRIGHTNESS, CONTRAST = 0.1, 0.2
#: Values are turned about this one when the contrast changes: the middle of the network's range.
MIDDLE = 0.0


def next_probability(now: Tensor, margin: Tensor, target: float, cap: float, floor: float | Tensor = 0.0) -> Tensor:
    """The probability of a transform, raised where the discriminator is surer than `target`, else lowered.

    Args:
        now: The present probability, a scalar.
        margin: (B,) logits of real images minus those of the made ones they are paired with; its mean sign is what
            Karras et al. call r_t.
        target: -1 to 1.
        cap: Largest probability.
        floor: Least probability; stronger than the cap.
    """
    step = (margin.sign().mean() - target).sign() * len(margin) / RISE_IMAGES
    return (now + step).clamp(0, cap).maximum(torch.as_tensor(floor).to(now))


def kept_by_cutout(like: Tensor, probability: float) -> Tensor:
    """(B, 1, ...) 1, and 0 in a random box of half the edge in some images (DeVries & Taylor 2017)."""
    kept = torch.ones_like(like[:, :1])
    for row in torch.nonzero(torch.rand(len(like)) < probability)[:, 0].tolist():
        starts = [int(torch.randint(-(n // 4), n - n // 4 + 1, ())) for n in like.shape[2:]]
        box = tuple(slice(max(0, a), a + n // 2) for a, n in zip(starts, like.shape[2:], strict=True))
        kept[(row, 0, *box)] = 0
    return kept


@dataclass(frozen=True)
class Augmentation:
    """What may be done to an image without changing what it is an image of.

    Args:
        flips: Spatial axes, counted from 0, along which a mirrored image is as good.
        intensity: Brightness and contrast; not where values are absolute (CT).
    """

    flips: tuple[int, ...] = (0,)
    intensity: bool = True

    def __call__(self, images: Tensor, probability: float, maps: Tensor | None = None) -> Tensor:
        """The images, each transform done to each of them with `probability`; torch's generator draws which.

        Args:
            images: (B, C, X, Y[, Z]) in network values; gradients pass through to them.
            probability: 0 returns the very images.
            maps: (B, L, ...) further channels that go through the same places but keep their values.

        Returns:
            (B, C[+ L], X, Y[, Z]); `maps` behind the images where given.
        """
        whole = images if maps is None else torch.cat([images, maps], dim=1)
        if probability <= 0:
            return whole
        count, channels = len(images), images.shape[1]
        whole = self._mirrored(whole, probability)
        whole = _moved(whole, probability)
        if self.intensity:
            contrast = torch.exp2(CONTRAST * _some(count, probability, images))
            brightness = BRIGHTNESS * _some(count, probability, images)
            changed = (whole[:, :channels] - MIDDLE) * contrast + MIDDLE + brightness
            whole = changed if maps is None else torch.cat([changed, whole[:, channels:]], dim=1)
        return whole * kept_by_cutout(whole, probability)

    def _mirrored(self, images: Tensor, probability: float) -> Tensor:
        """Flips: exact, so that they blur nothing."""
        for axis in self.flips:
            images = torch.where(_chosen(images, 0.5 * probability), images.flip(axis + 2), images)
        return images


def _chosen(images: Tensor, probability: float) -> Tensor:
    """(B, 1, 1, 1[, 1]) True for some images."""
    return (torch.rand(len(images)) < probability).to(images.device).reshape(-1, *[1] * (images.ndim - 1))


def _some(count: int, probability: float, images: Tensor) -> Tensor:
    """(B, 1, 1, 1[, 1]) standard normal values for some images, 0 for the others."""
    values = torch.randn(count) * (torch.rand(count) < probability)
    return values.to(images.device, images.dtype).reshape(-1, *[1] * (images.ndim - 1))


def _moved(images: Tensor, probability: float) -> Tensor:
    """Shifts, scales and slightly turns some images about their middle, mirrored at the border."""
    dims, count = images.ndim - 2, len(images)

    def some(*shape: int) -> Tensor:
        return torch.randn(count, *shape) * (torch.rand(count) < probability).reshape(-1, *[1] * len(shape))

    # Matrices and grids are in units of half the edge, the last axis first.
    scale = torch.exp2(SCALE * some())
    shift = 2 * SHIFT * (2 * torch.rand(count, dims) - 1) * (torch.rand(count, 1) < probability)
    turn = TURN * some()
    edges = torch.tensor([float(n) for n in reversed(images.shape[2:])])
    rotation = torch.eye(dims).repeat(count, 1, 1)
    # In the plane of the first two axes, which come last here.
    a, b = dims - 1, dims - 2
    rotation[:, a, a] = rotation[:, b, b] = torch.cos(turn)
    rotation[:, a, b], rotation[:, b, a] = torch.sin(turn), -torch.sin(turn)
    matrix = rotation * scale[:, None, None] * (edges[None, None, :] / edges[None, :, None])
    theta = torch.cat([matrix, shift[:, :, None]], dim=2).to(images.device)
    moved = (theta - torch.eye(dims, dims + 1, device=theta.device)).abs().flatten(1).amax(dim=1) > 0
    if not bool(moved.any()):
        return images
    grid = F.affine_grid(theta, [count, images.shape[1], *images.shape[2:]], align_corners=False)
    drawn = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return torch.where(moved.reshape(-1, *[1] * (dims + 1)), drawn, images)

