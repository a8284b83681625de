"""The images that `evaluate` looks at: real training, held-out and synthetic ones, all read in one way."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.classes import ONLY_CLASS
from medgan.datasets.hashing import hashed_record
from medgan.datasets.layouts import LAYOUTS
from medgan.datasets.provenance import read_if_synthetic
from medgan.datasets.splits import patient_key
from medgan.errors import Refused
from medgan.imaging.geometry import reorient, resized
from medgan.imaging.intensity import intensity_maps, mapped
from medgan.imaging.planar import lines_down
from medgan.imaging.volume import Volume
from medgan.verbs.judging import Roles

#: Fewer images than this, real or synthetic, and no figure means anything.
FEWEST = 10
#: Percentiles of the raw values that are told of each image.
RAW = (1.0, 50.0, 99.0)
#: Raw values differ where the synthetic median of a percentile lies off by this part of the real range.
RAW_APART = 0.25


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of one size, and whose they are.

    Args:
        images: (N, C, X, Y[, Z]) float32 network values.
        labels: (N,) class of each.
        patients: (N,) whose picture it is.
        ids: (N,) of the case.
        raw: (N, 3) percentiles `RAW` of the stored values of the first channel.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.str_]
    patients: NDArray[np.str_]
    ids: NDArray[np.str_]
    raw: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[Any]) -> Pictures:
        """Some of them, by number or by mask."""
        return Pictures(self.images[index], self.labels[index], self.patients[index], self.ids[index], self.raw[index])

    def thinned(self, most: int, seed: int) -> Pictures:
        """At most `most` of each class, drawn by the seed."""
        rng = np.random.default_rng([seed, 0x7E1])
        kept = []
        for label in np.unique(self.labels):
            rows = np.flatnonzero(self.labels == label)
            kept.append(rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False)))
        return self.take(np.concatenate(kept)) if kept else self

    def counts(self) -> dict[str, int]:
        """Class -> how many."""
        return {str(name): int(count) for name, count in sorted(Counter(self.labels.tolist()).items())}


@dataclass(frozen=True, eq=False)
class Material:
    """What is compared.

    Args:
        train: Real images that the synthetic ones stand beside.
        heldout: Real images of other patients, to test on.
        made: Synthetic images.
        names: Classes of the real training images, in their data set's order.
        classes: Those in which there are enough real and synthetic images.
        crops: Whether the images are crops around lesions.
        lines_down: Whether the second axis of the images runs down the page, as in rasters; else up, as in RAS.
        heldout_from: Where the held-out images are from, in words.
        warnings: What a reader of the figures has to know.
    """

    train: Pictures
    heldout: Pictures
    made: Pictures
    names: tuple[str, ...]
    classes: tuple[str, ...]
    crops: bool
    lines_down: bool
    heldout_from: str
    warnings: tuple[str, ...]


Tell = Callable[[int, int], None]


def gather(found: Roles, config: Config, tell: Tell = lambda done, total: None) -> Material:
    """Reads all images: one way, one size, one intensity mapping for real and synthetic ones.

    Args:
        found: Which cases are what.
        config: Its intensity mapping and `evaluate.size`.
        tell: Told of cases done and cases in all.

    Raises:
        Refused: What reading refuses; `GEOM_CHANNELS_DIFFER`; `DIM_UNSUPPORTED` for 2D against 3D the wrong way round;
            `DATASET_EMPTY` for fewer than `FEWEST` images of a kind in every class; `SPLIT_LEAK` where an image of
            the held-out data set is a training image or a synthetic one.
    """
    reader = _Lesions(found, config) if found.kind == "lesions" else _Whole(found, config)
    total = len(found.train) + len(found.heldout) + len(found.made)
    done = 0

    def read(dataset: Dataset, cases: Sequence[Case]) -> Pictures:
        nonlocal done
        rows: list[_Row] = []
        for case in cases:
            rows += reader.rows(dataset, case)
            done += 1
            tell(done, total)
        return _joined(rows, dataset)

    train, test, made = (read(dataset, cases) for dataset, cases in (
        (found.real, found.train), (found.other, found.heldout), (found.synthetic, found.made)))
    if len({pictures.images.shape[1] for pictures in (train, test, made)}) > 1:
        raise Refused("GEOM_CHANNELS_DIFFER", found.synthetic.root,
                      f"its images have {made.images.shape[1]} channels, the real ones {train.images.shape[1]} and the "
                      f"held-out ones {test.images.shape[1]}", "Give the same channels on all sides")
    warnings = list(found.warnings)
    test = _without_twins(train, made, test, found, warnings)
    names = [name for name in reader.classes if name in set(train.labels)]
    classes = _large_enough(names, train, made, found, warnings)
    warnings += _raw_apart(train, made) + _constant(made)
    return Material(train, test, made, tuple(names), classes, found.kind == "lesions",
                    lines_down(found.real.load(found.train[0])[0]), found.heldout_from, tuple(warnings))


#: Image in network values, class, patient, id, raw percentiles.
_Row = tuple[NDArray[np.float32], str, str, str, NDArray[np.float64]]


class _Whole:
    """Whole images: resized so that the longest edge is `evaluate.size` at most, in the shape most real ones have."""

    def __init__(self, found: Roles, config: Config) -> None:
        self.config = config
        self.classes = found.real.classes if found.kind == "classes" else (ONLY_CLASS,)
        self.named = found.kind == "classes"
        real, made = (dataset.load(cases[0])[0] for dataset, cases in (
            (found.real, found.train), (found.synthetic, found.made)))
        if made.dims == 3 and real.dims == 2:
            raise Refused("DIM_UNSUPPORTED", found.synthetic.root, "its images are volumes, the real ones are not",
                          "Compare images with images, or volumes with volumes")
        self.dims = made.dims
        shapes = Counter(next(self._parts(found.real.load(case)[0])).shape for case in found.train[:50])
        shape = shapes.most_common(1)[0][0]
        scale = min(1.0, config.evaluate.size / max(shape))
        self.size = tuple(max(8, round(n * scale)) for n in shape)

    def rows(self, dataset: Dataset, case: Case) -> Iterator[_Row]:
        volume, _ = dataset.load(case)
        label = str(case.label) if self.named else ONLY_CLASS
        for part in self._parts(volume):
            raw = np.percentile(part.array[0], RAW)
            array = resized(part, self.size).array
            values = mapped(array, intensity_maps(array, self.config.intensity))
            yield values, label, patient_key(case), case.id, raw

    def _parts(self, volume: Volume) -> Iterator[Volume]:
        if volume.dims == 2:
            if self.dims == 3:
                raise Refused("DIM_UNSUPPORTED", volume.source or "image", "a 2D image among volumes",
                              "Keep images of one kind in one data set")
            yield volume
            return
        volume = reorient(volume)
        if self.dims == 3:
            yield volume
            return
        from medgan.learning.tasks.image_source import slices_of

        for k in slices_of(volume.shape[2]):
            yield Volume(volume.array[..., k], volume.affine, volume.modality, volume.source)


class _Lesions:
    """Crops around the largest section of each lesion, which fills as much of them as of the generator's crops."""

    def __init__(self, found: Roles, config: Config) -> None:
        from medgan.lesions.scans import mask_values

        self.config = config
        self.found = found
        self.parents = {case.id: (dataset, case) for dataset in (found.real, found.synthetic)
                        for case in dataset.cases if not case.synthetic}
        values = mask_values(found.real, config.data.organs)
        self.classes = tuple(found.real.labels[value] for value in values)

    def rows(self, dataset: Dataset, case: Case) -> Iterator[_Row]:
        from medgan.lesions.crops import Grid, working_spacing
        from medgan.lesions.library import MOST_PER_CASE, main_label
        from medgan.lesions.scans import mask_values, open_scan
        from medgan.lesions.shapes import find_lesions

        config = self.config.model_copy(update={"data": self.config.data.model_copy(update={"dims": 2})})
        scan = open_scan(dataset, case, config)
        if case.synthetic:
            scan = replace(scan, labels=self._new_labels(dataset, case, scan.labels, config))
        names = {i: dataset.labels[v] for i, v in enumerate(mask_values(dataset, self._organs(dataset)), start=1)}
        size, finest = self.config.evaluate.size, float(np.min(scan.spacing_mm[:2]))
        for lesion in find_lesions(scan)[:MOST_PER_CASE]:
            k = int((lesion.labels > 0).sum(axis=(0, 1)).argmax())
            section = np.argwhere(lesion.labels[:, :, k] > 0)
            extent = float(((np.ptp(section, axis=0) + 1) * scan.spacing_mm[:2]).max())
            step = working_spacing(extent, finest, size) / scan.spacing_mm[:2]
            grid = Grid(np.array([*((section.min(axis=0) + section.max(axis=0)) / 2 + lesion.corner[:2]), 0.0]),
                        np.array([*step, 1.0]), (size, size, 1))
            plane = scan.image[:, :, :, k + int(lesion.corner[2])]
            image = np.stack([grid.cut(channel[:, :, None], order=1)[..., 0] for channel in plane]).astype(np.float32)
            raw = np.percentile(scan.volume.array[0], RAW)
            yield image, names[main_label(lesion)], patient_key(case), case.id, raw

    def _organs(self, dataset: Dataset) -> tuple[str, ...]:
        return tuple(organ for organ in self.config.data.organs if organ in dataset.labels.values())

    def _new_labels(self, dataset: Dataset, case: Case, labels: NDArray[np.uint8], config: Config
                    ) -> NDArray[np.uint8]:
        """The labels of what was put in; those that the case has from its parent are real ones."""
        from medgan.lesions.scans import open_scan

        record = read_if_synthetic(LAYOUTS[dataset.layout].sidecar(case))
        if record is None or record.gates.get("removed", 0) > 0 or not record.parents:
            return labels
        record = hashed_record(record) if dataset.names else record
        if record.parents[0] not in self.parents:
            return labels
        parent = open_scan(*self.parents[record.parents[0]], config)
        return labels if parent.labels.shape != labels.shape else np.where(parent.labels > 0, 0, labels).astype(
            labels.dtype)


