"""Where the images of the image task come from, and how made ones go back to raw values."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.errors import Refused
from medgan.imaging.convert import cast
from medgan.imaging.geometry import reorient, resample
from medgan.imaging.intensity import IntensityMap, intensity_maps
from medgan.imaging.volume import Volume
from medgan.learning.image_networks import ImageGenerator
from medgan.learning.task import Batch

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run

#: The class of a data set that names none.
ONLY_CLASS = "image"
#: Slices taken of a volume when 2D images are learned from 3D data.
SLICES_PER_VOLUME = 16


class ImageSource:
    """Images of one size with their class, in memory; classes are drawn evenly."""

    def __init__(self, dataset: Dataset, config: Config) -> None:
        self.config = config
        names = dataset.classes or (ONLY_CLASS,)
        cases = dataset.split("train")
        if not cases:
            raise Refused("DATASET_EMPTY", dataset.root, "there is no training case", "Give images to learn from")
        first = self._planes(dataset, cases[0])[0]
        self.size = _fit(first.shape, config.data.crop)
        spacing = [s * n / m for s, n, m in zip(first.spacing_mm, first.shape, self.size, strict=True)]
        images, classes, raw_range = [], [], []
        for case in cases:
            label = names.index(case.label) if case.label in names else 0
            for plane in self._planes(dataset, case):
                resized = _resize(plane, self.size)
                maps = intensity_maps(resized.array, config.intensity)
                images.append(np.stack([m.forward(c, np.float32) for m, c in zip(maps, resized.array, strict=True)]))
                classes.append(label)
                raw_range.append([(m.raw[0], m.raw[-1]) for m in maps])
        if len({image.shape for image in images}) != 1:
            raise Refused("GEOM_CHANNELS_DIFFER", dataset.root, "the images differ in their number of channels",
                          "Keep images with the same channels in one data set")
        self.images, self.labels = np.stack(images), np.array(classes)
        # Percentile maps differ from image to image; made images get the median one.
        knots = np.median(np.array(raw_range), axis=0)
        self.interface: dict[str, Any] = {
            "channels": int(self.images.shape[1]), "classes": list(names), "size": list(self.size),
            "spacing_mm": [round(float(s), 4) for s in spacing], "raw_range": knots.tolist(),
            "dtype": str(first.array.dtype), "channel_names": list(dataset.channels)}

    def _planes(self, dataset: Dataset, case: Case) -> list[Volume]:
        """The case as 3D volume, 2D image, or slices of the volume, as `data.dims` asks."""
        volume, _ = dataset.load(case)
        if volume.dims == 2:
            if self.config.data.dims == 3:
                raise Refused("DIM_UNSUPPORTED", case.images[0], "a 2D image cannot train a 3D network",
                              "Use --set data.dims=2")
            return [volume]
        volume = reorient(volume)
        if self.config.data.dims == 3:
            return [volume]
        depth = volume.shape[2]
        kept = np.unique(np.linspace(0.15 * depth, 0.85 * depth - 1, SLICES_PER_VOLUME).astype(int))
        return [Volume(volume.array[..., k], volume.affine, volume.modality, volume.source) for k in kept]

    def of_class(self, index: int) -> NDArray[np.float32]:
        """The stored images (n, C, ...) of a class."""
        return np.asarray(self.images[self.labels == index])

    def batch(self, step: int) -> Batch:
        """`training.batch` images, classes drawn evenly; left-right flips are left to the user's data."""
        rng = np.random.default_rng([self.config.seed, 2, step])
        present = np.unique(self.labels)
        classes = rng.choice(present, self.config.training.batch)
        rows = [int(rng.choice(np.flatnonzero(self.labels == c))) for c in classes]
        return {"image": torch.from_numpy(self.images[rows]), "class": torch.from_numpy(classes.astype(np.int64))}


def _fit(shape: tuple[int, ...], largest: int) -> tuple[int, ...]:
    """The network's image size: the data's own where it is small enough, else the longest edge at `largest`."""
    scale = min(1.0, largest / max(shape))
    return tuple(max(8, round(n * scale)) for n in shape)


def _resize(volume: Volume, size: tuple[int, ...]) -> Volume:
    if volume.shape == size:
        return volume
    spacing = tuple(s * n / m for s, n, m in zip(volume.spacing_mm, volume.shape, size, strict=True))
    return resample(volume, spacing, order=1, shape=size)


def sample(generator: nn.Module, index: int, count: int, seed: int) -> NDArray[np.float32]:
    """Makes `count` images (count, C, ...) of class `index` from a seed."""
    assert isinstance(generator, ImageGenerator)
    device = next(generator.parameters()).device
    latent = torch.randn(count, generator.latent, generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.no_grad():
        made = generator(latent, torch.full((count,), index, device=device))
    return np.asarray(made.float().cpu().numpy())


def made_volume(generator: nn.Module, run: Run, label: str | None, template: Volume | None, seed: int) -> Volume:
    """One made image of a class in raw values, with the grid and type of a real one.

    Args:
        generator: The run's generator.
        run: Of the image task.
        label: A class of the run; None where it has none.
        template: A real image that gives shape, affine and dtype; None: the network's own grid and the data's dtype.
        seed: Draws the image.
    """
    classes = list(run.interface["classes"])
    made = sample(generator, classes.index(label) if label in classes else 0, 1, seed)[0]
    mapped = [IntensityMap((low, high), (-1.0, 1.0)).inverse(channel, np.float32) if run.config.intensity.knots is None
              else intensity_maps(made, run.config.intensity)[0].inverse(channel, np.float32)
              for channel, (low, high) in zip(made, run.interface["raw_range"], strict=True)]
    small = Volume(np.stack(mapped), np.diag([*[*run.interface["spacing_mm"], 1.0][:3], 1.0]))
    if template is None:
        return replace(small, array=cast(small.array, np.dtype(run.interface["dtype"])), modality=run.config.modality)
    spacing = tuple(s * n / m for s, n, m in zip(small.spacing_mm, small.shape, template.shape, strict=True))
    full = resample(small, spacing, order=1, shape=template.shape) if small.shape != template.shape else small
    return template.with_array(cast(full.array, template.array.dtype))
