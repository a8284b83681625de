"""What a generator has learned: walks between samples, less varied samples, real images found again, attention.

Everything works on `draw`, a function from noise (a list of tensors, the batch first) to images, so that image and
lesion generators, 2D and 3D, are looked at by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Noise = list[Tensor]
Draw = Callable[[Noise], Tensor]

#: Latent vectors tried before the best of them is followed downhill.
STARTS = 64
#: Steps and rate of that.
PROJECTION_STEPS, PROJECTION_RATE = 300, 0.05
#: Weight of a latent vector's distance from the sphere on which almost all of a normal distribution lies: without it a
#: network is asked for what it never drew in training.
PRIOR = 0.01
#: Attention is read off the deepest features with at least this many places along their shortest edge.
LEAST_PLACES = 6


def between(first: Noise, second: Noise, steps: int) -> list[Noise]:
    """Noise on the way from one draw to another, its variance that of noise all along.

    Args:
        first: Tensors (B, ...).
        second: Of the same shapes.
        steps: How many, the ends included.

    Source: spherical interpolation, White 2016, "Sampling generative networks".
    """
    turns = [0.5 * math.pi * step / max(1, steps - 1) for step in range(steps)]
    return [[math.cos(turn) * a + math.sin(turn) * b for a, b in zip(first, second, strict=True)] for turn in turns]


def truncated(noise: Noise, psi: float) -> Noise:
    """The noise drawn towards its mean: 1 leaves it, 0 gives the same sample each time (Brock et al. 2019)."""
    return [psi * tensor for tensor in noise]


def variety(images: Tensor) -> float:
    """Mean root-mean-square difference of all pairs of images (N, C, ...); 0 for a single one."""
    if len(images) < 2:
        return 0.0
    flat = images.flatten(1).double()
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)


@dataclass(frozen=True, eq=False)
class Projection:
    """Real images and the nearest that a generator makes.

    Args:
        made: (N, C, ...) the nearest found.
        error: (N,) root-mean-square difference, in network values.
        latent: (N, latent) what they are made from.
    """

    made: NDArray[np.float32]
    error: NDArray[np.float64]
    latent: NDArray[np.float32]


def project(draw: Draw, images: Tensor, latent: int, *, seed: int = 0, steps: int = PROJECTION_STEPS) -> Projection:
    """Finds real images in the latent space, each by itself.

    Args:
        draw: Latent vectors [(N, latent)] to images (N, C, ...), row by row.
        images: (N, C, ...) network values.
        latent: Size of the latent vector.
        seed: Of the first guesses.
        steps: Downhill steps.

    Source: the optimisation of Abdal et al. 2019, "Image2StyleGAN", in the space that the generator draws from.
    """
    chance = torch.Generator().manual_seed(seed)
    count = len(images)
    with torch.no_grad():
        best = torch.full((count,), float("inf"), device=images.device)
        start = torch.zeros(count, latent, device=images.device)
        for _ in range(STARTS):
            guess = torch.randn(count, latent, generator=chance).to(images.device)
            error = _error(draw([guess]), images)
            start = torch.where((error < best)[:, None], guess, start)
            best = torch.minimum(error, best)
    found = start.clone().requires_grad_(True)
    kept, least = start, best
    optimiser = torch.optim.Adam([found], lr=PROJECTION_RATE)
    for _ in range(steps):
        error = _error(draw([found]), images)
        with torch.no_grad():
            better = error < least
            kept, least = torch.where(better[:, None], found, kept), torch.minimum(error, least)
        loss = error.square() + PRIOR * (found.square().mean(dim=1) - 1).square()
        optimiser.zero_grad()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        made = draw([kept])
    return Projection(made.float().cpu().numpy(), least.double().cpu().numpy(), kept.float().cpu().numpy())


def _error(made: Tensor, wanted: Tensor) -> Tensor:
    """(N,) root-mean-square difference."""
    return (made - wanted).flatten(1).square().mean(dim=1).clamp(min=1e-12).sqrt()


def attention(critic: nn.Module, inputs: Tensor, context: Sequence[Tensor] = (), *, made: bool = False
              ) -> NDArray[np.float32]:
    """What in an image speaks most for its being real to a discriminator, or for its being made.

    Args:
        critic: A discriminator of this package: residual `blocks`, and (logits, features) as result.
        inputs: (N, C, X, Y[, Z]) images.
        context: What else the discriminator is given, each with the batch first.
        made: What speaks for a made one instead.

    Returns:
        (N, X, Y[, Z]) between 0 and 1, each image by itself.

    Source: Grad-CAM, Selvaraju et al. 2017, as MONAI has it.
    """
    from monai.visualize.class_activation_maps import GradCAM

    blocks: Any = critic.blocks
    edges = _edges(critic, blocks, inputs[:1], [tensor[:1] for tensor in context])
    layer = max((n for n, edge in enumerate(edges) if edge >= LEAST_PLACES), default=0)
    maps = []
    for n in range(len(inputs)):
        alone = _Verdict(critic, [tensor[n : n + 1] for tensor in context], -1.0 if made else 1.0)
        image = inputs[n : n + 1].detach().clone().requires_grad_(True)
        # Its own scaling turns maps round: 0 where attention is greatest.
        found = GradCAM(alone, f"critic.blocks.{layer}", postprocessing=_to_one)(image, class_idx=0)
        maps.append(np.asarray(found[0, 0], np.float32))
    return np.stack(maps)


def _to_one(found: Any) -> NDArray[np.float32]:
    """A map of 0 and more, its largest value 1; without any it stays 0."""
    values = torch.as_tensor(found).detach().float().cpu().numpy()
    return np.asarray(values / max(float(values.max()), 1e-12), np.float32)


def _edges(critic: nn.Module, blocks: nn.ModuleList, inputs: Tensor, context: Sequence[Tensor]) -> list[int]:
    """The shortest edge of each block's features."""
    found: list[int] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: found.append(min(out.shape[2:]))) for block in blocks]
    with torch.no_grad():
        critic(inputs, *context)
    for hook in hooks:
        hook.remove()
    return found


class _Verdict(nn.Module):
    """A discriminator as a classifier of one class, as MONAI's maps want it."""

    def __init__(self, critic: nn.Module, context: Sequence[Tensor], sign: float) -> None:
        super().__init__()
        self.critic, self.context, self.sign = critic, context, sign

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.critic(images, *self.context)[0]
        return self.sign * logits[:, None]
