"""What the reports of a run compare its images with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.learning.task import Probe
from medgan.learning.tasks.image import ImageTask
from medgan.verbs.watching import Watch


def test_held_out_images_are_what_reports_compare_with(tmp_path: Path, tiny: dict[str, object]) -> None:
    rng = np.random.default_rng(0)
    splits = ("train", "val", "test")
    arrays: dict[str, Any] = {f"{split}_images": rng.integers(0, 255, (40, 16, 16), dtype=np.uint8) for split in splits}
    arrays |= {f"{split}_labels": np.arange(40)[:, None] % 2 for split in splits}
    np.savez(tmp_path / "set.npz", **arrays)
    dataset = open_dataset(tmp_path / "set.npz")
    config = Config.resolve("xray", "image", settings=tiny)
    source = ImageTask.source(dataset, config)
    watch = Watch(dataset, source, config)
    assert watch.against == "validation images" and watch.held_out is not None
    held = watch.held_out[0]
    assert len(held) == 40 and not any(np.array_equal(one, other) for one in held for other in source.images)
    task = ImageTask(config, source.interface)

    def probe_of(made: NDArray[np.float32], classes: NDArray[np.int64]) -> dict[str, Any]:
        task.probe = lambda *_: Probe(made, source.images, classes, source.labels)  # type: ignore[method-assign]
        return watch(task, task.generator)

    same, flat = probe_of(source.images, source.labels), probe_of(0 * source.images, source.labels)
    assert same["fidelity/n"] == flat["fidelity/n"] == 20
    assert same["fidelity/mmd2"] < flat["fidelity/mmd2"] and flat["fidelity/mmd2"] > 0.1 > same["fidelity/mmd2_floor"]
    assert flat["fidelity/coverage"] < 0.2 < same["fidelity/coverage"] <= 1
    only = Watch(dataset.only(dataset.split("train")), source, config)
    assert only.against == "training images" and only.held_out is None


def test_held_out_images_are_read_as_the_run_reads_its_own(tmp_path: Path, tiny: dict[str, object]) -> None:
    """Validation images of other sizes, and without one of the classes, are still what reports compare with."""
    rng = np.random.default_rng(0)
    for split, names, shape in (("train", "abc", (20, 16)), ("val", "bc", (26, 16))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(12):
                np.save(tmp_path / split / name / f"{split}{number}.npy", rng.integers(0, 255, shape, dtype=np.uint8))
    dataset, config = open_dataset(tmp_path), Config.resolve("xray", "image", settings=tiny | {"data.crop": 16})
    source = ImageTask.source(dataset, config)
    watch = Watch(dataset, source, config)
    assert watch.against == "validation images" and watch.held_out is not None
    images, classes = watch.held_out
    assert images.shape[1:] == source.images.shape[1:] and sorted(set(classes.tolist())) == [1, 2]
