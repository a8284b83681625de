"""Where the lesion task's batches come from: crops of real lesions and of lesion-free tissue, held in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.errors import Refused
from medgan.learning.task import Batch
from medgan.lesions.crops import Grid, encode, working_spacing
from medgan.lesions.scans import Scan, mask_values, open_scan
from medgan.lesions.shapes import RIM_VOXELS, Lesion, equivalent_diameter, find_lesions, soft_mask
from medgan.lesions.textures import Textures, describe

#: Of the networks and what they are told; a run of another version is refused.
VERSION = 2
#: Numbers that vary a drawn lesion as a whole.
LATENT = 8
#: Crops are stored this much larger than they are used, for shifts.
STORED = 1.25
#: A slice with fewer lesion voxels on the working grid teaches nothing about lesions.
SMALLEST_SECTION = 6
#: How many pairs of tissue and mask are tried for each request of the contact sheet.
REQUEST_DRAWS = 24
#: Tissue this many working voxels around a lesion is its surroundings.
SHELL = 3
#: Pairs of real lesions from which it is learned how much lesions of one size differ.
PAIRS = 400
#: Of so many lesions drawn, the one nearest in size makes a pair.
PAIR_DRAWS = 8


@dataclass(frozen=True, eq=False)
class Crop:
    """A stored crop.

    Args:
        image: (C, ...) network values.
        labels: Label indices of what the crop is about.
        tissue: Where tissue is.
        others: Where other lesions lie: surroundings to the generator.
        spacing_mm: Working spacing.
        texture: Cluster of the lesion.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    tissue: NDArray[np.bool_]
    others: NDArray[np.bool_]
    spacing_mm: float
    texture: int = 0

    @property
    def size_mm(self) -> float:
        """Equivalent diameter of the lesion (2D: of its section)."""
        return equivalent_diameter(int((self.labels > 0).sum()), np.full(3, self.spacing_mm), self.labels.ndim == 2)

    def over_surroundings(self) -> NDArray[np.float32]:
        """(C, ...) values over the median of the tissue around the lesion."""
        near = ndimage.binary_dilation(self.labels > 0, iterations=SHELL) & (self.labels == 0) & ~self.others
        shell = next((s for s in (near & self.tissue, near, self.labels == 0) if s.any()), self.labels >= 0)
        around = np.median(self.image[:, shell], axis=1)
        return np.asarray(self.image - around.reshape(-1, *[1] * self.labels.ndim), np.float32)


