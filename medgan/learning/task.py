"""What the loop needs to know of a task: its players, their losses, and where its batches come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medgan.config import Config
from medgan.datasets.cases import Dataset

Batch = dict[str, Tensor]
Parts = dict[str, Tensor]


class Source(Protocol):
    """Where batches come from: a pure function of the step, so that a resumed run sees the same ones."""

    @property
    def interface(self) -> Mapping[str, Any]:
        """What the task needs to know of the data to be built again: channels, labels, sizes; plain JSON values."""
        ...

    def batch(self, step: int) -> Batch:
        """The batch of one step; every tensor has the batch as its first axis."""
        ...


@dataclass(frozen=True, eq=False)
class Probe:
    """Made and real images by which the health of a run is judged.

    Args:
        made: (N, C, X, Y[, Z]) from fixed seeds, so that reports compare.
        real: (M, C, X, Y[, Z]) of those that are learned from.
        made_classes: (N,) class numbers.
        real_classes: (M,).
    """

    made: NDArray[np.float32]
    real: NDArray[np.float32]
    made_classes: NDArray[np.int64]
    real_classes: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Share:
    """The part of a batch that goes through at once, where memory does not hold all of it.

    Args:
        whole: The batch.
        start: The part's first row there.
        stop: One past its last row.
    """

    whole: Batch
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Rows of the whole batch."""
        return len(next(iter(self.whole.values())))

    @property
    def size(self) -> float:
        """The part's share of the batch's rows, above 0 and up to 1."""
        return (self.stop - self.start) / self.count

    def part(self) -> Batch:
        """Its rows."""
        return {name: tensor[self.start : self.stop] for name, tensor in self.whole.items()}


class Task(nn.Module, ABC):
    """A game to be learned.

    A sub-class owns its networks, says who plays (`players`, in order of play) and what each of them minimises
    (`loss`). It knows nothing of optimisers, devices, precision, checkpoints or logs; the loop knows nothing of
    lesions.
    """

    #: The key in `medgan.learning.tasks.TASKS`.
    name: ClassVar[str]
    #: The sub-module whose weights are averaged and kept in `weights.safetensors`.
    generator: nn.Module
    #: What the penalty is multiplied by, and the least probability of the discriminator's augmentation: remedies
    #: that `medgan.learning.health` may use. Buffers, so that a resumed run keeps them.
    penalty_scale: Tensor
    ada_floor: Tensor
    #: Which part of its batch a loss is of; None: all of it. What a loss gives of a part counts by the part's size.
    share: Share | None

    def __init__(self) -> None:
        super().__init__()
        self.share = None
        self._gathered: list[Tensor] = []
        self.register_buffer("penalty_scale", torch.ones(()))
        self.register_buffer("ada_floor", torch.zeros(()))

    @property
    @abstractmethod
    def players(self) -> Mapping[str, nn.Module]:
        """Sub-modules with an optimiser each, in order of play."""

    @abstractmethod
    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Parts]:
        """What `player` minimises on this batch, and its named parts for the log."""

    def at(self, progress: float) -> None:
        """Sets what changes in the course of the run; `progress` goes from 0 to 1."""

    def forget(self) -> None:
        """Drops what one player's move left for the next: the step is played again from its start."""
        self._gathered = []

    def every(self, nth: int, count: int) -> tuple[slice, float]:
        """One in `nth` rows of the batch.

        Args:
            nth: 1 or more.
            count: Rows of the batch or of the part of it that is at hand.

        Returns:
            Which rows of those at hand, and the weight of a mean over them: 1 for a whole batch, 0 without any.
        """
        if self.share is None:
            return slice(None, None, nth), 1.0
        kept = slice(-self.share.start % nth, None, nth)
        return kept, len(range(count)[kept]) / -(-self.share.count // nth) / self.share.size

    def first(self, most: int) -> tuple[int, float]:
        """How many of the batch's first `most` rows are at hand, and the weight of a mean over them, as `every`."""
        if self.share is None:
            return most, 1.0
        here = max(0, min(self.share.stop, most) - self.share.start)
        return here, here / most / self.share.size

    def gathered(self, values: Tensor) -> Tensor | None:
        """(n,) values of all rows of the batch; None until the last part of it has come."""
        if self.share is None:
            return values
        self._gathered.append(values)
        if self.share.stop < self.share.count:
            return None
        found, self._gathered = torch.cat(self._gathered), []
        return found

    def probe(self, generator: nn.Module, source: Any, count: int) -> Probe | None:
        """About `count` made and real images to judge the run by; None where the task makes nothing new."""
        return None

    @staticmethod
    @abstractmethod
    def source(dataset: Dataset, config: Config) -> Source:
        """Reads from the training cases what batches are drawn from.

        Raises:
            Refused: What the task cannot learn from.
        """

    @abstractmethod
    def sheet(self, generator: nn.Module, source: Any) -> NDArray[np.uint8]:
        """A contact sheet (H, W, 3) of what `generator` makes from fixed seeds, for people to look at."""
