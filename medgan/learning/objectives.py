"""The two-player game by name: what discriminator and generator minimise, and the penalties on its gradients.

Logits are larger for real images. Each objective names the penalty that it was published with; `docs/objectives.md`
says which to take, with measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medgan.config import Objective as ObjectiveName
from medgan.config import Penalty

#: Real logits (B,) and made logits (B,), paired, to a scalar.
Side = Callable[[Tensor, Tensor], Tensor]
#: Images (B, C, ...) to logits (B,).
Critic = Callable[[Tensor], Tensor]

#: Weight of the gradient-norm penalty (Gulrajani et al. 2017, the same on all their data).
GRADIENT_NORM = 10.0
#: Keeps the slope of a norm finite where a gradient is zero.
TINY = 1e-12


@dataclass(frozen=True)
class Objective:
    """One game.

    Args:
        name: As `training.objective` says it.
        discriminator: What the discriminator minimises.
        generator: What the generator minimises.
        penalty: The penalty that it goes with: what `training.penalty = "own"` means.
    """

    name: ObjectiveName
    discriminator: Side
    generator: Side
    penalty: Penalty


def relativistic_discriminator(real: Tensor, made: Tensor) -> Tensor:
    """Relativistic pairing loss of the discriminator (Jolicoeur-Martineau 2018; Huang et al. 2024).

    Args:
        real: (B,) logits of real images.
        made: (B,) logits of made images, paired with the real ones.
    """
    return F.softplus(made - real).mean()


def relativistic_generator(real: Tensor, made: Tensor) -> Tensor:
    """The generator's side of the same game: made images should look more real than their pair."""
    return F.softplus(real - made).mean()


def classic_discriminator(real: Tensor, made: Tensor) -> Tensor:
    """Cross-entropy of real against made (Goodfellow et al. 2014)."""
    return F.softplus(-real).mean() + F.softplus(made).mean()


def minimax_generator(real: Tensor, made: Tensor) -> Tensor:
    """The same cross-entropy, turned round (Goodfellow et al. 2014): no slope where the discriminator is sure."""
    return -F.softplus(made).mean()


def non_saturating_generator(real: Tensor, made: Tensor) -> Tensor:
    """The likelihood of being taken for real, raised (Goodfellow et al. 2014, their remedy for the above)."""
    return F.softplus(-made).mean()


def least_squares_discriminator(real: Tensor, made: Tensor) -> Tensor:
    """Squared distances from 1 on real and 0 on made images (Mao et al. 2017)."""
    return 0.5 * ((real - 1).square().mean() + made.square().mean())


def least_squares_generator(real: Tensor, made: Tensor) -> Tensor:
    """Squared distance of made images from 1 (Mao et al. 2017)."""
    return 0.5 * (made - 1).square().mean()


def hinge_discriminator(real: Tensor, made: Tensor) -> Tensor:
    """Margins of 1 on either side (Lim & Ye 2017; Miyato et al. 2018)."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def wasserstein_discriminator(real: Tensor, made: Tensor) -> Tensor:
    """The critic's gap, whose largest value over critics of slope 1 is the earth mover's distance (Arjovsky 2017)."""
    return made.mean() - real.mean()


def critic_generator(real: Tensor, made: Tensor) -> Tensor:
    """Raises the logits of made images: the generator of the hinge (unsaturated) and of the Wasserstein game."""
    return -made.mean()


#: The games by name. The classic ones were published without a penalty, and lose modes without one.
OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in (
    Objective("relativistic", relativistic_discriminator, relativistic_generator, "r1r2"),
    Objective("minimax", classic_discriminator, minimax_generator, "none"),
    Objective("non-saturating", classic_discriminator, non_saturating_generator, "none"),
    Objective("least-squares", least_squares_discriminator, least_squares_generator, "none"),
    Objective("hinge", hinge_discriminator, critic_generator, "none"),
    Objective("wasserstein", wasserstein_discriminator, critic_generator, "gradient-norm"),
)}


def penalty_of(objective: Objective, setting: Penalty) -> Penalty:
    """The penalty that `training.penalty` asks for; never "own"."""
    return objective.penalty if setting == "own" else setting


def zero_centred_penalty(critic: Critic, images: Tensor) -> Tensor:
    """Mean squared gradient norm of the logits: R1 on real, R2 on made images (Mescheder et al. 2018).

    Args:
        critic: Images (B, C, ...) to logits (B,).
        images: Where the gradient is taken; computed in fp32 unless the critic itself asks for less.
    """
    return _squared_slopes(critic, images).mean()


def gradient_norm_penalty(critic: Critic, real: Tensor, made: Tensor) -> Tensor:
    """Mean squared distance of the slope from 1 between real and made images (Gulrajani et al. 2017).

    Args:
        critic: Images (B, C, ...) to logits (B,).
        real: (B, C, ...).
        made: (B, C, ...), paired with the real ones: the slope is taken at a random point between the two.
    """
    share = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device)
    between = torch.lerp(real.detach().float(), made.detach().float(), share)
    return ((_squared_slopes(critic, between) + TINY).sqrt() - 1).square().mean()


def _squared_slopes(critic: Critic, images: Tensor) -> Tensor:
    """(B,) squared gradient norms of the logits."""
    with torch.autocast(images.device.type, enabled=False):
        images = images.detach().float().requires_grad_(True)
        (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
        return gradient.square().sum(dim=tuple(range(1, gradient.ndim)))


def penalty(kind: Penalty, critic: Critic, real: Tensor, made: Tensor, *, gamma: float,
            scale: float | Tensor = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """What the discriminator pays for its gradients, and the unweighted parts by name.

    Args:
        kind: As `penalty_of` says.
        critic: Images (B, C, ...) to logits (B,), computed in fp32 unless the critic itself asks for less.
        real: (B, C, ...).
        made: (B, C, ...), paired with the real ones.
        gamma: Weight of R1 and R2, halved as is usual. The gradient-norm penalty has a weight of its own.
        scale: Multiplies every penalty: the remedy of a run that diverges.

    Returns:
        The weighted sum, and `r1`, `r2` or `slope`.
    """
    if kind == "gradient-norm":
        slope = gradient_norm_penalty(critic, real, made)
        return scale * GRADIENT_NORM * slope, {"slope": slope}
    parts = {}
    if kind in ("r1", "r1r2"):
        parts["r1"] = zero_centred_penalty(critic, real)
    if kind == "r1r2":
        parts["r2"] = zero_centred_penalty(critic, made)
    return scale * 0.5 * gamma * sum(parts.values(), real.new_zeros(())), parts