def _joined(rows: Sequence[_Row], dataset: Dataset) -> Pictures:
    if not rows:
        raise Refused("DATASET_EMPTY", dataset.root, "no lesion is marked in the cases that are compared",
                      "Give masks with at least one lesion")
    if len({row[0].shape[0] for row in rows}) > 1:
        raise Refused("GEOM_CHANNELS_DIFFER", dataset.root, "the images differ in their number of channels",
                      "Keep images with the same channels in one data set")
    images, labels, patients, ids, raw = zip(*rows, strict=True)
    return Pictures(np.stack(images), np.array(labels), np.array(patients), np.array(ids), np.stack(raw))


def _without_twins(train: Pictures, made: Pictures, test: Pictures, found: Roles, warnings: list[str]) -> Pictures:
    """Held-out images without those that are training or synthetic images too, pixel by pixel."""
    kept = np.ones(len(test), bool)
    for others, dataset, told in ((train, found.real, "training"), (made, found.synthetic, "synthetic")):
        seen = {_digest(image): str(case) for image, case in zip(others.images, others.ids, strict=True)
                if _varies(image)}
        twins = np.array([_digest(image) in seen for image in test.images])
        if not twins.any():
            continue
        first = int(twins.argmax())
        if found.other is not found.real or not (kept & ~twins).any():
            raise Refused("SPLIT_LEAK", found.other.root, f"its case {str(test.ids[first])!r} is the {told} case "
                          f"{seen[_digest(test.images[first])]!r} of {dataset.root}, pixel by pixel",
                          "Hold out other images")
        warnings.append(f"{int(twins.sum())} held-out images are {told} images too, pixel by pixel; they were left "
                        "out.")
        kept &= ~twins
    return test if kept.all() else test.take(kept)


