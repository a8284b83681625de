"""Where the images of the image task come from, and how made ones go back to raw values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.classes import ONLY_CLASS, class_warnings, trainable_classes
from medgan.errors import Refused
from medgan.imaging.convert import cast
from medgan.imaging.geometry import reorient, resized
from medgan.imaging.intensity import IntensityMap, intensity_maps, mapped
from medgan.imaging.planar import lines_down
from medgan.imaging.volume import Volume
from medgan.learning.accumulation import in_parts
from medgan.learning.image_networks import ImageGenerator
from medgan.learning.task import Batch

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run

#: Slices taken of a volume when 2D images are learned from 3D data.
SLICES_PER_VOLUME = 16
#: Images whose median shape is taken for that of all: one odd image that comes first must not decide it.
SHAPES = 9
#: Edges whose ratio differs from the network's by more than this are said to be distorted.
DISTORTED = 1.5

#: An image (C, X, Y[, Z]) and its mask (1, X, Y[, Z]), as the network sees them before resizing.
Plane = tuple[Volume, Volume | None]


class ImageSource:
    """Images of one size with their class, and their label maps where these are asked for, in memory.

    Args:
        dataset: Its training cases are read.
        config: Settings of the run.
        like: The interface of a run whose classes and size are taken, so that images that it did not learn from
            are as those that it did; cases of other classes are left out. None: the data set's own.

    Attributes:
        images: (N, C, X, Y[, Z]) in network values.
        labels: (N,) class numbers.
        maps: (N, X, Y[, Z]) numbers of the labels in `interface["maps"]`; None without label maps.
        warnings: What is odd about the data and was taken all the same.
    """

    def __init__(self, dataset: Dataset, config: Config, like: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self._dims: int | None = None
        names = tuple(like["classes"]) if like else trainable_classes(dataset) or (ONLY_CLASS,)
        cases = dataset.split("train")
        if like and names != (ONLY_CLASS,):
            cases = tuple(case for case in cases if case.label in names)
        if not cases:
            raise Refused("DATASET_EMPTY", dataset.root, "there is no training case", "Give images to learn from")
        if config.network.label_maps:
            _refuse_unmasked(dataset, cases)
        values = sorted(dataset.labels)
        typical = self._typical(dataset, cases)
        self.size = tuple(like["size"]) if like else _fit(tuple(n for n, _ in typical), config.data.crop)
        spacing = [s * n / m for (n, s), m in zip(typical, self.size, strict=True)]
        images: list[NDArray[np.float32]] = []
        labels, maps, raw_range = [], [], []
        shapes: dict[tuple[int, ...], str] = {}
        flat: list[str] = []
        kinds: set[np.dtype[Any]] = set()
        down = False
        for case in cases:
            kept = [plane for plane in self._planes(dataset, case) if not _flat(plane[0])]
            if not kept:
                flat.append(case.id)
            for image, mask in kept:
                shapes.setdefault(image.shape, case.id)
                kinds.add(image.array.dtype)
                down = lines_down(image) if not images else down
                array = resized(image, self.size).array
                scales = intensity_maps(array, config.intensity)
                images.append(mapped(array, scales))
                labels.append(names.index(case.label) if case.label in names else 0)
                raw_range.append([(m.raw[0], m.raw[-1]) for m in scales])
                if mask is not None:
                    maps.append(np.searchsorted(values, resized(mask, self.size, order=0).array[0]).astype(np.uint8))
        self._refuse_flat(dataset, names if like is None else (), labels, flat)
        if len({image.shape for image in images}) != 1:
            raise Refused("GEOM_CHANNELS_DIFFER", dataset.root, "the images differ in their number of channels",
                          "Keep images with the same channels in one data set")
        self.images, self.labels = np.stack(images), np.array(labels)
        self.maps = np.stack(maps) if maps else None
        self._rows = {int(c): np.flatnonzero(self.labels == c) for c in np.unique(self.labels)}
        self.warnings = (*class_warnings(dataset), *_flat_warning(flat), *_size_warnings(shapes, self.size))
        # Percentile maps differ from image to image; an image made on no real one's grid gets the median one.
        knots = np.median(np.array(raw_range), axis=0)
        self.interface: dict[str, Any] = {
            "channels": int(self.images.shape[1]), "classes": list(names), "size": list(self.size),
            "spacing_mm": [round(float(s), 4) for s in spacing], "raw_range": knots.tolist(),
            "dtype": str(np.result_type(*kinds)), "channel_names": list(dataset.channels),
            "lines_down": down}
        if self.maps is not None:
            self.interface["maps"] = [dataset.labels[value] for value in values]

    def _planes(self, dataset: Dataset, case: Case) -> list[Plane]:
        """The case as 3D volume, 2D image, or slices of the volume, as `data.dims` asks."""
        volume, mask = dataset.load(case)
        self._dims = self._dims or volume.dims
        if volume.dims != self._dims:
            raise Refused("DIM_UNSUPPORTED", case.images[0], f"it is {volume.dims}D and other images are {self._dims}D",
                          "Keep images and volumes in data sets of their own")
        if not self.config.network.label_maps:
            mask = None
        if volume.dims == 2:
            if self.config.data.dims == 3:
                raise Refused("DIM_UNSUPPORTED", case.images[0], "a 2D image cannot train a 3D network",
                              "Use --set data.dims=2")
            return [(volume, mask)]
        volume, mask = reorient(volume), None if mask is None else reorient(mask)
        if self.config.data.dims == 3:
            return [(volume, mask)]
        return [(_slice(volume, k), None if mask is None else _slice(mask, k)) for k in slices_of(volume.shape[2])]

    def _typical(self, dataset: Dataset, cases: Sequence[Case]) -> list[tuple[int, float]]:
        """The median number of voxels and spacing of each axis over a few cases."""
        some = np.unique(np.linspace(0, len(cases) - 1, SHAPES).astype(int))
        seen = [self._planes(dataset, cases[index])[0][0] for index in some]
        shape = np.median([image.shape for image in seen], axis=0)
        spacing = np.median([image.spacing_mm for image in seen], axis=0)
        return [(max(1, round(n)), float(s)) for n, s in zip(shape, spacing, strict=True)]

    def _refuse_flat(self, dataset: Dataset, names: Sequence[str], labels: Sequence[int], flat: Sequence[str]) -> None:
        """Refuses a data set whose images, or those of a class, have one value each."""
        empty = sorted(set(range(len(names))) - set(labels))
        if flat and empty:
            raise Refused("PIX_CONSTANT", dataset.root, f"every training image of the class {names[empty[0]]} has one "
                          f"value only ({flat[0]!r} first)", "Correct these images or take them out")

    def of_class(self, index: int) -> NDArray[np.float32]:
        """The stored images (n, C, ...) of a class."""
        return np.asarray(self.images[self.labels == index])

    def maps_of_class(self, index: int) -> NDArray[np.float32] | None:
        """The label maps (n, L, ...) of a class, one-hot, in the order of `of_class`; None without label maps."""
        return None if self.maps is None else self._one_hot(np.flatnonzero(self.labels == index))

    def _one_hot(self, rows: Sequence[int] | NDArray[np.intp]) -> NDArray[np.float32]:
        assert self.maps is not None
        return one_hot(self.maps[rows], len(self.interface["maps"]))

    def batch(self, step: int) -> Batch:
        """`training.batch` images, classes drawn as `training.balance` says."""
        rng = np.random.default_rng([self.config.seed, 2, step])
        shares = np.array([len(rows) for rows in self._rows.values()]) / len(self.labels)
        balance = self.config.training.balance
        chances = balance / len(shares) + (1 - balance) * shares
        classes = rng.choice(list(self._rows), self.config.training.batch, p=chances)
        rows = [int(self._rows[int(c)][rng.integers(len(self._rows[int(c)]))]) for c in classes]
        batch = {"image": torch.from_numpy(self.images[rows]), "class": torch.from_numpy(classes.astype(np.int64))}
        if self.maps is not None:
            batch["map"] = torch.from_numpy(self._one_hot(rows))
        return batch


def slices_of(depth: int) -> list[int]:
    """The slices of a volume of so many that 2D images are learned from: spread evenly, none near the ends."""
    return [int(k) for k in np.unique(np.linspace(0.15 * depth, max(0.15 * depth, 0.85 * depth - 1),
                                                  SLICES_PER_VOLUME).astype(int))]


def _slice(volume: Volume, k: int) -> Volume:
    return Volume(volume.array[..., k], volume.affine, volume.modality, volume.source)


def _refuse_unmasked(dataset: Dataset, cases: Sequence[Case]) -> None:
    without = [case.id for case in cases if case.mask is None]
    if without:
        raise Refused("LABEL_MISSING", dataset.root, f"{len(without)} of {len(cases)} training cases have no mask to "
                      f"be read as label map, {without[0]!r} first",
                      "Give every training case a mask, or leave network.label_maps off")


def _flat(image: Volume) -> bool:
    """Whether every channel has one value only, from which nothing can be learned."""
    return all(channel.min() == channel.max() for channel in image.array)


def _flat_warning(flat: Sequence[str]) -> tuple[str, ...]:
    if not flat:
        return ()
    return (f"{len(flat)} training images have one value only and were left out ({', '.join(flat[:3])}"
            + (" ...)." if len(flat) > 3 else ")."),)


def _size_warnings(shapes: dict[tuple[int, ...], str], size: tuple[int, ...]) -> tuple[str, ...]:
    """Says that images of several sizes were brought to one, and which are stretched a lot by that."""
    if len(shapes) < 2:
        return ()

    def stretch(shape: tuple[int, ...]) -> float:
        scales = np.array(size) / np.array(shape)
        return float(scales.max() / scales.min())

    ends = [" x ".join(map(str, shape)) for shape in (min(shapes, key=np.prod), max(shapes, key=np.prod))]
    said = [f"The images differ in size ({len(shapes)} sizes, from {ends[0]} to {ends[1]}): all were brought to "
            f"{' x '.join(map(str, size))}."]
    worst = max(shapes, key=stretch)
    if stretch(worst) > DISTORTED:
        many = sum(stretch(shape) > DISTORTED for shape in shapes)
        said.append(f"{many} of these sizes are stretched by more than {DISTORTED:g} along one axis, "
                    f"{shapes[worst]} ({' x '.join(map(str, worst))}) by {stretch(worst):.1f}: crop or pad the images "
                    "to one shape if that changes what they show.")
    return tuple(said)


def _fit(shape: tuple[int, ...], largest: int) -> tuple[int, ...]:
    """The network's image size: the data's own where it is small enough, else the longest edge at `largest`."""
    scale = min(1.0, largest / max(shape))
    return tuple(max(8, round(n * scale)) for n in shape)


def one_hot(numbers: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    """(n, ...) label numbers -> (n, count, ...) with 1 where the label is."""
    return np.stack([numbers == number for number in range(count)], axis=1).astype(np.float32)


def label_map(mask: Volume, labels: Sequence[int], size: Sequence[int]) -> NDArray[np.float32]:
    """A case's mask (1, X, Y[, Z]) as the network takes it: (1, L, *size), one-hot.

    Args:
        mask: On the image's grid.
        labels: The data set's mask values, background included; their order is that of the channels.
        size: The network's image size.
    """
    turned = reorient(mask) if mask.dims == 3 else mask
    numbers = np.searchsorted(sorted(labels), resized(turned, size, order=0).array[0]).astype(np.uint8)
    return one_hot(numbers[None], len(labels))


def sample(generator: nn.Module, index: int, count: int, seed: int, *, truncation: float = 1.0,
           maps: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Makes `count` images (count, C, ...) of class `index` from a seed.

    Args:
        generator: Of the image task.
        index: Number of the class.
        count: How many.
        seed: Draws the latent vectors.
        truncation: What these are multiplied by: below 1, images lie nearer to their class's mean and vary less
            (Brock et al. 2019 bound the vectors instead).
        maps: (1 or count, L, ...) label maps, for a generator that follows them.
    """
    assert isinstance(generator, ImageGenerator)
    device = next(generator.parameters()).device
    latent = torch.randn(count, generator.latent, generator=torch.Generator().manual_seed(seed)).to(device) * truncation
    classes = torch.full((count,), index, device=device)
    follow = None if maps is None else torch.from_numpy(np.array(np.broadcast_to(maps, (count, *maps.shape[1:]))))
    with torch.no_grad():
        made = in_parts(lambda rows: generator(
            latent[rows], classes[rows], None if follow is None else follow[rows].to(device)).float().cpu(), count)
    return np.asarray(made.numpy())


