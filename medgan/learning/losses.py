"""What a generator minimises beside the game (see `objectives`), a few lines each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sorted_distance(real: Tensor, made: Tensor, mask: Tensor, points: int = 32, *,
                    over: Tensor | None = None) -> Tensor:
    """L1 between the quantiles of two images under a mask: their intensity histograms should agree.

    Args:
        real: (B, C, ...).
        made: (B, C, ...).
        mask: (B, 1, ...) of 0 and 1; empty masks count nothing.
        points: Number of quantiles.
        over: What the sum over images is divided by; None: those whose mask is not empty.
    """
    total = made.new_zeros(())
    counted = 0
    levels = torch.linspace(0.0, 1.0, points, device=made.device)
    for r, m, where in zip(real, made, mask.bool().expand_as(made), strict=True):
        inside = where[0]
        if not inside.any():
            continue
        total = total + (torch.quantile(r[:, inside].float(), levels, dim=1)
                         - torch.quantile(m[:, inside].float(), levels, dim=1)).abs().mean()
        counted += 1
    return total / (max(1, counted) if over is None else over)


def description_distance(made: Tensor, mask: Tensor, level: Tensor, wanted: Tensor, quantiles: Tensor) -> Tensor:
    """L1 between the quantiles of made lesions over their surroundings and those of their texture clusters.

    Args:
        made: (B, C, ...).
        mask: (B, 1, ...) of 0 and 1; empty masks count nothing.
        level: (B, C) mean of the tissue around.
        wanted: (B, C x Q) descriptions of the clusters (`medgan.lesions.textures.describe`).
        quantiles: (Q,).
    """
    total = made.new_zeros(())
    counted = 0
    for image, where, around, centre in zip(made, mask.bool(), level, wanted, strict=True):
        if not where.any():
            continue
        over = image[:, where[0]].float() - around[:, None]
        total = total + (torch.quantile(over, quantiles, dim=1).T.flatten() - centre).abs().mean()
        counted += 1
    return total / max(1, counted)


def masked_l1(a: Tensor, b: Tensor, mask: Tensor, *, over: Tensor | None = None) -> Tensor:
    """Mean absolute difference under a mask (B, 1, ...); 0 where the mask is empty.

    Args:
        a: (B, C, ...).
        b: (B, C, ...).
        mask: (B, 1, ...) of 0 to 1.
        over: What the sum under the mask is divided by, for one channel; None: the mask's own sum.
    """
    weight = mask.expand_as(a)
    total = weight.sum().clamp(min=1) if over is None else over * a.shape[1]
    return ((a - b).abs() * weight).sum() / total


def diversity_ratio(first: Tensor, second: Tensor, mask: Tensor, bound: float) -> Tensor:
    """How much two draws of the same request differ inside the mask, up to `bound` (Yang et al. 2019, DSGAN)."""
    axes = tuple(range(1, first.ndim))
    weight = mask.expand_as(first)
    change = ((first - second).abs() * weight).sum(dim=axes) / weight.sum(dim=axes).clamp(min=1)
    return change.clamp(max=bound).mean()


def read_weight(where: Tensor) -> Tensor:
    """(B, 1, ...) -> (B, 1, .../2): how much of each place that is read counts."""
    return (F.avg_pool2d if where.ndim == 4 else F.avg_pool3d)(where, 2)


def read_error(logits: Tensor, labels: Tensor, where: Tensor, *, over: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits (B, L, .../2) with labels (B, L, ...), averaged over where (B, 1, ...) it counts.

    Args:
        logits: Of each label.
        labels: One-hot.
        where: 0 to 1.
        over: What the sum is divided by; None: the sum of `read_weight`.
    """
    wanted, weight = read_weight(labels), read_weight(where)
    error = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1, keepdim=True)
    return (error * weight).sum() / (weight.sum().clamp(min=1) if over is None else over)