def _varies(image: NDArray[np.float32]) -> bool:
    """Whether there is anything in an image: two empty ones are not the same patient's."""
    return bool(image.min() < image.max())


def _digest(image: NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


def _large_enough(names: Sequence[str], train: Pictures, made: Pictures, found: Roles, warnings: list[str]
                  ) -> tuple[str, ...]:
    real_counts, made_counts = train.counts(), made.counts()
    kept = []
    for name in names:
        counts = {"real": real_counts.get(name, 0), "synthetic": made_counts.get(name, 0)}
        if min(counts.values()) >= FEWEST:
            kept.append(name)
        elif counts["synthetic"] == 0:
            warnings.append(f"There is no synthetic image of class {name}.")
        else:
            few = min(counts, key=lambda side: counts[side])
            warnings.append(f"Class {name} has {counts[few]} {few} images; below {FEWEST} no figure means anything, "
                            "and none is given.")
    if not kept:
        raise Refused("DATASET_EMPTY", found.synthetic.root, f"no class has {FEWEST} real and {FEWEST} synthetic "
                      f"images (real: {_listed(real_counts)}; synthetic: {_listed(made_counts)})",
                      "Make more, for example with medgan synthesize --count 200")
    return tuple(kept)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _raw_apart(train: Pictures, made: Pictures) -> list[str]:
    """Says where stored values differ so much that the mapping, an image at a time, hides it."""
    real, new = np.median(train.raw, axis=0), np.median(made.raw, axis=0)
    span = max(float(real[-1] - real[0]), 1e-9)
    if np.abs(new - real).max() <= RAW_APART * span:
        return []
    texts = [" / ".join(f"{value:.4g}" for value in side) for side in (real, new)]
    return [f"Stored values differ: percentiles {', '.join(f'{p:g}' for p in RAW)} of the typical real image are "
            f"{texts[0]}, of the typical synthetic one {texts[1]}. Images were compared after mapping their values to "
            "one range, which hides this."]


def _constant(made: Pictures) -> list[str]:
    flat = int((np.ptp(made.images.reshape(len(made), -1), axis=1) == 0).sum())
    return [f"{flat} of {len(made)} synthetic images have one value everywhere."] if flat else []