class LesionSource:
    """Crops of real lesions and of lesion-free tissue of the training cases, held in memory."""

    def __init__(self, dataset: Dataset, config: Config) -> None:
        self.config, self.dims = config, config.data.dims
        self.lesion_crops: list[Crop] = []
        self.tissue_crops: list[Crop] = []
        self.size = config.data.crop
        self.stored = int(np.ceil(self.size * STORED / 2) * 2)
        values = mask_values(dataset, config.data.organs)
        names = {str(value): dataset.labels[value] for value in values}
        finest: list[float] = []
        channels = 0
        for number, case in enumerate(dataset.split("train")):
            if case.mask is None:
                continue
            scan = open_scan(dataset, case, config)
            channels = len(scan.image)
            native = float(scan.spacing_mm[:2].min())
            finest.append(config.data.spacing_mm or native)
            self._cut_case(scan, finest[-1], np.random.default_rng([config.seed, 1, number]))
        if not self.lesion_crops:
            raise Refused("DATASET_EMPTY", dataset.root, "no training case has a lesion in its mask",
                          "Give masks, or train --task image or upscale")
        textures = self._textures()
        self.interface: dict[str, Any] = {
            "version": VERSION, "latent": LATENT, "channels": channels, "labels": names, "textures": textures.as_json(),
            "spread": round(real_spread(self.lesion_crops, np.random.default_rng([config.seed, 6])), 4),
            "spacing_mm": round(float(np.median(finest)), 4),
            "channel_names": list(dataset.channels)}
        self.textures = len(textures)

    def _textures(self) -> Textures:
        """Clusters of the lesion crops, which are told theirs."""
        told = [describe(crop.over_surroundings()[:, crop.labels > 0], np.zeros(len(crop.image)))
                for crop in self.lesion_crops]
        textures = Textures.fit(told, [crop.size_mm for crop in self.lesion_crops], self.config.network.textures,
                                self.config.seed)
        self.lesion_crops = [replace(crop, texture=textures.nearest(d))
                             for crop, d in zip(self.lesion_crops, told, strict=True)]
        return textures

    def _cut_case(self, scan: Scan, finest_mm: float, rng: np.random.Generator) -> None:
        lesions = find_lesions(scan)
        if not lesions:
            return
        limit = self.config.data.crops_per_case
        tissue = scan.tissue()
        centres = [(lesion, centre) for lesion in lesions for centre in self._centres(lesion)]
        spacings = []
        for index in sorted(rng.permutation(len(centres))[:limit]):
            lesion, centre = centres[index]
            spacing = working_spacing(lesion.extent_mm, finest_mm, self.size)
            # Other lesions in the crop stay what they are to the generator: surroundings.
            own = np.zeros(scan.labels.shape, np.uint8)
            own[tuple(slice(c, c + n) for c, n in zip(lesion.corner, lesion.labels.shape, strict=True))] = lesion.labels
            crop = self._cut(scan, own, tissue, centre, spacing)
            if int((crop.labels > 0).sum()) >= SMALLEST_SECTION:
                self.lesion_crops.append(crop)
                spacings.append(spacing)
        places = np.argwhere(tissue & (scan.labels == 0))
        for _ in range(min(limit, max(4, len(spacings)))):
            if not len(places) or not spacings:
                break
            spacing = float(rng.choice(spacings))
            tries = [self._cut(scan, scan.labels, tissue, places[rng.integers(len(places))].astype(float), spacing)
                     for _ in range(3)]
            self.tissue_crops.append(min(tries, key=lambda crop: int((crop.labels > 0).sum())))

    def _centres(self, lesion: Lesion) -> list[NDArray[np.float64]]:
        """Where crops of a lesion are centred: its middle in 3D, the middle of each of its slices in 2D."""
        if self.dims == 3:
            return [lesion.centre] * max(1, min(8, int(lesion.extent_mm / 4)))
        inside = lesion.labels > 0
        sections = np.flatnonzero(inside.any(axis=(0, 1)))
        middles = [np.array([*np.argwhere(inside[:, :, k]).mean(axis=0), k]) for k in sections]
        return [lesion.corner + middle for middle in middles]

    def _cut(self, scan: Scan, labels: NDArray[np.uint8], tissue: NDArray[np.bool_], centre: NDArray[np.float64],
             spacing: float) -> Crop:
        depth = self.stored if self.dims == 3 else 1
        step = spacing / scan.spacing_mm
        if self.dims == 2:
            step[2] = 1.0
        grid = Grid(np.asarray(centre, float), step, (self.stored, self.stored, depth))
        image = np.stack([grid.cut(channel, order=1) for channel in scan.image])
        mask, inside = grid.cut(labels, order=0), grid.cut(tissue.view(np.uint8), order=0) > 0
        others = grid.cut(((scan.labels > 0) & (labels == 0)).view(np.uint8), order=0) > 0
        if self.dims == 2:
            image, mask, inside, others = image[..., 0], mask[..., 0], inside[..., 0], others[..., 0]
        return Crop(image, mask, inside, others, spacing)

    def batch(self, step: int) -> Batch:
        """Lesions first, then lesion-free voids, `training.batch` in all."""
        rng = np.random.default_rng([self.config.seed, 2, step])
        count = self.config.training.batch
        healthy = round(count * self.config.loss.healthy_share) if self.tissue_crops else 0
        rows = [self._lesion_row(self._any(self.lesion_crops, rng), rng) for _ in range(count - healthy)]
        rows += [self._void_row(rng) for _ in range(healthy)]
        return _stack(rows)

    def requests(self, count: int) -> Batch:
        """The fixed requests of the contact sheet: real masks on other tissue, the best fitting of a few draws."""
        rng = np.random.default_rng([self.config.seed, 3])
        rows = []
        for _ in range(count):
            draws = []
            for _ in range(REQUEST_DRAWS):
                host, shape = self._any(self.tissue_crops or self.lesion_crops, rng), self._any(self.lesion_crops, rng)
                (image, _, tissue, others), (own, labels, *_) = self._window(host, None), self._window(shape, None)
                inside = np.where(tissue, labels, 0).astype(np.uint8)
                rim = ndimage.binary_dilation(labels > 0, iterations=3) & (labels == 0)
                share = (inside > 0).sum() / max(1, (labels > 0).sum())
                fit = float(share - np.abs(image[0][rim] - own[0][rim].mean()).mean())
                draws.append((fit, image, inside, others, shape))
            _, image, labels, others, shape = max(draws, key=lambda draw: draw[0])
            rows.append(self._row(image, labels, others, shape))
        return _stack(rows)

    def lesions_only(self, count: int) -> Batch:
        """Real lesions, for comparison on the contact sheet."""
        rng = np.random.default_rng([self.config.seed, 4])
        chosen = [self._any(self.lesion_crops, rng) for _ in range(count)]
        return _stack([self._lesion_row(crop, None) for crop in chosen])

    @staticmethod
    def _any(crops: list[Crop], rng: np.random.Generator) -> Crop:
        return crops[rng.integers(len(crops))]

    def _lesion_row(self, crop: Crop, rng: np.random.Generator | None) -> dict[str, NDArray[np.float32]]:
        image, labels, _, others = self._window(crop, rng)
        return self._row(image, labels, others, crop)

    def _void_row(self, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        """A void of a lesion's shape in tissue; a lesion that happens to be in the crop stays untouched."""
        host = self._any(self.tissue_crops, rng)
        image, present, tissue, _ = self._window(host, rng)
        _, shape, *_ = self._window(self._any(self.lesion_crops, rng), rng)
        inside = np.where(tissue, shape, 0).astype(np.uint8)
        row = self._row(image, inside if inside.any() else shape, present > 0, host)
        row["void"] = np.where(present[None] > 0, np.float32(0), row["void"])
        row["labels"][:], row["distance"][:], row["condition"][:] = 0, -1, 0
        return row

    def _window(self, crop: Crop, rng: np.random.Generator | None
                ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
        """Image, labels, tissue and other lesions of a stored crop's used part: the middle, or moved and turned."""
        slack = self.stored - self.size
        if rng is None:
            starts = [slack // 2] * self.dims
        else:
            starts = [int(rng.integers(slack + 1)) for _ in range(self.dims)]
        window = tuple(slice(start, start + self.size) for start in starts)
        maps = [crop.labels[window], crop.tissue[window], crop.others[window]]
        image = crop.image[(slice(None), *window)]
        if rng is not None:
            for axis in range(self.dims):
                if rng.random() < 0.5:
                    image, maps = np.flip(image, axis + 1), [np.flip(m, axis) for m in maps]
            turns = int(rng.integers(4))
            image, maps = np.rot90(image, turns, (1, 2)), [np.rot90(m, turns, (0, 1)) for m in maps]
        labels, tissue, others = (np.ascontiguousarray(m) for m in maps)
        return np.ascontiguousarray(image), labels, tissue, others

    def _row(self, image: NDArray[np.float32], labels: NDArray[np.uint8], others: NDArray[np.bool_], of: Crop
             ) -> dict[str, NDArray[np.float32]]:
        told = encode(labels, self.label_count, of.spacing_mm, self.textures, of.texture)
        void = soft_mask(labels, np.ones(labels.ndim), RIM_VOXELS)
        return {"image": image, "void": void[None], "labels": told.labels, "distance": told.distance,
                "condition": told.condition,
                "known": (~others)[None].astype(np.float32)}

    @property
    def label_count(self) -> int:
        """The number of labels L."""
        return len(self.interface["labels"])


def _stack(rows: list[dict[str, NDArray[np.float32]]]) -> Batch:
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def real_spread(crops: list[Crop], rng: np.random.Generator) -> float:
    """How much two real lesions of about the same size differ, voxel by voxel over their surroundings.

    Mean absolute difference in network values where both are lesion, laid over each other as they are stored.
    """
    sizes = np.log([crop.size_mm for crop in crops])
    over: dict[int, NDArray[np.float32]] = {}
    found = []
    for _ in range(PAIRS):
        first = int(rng.integers(len(crops)))
        drawn = [int(k) for k in rng.integers(len(crops), size=PAIR_DRAWS) if k != first]
        if not drawn:
            continue
        second = min(drawn, key=lambda k: abs(float(sizes[k] - sizes[first])))
        both = (crops[first].labels > 0) & (crops[second].labels > 0)
        if both.sum() < SMALLEST_SECTION:
            continue
        for index in (first, second):
            if index not in over:
                over[index] = crops[index].over_surroundings()
        found.append(float(np.abs(over[first] - over[second])[:, both].mean()))
    return float(np.mean(found)) if found else 0.0
