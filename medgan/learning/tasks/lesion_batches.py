"""What lies where in a batch of lesion crops: lesion, rim and healthy voids, and what is looked at of them.

A batch is what `lesion_source` gives: `image` (B, C, ...), `void` (B, 1, ...), `labels` (B, L, ...), `distance`,
`known` and `condition`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgan.learning.task import Batch

#: Edge of what is looked at around the middle of a lesion, in voxels.
PATCH = 6


def largest(batch: Batch, count: int, device: torch.device) -> Batch:
    """The rows of a batch with the most lesion voxels: where all that is looked at lies inside."""
    rows = batch["labels"].flatten(1).sum(dim=1).argsort(descending=True, stable=True)[:count]
    return {name: tensor[rows].to(device) for name, tensor in batch.items()}


def patches(batch: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """(B, C, `PATCH`, ...) around the middle of each crop's lesion, over the mean of the rim around it."""
    found = []
    for image, labels, void in zip(batch["image"], batch["labels"], batch["void"], strict=True):
        lesion = labels.sum(dim=0) > 0
        rim = (void[0] > 0) & ~lesion
        level = image[:, rim].mean(dim=1) if bool(rim.any()) else image.flatten(1).mean(dim=1)
        middle = torch.nonzero(lesion).float().mean(dim=0) if bool(lesion.any()) else torch.tensor(lesion.shape) / 2
        starts = [int(min(max(0, round(float(m)) - PATCH // 2), n - PATCH))
                  for m, n in zip(middle, lesion.shape, strict=True)]
        box = (slice(None), *(slice(start, start + PATCH) for start in starts))
        found.append((image - level.reshape(-1, *[1] * lesion.ndim))[box])
    return np.asarray(torch.stack(found).float().cpu().numpy())


def without_lesions(batch: Batch) -> Batch:
    """The batch with nothing but lesion-free voids: a lesion's void is moved aside, to where no lesion is known."""
    void, dims = batch["void"], batch["void"].ndim - 2
    present = spread_over(batch["condition"][:, -1], void)
    moves = [int(torch.randint(n // 4, 3 * n // 4 + 1, ())) for n in void.shape[2:]]
    aside = torch.roll(void, moves, tuple(range(2, 2 + dims))) * (void == 0) * batch["known"]
    return batch | {"void": torch.where(present > 0, aside, void), "labels": torch.zeros_like(batch["labels"]),
                    "distance": torch.full_like(batch["distance"], -1),
                    "condition": torch.zeros_like(batch["condition"])}


def lesion_of(batch: Batch) -> Tensor:
    """(B, 1, ...) 1 where a lesion is asked for."""
    return batch["labels"].sum(dim=1, keepdim=True)


def healthy_of(batch: Batch) -> Tensor:
    """(B, 1, ...) the voids of rows without a lesion."""
    return (1 - spread_over(batch["condition"][:, -1], batch["void"])) * batch["void"]


def rim_of(batch: Batch) -> Tensor:
    """(B, 1, ...) the blended rim around a lesion."""
    present = spread_over(batch["condition"][:, -1], batch["void"])
    return (batch["void"] - lesion_of(batch)).clamp(min=0) * present


def spread_over(vector: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...) to go with `like`."""
    return vector.reshape(-1, *([1] * (like.ndim - 1)))


def middle(tensor: Tensor) -> NDArray[np.float32]:
    """(B, C, X, Y[, Z]) -> the middle slice of each, as an array (B, C, X, Y)."""
    array = tensor.detach().float().cpu().numpy()
    return array if array.ndim == 4 else array[..., array.shape[-1] // 2]