def made_volume(generator: nn.Module, run: Run, label: str | None, template: Volume | None, seed: int, *,
                truncation: float = 1.0, maps: NDArray[np.float32] | None = None) -> Volume:
    """One made image of a class in raw values, with the grid and type of a real one.

    Args:
        generator: The run's generator.
        run: Of the image task.
        label: A class of the run; None where it has none.
        template: A real image that gives shape, affine, dtype and, where intensities are mapped by percentiles, the
            range of values; None: the network's own grid, the data's dtype and the median range.
        seed: Draws the image.
        truncation: As for `sample`.
        maps: (1, L, ...) the label map it follows, as `label_map` gives it.

    Raises:
        Refused: `LABEL_UNKNOWN` for a class that the run does not know.
    """
    classes = list(run.interface["classes"])
    if label is not None and label not in classes:
        raise Refused("LABEL_UNKNOWN", run.path, f"it does not know the class {label!r}",
                      f"Use one of {', '.join(classes)}")
    made = sample(generator, classes.index(label) if label is not None else 0, 1, seed, truncation=truncation,
                  maps=maps)[0]
    intensity = run.config.intensity
    if intensity.knots is not None:
        scales = intensity_maps(made, intensity)
    elif template is not None:
        # Of the same class: the ranges of made images are spread as those of real ones are.
        scales = intensity_maps(template.array, intensity)
    else:
        scales = tuple(IntensityMap((low, high), (-1.0, 1.0)) for low, high in run.interface["raw_range"])
    raw = np.stack([scale.inverse(channel, np.float32) for scale, channel in zip(scales, made, strict=True)])
    small = Volume(raw, np.diag([*[*run.interface["spacing_mm"], 1.0][:3], 1.0]))
    if template is None:
        return replace(small, array=cast(small.array, np.dtype(run.interface["dtype"])), modality=run.config.modality)
    # The network's axes are those of RAS; the template's may be turned or flipped.
    turned = reorient(template) if template.dims == 3 else template
    placed = turned.with_array(cast(resized(small, turned.shape).array, template.array.dtype))
    return reorient(placed, template.orientation) if template.dims == 3 else placed
