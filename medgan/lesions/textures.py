"""Texture clusters: groups of lesions whose histograms, relative to their surroundings, are alike.

A lesion is described by the quantiles of its values over the median of the tissue around it, so that k-means on the
descriptions groups by the transport distance between histograms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from medgan.lesions.shapes import Lesion

#: Quantiles that stand for a histogram.
QUANTILES = np.linspace(0.05, 0.95, 10)
#: Fewer lesions than this a cluster would make clusters of single lesions.
FEWEST = 4
#: A size asked for draws its texture from this many training lesions nearest in size.
NEIGHBOURS = 16


def describe(values: NDArray[np.floating[Any]], surroundings: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Quantiles (C x 10,) of a lesion's network values (C, n) over the median (C,) of the tissue around it."""
    over = values - surroundings[:, None]
    return np.quantile(over, QUANTILES, axis=1).T.ravel().astype(np.float32)


@dataclass(frozen=True, eq=False)
class Textures:
    """The clusters of a training set.

    Args:
        centres: (K, D) descriptions; K may be 0: no clusters.
        members: (n, 2) log of the size in mm, and cluster, of each training lesion or slice of one.
    """

    centres: NDArray[np.float32]
    members: NDArray[np.float32]

    @classmethod
    def fit(cls, descriptions: Sequence[NDArray[np.float32]], sizes_mm: Sequence[float], number: int,
            seed: int) -> Textures:
        """Finds at most `number` clusters, fewer where lesions are few."""
        data = np.stack(descriptions)
        number = min(number, len(data) // FEWEST)
        if number < 1:
            return cls(np.zeros((0, data.shape[1]), np.float32), np.zeros((0, 2), np.float32))
        centres, index = kmeans2(data.astype(np.float64), number, iter=30, minit="++",
                                 seed=np.random.default_rng([seed, 5]))
        used = np.unique(index)
        members = np.stack([np.log(sizes_mm), np.searchsorted(used, index)], axis=1)
        return cls(centres[used].astype(np.float32), members.astype(np.float32))

    @classmethod
    def of(cls, interface: Mapping[str, Any]) -> Textures:
        """The clusters that a run's interface keeps."""
        kept = interface["textures"]
        centres = np.array(kept["centres"], np.float32)
        return cls(np.atleast_2d(centres) if len(centres) else np.zeros((0, 1), np.float32),
                   np.array(kept["members"], np.float32).reshape(-1, 2))

    def as_json(self) -> dict[str, Any]:
        """Plain values for the interface of a run."""
        return {"centres": [[round(float(v), 4) for v in row] for row in self.centres],
                "members": [[round(float(size), 3), int(cluster)] for size, cluster in self.members]}

    def __len__(self) -> int:
        return len(self.centres)

    def nearest(self, description: NDArray[np.float32]) -> int:
        """The cluster of a description; 0 where there are no clusters."""
        if not len(self):
            return 0
        return int(np.abs(self.centres - description).mean(axis=1).argmin())

    def of_lesion(self, lesion: Lesion) -> int:
        """The cluster of a real lesion."""
        return self.nearest(describe(lesion.image[:, lesion.labels > 0], lesion.surroundings))

    def draw(self, size_mm: float, rng: np.random.Generator) -> int:
        """A cluster as training lesions of about this size have it; 0 where there are no clusters."""
        if not len(self):
            return 0
        near = np.abs(self.members[:, 0] - np.log(size_mm)).argsort(kind="stable")[:NEIGHBOURS]
        return int(self.members[rng.choice(near), 1])
